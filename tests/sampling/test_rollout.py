import pytest
import torch

from gflow.conditions import Conditions
from gflow.envs.grids import HyperGrid
from gflow.envs.molecules import FragmentMolecules
from gflow.mdp import States, evaluate
from gflow.policies import MLPPolicy
from gflow.policies.tree import TreePolicy
from gflow.sampling import Exploration, compile_block, rollout
from gflow.seeding import generator
from tests.sampling.records import check_record

NEEDS = frozenset({"log_pb", "log_flow", "log_z"})


def sample(n=50, dim=2, side=5, seed=0, dtype=torch.float32, backward="learned", **options):
    env = HyperGrid(dim, side)
    policy = MLPPolicy(env, (32,), backward=backward, flow=True, seed=seed).to(dtype)
    condition = Conditions().sample(n, dtype=dtype)
    return policy, rollout(policy, env.initial(n), condition, generator(seed), **options)


def test_the_record_is_consistent():
    policy, batch = sample()
    check_record(policy.env, batch)
    assert batch.lengths.min() < batch.lengths.max()
    assert batch.terminal.done.all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_re_evaluation_returns_the_stored_log_probabilities(dtype, tolerance):
    policy, batch = sample(dtype=dtype, keep_log_pf=True)
    again = evaluate(policy, batch, frozenset()).log_pf
    assert again.dtype == dtype
    assert torch.allclose(again, batch.log_pf_old, atol=tolerance)
    assert (again[batch.valid] < 0).any() and (again[~batch.valid] == 0).all()


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_kept_log_probabilities_are_those_of_what_sampled(epsilon, temperature):
    """(1 - epsilon) times the tempered policy plus epsilon times an even choice."""
    explore = Exploration(epsilon, temperature)
    policy, batch = sample(dtype=torch.float64, keep_log_pf=True, exploration=explore)
    row, column = batch.valid.nonzero(as_tuple=True)
    states = States(batch.states[row, column], column, torch.zeros_like(row, dtype=torch.bool))
    heads = policy(states, batch.condition.rows(row), frozenset({"log_pf"}))
    tempered = (heads.forward.logits / temperature).softmax(-1)
    legal = policy.env.forward_mask(states).double()
    mixture = (1 - epsilon) * tempered + epsilon * legal / legal.sum(-1, keepdim=True)
    chosen = mixture[torch.arange(len(row)), batch.actions[row, column]]
    assert torch.allclose(batch.log_pf_old[row, column], chosen.log(), atol=1e-12)
    assert (batch.log_pf_old[~batch.valid] == 0).all()


def test_kept_log_probabilities_of_factored_actions():
    """Both factors explore together: an even choice among all pairs, not one of each kind."""
    env = FragmentMolecules(max_fragments=3)
    policy = TreePolicy(env, hidden=16, layers=1, seed=0).double()
    condition = Conditions().sample(40, dtype=torch.float64)
    batch = rollout(
        policy, env.initial(40), condition, generator(0), keep_log_pf=True,
        exploration=Exploration(0.3, 1.5),
    )  # fmt: skip
    row, column = batch.valid.nonzero(as_tuple=True)
    states = States(batch.states[row, column], column, torch.zeros_like(row, dtype=torch.bool))
    kernel = policy(states, batch.condition.rows(row), frozenset({"log_pf"})).forward
    one, two = batch.actions[row, column].unbind(-1)
    tempered = even = torch.ones(len(row), dtype=torch.float64)
    for logits, chosen in ((kernel.first.logits, one), (kernel.second(one).logits, two)):
        tempered = tempered * (logits / 1.5).softmax(-1).gather(1, chosen[:, None])[:, 0]
        even = even / (logits > -torch.inf).sum(-1)
    expected = (0.7 * tempered + 0.3 * even).log()
    assert torch.allclose(batch.log_pf_old[row, column], expected, atol=1e-12)


def test_large_batches_drop_finished_rows_without_changing_any_row():
    """Each row's trajectory must be self-consistent although the batch was compacted."""
    policy, batch = sample(n=300, dim=3, side=8, keep_log_pf=True)
    assert batch.lengths.min() < 4 < 10 < batch.lengths.max()
    again = evaluate(policy, batch, frozenset()).log_pf
    assert torch.allclose(again, batch.log_pf_old, atol=1e-5)
    moved = batch.states.sum(-1).diff(dim=1)
    stop = torch.arange(batch.valid.shape[1]) == batch.lengths[:, None] - 1
    assert torch.equal(moved, (batch.valid & ~stop).long())


def test_backward_rollouts_return_forward_records():
    policy, batch = sample(n=200)
    again = rollout(policy, batch.terminal, batch.condition, generator(5), backward=True)
    assert torch.equal(again.lengths, batch.lengths)
    assert torch.equal(again.terminal.data, batch.terminal.data)
    assert (again.states[:, 0] == 0).all()
    assert not torch.equal(again.states, batch.states)
    check_record(policy.env, again)
    ev = evaluate(policy, again, NEEDS)
    assert torch.isfinite(ev.log_pf).all() and torch.isfinite(ev.log_pb).all()


def test_forward_walks_from_states_on_the_way_know_their_step():
    seen = []

    class Watched(HyperGrid):
        def backward_action(self, states, actions):
            seen.append(states)
            return super().backward_action(states, actions)

    env = Watched(2, 5)
    policy, n = MLPPolicy(env, (16,)), 50
    start = env.encode([(1, 2), (0, 3)] * (n // 2))
    start = States(start.data, start.step - 1, torch.zeros_like(start.done))
    batch = rollout(policy, start, Conditions().sample(n), generator(0))
    assert torch.equal(batch.states[:, 0], start.data)
    # Before the stop, a step is one coordinate raised by one.
    states = seen[0]
    assert torch.equal(states.step[~states.done], states.data.sum(1)[~states.done])
    assert torch.equal(~states.done, batch.valid.flatten())


@pytest.mark.parametrize("backward", ["learned", "uniform", "paths"])
def test_backward_policies_are_normalised_over_paths(backward):
    """The backward probabilities of all paths to one point sum to 1."""
    env = HyperGrid(2, 4)
    policy = MLPPolicy(env, (16,), backward=backward).double()
    target = env.encode([(2, 2)] * 2000)
    condition = Conditions().sample(2000, dtype=torch.float64)
    batch = rollout(policy, target, condition, generator(0), backward=True)
    log_pb = evaluate(policy, batch, frozenset({"log_pb"})).log_pb.sum(1)
    paths, member, count = batch.actions.unique(dim=0, return_inverse=True, return_counts=True)
    assert len(paths) == 6
    probability = torch.stack([log_pb[member == i][0].exp() for i in range(6)])
    assert probability.sum().item() == pytest.approx(1)
    assert torch.allclose(count / 2000, probability.detach().float(), atol=0.04)
    if backward == "paths":
        assert torch.allclose(probability, torch.full_like(probability, 1 / 6))
        total = evaluate(policy, batch, frozenset({"log_pb_total"})).log_pb.sum(1)
        assert torch.allclose(total, log_pb)


def test_exploration_widens_the_behaviour():
    _, plain = sample(n=500, side=8)
    _, explored = sample(n=500, side=8, exploration=Exploration(temperature=1000.0))
    _, uniform = sample(n=500, side=8, exploration=Exploration(epsilon=1.0))
    assert abs(explored.lengths.float().mean() - uniform.lengths.float().mean()) < 0.5
    assert not torch.equal(plain.terminal.data, explored.terminal.data)
    with pytest.raises(ValueError, match="epsilon"):
        Exploration(epsilon=1.5)


def test_the_same_generator_state_gives_the_same_batch():
    first, second = sample(seed=3)[1], sample(seed=3)[1]
    assert torch.equal(first.actions, second.actions)
    before = torch.get_rng_state()
    sample(seed=4)
    assert torch.equal(before, torch.get_rng_state())


def test_padding_has_no_gradient():
    policy, batch = sample()
    ev = evaluate(policy, batch, NEEDS)
    for values in (ev.log_pf, ev.log_pb, ev.log_flow):
        assert (values[~batch.valid] == 0).all()
    stop = torch.arange(batch.valid.shape[1]) == batch.lengths[:, None] - 1
    assert (ev.log_pb[stop] == 0).all()
    (ev.log_pf.sum() + ev.log_pb.sum() + ev.log_flow.sum() + ev.log_z.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters())


@pytest.mark.slow
def test_compiled_blocks_sample_what_eager_ones_do():
    eager = sample(n=16)[1]
    compiled = sample(n=16, block=compile_block())[1]
    assert torch.equal(eager.actions, compiled.actions)
