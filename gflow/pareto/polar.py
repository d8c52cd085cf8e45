"""Hypervolume as an average over directions: batched, differentiable, for many objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gflow.pareto._check import (
    MEMORY_BUDGET,
    Maximize,
    check_finite,
    check_points,
    close_budget,
    oriented,
    read_reference,
    validity,
)
from gflow.pareto._closest import flat

SEED = 0x9E3779B97F4A7C15
"""An unlikely seed: with a common one, points drawn by the caller would be the directions."""


class Estimate(NamedTuple):
    """An estimated value and its standard error, both [...]."""

    value: Tensor
    standard_error: Tensor


def polar_hypervolume(
    points: Tensor,
    ref_point: Tensor | Sequence[float],
    mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    n_directions: int = 16384,
    generator: torch.Generator | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> Estimate:
    """Hypervolume estimated from random directions, with its standard error.

    HV = A_m / m * E_w[ max_y min_k (d_k / w_k)^m ], d = y - ref clamped at 0, w uniform on the
    positive part of the unit sphere, A_m = 2 pi^(m/2) / (Gamma(m/2) 2^m) its area. The gradient
    is that of the sample average: almost everywhere defined, and shared by the points that win
    a direction.

    Args:
        points: [..., n, m], float32 or float64.
        ref_point: [m] or [..., m], in the same direction as the points.
        mask: [..., n] bool.
        maximize: one flag, or one for each objective.
        n_directions: the standard error falls with its square root.
        generator: source of the directions; without one they are the same at every call.
        memory_budget: bytes for temporary tensors.

    Returns:
        value and standard error, each [...].

    Raises:
        TypeError: integer or half precision points.
        ValueError: wrong shapes or devices, infinite coordinates, no reference point, or fewer
            than two directions.

    Source: Deng, Zhang, "Approximating hypervolume and hypervolume contributions using polar
    coordinate", 2019; Golovin, Zhang, "Random hypervolume scalarizations for provable
    multi-objective black box optimization", 2020 (arXiv 2006.04655).
    """
    check_points(points)
    reference = read_reference(ref_point, points)
    if n_directions < 2:
        raise ValueError(f"n_directions must be at least 2, not {n_directions}")
    valid = validity(points, mask)
    check_finite(points, valid, "points")
    y = oriented(points, maximize) - oriented(reference, maximize).unsqueeze(-2)
    gains = torch.where(valid.unsqueeze(-1), y, torch.zeros_like(y)).clamp(min=0)
    m = gains.shape[-1]
    if gains.numel() == 0:
        zero = gains.sum((-2, -1))
        return Estimate(zero, zero.detach())
    if generator is None:
        generator = torch.Generator(points.device).manual_seed(SEED)
    shape = (n_directions, m)
    w = torch.randn(shape, generator=generator, dtype=points.dtype, device=points.device).abs()
    w = w / w.norm(dim=-1, keepdim=True)
    # In units of the largest gain of each axis no direction is wasted on a short one.
    scale = gains.detach().amax(-2, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    unit = flat(gains / scale)
    samples = _radii(unit, w, memory_budget).view(*gains.shape[:-2], n_directions).pow(m)
    area = 2 * math.pi ** (m / 2) / (math.gamma(m / 2) * 2**m)
    factor = scale.prod(-1).squeeze(-1) * (area / m)
    error = samples.detach().std(-1) / math.sqrt(n_directions)
    return Estimate(samples.mean(-1) * factor, error * factor)


def _radii(gains: Tensor, w: Tensor, memory_budget: int) -> Tensor:
    """Length of each direction [D, m] inside the dominated region of fronts [B, n, m]: [B, D]."""
    batch, n, m = gains.shape
    columns = gains.detach().permute(2, 0, 1).contiguous().unsqueeze(-2)
    block = max(
        1, close_budget(gains, memory_budget) // max(1, 3 * batch * n * gains.element_size())
    )
    winners = []
    for part in w.split(block):
        length = columns[0] / part[:, :1]
        for k in range(1, m):
            torch.minimum(length, columns[k] / part[:, k : k + 1], out=length)
        winners.append(length.argmax(-1))
    best = torch.cat(winners, -1).unsqueeze(-1).expand(batch, len(w), m)
    return (gains.gather(1, best) / w).amin(-1)
