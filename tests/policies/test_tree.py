import math
import pickle
from collections import Counter

import pytest
import torch

from gflow.envs.molecules import FragmentMolecules, Vocabulary
from gflow.mdp import Condition, States, concat_states, evaluate
from gflow.policies.tree import TreePolicy
from gflow.sampling.rollout import rollout
from tests.envs.molecule_walks import children, merge, random_molecules, walk

ALL = frozenset({"log_pf", "log_pb", "log_flow"})
EVERYTHING = frozenset({"log_pb", "log_flow", "log_z"})
TRUNKS = ("tree", "mlp")


@pytest.fixture(scope="module")
def env():
    return FragmentMolecules(max_fragments=6)


def conditions(n, dtype=torch.float32, size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    encoding = torch.rand(n, size, dtype=dtype, generator=generator)
    return Condition(encoding, None, torch.ones(n, dtype=dtype))


def policy_of(env, trunk, dtype=torch.float32, **settings):
    settings = {"condition_size": 3, "hidden": 32, "layers": 2, "flow": True} | settings
    return TreePolicy(env, trunk=trunk, **settings).to(dtype)


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_reevaluation_gives_the_stored_log_probabilities(env, trunk, dtype, tolerance):
    policy = policy_of(env, trunk, dtype, backward="learned")
    generator = torch.Generator().manual_seed(0)
    condition = conditions(64, dtype)
    batch = rollout(policy, env.initial(64), condition, generator, keep_log_pf=True)
    result = evaluate(policy, batch, EVERYTHING)
    assert result.log_pf.dtype == dtype and batch.log_pf_old.dtype == dtype
    torch.testing.assert_close(result.log_pf, batch.log_pf_old, rtol=0, atol=tolerance)
    alone = evaluate(policy, batch.rows(torch.tensor([5])), EVERYTHING)
    length = int(batch.lengths[5])
    for name in ("log_pf", "log_pb", "log_flow"):
        whole, one = getattr(result, name)[5, :length], getattr(alone, name)[0, :length]
        torch.testing.assert_close(whole, one, rtol=0, atol=tolerance)


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("backward", ["learned", "uniform", "paths"])
def test_kernels_are_distributions_over_legal_actions(env, trunk, backward):
    policy = policy_of(env, trunk, torch.float64, backward=backward)
    states = concat_states([states for states, _ in walk(env, 4)])
    heads = policy(states, conditions(states.n, torch.float64), ALL)
    log_p = heads.forward.log_probs().view(states.n, *env.action_sizes).exp()
    torch.testing.assert_close(log_p.sum((1, 2)), torch.ones(states.n, dtype=torch.float64))
    legal = env.forward_mask(states)[..., None].expand_as(log_p).clone()
    for slot in range(env.action_sizes[0]):
        legal[:, slot] &= env.forward_mask(states, torch.full((states.n,), slot))
    assert torch.equal(log_p > 0, legal)
    back = heads.backward.log_probs().exp()
    torch.testing.assert_close(back.sum(1), torch.ones(states.n, dtype=torch.float64))
    assert torch.equal(back > 0, env.backward_mask(states))
    assert heads.log_flow.shape == (states.n,)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_parameter_gets_a_gradient(env, trunk):
    policy = policy_of(env, trunk, backward="learned")
    condition = conditions(32)
    batch = rollout(policy, env.initial(32), condition, torch.Generator().manual_seed(0))
    result = evaluate(policy, batch, EVERYTHING)
    parts = (result.log_pf, result.log_pb, result.log_flow, result.log_z)
    sum(part.square().sum() for part in parts).backward()
    idle = [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def other_roots(env, states, seed=0):
    """Tables of the same molecules, hung up at other roots."""
    again = env.encode(env.decode(states))
    same = env.count_ways(states).key == env.count_ways(again).key
    moved = same & (states.data != again.data).flatten(1).any(1)
    return states.rows(moved), again.rows(moved)


def test_tree_trunk_does_not_see_the_root():
    # Fragments without symmetry: one molecule's tables differ in nothing but the root.
    vocabulary = Vocabulary(("n1ccccc1CO", "OCc1cocn1", "C1CC1N"), ((1, 4, 7), (0, 3), (0, 3)))
    env = FragmentMolecules(vocabulary, max_fragments=5)
    one, other = other_roots(env, random_molecules(env, 200))
    assert one.n > 50
    policy = policy_of(env, "tree", torch.float64)
    condition = conditions(one.n, torch.float64)
    going = [States(s.data, s.step - 1, torch.zeros_like(s.done)) for s in (one, other)]
    heads = [policy(states, condition, ALL) for states in going]
    torch.testing.assert_close(heads[0].log_flow, heads[1].log_flow)
    stop = [h.forward.first.log_probs()[:, -1] for h in heads]
    torch.testing.assert_close(*stop)
    spread = heads[0].log_flow.std()
    assert spread > 1e-3
    flat = policy_of(env, "mlp", torch.float64)
    flows = [flat(states, condition, ALL).log_flow for states in going]
    assert (flows[0] - flows[1]).abs().max() > 1e-3


def test_fixed_shapes_give_the_same_as_real_nodes_only(env, monkeypatch):
    policy = policy_of(env, "tree", torch.float64, backward="learned")
    states = concat_states([states for states, _ in walk(env, 10)])
    condition = conditions(states.n, torch.float64)
    one = policy(states, condition, ALL)
    slots = torch.zeros(states.n, dtype=torch.int64)
    first = one.forward.second(slots).log_probs()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    other = policy(states, condition, ALL)
    torch.testing.assert_close(other.forward.first.log_probs(), one.forward.first.log_probs())
    torch.testing.assert_close(other.forward.second(slots).log_probs(), first)
    torch.testing.assert_close(other.backward.log_probs(), one.backward.log_probs())
    torch.testing.assert_close(other.log_flow, one.log_flow)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_interchangeable_halves_are_equally_likely(trunk):
    env = FragmentMolecules(Vocabulary(("c1ccccc1", "Cc1ccccc1"), (tuple(range(6)), (0, 2, 6))))
    policy = policy_of(env, trunk, torch.float64)
    start = env.step(env.initial(1), torch.tensor([[0, env.n_halves]]))
    log_p = policy(start, conditions(1, torch.float64), ALL).forward.second(torch.tensor([2]))
    p = log_p.log_probs()[0, : env.n_halves]
    assert len({round(x, 10) for x in p.tolist()}) == 3
    torch.testing.assert_close(p[:6], p[:1].expand(6))
    torch.testing.assert_close(p[7], p[8])


def test_the_condition_matters_and_seeds_do_too(env):
    states = random_molecules(env, 4)
    for trunk in TRUNKS:
        policy = policy_of(env, trunk, seed=1)
        one = policy(states, conditions(4), ALL).log_flow
        assert not torch.allclose(one, policy(states, conditions(4, seed=1), ALL).log_flow)
        again = policy_of(env, trunk, seed=1)(states, conditions(4), ALL).log_flow
        assert torch.equal(one, again)
        other = policy_of(env, trunk, seed=2)(states, conditions(4), ALL).log_flow
        assert not torch.allclose(one, other)
        plain = policy_of(env, trunk, condition_size=0)
        none = Condition(torch.zeros(4, 0), None, torch.ones(4))
        assert plain(states, none, ALL).log_flow.shape == (4,)


def test_policy_survives_pickling(env):
    policy = policy_of(env, "tree")
    again = pickle.loads(pickle.dumps(policy))
    states = random_molecules(env, 3)
    one, other = (p(states, conditions(3), ALL).log_flow for p in (policy, again))
    assert torch.equal(one, other)


def test_bad_settings(env):
    with pytest.raises(ValueError, match="trunk must be 'tree', 'mlp' or a function, not 'gnn'"):
        TreePolicy(env, trunk="gnn")
    with pytest.raises(ValueError, match="at least one layer"):
        TreePolicy(env, layers=0)


def terminating(env, policy):
    """Exact probability of each molecule (by its key) under the policy, over all its tables."""
    states, p = env.initial(1), torch.ones(1, dtype=torch.float64)
    total = Counter()
    for size in range(env.max_fragments + 1):
        none = Condition(torch.zeros(states.n, 0), None, torch.ones(states.n))
        with torch.no_grad():
            kernel = policy(states, none, ALL).forward
            first = kernel.first.log_probs().exp()
        if size > 0:
            keys = env.count_ways(states).key.tolist()
            for key, q in zip(keys, (p * first[:, -1]).tolist(), strict=True):
                total[key] += q
        if size == env.max_fragments:
            return total
        row, actions, grown = children(env, states)
        none = Condition(torch.zeros(len(row), 0), None, torch.ones(len(row)))
        with torch.no_grad():
            q = policy(states.rows(row), none, ALL).forward.log_prob(actions).double().exp()
        states, p = merge(grown, p[row] * q, grown.data)


def test_training_towards_exact_path_counts_samples_molecules_by_their_reward():
    vocabulary = Vocabulary(("c1ccccc1", "O", "CC"), ((0, 1, 3), (0, 0), (0, 0, 1)))
    env = FragmentMolecules(vocabulary, max_fragments=3, min_fragments=1)

    def log_reward(states):
        return torch.sin(env.count_ways(states).key.double() % 1000)

    policy = TreePolicy(env, hidden=32, layers=2, backward="paths")
    optimizer = torch.optim.Adam(
        [
            {"params": [p for n, p in policy.named_parameters() if "log_z" not in n], "lr": 3e-3},
            {"params": policy.log_z.parameters(), "lr": 0.1},
        ]
    )
    generator, n = torch.Generator().manual_seed(0), 64
    none = Condition(torch.zeros(n, 0), None, torch.ones(n))
    for _ in range(300):
        batch = rollout(policy, env.initial(n), none, generator)
        result = evaluate(policy, batch, frozenset({"log_pb_total", "log_z"}))
        balance = result.log_z + result.log_pf.sum(1) - result.log_pb.sum(1)
        loss = (balance - log_reward(batch.terminal)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    states, everything = env.initial(1), []
    for _ in range(3):
        _, _, grown = children(env, states)
        states, _ = merge(grown, torch.ones(grown.n), grown.data)
        everything.append(states)
    molecules = concat_states(everything)
    rewards = dict(
        zip(
            env.count_ways(molecules).key.tolist(),
            log_reward(molecules).exp().tolist(),
            strict=True,
        )
    )
    p, z = terminating(env, policy), sum(rewards.values())
    assert p.keys() == rewards.keys() and len(p) > 40
    assert p.total() == pytest.approx(1.0, abs=1e-5)
    assert sum(abs(p[key] - r / z) for key, r in rewards.items()) / 2 < 0.05
    assert float(policy.log_z(none)[0].detach()) == pytest.approx(math.log(z), abs=0.1)
