"""Estimates of KL divergences from single actions, and the penalty that bounds one.

x = log pi - log ref on actions drawn from pi. As losses they differ in what they pull towards: k1
has expected gradient 0, k2 has that of KL(pi || ref), k3 that of KL(ref || pi).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gflow.objectives.policy_gradient.ratios import LIMIT


def k1(x: Tensor) -> Tensor:
    """x: unbiased, may be negative."""
    return x


def k2(x: Tensor) -> Tensor:
    """x^2 / 2: as a loss it has the gradient of KL(pi || ref)."""
    return x.square() / 2


def k3(x: Tensor) -> Tensor:
    """exp(-x) - 1 + x: unbiased and never negative; as a loss it has that of KL(ref || pi)."""
    return torch.exp(-x) - 1 + x


def k3_plus(x: Tensor) -> Tensor:
    """The value of k3 with the gradient of k2."""
    square = k2(x)
    return square + (k3(x) - square).detach()


KL_ESTIMATES: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3+": k3_plus,
}


def log_ratio(log_p: Tensor, log_ref: Tensor, mask: Tensor) -> Tensor:
    """x, clamped so that its exponential stays finite, and 0 outside `mask`."""
    return torch.where(mask, log_p - log_ref, 0.0).clamp(-LIMIT, LIMIT)


def constraint(divergence: Tensor, level: Tensor, bound: float, weight: float) -> Tensor:
    """max(weight (KL - bound), 0) KL: nothing inside the trust region (DisCO, 2505.12366).

    Args:
        divergence: KL with its gradient, or this process's share of it.
        level: KL itself, which decides the multiplier.
        bound: KL that is allowed.
        weight: how the multiplier grows beyond it.
    """
    return (weight * (level - bound)).clamp(min=0).detach() * divergence


def value_loss(value: Tensor, old: Tensor, target: Tensor, clip: float = 0.0) -> Tensor:
    """(V - target)^2 / 2, or its largest with V kept within `clip` of `old` (PPO), elementwise."""
    loss = (value - target).square()
    if clip:
        near = old + (value - old).clamp(-clip, clip)
        loss = loss.maximum((near - target).square())
    return loss / 2
