import pytest
import torch

from gflow.conditions import Conditions, InverseTemperature
from gflow.envs.grids import HyperGrid
from gflow.estimators import terminating_distribution
from gflow.mdp import evaluate
from gflow.objectives.balance import TrajectoryBalance
from gflow.policies import LogZ
from gflow.sampling import (
    Bootstrap,
    EnsembleConditions,
    EnsemblePolicy,
    OnPolicy,
    Replay,
    Scorer,
    WithReplay,
)
from gflow.training import Trainer, TrainerSettings
from tests.diamond import close
from tests.problems import CornerOracle
from tests.sampling.records import Fixed, same_batches

RANGE = InverseTemperature("uniform", 1, 4)


def ensemble(n_heads=5, side=6, conditions=None, share=0.5, n=32, **options):
    env = HyperGrid(2, side)
    conditions = EnsembleConditions(**vars(conditions or Conditions()), n_heads=n_heads)
    policy = EnsemblePolicy(env, n_heads, (16,), conditions.encoding_size, **options)
    sampler = OnPolicy(policy, conditions, Scorer(env, CornerOracle(side)), n, 0, keep_log_pf=True)
    return policy, Bootstrap(sampler, policy, 0, share)


def head_condition(head, n):
    condition = Conditions().sample(n)
    return condition._replace(encoding=torch.full((n, 1), float(head)))


def test_one_head_explores_for_a_whole_trajectory():
    policy, strategy = ensemble(conditions=Conditions(1, RANGE), n=300)
    batch = strategy.fresh()
    assert batch.condition.encoding.shape[1] == policy.condition_size + 1
    assert set(batch.condition.encoding[:, -1].tolist()) == {0.0, 1, 2, 3, 4}
    again = evaluate(policy, batch, frozenset()).log_pf
    close(again, batch.log_pf_old, 1e-5)
    other = batch.condition.encoding.clone()
    other[:, -1] = (other[:, -1] + 1) % 5
    batch.condition = batch.condition._replace(encoding=other)
    assert (evaluate(policy, batch, frozenset()).log_pf - batch.log_pf_old).abs().max() > 0.01


def test_heads_differ_and_their_mean_is_the_policy():
    policy, _ = ensemble()
    states = policy.env.all_terminal_states()
    states = states._replace(done=torch.zeros_like(states.done))
    needs = frozenset({"log_pf"})
    heads = [policy(states, head_condition(k, 36), needs).forward.logits for k in range(5)]
    logits = torch.stack(heads)
    legal = torch.isfinite(logits[0])
    assert logits.std(0)[legal].min() > 1e-3
    plain = policy(states, Conditions().sample(36), needs).forward.logits
    close(plain[legal], logits.mean(0)[legal], 1e-5)
    found = terminating_distribution(policy, Conditions().sample(1))
    close(found.probability.sum(), 1.0)


def test_every_head_learns_from_its_share_of_the_trajectories():
    policy, strategy = ensemble(n_heads=10, n=2000, share=0.3)
    batch = strategy()
    head = batch.condition.encoding[:, -1].long()
    close(head.bincount() / 2000, torch.full((10,), 0.3), 0.04)
    # A trajectory keeps everything but its head.
    strategy = Bootstrap(Fixed(ensemble(n_heads=10, n=4)[1].fresh()), policy, 0, 1.0)
    batch, fresh = strategy(), strategy.fresh()
    assert batch.n == 40
    assert torch.equal(
        batch.condition.encoding[:, -1].view(4, 10), torch.arange(10.0).expand(4, 10)
    )
    row = torch.arange(4).repeat_interleave(10)
    assert torch.equal(batch.states, fresh.states[row])
    assert torch.equal(batch.log_reward, fresh.log_reward[row])


def test_a_batch_is_never_empty():
    _, strategy = ensemble(n_heads=1, n=1, share=1e-6)
    assert [strategy().n for _ in range(20)] == [1] * 20


def test_one_head_and_all_data_are_plain_training():
    policy, strategy = ensemble(n_heads=1, share=1.0)
    twin, other = ensemble(n_heads=1, share=1.0)
    batch, fresh = strategy(), other.fresh()
    assert same_batches(batch, fresh)
    objective = TrajectoryBalance()
    close(objective(policy, batch).value, objective(twin, fresh).value, 1e-6)


@pytest.mark.parametrize("conditions", [Conditions(), Conditions(1, RANGE)])
def test_the_loss_is_the_mean_over_heads(conditions):
    policy, strategy = ensemble(n_heads=3, share=1.0, n=8, conditions=conditions)
    batch = strategy()
    objective = TrajectoryBalance()
    head = batch.condition.encoding[:, -1]
    apart = [objective(policy, batch.rows(head == k)).value for k in range(3)]
    close(objective(policy, batch).value, sum(apart) / 3, 1e-4)
    assert max(apart) - min(apart) > 1e-4


def test_heads_still_differ_where_few_data_were_seen():
    policy, strategy = ensemble(n_heads=8, side=8, n=4)
    frozen = policy.prior_head.weight.clone()
    few = Bootstrap(Fixed(strategy.fresh()), policy, 0)
    run = Trainer(policy, TrajectoryBalance(), few, TrainerSettings(1e-2, log_every=0))
    run.run(100)
    states = policy.env.all_terminal_states()
    states = states._replace(done=torch.zeros_like(states.done))
    needs = frozenset({"log_pf"})
    log_p = torch.stack(
        [policy(states, head_condition(k, 64), needs).forward.log_probs() for k in range(8)]
    )
    spread = log_p.std(0).where(torch.isfinite(log_p[0]), 0.0).amax(-1)
    assert spread.median() > 0.1
    assert torch.equal(policy.prior_head.weight, frozen)
    assert policy.prior_head.weight.grad is None


def test_log_z_knows_the_condition_but_not_the_head():
    policy, strategy = ensemble(conditions=Conditions(1, RANGE))
    batch = strategy()
    other = batch.condition.encoding.clone()
    other[:, -1] = 0
    moved = batch.condition._replace(encoding=other)
    torch.nn.init.normal_(policy.log_z.network[-1].weight)
    close(policy.log_z(batch.condition), policy.log_z(moved), 0)
    assert policy.log_z(batch.condition).std() > 0
    names = {name for name, _ in policy.named_parameters() if name.startswith("log_z")}
    assert names == {f"log_z.{name}" for name, _ in LogZ(policy.condition_size).named_parameters()}


def test_heads_travel_through_replay():
    strategy = ensemble()[1]
    strategy.fresh = WithReplay(strategy.fresh, Replay(100), 16, 0)
    strategy.fresh()
    mixed = strategy.fresh()
    assert mixed.n == 48 and mixed.condition.encoding.shape == (48, 1)
    assert len(strategy().condition.encoding[:, -1].unique()) == 5


def test_the_strategy_goes_on_from_its_state():
    one, other = ensemble()[1], ensemble()[1]
    one()
    other.load_state_dict(one.state_dict())
    assert same_batches(one(), other())


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="at least one head"):
        ensemble(n_heads=0)
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        ensemble(share=0.0)
