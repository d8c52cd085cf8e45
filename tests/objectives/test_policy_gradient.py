"""The policy-gradient objective: fixed points, invariances, memory, refusals, every row."""

import math
import warnings
from dataclasses import replace

import pytest
import torch

from gflow.conditions import Conditions, PooledConditions
from gflow.envs.grids import HyperGrid
from gflow.envs.sets import Sets
from gflow.mdp import Condition, Reward, evaluate
from gflow.objectives.catalog import METHODS
from gflow.objectives.catalog.policy_gradient import ROWS
from gflow.objectives.policy_gradient import Advantage, Gate, Moments, PolicyGradient
from gflow.policies import Anchored, MLPPolicy
from gflow.sampling import Informative, OnPolicy, Scorer
from gflow.seeding import generator
from gflow.training import Trainer, TrainerSettings
from tests.diamond import (
    PATHS,
    close,
    diamond,
    diamond_batch,
    diamond_log_reward,
    diamond_policy,
    distribution,
    walk,
)
from tests.objectives.training import anneal
from tests.tabular import TabularPolicy

F64 = torch.float64
ARMS = 3


class Oracle:
    """Rewards computed from terminal states by a function."""

    version = "1"
    on_states = True
    seconds = 0.0

    def __init__(self, function, k=1):
        self.function = function
        self.rewards = tuple(Reward(f"r{i}", low=-10.0, high=10.0) for i in range(k))

    def __call__(self, states):
        return self.function(states)


def bandit():
    """One choice among three items."""
    return Sets(ARMS, 1, stop=False)


def bandit_trainer(objective, batch_size=512, rate=0.1):
    policy = Anchored(TabularPolicy(bandit(), 2))
    oracle = Oracle(lambda states: states.data[:, :1].double())
    score = Scorer(policy.env, oracle, scalarization=None)
    sampler = OnPolicy(policy, Conditions(), score, batch_size, 0, keep_log_pf=True, dtype=F64)
    return Trainer(policy, objective, sampler, TrainerSettings(learning_rate=rate, log_every=0))


@pytest.mark.parametrize("kl, expected", [
    ("in_reward", (0.78699, 0.10651, 0.10651)),
    ("k2", (0.78699, 0.10651, 0.10651)),
    ("k3+", (0.78699, 0.10651, 0.10651)),
    ("k3", (0.72871, 0.13564, 0.13564)),
])  # fmt: skip
def test_fixed_points_of_the_regularised_bandit(kl, expected):
    """r = (1, 0, 0), an even reference and weight 1/2; k3 implements the reverse divergence."""
    objective = PolicyGradient(Advantage(scale="none"), kl=kl, kl_weight=0.5)
    run = bandit_trainer(objective)
    anneal(run, 100)
    close(run.policy.logits[0, 0].softmax(0), torch.tensor(expected), 0.012)


def test_k1_as_a_loss_does_not_regularise():
    run = bandit_trainer(PolicyGradient(Advantage(scale="none"), kl="k1", kl_weight=0.5))
    run.run(80)
    assert run.policy.logits[0, 0].softmax(0)[0] > 0.97


def test_entropy_keeps_choices_open():
    """The optimum of E r + c H is softmax(r / c)."""
    run = bandit_trainer(PolicyGradient(Advantage(scale="none"), entropy_weight=0.5))
    anneal(run, 100)
    close(run.policy.logits[0, 0].softmax(0), torch.tensor([2.0, 0, 0]).softmax(0), 0.012)


SAMPLE = PolicyGradient(
    Advantage(baseline="leave_one_out", scale="none", sample=True), "none", "reinforce",
    aggregation="seq_mean_token_sum",
)  # fmt: skip


def test_the_exact_sampler_has_no_advantage_left():
    """log R + log P_B - log P_F is log Z on every trajectory; a set reached twice counts once."""
    policy, batch = diamond_policy(solved=True), diamond_batch()
    batch.group = torch.zeros(5, dtype=torch.int64)
    rewards, _ = SAMPLE.advantage.rewards(policy, batch)
    close(rewards, torch.full((5, 1), math.log(10)))
    assert SAMPLE.prepare(policy, batch).advantage.abs().max() < 1e-6


def test_sampling_in_proportion_to_the_reward():
    policy = diamond_policy()
    score = Scorer(diamond(), Oracle(lambda states: diamond_log_reward(states).exp().unsqueeze(1)))
    sampler = OnPolicy(policy, Conditions(), score, 256, 0, keep_log_pf=True, dtype=F64)
    run = Trainer(policy, SAMPLE, sampler, TrainerSettings(learning_rate=0.05, log_every=0))
    anneal(run, 120)
    close(distribution(policy), torch.tensor([0.1, 0.2, 0.3, 0.4]), 0.012)


def test_trajectories_without_their_backward_probability_count_objects_twice():
    """{a} by one path and {a, b} by two, of equal reward: 2/3 instead of 1/2."""
    policy = diamond_policy()
    batch = diamond_batch([PATHS[1], PATHS[3], PATHS[4]])
    found = evaluate(policy, batch, frozenset({"log_pb_total"}))
    back = found.log_pb.sum(1).exp().detach()
    # Optimal trajectories are proportional to R, or to R P_B.
    close(torch.ones(3)[1:].sum() / 3, 2 / 3)
    close(back[1:].sum() / back.sum(), 1 / 2)


def prepared(objective=None, n=32, k=2, seed=0, **changes):
    policy = diamond_policy()
    oracle = Oracle(lambda states: (states.data.double() @ torch.eye(2, k, dtype=F64)) + 0.1, k)
    score = Scorer(diamond(), oracle, scalarization=None)
    sampler = OnPolicy(policy, Conditions(k), score, n, seed, keep_log_pf=True, dtype=F64)
    batch = replace(sampler(), group=torch.arange(n) // 4, **changes)
    return policy, (objective or PolicyGradient()).prepare(policy, batch)


def test_forced_steps_count_nowhere():
    policy, batch = prepared()
    assert not batch.stochastic[batch.valid].all()
    loss = PolicyGradient(aggregation="token_mean")(policy, batch)
    assert int(loss.weight) == int((batch.valid & batch.stochastic).sum()) < int(batch.valid.sum())
    close(loss.value, -batch.advantage[batch.valid & batch.stochastic].mean())


def test_advantages_are_constant_over_a_trajectory_and_have_no_gradient():
    policy, batch = prepared(PolicyGradient(Advantage(combine="norm_then_sum")))
    assert not batch.advantage.requires_grad and not policy.logits.grad
    inside = batch.valid & batch.stochastic
    first = batch.advantage[:, :1]
    assert torch.equal(torch.where(inside, first, 0.0), batch.advantage)


def test_weights_are_the_preference_and_even_without_one():
    policy, batch = prepared()
    preference = torch.tensor([[0.9, 0.1]], dtype=F64).expand(batch.n, -1)
    asked = replace(batch, condition=Condition(*batch.condition[:1], preference,
                                               batch.condition.inverse_temperature))  # fmt: skip
    fixed = Advantage(weights=(0.9, 0.1))
    by_preference, _ = Advantage().rewards(policy, asked)
    assert torch.equal(by_preference, batch.rewards)
    mask = PolicyGradient().mask(batch)
    close(Advantage().of(policy, asked, mask).advantage, fixed.of(policy, batch, mask).advantage)
    even = Advantage(weights=(0.5, 0.5)).of(policy, batch, mask)
    close(Advantage().of(policy, batch, mask).advantage, even.advantage)


def test_gates_close_rewards():
    policy, batch = prepared(PolicyGradient(Advantage(gates=(Gate(1, 0, 1.0),))))
    shut = batch.rewards[:, 0] < 1
    rewards, _ = Advantage(gates=(Gate(1, 0, 1.0),)).rewards(policy, batch)
    assert (rewards[shut, 1] == 0).all() and (rewards[~shut, 1] > 0).any()
    assert torch.equal(rewards[:, 0], batch.rewards[:, 0])


def test_long_trajectories_pay_at_the_end():
    """The longest has 3 steps: over the last third the penalty falls to -1."""
    policy, batch = prepared()
    rewards, weights = Advantage(overlong=1 / 3).rewards(policy, batch)
    close(rewards[:, 2], torch.where(batch.lengths == 3, -1.0, 0.0))
    assert (weights[:, 2] == 1).all()


def test_failed_oracles_are_left_out():
    policy, batch = prepared()
    rewards = batch.rewards.clone()
    rewards[3] = torch.nan
    rewards[8, 1] = torch.nan
    spoiled = PolicyGradient().prepare(policy, replace(batch, rewards=rewards))
    assert torch.isfinite(spoiled.advantage).all() and (spoiled.advantage[3] == 0).all()
    loss = PolicyGradient()(policy, spoiled)
    loss.value.backward()
    assert torch.isfinite(policy.logits.grad).all()


def test_rewards_still_to_come_with_a_penalty_for_every_step():
    """REINFORCE++: the terminal reward less the KL from each step on."""
    policy, batch = prepared()
    mask = PolicyGradient().mask(batch)
    penalty = torch.rand(batch.valid.shape, generator=generator(0), dtype=F64)
    found = Advantage(baseline="none", scale="none").of(policy, batch, mask, penalty).advantage
    reward = batch.rewards.mean(1)
    for row in range(batch.n):
        for step in range(batch.valid.shape[1]):
            if mask[row, step]:
                paid = penalty[row, step:][mask[row, step:]].sum()
                close(found[row, step], reward[row] - paid)
            else:
                assert found[row, step] == 0


def test_whole_trajectories_pay_before_they_are_compared():
    """RLOO subtracts the penalty of a trajectory from its reward."""
    policy, batch = prepared()
    mask = PolicyGradient().mask(batch)
    penalty = torch.rand(batch.valid.shape, generator=generator(0), dtype=F64)
    settings = Advantage(baseline="leave_one_out", scale="none", weights=(1.0,))
    total = batch.rewards.mean(1, keepdim=True)
    total = total - torch.where(mask, penalty, 0.0).sum(1, keepdim=True)
    expected = settings.of(policy, replace(batch, rewards=total), mask).advantage
    found = replace(settings, weights=None).of(policy, batch, mask, penalty).advantage
    close(found, expected)


def test_values_are_the_baseline_of_ppo():
    objective = PolicyGradient(Advantage(baseline="value", scale="none", lam=1.0))
    policy, batch = prepared(objective)
    mask = objective.mask(batch)
    with torch.no_grad():
        policy.flow.fill_(0.3)
    again = objective.prepare(policy, replace(batch, advantage=None))
    reward = batch.rewards.mean(1, keepdim=True)
    close(again.advantage, torch.where(mask, reward - 0.3, 0.0))
    close(again.value_target, torch.where(mask, reward.expand_as(mask), 0.0))
    loss = objective(policy, again)
    close(loss.metrics["value_loss"], ((0.3 - reward).square() / 2 * mask).sum() / mask.sum())
    loss.value.backward()
    assert policy.flow.grad.abs().max() > 0


def pooled_trainer(name, folder=None, seed=0):
    """A grid with preferences from a pool of five."""
    env = HyperGrid(2, 6)
    conditions = Conditions(2, concentration=1.0)
    pool = PooledConditions(conditions, conditions.sample(5, generator(3)))
    row = METHODS[name]
    net = MLPPolicy(env, (16,), conditions.encoding_size, flow=row.needs_flow, seed=seed)
    policy = Anchored(net) if row.objective.needs_reference else net
    oracle = Oracle(lambda states: states.data.float() / 5, 2)
    sampler = OnPolicy(
        policy, pool, Scorer(env, oracle), 16, seed, group_size=4 if "group" in row.tags else 1,
        keep_log_pf=True,
    )  # fmt: skip
    objective = row.objective.fresh()
    return Trainer(
        policy, objective, sampler,
        TrainerSettings(learning_rate=3e-3, log_every=1, updates=2, minibatches=2), folder=folder,
    )  # fmt: skip


@pytest.mark.parametrize("name", [row.name for row in ROWS])
def test_every_row_learns(name):
    """Both rewards of a small grid rise, on preferences from a pool."""
    run = pooled_trainer(name)

    def mean():
        return float(torch.cat([run.sampler().rewards for _ in range(8)]).mean())

    before = mean()
    run.run(60)
    assert mean() > before + 0.04


@pytest.mark.parametrize("name", ["dcpo", "spo", "ppo", "gdpo"])
def test_a_resumed_run_remembers_what_it_knew(name, tmp_path):
    whole, first = pooled_trainer(name), pooled_trainer(name, tmp_path)
    second = pooled_trainer(name)
    whole.run(6)
    first.run(3)
    second.load(tmp_path / "checkpoints" / "step_000000003.pt")
    second.run(6)
    for a, b in zip(whole.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_objectives_of_the_catalog_share_no_memory():
    first, second = METHODS["spo"].objective.fresh(), METHODS["spo"].objective.fresh()
    assert first.memory is not second.memory and METHODS["spo"].objective.memory is None
    assert METHODS["grpo"].objective.fresh() is METHODS["grpo"].objective
    policy, batch = prepared()
    with pytest.raises(ValueError, match=r"remembers conditions: .*fresh\(\)"):
        METHODS["spo"].objective.prepare(policy, batch)


def test_a_tracker_is_read_before_it_sees_a_reward():
    """The first batch is measured from 1/2, the second from what the first has left."""
    objective = PolicyGradient(Advantage(baseline="tracker", scale="none")).fresh()
    policy, batch = prepared()
    one = objective.prepare(policy, replace(batch, advantage=None))
    reward, inside = batch.rewards.mean(1, keepdim=True), objective.mask(batch)
    close(one.advantage, torch.where(inside, reward - 0.5, 0.0))
    two = objective.prepare(policy, replace(batch, advantage=None))
    value, weight = 0.5, 1.0
    for r in reward.flatten().tolist():
        # Nothing has changed the policy, so most of the past is kept.
        weight = 0.96 * weight + 1
        value += (r - value) / weight
    close(two.advantage, torch.where(inside, reward - value, 0.0))
    close(objective.memory.table.mean, torch.tensor([value]))


def test_a_tracker_forgets_faster_where_the_policy_has_moved():
    objective = PolicyGradient(Advantage(baseline="tracker", scale="none")).fresh()
    policy, batch = prepared(n=4)
    for shift in (0.0, 0.0, 3.0):
        with torch.no_grad():
            policy.logits[0, 0, 0] += shift
        objective.prepare(policy, replace(batch, advantage=None))
    kept = [0.96**4, 0.96**4 * 0 + 0.875**4]
    weight = 1.0
    for share, each in zip(kept, (0.96, 0.875), strict=True):
        weight = share * weight + sum(each**i for i in range(4))
    close(objective.memory.table.seen, torch.tensor([weight]))


def test_groups_without_signal_are_drawn_again():
    conditions = Conditions(2, concentration=1.0)
    env = HyperGrid(2, 4)
    policy = MLPPolicy(env, (8,), conditions.encoding_size, seed=0)
    rare = Oracle(lambda states: (states.data == 3).all(-1, keepdim=True).float().expand(-1, 2), 2)
    fresh = OnPolicy(policy, conditions, Scorer(env, rare), 32, 0, group_size=4, keep_log_pf=True)
    drawn = []

    def teaches(batch):
        drawn.append(batch)
        return Advantage().informative(policy, batch)

    batch = Informative(fresh, teaches, rounds=6)()
    spread = torch.stack([
        batch.rewards[batch.group == g].std(0) for g in batch.group.unique()
    ])  # fmt: skip
    assert (spread > 0).all() and 1 < len(drawn) <= 6
    assert len(batch.group.unique()) <= 8 and batch.n % 4 == 0
    never = Informative(fresh, lambda b: torch.zeros(b.n, dtype=torch.bool), rounds=2)()
    assert never.n == 32
    with pytest.raises(ValueError, match="at least one round"):
        Informative(fresh, teaches, rounds=0)


def test_pools_come_back_and_may_be_weighed():
    conditions = Conditions(2, concentration=1.0)
    pool = conditions.sample(6, generator(0))
    every = PooledConditions(conditions, pool).sample(12, generator(1))
    counts = (every.encoding[:, None] == pool.encoding).all(-1).sum(0)
    assert counts.tolist() == [2] * 6
    weights = torch.tensor([1.0, 1e-6, 1.0, 1.0, 1e-6, 1e-6])
    some = PooledConditions(conditions, pool, lambda _: weights).sample(3, generator(2))
    chosen = (some.encoding[:, None] == pool.encoding).all(-1).sum(0)
    assert chosen.tolist() == [1, 0, 1, 1, 0, 0]


def test_a_tracker_has_hard_questions_drawn_more_often():
    """Weights sqrt(v (1 - v)) + 0.05; conditions not seen yet stand at 1/2."""
    conditions = Conditions(2, concentration=1.0)
    pool = conditions.sample(3, generator(0), F64)
    objective = PolicyGradient(Advantage(baseline="tracker", scale="none")).fresh()
    assert torch.equal(objective.priority(pool), torch.ones(3))
    row = objective.memory.find(pool.encoding[:2], F64)
    table = Moments(torch.tensor([0.0, 0.8], dtype=F64), *torch.ones(2, 2, dtype=F64))
    objective.memory.put(row, table)
    close(objective.priority(pool), torch.tensor([0.05, 0.45, 0.55]))
    assert PolicyGradient().priority is None and METHODS["dcpo"].objective.fresh().priority is None


@pytest.mark.parametrize("change, message", [
    ({"clip": (1.2, 0.8)}, r"clip bounds \(1.2, 0.8\) are absolute ratios, low before high"),
    ({"clip": (0.2, 0.2)}, "around 1"),
    ({"clip": (0.8,)}, "ppo_clip takes 2 bounds, not 1"),
    ({"surrogate": "is_clip4"}, "is_clip4 takes 4 bounds, not 2"),
    ({"surrogate": "dyn_clip", "clip": (-0.1, 0.2)}, "must not be negative"),
    ({"ratio": "none"}, "ppo_clip clips a ratio"),
    ({"surrogate": "is_clip", "ratio": "seq_geo"}, "needs a ratio of every step"),
    ({"surrogate": "score_diff"}, "needs labels"),
    ({"ratio": "tokens"}, "unknown ratio 'tokens': choose from none, token"),
    ({"kl": "in_reward", "advantage": Advantage(combine="norm_then_sum")}, "into the loss"),
])  # fmt: skip
def test_settings_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        PolicyGradient(**change)


@pytest.mark.parametrize("change, message", [
    ({"combine": "norm_then_sum", "baseline": "value", "scale": "none"}, "baseline of the group"),
    ({"baseline": "none"}, "goes with no scale"),
    ({"baseline": "mean"}, "unknown baseline 'mean'"),
    ({"overlong": 2.0}, r"share in \[0, 1\], not 2.0"),
])  # fmt: skip
def test_advantages_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        Advantage(**change)


def test_batches_that_do_not_fit():
    policy, batch = prepared()
    bare = replace(batch, advantage=None)
    with pytest.raises(ValueError, match="keep_log_pf=True"):
        PolicyGradient()(policy, replace(bare, log_pf_old=None))
    with pytest.raises(ValueError, match=r"wrap the policy in gflow\.policies\.Anchored"):
        PolicyGradient(kl="k3", kl_weight=0.1)(policy, bare)
    with pytest.raises(ValueError, match="needs a batch with reward vectors"):
        PolicyGradient()(policy, replace(bare, rewards=None))
    with pytest.raises(ValueError, match="3 weights do not fit 2 rewards"):
        PolicyGradient(Advantage(weights=(1.0, 1.0, 1.0)))(policy, bare)
    with pytest.raises(ValueError, match="group of one has nothing to be compared with"):
        PolicyGradient()(policy, replace(bare, group=torch.arange(batch.n)))


def test_a_batch_of_equal_rewards_says_so_and_changes_nothing():
    policy, batch = prepared()
    equal = replace(batch, rewards=torch.full_like(batch.rewards, 0.1), advantage=None)
    with pytest.warns(RuntimeWarning, match="equal within every group"):
        loss = PolicyGradient()(policy, equal)
    loss.value.backward()
    assert loss.value == 0 and (policy.logits.grad == 0).all()
    assert loss.metrics["zero_advantage"] == 1


def test_decisions_on_disputed_points():
    """Section by section what implementations disagree on."""
    assert Advantage().eps == 1e-6 and Advantage().ddof == 1
    rows = METHODS
    assert rows["gdpo"].objective.advantage.whitening == "sequence"
    assert rows["gdpo"].objective.advantage.baseline == "group_mean"
    assert rows["cispo"].objective.clip == (0.0, 5.0)
    assert rows["dapo"].objective.clip == (0.8, 1.28)
    assert rows["dr_grpo"].objective.advantage.scale == "none"
    policy, batch = prepared(PolicyGradient(Advantage(scale="none")))
    mask = PolicyGradient().mask(batch)
    # Dr. GRPO divides by N times the longest length.
    loss = rows["dr_grpo"].objective(policy, batch)
    close(loss.value, -torch.where(mask, batch.advantage, 0.0).sum() / (batch.n * 3))
    # A trajectory without decisions is one of the N.
    silent = replace(batch, stochastic=batch.stochastic & (torch.arange(batch.n) != 0)[:, None])
    part = PolicyGradient().loss(evaluate(policy, silent, frozenset()), silent, 3)
    means = torch.where(mask, batch.advantage, 0.0).sum(1) / mask.sum(1)
    close(part.value, -means[1:].sum() / batch.n)
    assert int(part.weight) == batch.n


def test_trajectories_of_one_object_teach_nothing():
    policy = diamond_policy()
    batch = walk(diamond(), [PATHS[3]] * 4)
    batch.rewards = torch.full((4, 1), 0.7, dtype=F64)
    batch.log_pf_old = evaluate(policy, batch, frozenset()).log_pf.detach()
    batch.group = torch.zeros(4, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (PolicyGradient().prepare(policy, batch).advantage == 0).all()


@pytest.mark.parametrize("task", ["molecules", "sets", "ngrams", "nas_training", "hypergrid"])
def test_every_row_suits_every_kind_of_object(task):
    """Each method takes a batch of each task, by a policy of the task's own kind."""
    from gflow.assemble import try_out
    from gflow.config import PolicySettings, RunConfig, SamplingSettings
    from gflow.setup import prepare

    for row in ROWS:
        config = RunConfig(
            task, row.name, policy=PolicySettings(hidden=8, layers=1),
            sampling=SamplingSettings(batch_size=8), baseline=False,
        )  # fmt: skip
        setup = prepare(config)
        try_out(setup)
        assert setup.objective == row.objective
        assert (setup.objective is row.objective) == (not row.objective.advantage.remembers)
        several = len(setup.task.oracle.rewards) > 1
        assert setup.conditions.with_preference == several


def test_score_differences_are_reinforce_with_one_over_the_numbers():
    """On the policy that sampled, scores by likelihood and by ratio have one gradient."""
    plain = PolicyGradient(Advantage(labels=0.7), "none", "score_diff")
    policy, batch = prepared(plain)
    good, bad = batch.advantage.amax(1) > 0, batch.advantage.amin(1) < 0
    size = torch.stack([((batch.group == g) & side).sum() for side in (good, bad)
                        for g in batch.group]).view(2, -1).clamp(min=1)  # fmt: skip
    both = torch.stack([((batch.group == g) & good).any() & ((batch.group == g) & bad).any()
                        for g in batch.group])  # fmt: skip
    a = torch.where(both, good.to(F64) / size[0] - bad.to(F64) / size[1], 0.0)
    inside = plain.mask(batch)
    mean = torch.where(inside, evaluate(policy, batch, frozenset()).log_pf, 0.0).sum(1)
    expected = -(a * mean / inside.sum(1)).sum() / len(batch.group.unique())
    assert both.any() and not both.all()
    gradients = []
    for value in (expected, *(replace(plain, ratio=r)(policy, batch).value
                              for r in ("none", "token"))):  # fmt: skip
        policy.logits.grad = None
        value.backward()
        gradients.append(policy.logits.grad)
    close(gradients[1], gradients[0], 1e-12)
    close(gradients[2], gradients[0], 1e-12)
