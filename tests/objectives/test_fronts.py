"""Several rewards on grids: order-preserving and preference-conditional training."""

import pytest
import torch

from gflow.conditions import Conditions, InverseTemperature, simplex_lattice
from gflow.envs.grid_rewards import GridObjectives
from gflow.envs.grids import HyperGrid
from gflow.estimators import terminating_distribution, total_variation
from gflow.mdp import Condition
from gflow.objectives.balance import TrajectoryBalance
from gflow.objectives.ordering import Ordering, dominance
from gflow.policies import MLPPolicy
from gflow.sampling import Exploration, OnPolicy, Scorer
from gflow.scalarize import log_reward
from gflow.training import Trainer, TrainerSettings
from tests.objectives.training import anneal
from tests.tabular import TabularPolicy


def front_mass(policy, oracle):
    """Exact probability of the true front, and that of the target (mean reward) ** 16."""
    found = terminating_distribution(policy, Conditions().sample(1))
    rewards = oracle(found.states)
    best = ~dominance(rewards).any(0)
    target = rewards.mean(1) ** 16
    limit = target[best].sum() / target.sum()
    return float(found.probability[best].sum()), float(limit), int(best.sum())


def train_ordering(names, steps):
    env, oracle = HyperGrid(2, 32, stop_at_border=True), GridObjectives(names)
    policy = TabularPolicy(env, 32, dtype=torch.float32)
    policy.logits.data[..., -1] = -3.0
    sampler = OnPolicy(
        policy,
        Conditions(len(names)),
        Scorer(env, oracle),
        128,
        0,
        exploration=Exploration(epsilon=0.01),
    )
    settings = TrainerSettings(learning_rate=0.05, log_every=0)
    Trainer(policy, Ordering(), sampler, settings).run(steps)
    return front_mass(policy, oracle)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "steps", "least", "size", "limit"),
    [
        (("branin", "currin"), 3000, 0.95, 36, 0.2055),
        (("currin", "beale"), 1000, 0.84, 8, 0.183),
        (("branin", "shubert"), 1000, 0.7, 14, 0.086),
        (("branin", "currin", "shubert", "beale"), 1000, 0.83, 372, 0.827),
    ],
)
def test_order_preserving_training_concentrates_on_the_front(names, steps, least, size, limit):
    found, exact_limit, front = train_ordering(names, steps)
    assert front == size and abs(exact_limit - limit) < 1e-3
    assert found > least and found > exact_limit


def preference_trainer():
    """Preferences over two rewards of an 8 x 8 grid at beta = 4."""
    conditions = Conditions(2, InverseTemperature("constant", 4.0), concentration=1.5)
    env, oracle = HyperGrid(2, 8), GridObjectives(("branin", "currin"), side=8)
    policy = MLPPolicy(env, (128, 128), conditions.encoding_size)
    sampler = OnPolicy(
        policy,
        conditions,
        Scorer(env, oracle),
        64,
        0,
        exploration=Exploration(epsilon=0.05),
    )
    settings = TrainerSettings(learning_rate=3e-3, log_z_learning_rate=0.03, log_every=0)
    return Trainer(policy, TrajectoryBalance(), sampler, settings), conditions, oracle


def test_the_loss_reaches_every_conditioning_layer():
    """No layer is left at its random start: all are in the optimiser and have a gradient."""
    run, _, _ = preference_trainer()
    batch = run.sampler()
    encoding = batch.condition.encoding.requires_grad_()
    run.objective(run.policy, batch).value.backward()
    stepped = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    for name, parameter in run.policy.named_parameters():
        assert id(parameter) in stepped, name
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert (encoding.grad.abs().sum(0) > 0).all()


@pytest.mark.slow
def test_one_policy_serves_preferences_it_has_not_seen():
    run, conditions, oracle = preference_trainer()
    anneal(run, 3000)
    preferences = simplex_lattice(2, 11)[1:-1].float()
    asked = conditions.make(preferences, torch.full((9,), 4.0))
    log_z_errors, distances = [], []
    for row in range(9):
        one = asked.rows(torch.tensor([row]))
        found = terminating_distribution(run.policy, one)
        n = len(found.probability)
        spread = Condition(one.encoding, one.preference.expand(n, 2), one.inverse_temperature)
        target = log_reward(oracle(found.states), spread)
        log_z_errors.append(run.policy.log_z(one).item() - target.logsumexp(0).item())
        distances.append(float(total_variation(found.probability, target.softmax(0))))
    assert sum(map(abs, log_z_errors)) / 9 < 0.1, log_z_errors
    assert sum(distances) / 9 < 0.1, distances
