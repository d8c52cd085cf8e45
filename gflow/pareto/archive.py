"""A Pareto archive of fixed capacity that lives on the device of the points it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gflow.pareto._check import (
    MEMORY_BUDGET,
    Maximize,
    check_finite,
    check_points,
    check_same,
    oriented,
    read_reference,
    signs,
    validity,
)
from gflow.pareto._closest import flat
from gflow.pareto._exclusive import exclusive_at
from gflow.pareto._measure import contributions, measure, turns
from gflow.pareto._order import ascending, marked_first, places
from gflow.pareto.dominance import covered, crowding, non_dominated

Truncation = Literal["crowding", "contribution"]

ROUND_ROWS = 8192
"""Rows that the rounds of one truncation may score: small archives drop their points singly."""


class ParetoArchive:
    """The non-dominated points of everything added so far, at most `capacity` of them.

    Points that do not exceed the reference point are kept while they are non-dominated: they
    belong to the front and add no hypervolume. Of several equal points the first stays. When
    the front outgrows the capacity, the points in the most crowded places go, one by one in a
    small archive and in two rounds in a large one, so that a dense spot is thinned and not
    emptied: that costs one sort, keeps the ends of the front and does not depend on the reference
    point. `truncate="contribution"` drops the smallest
    hypervolume contributions instead, which keeps more hypervolume and costs a contribution of
    every point at each insertion.

    Args:
        capacity: most points kept for each front.
        ref_point: [m] or [*batch_shape, m].
        batch_shape: shape of the independent fronts, one for each condition; () for one front.
        maximize: one flag, or one for each objective.
        truncate: "crowding" or "contribution".
        dtype: float32 or float64.
        device: where the archive lives.
        memory_budget: bytes for temporary tensors.

    Attributes:
        points: [*batch_shape, capacity, m].
        mask: [*batch_shape, capacity], which rows hold a point.
        ids: [*batch_shape, capacity] int64, what the caller stored beside each point, -1 if
            nothing.

    Raises:
        ValueError: capacity below 1, or a reference point of the wrong shape.
    """

    def __init__(
        self,
        capacity: int,
        ref_point: Tensor | Sequence[float],
        *,
        batch_shape: Sequence[int] = (),
        maximize: Maximize = True,
        truncate: Truncation = "crowding",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        if not isinstance(capacity, int) or capacity < 1:
            raise ValueError(f"capacity must be a whole number of at least 1, not {capacity!r}")
        if truncate not in ("crowding", "contribution"):
            raise ValueError(f"truncate must be crowding or contribution, not {truncate!r}")
        shape = (*batch_shape, capacity)
        given = torch.zeros(1) if ref_point is None else torch.as_tensor(ref_point)
        if given.dim() == 0:
            raise ValueError(f"ref_point must hold one number for each objective, not {ref_point}")
        m = given.shape[-1]
        self.points = torch.zeros(*shape, m, dtype=dtype, device=device)
        check_points(self.points, "the archive")
        self.mask = torch.zeros(shape, dtype=torch.bool, device=device)
        self.ids = torch.full(shape, -1, dtype=torch.long, device=device)
        self.ref_point = read_reference(ref_point, self.points).detach().clone()
        factors = signs(maximize, m) or [1.0] * m
        self.maximize = [factor > 0 for factor in factors]
        self.truncate = truncate
        self.memory_budget = memory_budget

    @property
    def capacity(self) -> int:
        """Most points kept for each front."""
        return self.mask.shape[-1]

    @property
    def count(self) -> Tensor:
        """Points kept now, [*batch_shape]."""
        return self.mask.sum(-1)

    @torch.no_grad()
    def add(self, points: Tensor, mask: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        """Insert a batch of points; returns what each adds to the hypervolume.

        gain_i = HV(A, y_1 .. y_i) - HV(A, y_1 .. y_{i-1}) for points that enter the front; points
        dominated by the archive or by another new point gain 0. The gains sum to the growth of
        the hypervolume before truncation.

        Args:
            points: [*batch_shape, k, m].
            mask: [*batch_shape, k] bool; a point with a NaN is left out too.
            ids: [*batch_shape, k] int64 to store beside the points.

        Returns:
            [*batch_shape, k].

        Raises:
            TypeError: another dtype than the archive's, or ids that are not int64.
            ValueError: wrong shapes or devices, or infinite coordinates.
        """
        check_points(points)
        check_same(points, self.points, "points", "the archive")
        if points.shape[:-2] != self.points.shape[:-2]:
            raise ValueError(
                f"points {list(points.shape)} must have the leading shape "
                f"{list(self.points.shape[:-2])} of the archive"
            )
        valid = validity(points, mask)
        check_finite(points, valid, "points")
        if ids is None:
            ids = torch.full(valid.shape, -1, dtype=torch.long, device=points.device)
        if not isinstance(ids, Tensor) or ids.dtype is not torch.long:
            raise TypeError(f"ids must be an int64 tensor, not {getattr(ids, 'dtype', ids)!r}")
        if ids.shape != valid.shape or ids.device != points.device:
            raise ValueError(
                f"ids must have shape {list(valid.shape)} on {points.device}, not "
                f"{list(ids.shape)} on {ids.device}"
            )
        # What is kept stands at the front; one sort of the axes serves every step.
        size = int(self.count.max()) if self.count.numel() else 0
        rows = self._joined(self.points, points, size)
        counted = self._joined(self.mask, valid, size)
        y = oriented(rows, self.maximize)
        axes = ascending(y.mT)
        ranks = places(*axes).masked_fill_(~counted.unsqueeze(1), -1)
        keep = self._front(y, ranks, size)
        gains = self._gains(axes[0], ranks, keep, size)
        keep = self._truncated(y, axes, keep)
        index = _marked(keep)
        kept = keep.gather(1, index)
        best = _rows(rows, index).masked_fill(~kept.unsqueeze(-1), 0)
        named = _rows(self._joined(self.ids, ids, size), index).masked_fill(~kept, -1)
        self.points = _filled(self.points, 0, best)
        self.ids = _filled(self.ids, -1, named)
        self.mask = _filled(self.mask, False, kept)
        return gains.view(valid.shape)

    def hypervolume(self) -> Tensor:
        """Hypervolume of what is kept, [*batch_shape]; 0 while nothing exceeds the reference."""
        y = flat(oriented(self.points, self.maximize))
        gains = self._above(y, self.mask.view(y.shape[:-1]))
        values = measure(gains, "auto", self.memory_budget)
        return values.view(self.mask.shape[:-1]).to(self.points.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and settings, for `torch.save` and a load with weights_only=True."""
        return {
            "points": self.points,
            "mask": self.mask,
            "ids": self.ids,
            "ref_point": self.ref_point,
            "maximize": self.maximize,
            "truncate": self.truncate,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: a key is missing, or the archive was built with other settings.
        """
        own = self.state_dict()
        missing = own.keys() - state.keys()
        if missing:
            raise ValueError(f"the archive state lacks {sorted(missing)}")
        settings = {"maximize": list(state["maximize"]), "truncate": state["truncate"]}
        for name, given in settings.items():
            if given != own[name]:
                raise ValueError(f"the archive state has {name} {given!r}, this one {own[name]!r}")
        for name in ("points", "mask", "ids", "ref_point"):
            if state[name].shape != own[name].shape or state[name].dtype != own[name].dtype:
                raise ValueError(
                    f"the archive state has {name} {list(state[name].shape)} {state[name].dtype}, "
                    f"this one {list(own[name].shape)} {own[name].dtype}"
                )
        if not torch.equal(state["ref_point"].to(self.ref_point.device), self.ref_point):
            raise ValueError("the archive state has another reference point")
        for name in ("points", "mask", "ids"):
            setattr(self, name, state[name].to(self.points.device, copy=True))

    def _joined(self, old: Tensor, new: Tensor, size: int) -> Tensor:
        """The first `size` rows of each front and the new ones, [B, size + k, ...]."""
        axis = self.mask.dim() - 1
        rows = torch.cat([old.narrow(axis, 0, size), new], axis)
        return rows.reshape(math.prod(rows.shape[:axis]), *rows.shape[axis:])

    def _front(self, y: Tensor, ranks: Tensor, size: int) -> Tensor:
        """Rows of [B, n + k, m] on the front, of which the first n = `size` are one already.

        Places [B, m, n + k] stand for them, -1 where a row is not counted.
        """
        budget = self.memory_budget
        old, new = ranks.transpose(0, 1).split([size, ranks.shape[-1] - size], -1)
        entered = new[0] >= 0
        # A few of the kept points settle the fate of most new ones.
        for step in (32, 4, 1):
            index = _marked(entered)
            inside = ~covered(_places(new, index), old[..., ::step].contiguous(), budget)
            entered = _marks(entered, index, inside)
        index = _marked(entered)
        alone = non_dominated(
            _rows(y[:, size:], index),
            entered.gather(1, index),
            deduplicate=True,
            memory_budget=budget,
        )
        entered = _marks(entered, index, alone)
        index = _marked(entered)
        chosen = _places(new, index).masked_fill(~entered.gather(1, index), -1)
        return torch.cat([(old[0] >= 0) & ~covered(old, chosen, budget), entered], 1)

    def _gains(self, ordered: Tensor, ranks: Tensor, keep: Tensor, size: int) -> Tensor:
        """What each new row adds to the archive and to the new rows before it, [B, k]."""
        ordered, reference = ordered.double(), self._reference().unsqueeze(-1)
        gains = ordered.new_zeros(len(keep), keep.shape[1] - size)
        # No gain is put in front, at place 0; rows that add nothing are there.
        values = torch.nn.functional.pad((ordered - reference).clamp_(min=0), (1, 0))
        lowest = (ordered <= reference).sum(-1, keepdim=True).to(ranks.dtype)
        above = ((ranks - lowest) >= 0).all(1)
        above[:, size:] &= keep[:, size:]
        placed = (ranks + 1).masked_fill_(~above.unsqueeze(1), 0).transpose(0, 1)
        index = _marked(above[:, size:])
        k = index.shape[1]
        if k:
            entering = _places(placed[..., size:], index)
            rivals = torch.cat([entering, placed[..., :size]], -1)
            keys = turns(k, rivals[0])
            axes, budget = values.transpose(0, 1), self.memory_budget
            found = exclusive_at(entering, rivals, axes, keys[:, :k], keys, True, budget)
            gains.scatter_(1, index, found)
        return gains.to(self.points.dtype)

    def _truncated(self, y: Tensor, axes: tuple[Tensor, Tensor], keep: Tensor) -> Tensor:
        """The rows of [B, n + k] to keep, at most `capacity` of each front."""
        surplus = (keep.sum(-1, keepdim=True) - self.capacity).clamp(min=0)
        rounds = (
            min(int(surplus.max()), max(2, ROUND_ROWS // keep.shape[-1])) if keep.numel() else 0
        )
        for left in range(rounds, 0, -1):
            drop = (surplus + left - 1) // left
            if self.truncate == "crowding":
                scores = crowding(*axes, keep)
            else:
                scores = contributions(self._above(y, keep), self.memory_budget)
            keep = keep & ~_smallest(scores, keep, drop)
            surplus = surplus - drop
        return keep

    def _reference(self) -> Tensor:
        """The reference point of each front, [B, m] float64."""
        reference = oriented(self.ref_point, self.maximize).double()
        m = reference.shape[-1]
        return reference.expand(*self.points.shape[:-2], m).reshape(-1, m)

    def _above(self, y: Tensor, counted: Tensor) -> Tensor:
        """Gains over the reference point, [B, n, m] float64; zero rows for what does not count."""
        gains = y.double() - self._reference().unsqueeze(1)
        return gains.masked_fill(~(counted & (gains > 0).all(-1)).unsqueeze(-1), 0)


def _marked(flags: Tensor) -> Tensor:
    """Positions of the marked rows of [B, n], [B, most]; shorter rows go on with unmarked ones."""
    most = int(flags.sum(-1).max()) if flags.numel() else 0
    return marked_first(flags)[:, :most]


def _marks(flags: Tensor, index: Tensor, inside: Tensor) -> Tensor:
    """The marks of [B, n] at positions [B, most] that are `inside` too."""
    return torch.zeros_like(flags).scatter_(1, index, flags.gather(1, index) & inside)


def _rows(sets: Tensor, index: Tensor) -> Tensor:
    if sets.dim() == 3:
        index = index.unsqueeze(-1).expand(*index.shape, sets.shape[-1])
    return sets.gather(1, index)


def _places(columns: Tensor, index: Tensor) -> Tensor:
    return columns.gather(-1, index.expand(len(columns), *index.shape))


def _smallest(scores: Tensor, keep: Tensor, drop: Tensor) -> Tensor:
    """Which of the kept rows of [B, n] have the `drop` [B, 1] smallest scores; ties by position."""
    scores = scores.masked_fill(~keep, torch.inf)
    lowest = scores.topk(max(1, int(drop.max())), dim=-1, largest=False).values
    level = lowest.gather(-1, (drop - 1).clamp(min=0))
    below, equal = scores < level, (scores == level) & keep
    return below | (equal & (equal.cumsum(-1) <= drop - below.sum(-1, keepdim=True)))


def _filled(whole: Tensor, filler: float, rows: Tensor) -> Tensor:
    """Rows [B, n, ...] in the shape of the whole, with a filler behind them."""
    result = torch.full_like(whole, filler)
    result.view(len(rows), *whole.shape[1 - rows.dim() :])[:, : rows.shape[1]] = rows
    return result
