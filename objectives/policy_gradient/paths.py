"""Policy gradients on denoising paths: ratios, weights and divergences of Gaussian steps.

A step is x' = A x + B v(x, t) + s eps. Every published method of this family is a choice of which
steps have noise (the sampler's matter), how a reward becomes an advantage, a power and a centering
of the ratio, clip bounds, a weight of each step, and a divergence to a reference. Means over a
point's coordinates, not sums, go into ratios, so that they stay near 1.

References:
    Training Diffusion Models with Reinforcement Learning (DDPO), 2023, arXiv 2305.13301.
    DPOK: Reinforcement Learning for Fine-tuning Diffusion Models, 2023, arXiv 2305.16381.
    Flow-GRPO, 2025, arXiv 2505.05470. DanceGRPO, 2025, arXiv 2505.07818.
    Coefficients-Preserving Sampling, 2025, arXiv 2509.05952. MixGRPO, 2025, arXiv 2507.21802.
    TempFlow-GRPO, 2025, arXiv 2508.04324. GRPO-Guard, 2025, arXiv 2510.22319.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

POWERS = ("one", "noise", "density")
WEIGHTS = ("even", "noise", "time", "equal")


class StepTable(NamedTuple):
    """What weights and ratios depend on, one number for each step of a path.

    Attributes:
        b: factor of the network's prediction.
        s: standard deviation of the noise.
        h: length of the step in time.
    """

    b: Tensor
    s: Tensor
    h: Tensor


def ratio_powers(kind: str, table: StepTable) -> Tensor:
    """kappa of each step: log-ratios are multiplied by it, [T].

    "one" leaves them; "noise" takes s, which frees their spread of the step (GRPO-Guard);
    "density" takes 2 s^2, which drops the variance from the density (CPS as released).
    """
    return {"one": torch.ones_like(table.s), "noise": table.s, "density": 2 * table.s.square()}[
        kind
    ]


def path_weights(kind: str, table: StepTable, trained: Tensor) -> Tensor:
    """Weight of each step in the loss, [T].

    "even" is 1; "noise" takes s over its mean (TempFlow-GRPO); "time" takes 1 / h (GRPO-Guard);
    "equal" makes the gradient's coefficient |B| / s that of the median step (SAGE-GRPO).

    Args:
        kind: one of `WEIGHTS`.
        table: the path's steps.
        trained: [T] bool, steps over which means and medians run.
    """
    if kind == "noise":
        return table.s / table.s[trained].mean()
    if kind == "time":
        return 1 / table.h
    if kind == "equal":
        strength = table.b.abs() / table.s
        return strength[trained].median() / strength
    return torch.ones_like(table.s)


def gradient_coefficients(table: StepTable, powers: Tensor, weights: Tensor) -> Tensor:
    """How strongly each step's noise moves the network where it sampled: w kappa |B| / s, [T]."""
    return weights * powers * table.b.abs() / table.s


def scaled_clip(
    clip: tuple[float, float], size: int, tuned_at: int = 65_536
) -> tuple[float, float]:
    """Clip bounds for points of another size: log-ratios of means spread as 1 / sqrt(size).

    Args:
        clip: smallest and largest ratio.
        size: numbers in a point.
        tuned_at: numbers in a point where the bounds were chosen.
    """
    factor = math.sqrt(tuned_at / size)
    low, high = clip
    return max(1 - factor * (1 - low), 0.0), 1 + factor * (high - 1)


def mean_shift(mean: Tensor, old: Tensor, std: Tensor) -> Tensor:
    """Squared distance of two means in standard deviations, halved, mean over coordinates, [n].

    It is the divergence of the two steps, and what the log-ratio lacks in expectation under the
    old one.
    """
    return 0.5 * ((mean - old) / std).square().flatten(1).mean(1)
