"""The policy-gradient objective: invariances, refusals, every row."""

import math
import warnings
from dataclasses import replace

import pytest
import torch

from gflow.conditions import Conditions
from gflow.mdp import Condition, evaluate
from gflow.objectives.catalog import METHODS
from gflow.objectives.catalog.policy_gradient import ROWS
from gflow.objectives.policy_gradient import Advantage, Gate, PolicyGradient
from gflow.oracles import OracleError
from gflow.sampling import OnPolicy, Scorer
from gflow.seeding import generator
from tests.diamond import PATHS, close, diamond, diamond_policy, walk
from tests.objectives.oracles import Oracle, pooled_trainer, prepared

F64 = torch.float64


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


def test_a_batch_without_any_reward():
    oracle = Oracle(lambda states: torch.full((states.n, 2), math.nan), 2)
    score = Scorer(diamond(), oracle, scalarization=None)
    sampler = OnPolicy(diamond_policy(), Conditions(2), score, 8, 0, dtype=F64)
    with pytest.raises(OracleError, match=r"failed on all 8 objects .* most often: r0 is NaN"):
        sampler()


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


@pytest.mark.parametrize("name", [row.name for row in ROWS])
def test_every_row_learns(name):
    """Both rewards of a small grid rise, on preferences from a pool."""
    run = pooled_trainer(name)

    def mean():
        return float(torch.cat([run.sampler().rewards for _ in range(8)]).mean())

    before = mean()
    run.run(60)
    assert mean() > before + 0.04


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
    ({"dual_clip": 0.5}, "dual_clip 0.5 bounds ratios from above"),
    ({"kl_weight": -1.0}, "kl_weight must be at least 0, not -1.0"),
    ({"entropy_weight": math.nan}, "entropy_weight must be at least 0, not nan"),
])  # fmt: skip
def test_settings_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        PolicyGradient(**change)


@pytest.mark.parametrize("change, message", [
    ({"combine": "norm_then_sum", "baseline": "value", "scale": "none"}, "baseline of the group"),
    ({"baseline": "none"}, "goes with no scale"),
    ({"baseline": "mean"}, "unknown baseline 'mean'"),
    ({"overlong": 2.0}, "overlong must be from 0 to 1, not 2.0"),
    ({"discount": -0.5}, "discount must be from 0 to 1"),
    ({"eps": -1.0}, "eps must be at least 0"),
    ({"weights": (1.0, math.nan)}, "must be finite numbers"),
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
    with pytest.raises(ValueError, match="a gate names reward 2 of 2, counted from 0"):
        PolicyGradient(Advantage(gates=(Gate(0, on=2, threshold=0.5),)))(policy, bare)
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
