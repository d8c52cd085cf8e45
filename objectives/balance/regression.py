"""Regression losses g(t) on a balance residual (Beyond Squared Error, 2024, arXiv 2410.02596).

All have g(0) = g'(0) = 0. Their curvatures g''(0) differ (see each), and learning rates with them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Regression = Callable[[Tensor], Tensor]


def squared(t: Tensor) -> Tensor:
    """t^2; curvature 2."""
    return t.square()


def half_squared(t: Tensor) -> Tensor:
    """t^2 / 2; curvature 1."""
    return 0.5 * t.square()


def huber(t: Tensor) -> Tensor:
    """t^2 / 2 within [-1, 1], |t| - 1/2 outside; curvature 1."""
    return torch.nn.functional.huber_loss(t, torch.zeros_like(t), reduction="none")


def shifted_cosh(t: Tensor) -> Tensor:
    """exp(t) + exp(-t) - 2, its argument clamped to [-80, 80]; curvature 2."""
    t = t.clamp(-80, 80)
    return t.exp() + (-t).exp() - 2


def linex(t: Tensor, alpha: float = 1.0) -> Tensor:
    """(exp(alpha t) - alpha t - 1) / alpha^2, the exponent clamped to at most 80; curvature 1.

    alpha = 1 behaves like the forward KL divergence, alpha -> 0 like `half_squared`.
    """
    t = (alpha * t).clamp(max=80)
    return (t.exp() - t - 1) / alpha**2


def log_cosh(t: Tensor, delta: float = 1.0) -> Tensor:
    """log cosh(delta t), the generalised Huber loss; curvature delta^2."""
    t = (delta * t).abs()
    return t + torch.nn.functional.softplus(-2 * t) - 0.6931471805599453


REGRESSIONS: dict[str, Regression] = {
    "squared": squared,
    "half_squared": half_squared,
    "huber": huber,
    "shifted_cosh": shifted_cosh,
    "linex": linex,
    "linex_half": partial(linex, alpha=0.5),
    "log_cosh": log_cosh,
}
