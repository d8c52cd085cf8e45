"""Pareto dominance: the non-dominated filter, non-dominated sorting, crowding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gflow.pareto._check import (
    MEMORY_BUDGET,
    Maximize,
    check_finite,
    compiled,
    moocore,
    read_points,
)
from gflow.pareto._closest import blocks, flat

FloatArray = NDArray[np.float64]


def non_dominated(
    points: Tensor,
    mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    deduplicate: bool = False,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Which points no other point dominates.

    Point q dominates p when q_j >= p_j for every j and q_j > p_j for some j. Copies do not
    dominate each other: all are kept, or only the first with `deduplicate`. A point with a NaN
    counts as dominated and dominates nothing.

    Args:
        points: [..., n, m], float32 or float64.
        mask: [..., n] bool; points outside it are ignored.
        maximize: one flag, or one for each objective.
        deduplicate: keep only the first of several equal points.
        memory_budget: bytes for temporary tensors where the pairs are compared on the device.

    Returns:
        bool [..., n].

    Raises:
        TypeError: integer or half precision points, or a mask that is not bool.
        ValueError: wrong shapes or devices.
    """
    y, valid = read_points(points, mask, maximize)
    if compiled(y):
        judge = functools.partial(moocore().is_nondominated, keep_weakly=not deduplicate)
        return _on_host(y, valid, judge, torch.zeros_like(valid))
    return _filter_by_pairs(y, valid, deduplicate, memory_budget)


def _on_host(
    y: Tensor, valid: Tensor, judge: Callable[[FloatArray], NDArray[Any]], result: Tensor
) -> Tensor:
    """Run a compiled routine, which minimises, on the counted points of each front."""
    costs = flat(y.neg().double()).numpy()
    shape = costs.shape[:2]
    rows, values = valid.reshape(shape).numpy(), result.view(shape).numpy()
    if rows.all():
        for i in range(len(costs)):
            values[i] = judge(costs[i])
    else:
        for i in range(len(costs)):
            values[i, rows[i]] = judge(costs[i, rows[i]])
    return result


def _filter_by_pairs(y: Tensor, valid: Tensor, deduplicate: bool, memory_budget: int) -> Tensor:
    """All pairs, a block of rows at a time; every comparison with a NaN is false."""
    columns = flat(y.masked_fill(~valid.unsqueeze(-1), torch.nan)).permute(2, 0, 1).contiguous()
    n = columns.shape[-1]
    keep = valid.reshape(columns.shape[1:]).clone()
    block = max(1, memory_budget // max(1, 4 * n * keep.shape[0]))
    index = torch.arange(n, device=y.device)
    for start in range(0, n, block):
        rows = slice(start, min(start + block, n))
        covers = torch.ones((), dtype=torch.bool, device=y.device)
        beats = torch.zeros((), dtype=torch.bool, device=y.device)
        for column in columns:
            mine, other = column[:, rows, None], column[:, None, :]
            covers = covers & (other >= mine)
            beats = beats | (other > mine)
        if deduplicate:
            beats = beats | (index < index[rows, None])
        keep[:, rows] &= ~(covers & beats).any(-1)
    return keep.view(valid.shape)


def non_dominated_rank(
    points: Tensor,
    mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Non-dominated sorting: 0 for the front, 1 for the front of the rest, and so on.

    Copies share a rank. Points outside the mask or with a NaN get n, which is past every rank.

    Args:
        points: [..., n, m], float32 or float64.
        mask: [..., n] bool; points outside it are ignored.
        maximize: one flag, or one for each objective.
        memory_budget: bytes for temporary tensors where the pairs are compared on the device.

    Returns:
        int64 [..., n].

    Raises:
        TypeError: integer or half precision points, or a mask that is not bool.
        ValueError: wrong shapes or devices.

    Source: Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002.
    """
    y, remaining = read_points(points, mask, maximize)
    n = y.shape[-2]
    ranks = torch.full(remaining.shape, n, dtype=torch.long, device=y.device)
    if compiled(y):
        return _on_host(y, remaining, moocore().pareto_rank, ranks)
    rank = 0
    while bool(remaining.any()):
        front = non_dominated(y, remaining, memory_budget=memory_budget)
        ranks[front] = rank
        remaining = remaining & ~front
        rank += 1
    return ranks


def crowding_distance(points: Tensor, mask: Tensor | None = None) -> Tensor:
    """Crowding distance of each point among the points given (usually one front).

    CD_i = sum_j (y_j[next] - y_j[previous]) / (max_j - min_j), neighbours taken in the order of
    objective j; the two ends of every objective get infinity, and so do fronts of one or two
    points. An objective in which all points agree adds nothing. Copies are told apart by their
    position in the input. The direction of the objectives does not matter. Points outside the
    mask or with a NaN get 0.

    Args:
        points: [..., n, m], float32 or float64.
        mask: [..., n] bool; points outside it are ignored.

    Returns:
        [..., n].

    Raises:
        TypeError: integer or half precision points, or a mask that is not bool.
        ValueError: wrong shapes or devices, or infinite coordinates.

    Source: Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002.
    """
    y, valid = read_points(points, mask, True)
    check_finite(y, valid, "points")
    return crowding(*sorted_axes(y), valid)


def sorted_axes(y: Tensor) -> tuple[Tensor, Tensor]:
    """Values of [..., n, m] in ascending order along n, and where they came from."""
    if y.device.type != "cpu":
        return y.sort(dim=-2, stable=True)  # type: ignore[return-value]
    # The stable sort of torch takes three times as long on the CPU.
    order = torch.from_numpy(np.argsort(y.mT.numpy(), axis=-1, kind="stable")).mT
    return y.gather(-2, order), order


def crowding(values: Tensor, order: Tensor, valid: Tensor) -> Tensor:
    """Crowding distance [..., n] of the valid points, from `sorted_axes` of all points."""
    n = values.shape[-2]
    distances = torch.zeros_like(values)
    if n == 0:
        return distances.sum(-1)
    kept = valid.unsqueeze(-1).expand_as(order).gather(-2, order)
    place = torch.arange(n, device=values.device).unsqueeze(-1)
    below = torch.where(kept, place, -1).cummax(-2).values
    above = torch.where(kept, place, n).flip(-2).cummin(-2).values.flip(-2)
    ends = torch.cat([above[..., :1, :], below[..., -1:, :]], -2).clamp(0, n - 1)
    low, high = values.gather(-2, ends).split(1, -2)
    spread = high - low
    below = torch.nn.functional.pad(below, (0, 0, 1, 0), value=-1)[..., :n, :]
    above = torch.nn.functional.pad(above, (0, 0, 0, 1), value=n)[..., 1:, :]
    gaps = values.gather(-2, above.clamp(max=n - 1)) - values.gather(-2, below.clamp(min=0))
    gaps = (gaps / spread).masked_fill((below < 0) | (above >= n), torch.inf)
    gaps = gaps.masked_fill((spread == 0) | ~kept, 0.0)
    distances = distances.scatter_(-2, order, gaps).sum(-1)
    distances = distances.masked_fill(valid.sum(-1, keepdim=True) <= 2, torch.inf)
    return distances.masked_fill(~valid, 0.0)


def covered(points: Tensor, by: Tensor, memory_budget: int) -> Tensor:
    """Which points [B, k, m] some row of [B, n, m] weakly dominates, maximising; never by a NaN."""
    if by.shape[1] == 0:
        return points.new_zeros(points.shape[:-1], dtype=torch.bool)
    rivals = by.permute(2, 0, 1).contiguous()
    size = memory_budget // max(1, 3 * by.shape[0] * by.shape[1])
    result = torch.empty(points.shape[:-1], dtype=torch.bool, device=points.device)
    for part, found in blocks(points, result, size):
        rows = part.permute(2, 0, 1)
        covers = rivals[0, :, None, :] >= rows[0, :, :, None]
        for rival, row in zip(rivals[1:], rows[1:], strict=True):
            covers &= rival[:, None, :] >= row[:, :, None]
        found[:] = covers.any(-1)
    return result
