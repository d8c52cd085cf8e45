"""Sorted axes, and places on them: small integers that compare as the values do."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def ascending(values: Tensor, stable: bool = True) -> tuple[Tensor, Tensor]:
    """Values [..., n] in ascending order, NaN last, and where they came from.

    Ties stand by position if `stable`.
    """
    if values.device.type != "cpu":
        return values.sort(dim=-1, stable=stable)  # type: ignore[return-value]
    # numpy sorts several times faster than torch, but only where ties may be mixed up.
    order = torch.from_numpy(np.argsort(values.detach().numpy(), axis=-1))
    ordered = values.gather(-1, order)
    if stable and bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        n = values.shape[-1]
        keys = _first_places(ordered).long() * n + order
        order = torch.from_numpy(np.sort(keys.numpy(), axis=-1)) % n
    return ordered, order


def marked_first(flags: Tensor) -> Tensor:
    """Positions [..., n] with the marked ones in front, both kinds in ascending order."""
    if flags.device.type != "cpu":
        return (~flags).to(torch.uint8).argsort(dim=-1, stable=True)
    return torch.from_numpy(np.argsort(~flags.numpy(), axis=-1, kind="stable"))


def _first_places(ordered: Tensor) -> Tensor:
    """Place of the first of equal values, for each of the sorted ones [..., n]; int32."""
    n = ordered.shape[-1]
    first = torch.arange(n, dtype=torch.int32, device=ordered.device)
    first = first.repeat(*ordered.shape[:-1], 1)
    first[..., 1:] *= ordered[..., 1:] != ordered[..., :-1]
    return first.cummax(-1).values


def places(ordered: Tensor, order: Tensor) -> Tensor:
    """Place of each value among `ascending` ones [..., n], the first place of equal values.

    Places are int16 where n allows: pairs of them are compared several times faster than floats.
    """
    dtype = torch.int16 if order.shape[-1] < torch.iinfo(torch.int16).max else torch.int32
    first = _first_places(ordered).to(dtype)
    return torch.empty_like(first).scatter_(-1, order, first)


def least(high: Tensor, low: Tensor) -> Tensor:
    """Least of high - low over the axes in front; an axis broadcasts to [..., r, n]."""
    sides = zip(high[0].shape, low[0].shape, strict=True)
    shape = [a if b == 1 else b for a, b in sides]
    # Memory in the usual order: torch may choose another for a difference of two broadcast sides.
    # In one piece: an allocator that gives memory back keeps twice its largest piece.
    result, ahead = high[0].new_empty(2, *shape).unbind()
    torch.sub(high[0], low[0], out=result)
    for above, below in zip(high[1:], low[1:], strict=True):
        torch.minimum(result, torch.sub(above, below, out=ahead), out=result)
    return result


def taken(columns: Tensor, index: Tensor) -> Tensor:
    """Columns [m, n] at positions [k]: what `index_select` gives, four times as fast."""
    return columns.gather(-1, index.expand(*columns.shape[:-1], -1))


def reached(least: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of the entries of [r, n] that are 0 or more, row after row."""
    if least.device.type == "cpu":
        # A compiled scan: torch takes six times as long.
        found = torch.from_numpy(np.flatnonzero(least.numpy() >= 0))
    else:
        found = (least >= 0).flatten().nonzero().squeeze(-1)
    rows = torch.div(found, least.shape[-1], rounding_mode="floor")
    return rows, found - rows * least.shape[-1]
