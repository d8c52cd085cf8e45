import math

import pytest
import torch

from gflow.mdp import Condition
from gflow.scalarize import log_reward, tchebycheff, weighted_log_sum, weighted_sum

W = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
R = torch.tensor([[0.5, 0.25]], dtype=torch.float64)


def test_published_vectors():
    assert weighted_sum(R, W).exp().item() == pytest.approx(0.325)
    assert weighted_log_sum(R, W).item() == pytest.approx(-1.178350, abs=1e-6)
    assert tchebycheff(R, W).exp().item() == pytest.approx(0.475)


def test_tchebycheff_prefers_the_better_point():
    better = tchebycheff(R + 0.1, W)
    assert (better > tchebycheff(R, W)).all()


@pytest.mark.parametrize("function", [weighted_sum, weighted_log_sum, tchebycheff])
def test_permuting_objectives_with_their_weights_changes_nothing(function):
    assert function(R.flip(1), W.flip(1)).item() == pytest.approx(function(R, W).item())


@pytest.mark.parametrize("function", [weighted_sum, weighted_log_sum, tchebycheff])
def test_negative_and_nan_rewards_are_refused(function):
    for value in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=r"row 0, column 1"):
            function(torch.tensor([[0.5, value]], dtype=torch.float64), W)


def test_tchebycheff_refuses_rewards_above_one():
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        tchebycheff(torch.tensor([[0.5, 1.5]], dtype=torch.float64), W)


def test_log_reward_scales_by_the_inverse_temperature_and_is_clamped():
    condition = Condition(torch.zeros(1, 0), W, torch.tensor([4.0]))
    assert log_reward(R, condition).item() == pytest.approx(4 * torch.tensor(0.325).log().item())
    nothing = torch.zeros(1, 2, dtype=torch.float64)
    assert log_reward(nothing, condition).item() == pytest.approx(4 * math.log(1e-8))
    assert log_reward(nothing, condition, lowest=-50.0).item() == -50


def test_without_preference_rewards_are_weighed_evenly():
    condition = Condition(torch.zeros(1, 0), None, torch.tensor([1.0]))
    assert log_reward(R, condition).exp().item() == pytest.approx(0.375)
