"""Which exact routine measures a batch of fronts, and the gradient of what it returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gflow.pareto._check import compiled
from gflow.pareto._exclusive import axis_order, exclusive, volume
from gflow.pareto._host import host_measure
from gflow.pareto.dominance import non_dominated
from gflow.pareto.tiles import tile_cuts, tiled_volume


class Volume(torch.autograd.Function):
    """Hypervolume of gains [B, n, m] over the origin; backward gives the exposed facets."""

    @staticmethod
    def forward(ctx: Any, gains: Tensor, method: str, memory_budget: int) -> Tensor:
        ctx.save_for_backward(gains)
        ctx.memory_budget = memory_budget
        return measure(gains.detach(), method, memory_budget)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gains,) = ctx.saved_tensors
        return _facets(gains, ctx.memory_budget) * upstream[:, None, None], None, None


def measure(gains: Tensor, method: str, memory_budget: int) -> Tensor:
    """Hypervolume of gains [B, n, m] over the origin."""
    _, n, m = gains.shape
    if method != "slices" and compiled(gains):
        routine = host_measure(np.zeros(m), memory_budget)
        return gains.new_tensor([routine(front) for front in gains.neg().double().numpy()])
    cuts = tile_cuts(n, m)
    if method == "slices" or cuts == 1:
        return volume(gains, memory_budget)

    def base(front: Tensor) -> Tensor:
        return volume(front.unsqueeze(0), memory_budget)[0]

    values = gains.new_empty(len(gains))
    fronts = non_dominated(gains, deduplicate=True, memory_budget=memory_budget)
    for i, keep in enumerate(fronts):
        values[i] = tiled_volume(gains[i, keep], base, cuts, memory_budget)
    return values


def _facets(gains: Tensor, memory_budget: int) -> Tensor:
    """Exposed measure of the facet of each point across each axis, [B, n, m]."""
    front = non_dominated(gains, deduplicate=True, memory_budget=memory_budget)
    columns = (gains * front.unsqueeze(-1)).permute(2, 0, 1)
    if len(columns) == 1:
        return ((axis_order(columns[0]) == 0) & (columns[0] > 0)).to(gains.dtype).unsqueeze(-1)
    facets = []
    for axis in range(len(columns)):
        rest = torch.cat([columns[:axis], columns[axis + 1 :]])
        keys = axis_order(columns[axis])
        facets.append(exclusive(rest, rest, keys, keys, True, memory_budget))
    return torch.stack(facets, -1)


class Improvement(torch.autograd.Function):
    """What the first k rows of gains [B, n, m] add to the rest; no gradient for the rest."""

    @staticmethod
    def forward(ctx: Any, gains: Tensor, k: int, memory_budget: int) -> Tensor:
        ctx.save_for_backward(gains)
        ctx.k, ctx.memory_budget = k, memory_budget
        return gains_in_turn(gains.detach(), k, memory_budget).sum(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gains,) = ctx.saved_tensors
        facets = _facets(gains, ctx.memory_budget)
        facets[:, ctx.k :] = 0
        return facets * upstream[:, None, None], None, None


def gains_in_turn(gains: Tensor, k: int, memory_budget: int) -> Tensor:
    """What each of the first k rows of [B, n, m] adds to the rest and to the rows before it."""
    keys = turns(k, gains[..., 0])
    columns = gains.permute(2, 0, 1)
    return exclusive(columns[..., :k], columns, keys[:, :k], keys, True, memory_budget)


def turns(k: int, rows: Tensor) -> Tensor:
    """Keys of [B, n] rows of which the first k come one after the other, behind all others."""
    numbers = torch.arange(rows.shape[1], device=rows.device)
    return numbers.masked_fill(numbers >= k, -1).expand(rows.shape)


def contributions(gains: Tensor, memory_budget: int) -> Tensor:
    """What each row of [B, n, m] covers and no other row does, [B, n]."""
    keys = torch.arange(gains.shape[1], device=gains.device).expand(gains.shape[:2])
    columns = gains.permute(2, 0, 1)
    return exclusive(columns, columns, keys, keys, False, memory_budget)
