"""The policy-gradient objective: fixed points that training must reach."""

import math

import pytest
import torch

from gflow.conditions import Conditions
from gflow.envs.sets import Sets
from gflow.mdp import evaluate
from gflow.objectives.policy_gradient import Advantage, PolicyGradient
from gflow.policies import Anchored
from gflow.sampling import OnPolicy, Scorer
from gflow.training import Trainer, TrainerSettings
from tests.diamond import (
    PATHS,
    close,
    diamond,
    diamond_batch,
    diamond_log_reward,
    diamond_policy,
    distribution,
)
from tests.objectives.oracles import Oracle
from tests.objectives.training import anneal
from tests.tabular import TabularPolicy

F64 = torch.float64
ARMS = 3


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
