"""Matching losses against their closed forms."""

import math

import pytest
import torch

from gflow.objectives.matching import (
    Draws,
    exponential_weights,
    flow_matching,
    interpolate,
    log_likelihood_surrogate,
    logit_normal_times,
    matching_error,
    shifted_times,
    stratified_times,
)

X = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
NOISE = torch.tensor([[0.5, 2.0]], dtype=torch.float64)
T = torch.tensor([0.25], dtype=torch.float64)


def exact_velocity(x, t, mean=2.0, variance=0.25):
    slope = (t - (1 - t) * variance) / ((1 - t) ** 2 * variance + t**2)
    return -mean + slope * (x - (1 - t) * mean)


def test_points_between_data_and_noise():
    assert interpolate(X, NOISE, T).tolist() == [[0.875, -0.25]]
    pictures = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    assert interpolate(*pictures, torch.tensor([0.0, 1.0])).flatten(1).mean(1).tolist() == [1, 0]


def test_error_of_a_zero_velocity():
    assert float(matching_error(torch.zeros_like(X), X, NOISE)) == 4.625


def test_errors_of_the_three_predictions_differ_by_powers_of_time():
    v = torch.tensor([[-0.5, 2.0]], dtype=torch.float64)
    point = interpolate(X, NOISE, T)
    clean, noise = point - T * v, point + (1 - T) * v
    assert clean.tolist() == [[1.0, -0.75]] and noise.tolist() == [[0.5, 1.25]]
    assert float(matching_error(v, X, NOISE)) == 0.5
    assert float((clean - X).square().mean()) == 0.03125
    assert float((noise - NOISE).square().mean()) == 0.28125


def test_loss_of_the_exact_velocity_is_the_irreducible_one():
    x, t = torch.tensor([0.7], dtype=torch.float64), 0.3
    assert float(exact_velocity(x, t)) == pytest.approx(-2.4117647, abs=1e-7)
    generator = torch.Generator().manual_seed(0)
    n = 400_000
    data = 2 + 0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    times = torch.full((n,), t, dtype=torch.float64)
    draws = Draws(data, noise, times, torch.zeros(n, 0))
    loss = flow_matching(lambda x, t, encoding: exact_velocity(x, t.unsqueeze(1)), draws)
    assert float(loss.value) == pytest.approx(1.1764706, abs=0.01)
    assert loss.weight == n
    shifted = flow_matching(lambda x, t, encoding: exact_velocity(x, t.unsqueeze(1)) + 0.3, draws)
    assert float(shifted.value - loss.value) == pytest.approx(0.09, abs=0.003)


def test_gradient_is_that_of_the_mean_over_numbers():
    v = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    matching_error(v, X, NOISE).sum().backward()
    assert v.grad.tolist() == [[0.5, -3.0]]


def test_times():
    normal = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert logit_normal_times(normal, 0.5, 2.0).tolist() == pytest.approx(
        [1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-2.5))]
    )
    u = torch.tensor([0.0, 0.5, 1.0])
    assert shifted_times(u, 3.0).tolist() == pytest.approx([0, 0.75, 1])
    order = torch.tensor([[2, 0, 1, 3]])
    times = stratified_times(torch.full((1, 4), 0.5), order)
    assert times.tolist() == [[0.625, 0.125, 0.375, 0.875]]


@pytest.mark.parametrize(
    ("weight", "power", "value"),
    [
        ("uniform", 0.0, -0.16),
        ("t", 0.0, -0.08),
        ("t2", 0.0, -0.04),
        ("elbo", 0.0, -0.16),
        ("ghuber", 0.25, -1.2585865),
        ("ghuber", 0.5, -0.39999),
        ("ghuber", 1.0, -0.08),
        ("huber", 0.0, -0.199995),
    ],
)
def test_likelihood_surrogates(weight, power, value):
    error, t = torch.tensor(0.16, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    found = float(log_likelihood_surrogate(error, t, weight, power))
    assert found == pytest.approx(value, abs=1e-7)


def test_surrogate_gradient_weight():
    error = torch.tensor(0.16, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(0.5, dtype=torch.float64)
    log_likelihood_surrogate(error, t, "ghuber", 0.25).backward()
    assert float(error.grad) == pytest.approx(-0.5 * (0.16 + 1e-10) ** -0.75)
    with pytest.raises(ValueError, match="unknown weight 'l2'"):
        log_likelihood_surrogate(error, t, "l2")


def test_reward_weights():
    reward = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert exponential_weights(reward, 1.0, 10.0).tolist() == pytest.approx(
        [2.7182818, 7.3890561, 10.0]
    )
    assert torch.softmax(reward, 0).tolist() == pytest.approx([0.0900306, 0.2447285, 0.6652410])
