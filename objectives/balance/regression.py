"""Regression losses g(t) on a balance residual (Beyond Squared Error, 2024, arXiv 2410.02596).

All have g(0) = g'(0) = 0; their curvatures g''(0) differ (2, 1, 2, 1), so learning rates do too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Regression = Callable[[Tensor], Tensor]


def squared(t: Tensor) -> Tensor:
    """t^2."""
    return t.square()


def huber(t: Tensor) -> Tensor:
    """t^2 / 2 within [-1, 1], |t| - 1/2 outside."""
    return torch.nn.functional.huber_loss(t, torch.zeros_like(t), reduction="none")


def shifted_cosh(t: Tensor) -> Tensor:
    """exp(t) + exp(-t) - 2, its argument clamped to [-80, 80]."""
    t = t.clamp(-80, 80)
    return t.exp() + (-t).exp() - 2


def linex(t: Tensor) -> Tensor:
    """exp(t) - t - 1, forward-KL-like, its argument clamped to at most 80."""
    t = t.clamp(max=80)
    return t.exp() - t - 1


REGRESSIONS: dict[str, Regression] = {
    "squared": squared,
    "huber": huber,
    "shifted_cosh": shifted_cosh,
    "linex": linex,
}
