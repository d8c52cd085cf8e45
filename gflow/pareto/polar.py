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
    check_points,
    close_budget,
    read_gains,
    read_reference,
)
from gflow.pareto._closest import flat
from gflow.pareto.dominance import non_dominated

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
    is that of the sample average: almost everywhere defined, shared by the points that win a
    direction, and zero for dominated points.

    Args:
        points: [..., n, m], float32 or float64.
        ref_point: [m] or [..., m], in the same direction as the points.
        mask: [..., n] bool.
        maximize: one flag, or one for each objective.
        n_directions: the standard error falls with its square root.
        generator: source of the directions; without one they are the same at every call.
        memory_budget: bytes for temporary tensors; a gradient keeps three numbers for each front
            and direction besides.

    Returns:
        value and standard error, each [...].

    Raises:
        TypeError: integer or half precision points.
        ValueError: wrong shapes or devices, infinite coordinates, no reference point, one that
            no point dominates, or fewer than two directions.

    Source: Deng, Zhang, "Approximating hypervolume and hypervolume contributions using polar
    coordinate", 2019; Golovin, Zhang, "Random hypervolume scalarizations for provable
    multi-objective black box optimization", 2020 (arXiv 2006.04655).
    """
    check_points(points)
    reference = read_reference(ref_point, points)
    if n_directions < 2:
        raise ValueError(f"n_directions must be at least 2, not {n_directions}")
    gains = read_gains(points, reference, mask, maximize)
    m = gains.shape[-1]
    if gains.numel() == 0:
        zero = gains.sum((-2, -1))
        return Estimate(zero, zero.detach())
    if gains.requires_grad:
        # A dominated point may share a direction with the point that dominates it.
        front = non_dominated(gains, deduplicate=True, memory_budget=memory_budget)
        gains = gains * front.unsqueeze(-1)
    if generator is None:
        generator = torch.Generator(points.device).manual_seed(SEED)
    shape = (n_directions, m)
    w = torch.randn(shape, generator=generator, dtype=points.dtype, device=points.device).abs()
    # In float32 one draw in 2^24 is zero, and 0 / 0 would win its direction.
    w = w.clamp(min=torch.finfo(w.dtype).eps)
    w = w / w.norm(dim=-1, keepdim=True)
    # In units of the largest gain of each axis no direction is wasted on a short one.
    scale = gains.amax(-2, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    # Live at once for each front and direction: its winner and its length, in pieces and joined.
    some = max(1, memory_budget // (64 * n_directions))
    parts = [_moments(unit, w, memory_budget) for unit in flat(gains / scale).split(some)]
    mean, spread = (torch.cat(part).view(gains.shape[:-2]) for part in zip(*parts, strict=True))
    area = 2 * math.pi ** (m / 2) / (math.gamma(m / 2) * 2**m)
    factor = scale.prod(-1).squeeze(-1) * (area / m)
    error = spread / math.sqrt(n_directions) * factor
    return Estimate(mean * factor, error.detach())


def _moments(gains: Tensor, w: Tensor, memory_budget: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the directions of length^m, for fronts [B, n, m]: [B]."""
    samples = _radii(gains, w, memory_budget).pow(gains.shape[-1])
    return samples.mean(-1), samples.detach().std(-1)


def _radii(gains: Tensor, w: Tensor, memory_budget: int) -> Tensor:
    """Length of each direction [D, m] inside the dominated region of fronts [B, n, m]: [B, D]."""
    batch, n, m = gains.shape
    rows = gains.detach()
    columns = rows.permute(2, 0, 1).contiguous().unsqueeze(-2)
    live = 3 * batch * max(n, m) * gains.element_size()
    block = max(1, close_budget(gains, memory_budget) // live)
    places, limits = [], []
    for part in w.split(block):
        length = columns[0] / part[:, :1]
        for k in range(1, m):
            torch.minimum(length, columns[k] / part[:, k : k + 1], out=length)
        best = length.argmax(-1)
        # The point that wins the direction, and the axis on which it ends.
        ends = rows.gather(1, best.unsqueeze(-1).expand(*best.shape, m)) / part
        axis = ends.argmin(-1)
        places.append(best * m + axis)
        limits.append(part.expand_as(ends).gather(-1, axis.unsqueeze(-1)).squeeze(-1))
    return gains.flatten(1).gather(1, torch.cat(places, -1)) / torch.cat(limits, -1)
