"""From a reward vector and a condition to log R(x given c).

Every scalarisation is a pure function (rewards [n, K], weights [n, K]) -> log S [n]; the
log-reward is then beta * log S (Multi-Objective GFlowNets, 2022, arXiv 2210.12765).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gflow.mdp import Condition

SMALLEST = 1e-8
"""Scalarised rewards are clamped here before the logarithm."""


def weighted_sum(rewards: Tensor, weights: Tensor) -> Tensor:
    """log sum_k w_k r_k, [n]. Rewards must not be negative."""
    _check(rewards, weights, "weighted_sum", upper=None)
    return (weights * rewards).sum(-1).clamp(min=SMALLEST).log()


def weighted_log_sum(rewards: Tensor, weights: Tensor) -> Tensor:
    """sum_k w_k log r_k, the weighted geometric mean, [n]. Rewards must not be negative."""
    _check(rewards, weights, "weighted_log_sum", upper=None)
    return (weights * rewards.clamp(min=SMALLEST).log()).sum(-1)


def tchebycheff(rewards: Tensor, weights: Tensor) -> Tensor:
    """log(1 - max_k w_k |1 - r_k|), [n]: distance to the utopia point 1. Rewards lie in [0, 1]."""
    _check(rewards, weights, "tchebycheff", upper=1.0)
    return (1 - (weights * (1 - rewards).abs()).amax(-1)).clamp(min=SMALLEST).log()


def log_linear(rewards: Tensor, weights: Tensor) -> Tensor:
    """sum_k w_k r_k, [n]: the rewards are log-rewards already, of any sign."""
    return (weights * rewards).sum(-1)


def focus(rewards: Tensor, direction: Tensor, limit: float = 0.98, boundary: float = 0.2) -> Tensor:
    """log (sum_k r_k) + log alpha inside a cone around a goal direction, -inf outside, [n].

    alpha = cos^gamma of the angle between reward vector and direction, gamma such that
    alpha = `boundary` at cos = `limit`, where the cone ends; the length of `direction` [n, K]
    does not matter. (Goal-conditioned GFlowNets for Controllable Multi-Objective Molecular
    Design, 2023, arXiv 2306.04620.) Rewards must not be negative.
    """
    _check(rewards, direction, "focus", upper=None)
    cosine = torch.nn.functional.cosine_similarity(rewards, direction, dim=-1, eps=1e-30)
    # A direction computed from the rewards themselves may exceed 1 by rounding.
    log_cosine = cosine.clamp(min=SMALLEST, max=1).log()
    log_alpha = math.log(boundary) / math.log(limit) * log_cosine
    total = rewards.sum(-1).clamp(min=SMALLEST).log()
    return torch.where(cosine >= limit, total + log_alpha, -torch.inf)


def goal_directions(
    n: int,
    n_rewards: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Goals for `focus`, even over the positive unit sphere, scaled to sum to one, [n, K]."""
    draw = torch.randn(n, n_rewards, generator=generator, dtype=dtype).abs()
    return draw / draw.sum(-1, keepdim=True)


SCALARIZATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "weighted_sum": weighted_sum,
    "weighted_log_sum": weighted_log_sum,
    "tchebycheff": tchebycheff,
    "focus": focus,
    "log_linear": log_linear,
}


def log_reward(
    rewards: Tensor,
    condition: Condition,
    scalarization: Callable[[Tensor, Tensor], Tensor] = weighted_sum,
    lowest: float = -500.0,
) -> Tensor:
    """log R(x given c) = beta * log S_w(r(x)), clamped below at `lowest`, [n].

    Without a preference the rewards are weighed evenly. Those of `log_linear` are not clamped.
    """
    weights = condition.preference
    if weights is None:
        weights = torch.full_like(rewards, 1 / rewards.shape[-1])
    beta = condition.inverse_temperature.to(rewards.dtype)
    values = beta * scalarization(rewards, weights.to(rewards.dtype))
    return values if scalarization is log_linear else values.clamp(min=lowest)


def _check(rewards: Tensor, weights: Tensor, name: str, upper: float | None) -> None:
    if rewards.shape != weights.shape:
        raise ValueError(
            f"{name}: rewards {tuple(rewards.shape)} and weights {tuple(weights.shape)} differ"
        )
    good = rewards >= 0 if upper is None else (rewards >= 0) & (rewards <= upper + 1e-6)
    if not bool(good.all()):
        row, column = (~good).nonzero()[0].tolist()
        limits = "at least 0" if upper is None else f"in [0, {upper:g}]"
        raise ValueError(
            f"{name}: reward {rewards[row, column].item():g} (row {row}, column {column}) "
            f"must be {limits}"
        )
