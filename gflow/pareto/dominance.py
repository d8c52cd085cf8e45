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
    close_budget,
    compiled,
    moocore,
    read_points,
)
from gflow.pareto._closest import flat
from gflow.pareto._order import ascending, least

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
    ordered, order = ascending(flat(y).mT)
    return crowding(ordered, order, valid.reshape(len(order), -1)).view(valid.shape)


def crowding(ordered: Tensor, order: Tensor, valid: Tensor) -> Tensor:
    """Crowding distance [B, n] of the valid points, from the ascending axes [B, m, n] of all."""
    _, m, n = order.shape
    kept = valid.unsqueeze(1).expand_as(order).gather(-1, order)
    last = valid.sum(-1, keepdim=True) - 1
    place = kept.cumsum(-1) - 1
    # The kept values side by side; what is not kept goes behind them.
    packed = ordered.new_empty(*order.shape[:-1], n + 1)
    packed.scatter_(-1, place.masked_fill(~kept, n), ordered)
    end = last.unsqueeze(1).expand(-1, m, -1).clamp(min=0)
    spread = packed.gather(-1, end) - packed[..., :1]
    edge = torch.full_like(spread, torch.inf).masked_fill_(spread == 0, 0.0)
    gaps = torch.empty_like(packed)
    torch.sub(packed[..., 2:], packed[..., :-2], out=gaps[..., 1:-1])
    gaps /= spread.masked_fill(spread == 0, torch.inf)
    gaps[..., :1] = edge
    gaps = gaps.scatter_(-1, end, edge).gather(-1, place.clamp_(min=0))
    distances = torch.empty_like(gaps).scatter_(-1, order, gaps).sum(1)
    distances = distances.masked_fill(last <= 1, torch.inf)
    return distances.masked_fill(~valid, 0.0)


def covered(points: Tensor, by: Tensor, memory_budget: int) -> Tensor:
    """Which points [m, B, k] some row of [m, B, n] weakly dominates, by their places on each axis.

    Signed integers of one dtype, larger is better; rows of -1 are nowhere and cover nothing.
    """
    k, n = points.shape[-1], by.shape[-1]
    result = torch.zeros(points.shape[1:], dtype=torch.bool, device=points.device)
    if n == 0:
        return result
    # The longer side goes last, where a processor compares many at once.
    point_axis, rival_axis = (-1, -2) if k > n else (-2, -1)
    rivals, rows = by.unsqueeze(point_axis), points.unsqueeze(rival_axis)
    live = 3 * by[0].numel() * by.element_size()
    size = max(1, close_budget(by, memory_budget) // max(1, live))
    for part, found in zip(rows.split(size, point_axis), result.split(size, -1), strict=True):
        found[:] = least(rivals, part).amax(rival_axis) >= 0
    return result
