"""A Pareto archive of fixed capacity that lives on the device of the points it is given."""

from __future__ import annotations

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
from gflow.pareto._exclusive import axis_order
from gflow.pareto._measure import contributions, gains_in_turn, measure
from gflow.pareto.dominance import crowding_distance, non_dominated

Truncation = Literal["crowding", "contribution"]

ROUNDS = 4
"""Rounds in which a surplus is dropped."""


class ParetoArchive:
    """The non-dominated points of everything added so far, at most `capacity` of them.

    Points that do not exceed the reference point are kept while they are non-dominated: they
    belong to the front and add no hypervolume. Of several equal points the first stays. When
    the front outgrows the capacity, the points in the most crowded places go, in a few rounds so
    that a dense spot is thinned and not emptied: that costs a sort, keeps the ends of the front
    and does not depend on the reference point. `truncate="contribution"` drops the smallest
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
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        if truncate not in ("crowding", "contribution"):
            raise ValueError(f"truncate must be crowding or contribution, not {truncate!r}")
        m = len(ref_point) if not isinstance(ref_point, Tensor) else ref_point.shape[-1]
        shape = (*batch_shape, capacity)
        self.points = torch.zeros(*shape, m, dtype=dtype, device=device)
        check_points(self.points, "the archive")
        self.mask = torch.zeros(shape, dtype=torch.bool, device=device)
        self.ids = torch.full(shape, -1, dtype=torch.long, device=device)
        self.ref_point = read_reference(ref_point, self.points)
        signs(maximize, m)
        self.maximize = maximize
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
        elif ids.dtype is not torch.long or ids.shape != valid.shape:
            raise TypeError(f"ids must be int64 {list(valid.shape)}")
        k = points.shape[-2]
        # Old rows come first, so that of equal points the one that is kept already wins.
        joint = torch.cat([self.points, points], -2)
        keep = non_dominated(
            joint,
            torch.cat([self.mask, valid], -1),
            maximize=self.maximize,
            deduplicate=True,
            memory_budget=self.memory_budget,
        )
        gains = self._gains(joint, keep, k)
        self._store(joint, keep, torch.cat([self.ids, ids], -1))
        return gains

    def hypervolume(self) -> Tensor:
        """Hypervolume of what is kept, [*batch_shape]; 0 while nothing exceeds the reference."""
        gains = self._above(self.points, self.mask)
        return measure(gains, "auto", self.memory_budget).view(self.mask.shape[:-1])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and settings, for `torch.save` and a load with weights_only=True."""
        return {
            "points": self.points,
            "mask": self.mask,
            "ids": self.ids,
            "ref_point": self.ref_point,
            "maximize": self.maximize if isinstance(self.maximize, bool) else list(self.maximize),
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
        for name in ("maximize", "truncate"):
            if state[name] != own[name]:
                raise ValueError(
                    f"the archive state has {name} {state[name]!r}, this one {own[name]!r}"
                )
        for name in ("points", "mask", "ids", "ref_point"):
            if state[name].shape != own[name].shape or state[name].dtype != own[name].dtype:
                raise ValueError(
                    f"the archive state has {name} {list(state[name].shape)} {state[name].dtype}, "
                    f"this one {list(own[name].shape)} {own[name].dtype}"
                )
        if not torch.equal(state["ref_point"].to(self.ref_point.device), self.ref_point):
            raise ValueError("the archive state has another reference point")
        for name in ("points", "mask", "ids"):
            own[name].copy_(state[name])

    def _gains(self, joint: Tensor, keep: Tensor, k: int) -> Tensor:
        """What each of the last k rows adds to the rows kept before it and to the archive."""
        old = keep.shape[-1] - k
        entered = keep[..., old:].reshape(-1, k)
        gains = joint.new_zeros(entered.shape)
        most = int(entered.sum(-1).max()) if entered.numel() else 0
        if most:
            counted = torch.cat([self.mask, keep[..., old:]], -1)
            above = self._above(joint, counted)
            rows = entered.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :most]
            chosen = rows.unsqueeze(-1).expand(-1, -1, above.shape[-1])
            ordered = torch.cat([above[:, old:].gather(1, chosen), above[:, :old]], 1)
            gains.scatter_(1, rows, gains_in_turn(ordered, most, self.memory_budget))
        return gains.view((*keep.shape[:-1], k))

    def _store(self, joint: Tensor, keep: Tensor, ids: Tensor) -> None:
        surplus = (keep.sum(-1, keepdim=True) - self.capacity).clamp(min=0)
        if bool(surplus.any()):
            keep = self._truncated(joint, keep, surplus)
        rows = keep.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
        rows = rows[..., : self.capacity]
        self.mask = keep.gather(-1, rows)
        self.ids = ids.gather(-1, rows).masked_fill(~self.mask, -1)
        index = rows.unsqueeze(-1).expand(*rows.shape, joint.shape[-1])
        self.points = joint.gather(-2, index).masked_fill(~self.mask.unsqueeze(-1), 0)

    def _truncated(self, joint: Tensor, keep: Tensor, surplus: Tensor) -> Tensor:
        for left in range(ROUNDS, 0, -1):
            drop = (surplus + left - 1) // left
            place = axis_order(-self._scores(joint, keep).masked_fill(~keep, torch.inf))
            keep = keep & (place >= drop)
            surplus = surplus - drop
        return keep

    def _scores(self, joint: Tensor, keep: Tensor) -> Tensor:
        if self.truncate == "crowding":
            return crowding_distance(joint, keep)
        return contributions(self._above(joint, keep), self.memory_budget).view(keep.shape)

    def _above(self, points: Tensor, counted: Tensor) -> Tensor:
        """Gains over the reference point, [B, n, m]; zero rows for what does not count."""
        y = oriented(points, self.maximize) - oriented(self.ref_point, self.maximize).unsqueeze(-2)
        return flat(y * (counted & (y > 0).all(-1)).unsqueeze(-1))
