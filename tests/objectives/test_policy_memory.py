"""Baselines that remember conditions, and samplers that choose among them."""

from dataclasses import replace

import pytest
import torch

from gflow.conditions import Conditions, PooledConditions
from gflow.envs.grids import HyperGrid
from gflow.objectives.catalog import METHODS
from gflow.objectives.policy_gradient import Advantage, Moments, PolicyGradient
from gflow.policies import MLPPolicy
from gflow.sampling import Informative, OnPolicy, Scorer
from gflow.seeding import generator
from tests.diamond import (
    close,
)
from tests.objectives.oracles import Oracle, pooled_trainer, prepared

F64 = torch.float64


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
