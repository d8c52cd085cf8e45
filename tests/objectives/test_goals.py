"""Preference- and goal-conditional training: what the scalarisations hand to the objectives."""

import math

import pytest
import torch

from gflow.mdp import Condition
from gflow.objectives.balance import TrajectoryBalance
from gflow.scalarize import focus, goal_directions, log_reward, weighted_sum
from tests.diamond import close, diamond_batch, diamond_policy


def at_angle(cosine):
    """Unit vectors with the given cosine to (1, 0)... rotated into the positive quadrant."""
    angle = math.acos(cosine)
    return torch.tensor([[math.cos(math.pi / 4 + angle), math.sin(math.pi / 4 + angle)]]).double()


DIAGONAL = torch.tensor([[1.0, 1.0]], dtype=torch.float64)


def coefficient(rewards, direction):
    """alpha alone."""
    return (focus(rewards, direction) - rewards.sum(-1).log()).exp()


def test_focus_coefficients():
    close(torch.tensor(0.2).double().log() / torch.tensor(0.98).double().log(), 79.6645, 1e-4)
    close(coefficient(at_angle(0.99), DIAGONAL), [0.449035])
    close(coefficient(at_angle(0.985), DIAGONAL), [0.299986])
    close(coefficient(at_angle(0.98 + 1e-12), DIAGONAL), [0.2])
    assert focus(at_angle(0.9799), DIAGONAL).tolist() == [-math.inf]
    close(coefficient(3 * DIAGONAL, DIAGONAL), [1.0])


def test_focus_ignores_lengths():
    rewards, direction = at_angle(0.985), torch.tensor([[0.5, 0.5]]).double()
    close(coefficient(7 * rewards, direction), coefficient(rewards, DIAGONAL), 1e-12)


def test_relabelled_goals_are_always_in_focus():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(1000, 4, generator=generator)
    close(coefficient(rewards, rewards), torch.ones(1000), 1e-3)


def test_outside_the_cone_the_log_reward_is_the_lowest():
    """One logarithm, then the temperature, then the clamp: a second logarithm of log S, as one
    published code takes, would clamp every S below 1.33 to the same constant."""
    rewards = torch.tensor([[0.3, 0.0], [0.45, 0.45], [0.55, 0.5], [0.0, 0.0]], dtype=torch.float64)
    condition = Condition(torch.zeros(4, 0), DIAGONAL.expand(4, 2) / 2, torch.full((4,), 60.0))
    found = log_reward(rewards, condition, focus, lowest=-75.0)
    close(found[[0, 3]], [-75.0, -75.0])
    close(found[1], 60 * math.log(0.9))
    assert float(found[2]) > float(found[1])
    sums = log_reward(rewards[1:3], condition.rows(torch.tensor([0, 1])), weighted_sum)
    close(sums, [60 * math.log(0.45), 60 * math.log(0.525)])


def test_negative_rewards_are_refused():
    with pytest.raises(ValueError, match="focus: reward -1"):
        focus(torch.tensor([[-1.0, 2.0]]), DIAGONAL)


def test_goals_are_even_over_the_sphere():
    goals = goal_directions(20_000, 3, torch.Generator().manual_seed(0), torch.float64)
    close(goals.sum(-1), torch.ones(20_000), 1e-12)
    assert (goals >= 0).all()
    directions = goals / goals.norm(dim=-1, keepdim=True)
    # On the sphere every squared coordinate averages 1 / 3, and a coordinate 1 / 2.
    close(directions.square().mean(0), [1 / 3] * 3, 0.01)
    close(directions.mean(0), [0.5] * 3, 0.01)


def test_permuting_objectives_with_their_weights_leaves_the_loss():
    batch = diamond_batch()
    generator = torch.Generator().manual_seed(1)
    rewards = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    weights = weights / weights.sum(-1, keepdim=True)
    beta, turn = torch.full((5,), 4.0), torch.tensor([2, 0, 1])
    losses = []
    for order in (torch.arange(3), turn):
        condition = Condition(torch.zeros(5, 0), weights[:, order], beta)
        batch.log_reward = log_reward(rewards[:, order], condition)
        losses.append(TrajectoryBalance()(diamond_policy(), batch).value)
    close(losses[0], losses[1], 1e-12)


def test_one_reward_at_a_fixed_temperature_is_ordinary_training():
    batch = diamond_batch()
    condition = Condition(torch.zeros(5, 0), torch.ones(5, 1), torch.ones(5))
    rewards = batch.log_reward.exp().unsqueeze(1)
    before = TrajectoryBalance()(diamond_policy(), batch).value
    batch.log_reward = log_reward(rewards, condition)
    close(TrajectoryBalance()(diamond_policy(), batch).value, before, 1e-9)
