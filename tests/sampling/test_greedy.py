import math

import pytest
import torch

from gflow.conditions import Conditions, InverseTemperature
from gflow.envs.grids import HyperGrid
from gflow.mdp import Reward, evaluate
from gflow.objectives.balance import SubTrajectoryBalance, TrajectoryBalance
from gflow.policies import MLPPolicy
from gflow.sampling import MIXES, ActionValues, Greedy, Joined, OnPolicy, QLearning, Scorer
from gflow.training import Trainer, TrainerSettings
from tests.diamond import (
    STOP,
    A,
    B,
    DiamondOracle,
    close,
    diamond,
    diamond_batch,
    diamond_log_reward,
    diamond_policy,
    distribution,
    set_number,
)
from tests.tabular import TabularPolicy

LOG_P = torch.tensor([[0.2, 0.3, 0.5, 0.0]], dtype=torch.float64).log()
Q = torch.tensor([[1.0, 3.0, 2.0, -torch.inf]], dtype=torch.float64)

BEST = {
    (0, A): 4.0, (0, B): 4.0, (0, STOP): 1.0,
    (1, B): 4.0, (1, STOP): 2.0,
    (2, A): 4.0, (2, STOP): 3.0,
    (3, STOP): 4.0,
}  # fmt: skip
"""max-style Q of the diamond: the best set that can still be reached."""


def mixed(name, p, log_p=LOG_P, q=Q):
    return MIXES[name](log_p, q, p).softmax(-1)


def valued(best=BEST, solved=False):
    """The diamond's policy with a table of action values beside it."""
    values = TabularPolicy(diamond(), 2)
    with torch.no_grad():
        for (state, action), value in best.items():
            values.logits[0, state, action] = value
    return ActionValues(diamond_policy(solved=solved), values)


# Mixes


def test_p_weighs_the_best_action_and_not_p_f():
    close(mixed("greedy", 0.25), torch.tensor([[0.15, 0.475, 0.375, 0.0]]))
    # The published code has it the other way round.
    assert abs(mixed("greedy", 0.25)[0, 1] - (0.25 * 0.3 + 0.75)) > 0.3


def test_quantiles_are_those_of_the_legal_actions():
    close(mixed("quantile", 0.5), torch.tensor([[0.0, 0.375, 0.625, 0.0]]))
    close(mixed("quantile", 0.4), torch.tensor([[0.0, 0.375, 0.625, 0.0]]))
    close(mixed("quantile", 0.6), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))


def test_shares_of_the_largest_value():
    close(mixed("of_max", 0.5), torch.tensor([[0.0, 0.375, 0.625, 0.0]]))
    close(mixed("of_max", 0.3), torch.tensor([[0.2, 0.3, 0.5, 0.0]]))
    close(mixed("of_max", 0.9), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("name", MIXES)
def test_no_greediness_is_p_f_whatever_the_values(name):
    for shift in (0.0, -2.5, -10.0):
        close(mixed(name, 0.0, q=Q + shift), LOG_P.exp())


@pytest.mark.parametrize("name", MIXES)
def test_full_greediness_takes_the_best_actions(name):
    close(mixed(name, 1.0), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
    tied = torch.tensor([[3.0, 3.0, 2.0, -torch.inf]]).double()
    both = torch.tensor([[1.0, 0.0, 0.0, 0.0]] if name == "greedy" else [[0.4, 0.6, 0.0, 0.0]])
    close(mixed(name, 1.0, q=tied), both)


def test_values_below_zero_do_not_empty_p_of_max():
    close(mixed("of_max", 0.7, q=Q - 10), LOG_P.exp())
    close(mixed("of_max", 0.7, q=Q - 2.5), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))


# The behaviour policy


@pytest.mark.parametrize("name", MIXES)
def test_greediness_moves_the_exact_distribution(name):
    policy = valued(solved=True)
    target = torch.tensor([0.1, 0.2, 0.3, 0.4])
    close(distribution(Greedy(policy, name, 0.0)), target)
    close(distribution(policy), target)
    close(distribution(Greedy(policy, name, 1.0)), torch.tensor([0.0, 0, 0, 1]))
    if name == "greedy":
        p, q = 0.5, 0.5
        # Ties go to a: it has .5 + .5 * .4 from the start, then b has .5 + .5 * .5.
        first = torch.tensor([q * 0.1, p + q * 0.4, q * 0.5])
        stay = torch.tensor([1, q * 0.5, q * 0.6])
        expected = torch.cat([first * stay, (first * (1 - stay)).sum()[None]])
        close(distribution(Greedy(policy, name, p)), expected)


def test_losses_score_p_f_itself():
    policy = valued()
    sampler = OnPolicy(
        Greedy(policy, "greedy", 1.0), Conditions(), Scorer(diamond(), DiamondOracle()), 50, 0,
        keep_log_pf=True, dtype=torch.float64,
    )  # fmt: skip
    batch = sampler()
    assert (set_number(batch.terminal) == 3).all()
    close(batch.log_pf_old.sum(1), torch.zeros(50))
    log_pf = evaluate(policy, batch, frozenset()).log_pf.sum(1)
    close(log_pf, torch.full((50,), math.log(1 / 6)))


# Learning the values


def loss_of(policy, horizon, batch=None):
    objective = QLearning(TrajectoryBalance(), horizon)
    return objective.values_loss(policy, batch or diamond_batch())


def test_the_best_values_solve_one_step_targets_and_others_do_not():
    assert loss_of(valued(), 1) < 1e-20
    for at in BEST:
        assert loss_of(valued({**BEST, at: BEST[at] + 0.5}), 1) > 0.005


def test_long_horizons_regress_on_the_reward_itself():
    """Huber of half a reward each: a is followed by 2 or 4, b by 3 or 4."""
    mean = {**BEST, (0, A): 3.0, (0, B): 3.5}
    # Transitions: one, two and two, three and three; the errors are 1, 1, .5, .5.
    close(loss_of(valued(mean), 8), (0.5 + 0.5 + 0.125 + 0.125) / 11)
    assert loss_of(valued(mean), 8) < loss_of(valued(), 8)
    # Two transitions reach the end from a and b, and the value of ab from the start.
    close(loss_of(valued(mean), 2), (0.5 + 0.125 + 0.5 + 0.125) / 11)


def test_the_reward_is_taken_without_its_exponent():
    batch = diamond_batch()
    beta = torch.tensor([2.0, 3, 4, 5, 6], dtype=torch.float64)
    batch.condition = batch.condition._replace(inverse_temperature=beta)
    batch.log_reward = beta * diamond_log_reward(batch.terminal)
    assert loss_of(valued(), 1, batch) < 1e-20


def test_targets_have_no_gradient():
    policy = valued({**BEST, (3, STOP): 5.0})
    loss_of(policy, 1).backward()
    gradient = policy.values.logits.grad[0]
    # Only the stop step of ab is wrong about its reward; a -> ab and b -> ab lag behind it.
    close(gradient[3], torch.tensor([0.0, 0.0, 2 / 11]))
    assert gradient[1, B] < 0 and gradient[2, A] < 0 and (gradient[0] == 0).all()


def test_training_learns_policy_and_values_together():
    values = TabularPolicy(diamond(), 2)
    policy = ActionValues(diamond_policy(), values)
    score = Scorer(diamond(), DiamondOracle())
    sampler = Joined(
        OnPolicy(policy, Conditions(), score, 8, 0, dtype=torch.float64),
        OnPolicy(Greedy(policy, "quantile", 0.8), Conditions(), score, 8, 1, dtype=torch.float64),
    )
    settings = TrainerSettings(learning_rate=0.05, log_every=0)
    run = Trainer(policy, QLearning(TrajectoryBalance(), horizon=1), sampler, settings)
    run.run(300)
    close(distribution(policy), torch.tensor([0.1, 0.2, 0.3, 0.4]), 0.01)
    learned = values.logits.detach()[0]
    close(torch.stack([learned[at] for at in BEST]), torch.tensor(list(BEST.values())), 0.3)


def test_other_heads_and_log_z_are_the_policys():
    env = HyperGrid(2, 4)
    policy = MLPPolicy(env, (8,), backward="learned", flow=True)
    both = ActionValues(policy, MLPPolicy(env, (8,), seed=1))
    names = [name for name, _ in both.named_parameters()]
    assert names[0] == "log_z.bias" and "policy.log_z.bias" not in names
    score = Scorer(env, lambda states: states.data.sum(1, keepdim=True) + 1.0)
    score.oracle.on_states, score.oracle.rewards = True, (Reward("sum", high=7.0),)
    batch = OnPolicy(both, Conditions(1, InverseTemperature()), score, 8, 0)()
    for objective in (TrajectoryBalance(), SubTrajectoryBalance()):
        loss = QLearning(objective)(both, batch)
        assert QLearning(objective).needs == objective.needs
        plain = objective(policy, batch).value
        close(loss.value, plain + loss.metrics["q_loss"])
        assert loss.metrics["q_loss"] > 0


def test_bad_settings_are_refused():
    policy = valued()
    with pytest.raises(ValueError, match="choose from greedy, quantile, of_max"):
        Greedy(policy, "best", 0.5)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        Greedy(policy, "greedy", 1.5)
    with pytest.raises(ValueError, match="at least 1 transition"):
        QLearning(TrajectoryBalance(), 0)
    with pytest.raises(TypeError, match="not TabularPolicy"):
        QLearning(TrajectoryBalance())(diamond_policy(), diamond_batch())
