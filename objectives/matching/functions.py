"""Matching losses on clean samples, as pure functions.

Time 1 is noise and time 0 data: x_t = (1 - t) x_0 + t eps, and a network's velocity v predicts
eps - x_0.

References:
    Flow Matching for Generative Modeling, 2022, arXiv 2210.02747.
    Flow Straight and Fast: Rectified Flow, 2022, arXiv 2209.03003.
    Aligning Text-to-Image Models using Human Feedback (reward weighting), 2023, arXiv 2302.12192.
    Advantage Weighted Matching, 2025, arXiv 2509.25050 (the shapes of the error).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def interpolate(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Points between data and noise, [n, *shape], at times [n]."""
    t = t.view(-1, *[1] * (x.ndim - 1))
    return torch.lerp(x, noise, t)


def matching_error(velocity: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """Mean over a point's numbers of (velocity - (noise - x))^2, [n]."""
    return (velocity - (noise - x)).square().flatten(1).mean(1)


def logit_normal_times(normal: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Times sigmoid(mean + std normal) from standard normal numbers."""
    return torch.sigmoid(mean + std * normal)


def shifted_times(t: Tensor, shift: float) -> Tensor:
    """Times moved towards noise: shift t / (1 + (shift - 1) t)."""
    return shift * t / (1 + (shift - 1) * t)


def stratified_times(uniform: Tensor, order: Tensor) -> Tensor:
    """One time in each of M equal strata of [0, 1], shuffled, [n, M].

    Args:
        uniform: [n, M] uniform numbers.
        order: [n, M] permutations of 0..M-1.
    """
    return (order + uniform) / uniform.shape[-1]


def log_likelihood_surrogate(
    error: Tensor, t: Tensor, weight: str = "uniform", power: float = 0.25
) -> Tensor:
    """A matching error as a stand-in for log p; only differences on the same draws mean anything.

    Args:
        error: matching errors of any shape.
        t: their times.
        weight: "uniform" (-error), "t", "t2" (the error of the data estimate), "elbo" (weighed by
            (1 - t) / t), "huber" or "ghuber" (t error^power / power).
        power: exponent of "ghuber".

    Raises:
        ValueError: unknown weight.
    """
    tiny = 1e-10
    kinds: dict[str, Callable[[], Tensor]] = {
        "uniform": lambda: error,
        "t": lambda: t * error,
        "t2": lambda: t.square() * error,
        "elbo": lambda: (1 - t) / t * error,
        "huber": lambda: t * ((error + tiny).sqrt() - math.sqrt(tiny)),
        "ghuber": lambda: t * ((error + tiny) ** power - tiny**power) / power,
    }
    if weight not in kinds:
        raise ValueError(f"unknown weight {weight!r}: choose from {', '.join(kinds)}")
    return -kinds[weight]()


def exponential_weights(reward: Tensor, inverse_temperature: float, cap: float) -> Tensor:
    """Reward-weighted regression's weights, min(exp(inverse_temperature * reward), cap)."""
    return (inverse_temperature * reward).exp().clamp(max=cap)
