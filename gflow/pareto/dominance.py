"""Pareto dominance: the non-dominated filter, non-dominated sorting, crowding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gflow.pareto._check import MEMORY_BUDGET, Maximize, check_finite, moocore, read_points

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
    y, valid = read_points(points.detach(), mask, maximize)
    library = moocore()
    if y.device.type == "cpu" and library is not None:
        judge = functools.partial(library.is_nondominated, keep_weakly=not deduplicate)
        return _on_host(y, valid, judge, torch.zeros_like(valid))
    return _filter_by_pairs(y, valid, deduplicate, memory_budget)


def _on_host(
    y: Tensor, valid: Tensor, judge: Callable[[FloatArray], NDArray[Any]], result: Tensor
) -> Tensor:
    """Run a compiled routine, which minimises, on the counted points of each front."""
    n, m = y.shape[-2:]
    costs = y.neg().double().reshape(-1, n, m).numpy()
    rows, values = valid.reshape(-1, n).numpy(), result.view(-1, n).numpy()
    if rows.all():
        for i in range(len(costs)):
            values[i] = judge(costs[i])
    else:
        for i in range(len(costs)):
            values[i, rows[i]] = judge(costs[i, rows[i]])
    return result


def _filter_by_pairs(y: Tensor, valid: Tensor, deduplicate: bool, memory_budget: int) -> Tensor:
    """All pairs, a block of rows at a time; every comparison with a NaN is false."""
    n, m = y.shape[-2:]
    columns = y.masked_fill(~valid.unsqueeze(-1), torch.nan).reshape(-1, n, m).permute(2, 0, 1)
    columns = columns.contiguous()
    keep = valid.reshape(-1, n).clone()
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
    y, remaining = read_points(points.detach(), mask, maximize)
    n = y.shape[-2]
    ranks = torch.full(remaining.shape, n, dtype=torch.long, device=y.device)
    library = moocore()
    if y.device.type == "cpu" and library is not None:
        return _on_host(y, remaining, library.pareto_rank, ranks)
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
    y, valid = read_points(points.detach(), mask, True)
    check_finite(y, valid, "points")
    n = y.shape[-2]
    if n == 0:
        return y.new_zeros(valid.shape)
    counts = valid.sum(-1, keepdim=True).unsqueeze(-1)
    values, order = y.masked_fill(~valid.unsqueeze(-1), torch.inf).sort(dim=-2, stable=True)
    place = torch.arange(n, device=y.device).unsqueeze(-1)
    last = (counts - 1).clamp(min=0)
    top = values.gather(-2, last.expand(*last.shape[:-1], y.shape[-1]))
    spread = top - values[..., :1, :]
    gaps = torch.zeros_like(values)
    gaps[..., 1:-1, :] = (values[..., 2:, :] - values[..., :-2, :]) / spread
    gaps = gaps.masked_fill((place == 0) | (place == last), torch.inf)
    gaps = gaps.masked_fill((spread == 0) | (place > last), 0.0)
    distances = torch.zeros_like(gaps).scatter_(-2, order, gaps).sum(-1)
    distances = distances.masked_fill(counts.squeeze(-1) <= 2, torch.inf)
    return distances.masked_fill(~valid, 0.0)
