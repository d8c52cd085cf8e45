"""Shared checks: every public function of the package reads its tensors through here."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Maximize = bool | Sequence[bool]

MEMORY_BUDGET = 512 * 2**20
"""Bytes that the temporary tensors of one call may take, unless the caller says otherwise."""
CACHE = 12 * 2**20
"""Bytes that a processor keeps close: blocks of this size are several times faster there."""


@functools.cache
def moocore() -> Any:
    """The compiled library for single fronts on the CPU, or None where it is not installed."""
    try:
        return importlib.import_module("moocore")
    except ImportError:
        return None


def compiled(tensor: Tensor) -> bool:
    """Whether the compiled library can serve this tensor."""
    return tensor.device.type == "cpu" and moocore() is not None


def check_points(points: Tensor, name: str = "points") -> None:
    """Refuse anything but a float32 or float64 tensor [..., n, m]."""
    if not isinstance(points, Tensor):
        raise TypeError(f"{name} must be a torch tensor, not {type(points).__name__}")
    if points.dtype is not torch.float32 and points.dtype is not torch.float64:
        raise TypeError(f"{name} must be float32 or float64, not {points.dtype}")
    if points.dim() < 2 or points.shape[-1] == 0:
        raise ValueError(
            f"{name} must have shape [..., n, m] with m >= 1, not {list(points.shape)}"
        )


def check_same(first: Tensor, second: Tensor, first_name: str, second_name: str) -> None:
    """Refuse two point sets that differ in device, dtype or number of objectives."""
    if first.device != second.device:
        raise ValueError(
            f"{first_name} is on {first.device} but {second_name} is on {second.device}"
        )
    if first.dtype != second.dtype:
        raise TypeError(f"{first_name} is {first.dtype} but {second_name} is {second.dtype}")
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"{first_name} has {first.shape[-1]} objectives but {second_name} has "
            f"{second.shape[-1]}"
        )


def close_budget(points: Tensor, memory_budget: int) -> int:
    """The budget for blocks of simple arithmetic: on a CPU no more than its caches hold."""
    return min(memory_budget, CACHE) if points.device.type == "cpu" else memory_budget


def check_mask(mask: Tensor, points: Tensor, name: str = "mask") -> None:
    """Refuse a mask that is not bool, or not [..., n], or on another device."""
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        raise TypeError(f"{name} must be a bool tensor [..., n]")
    if mask.device != points.device:
        raise ValueError(f"{name} is on {mask.device} but the points are on {points.device}")
    if mask.shape != points.shape[:-1]:
        raise ValueError(
            f"{name} must have shape {list(points.shape[:-1])}, not {list(mask.shape)}"
        )


def signs(maximize: Maximize, m: int) -> list[float] | None:
    """+1 for each maximised objective and -1 for the others; None where all are maximised."""
    given: Any = maximize.tolist() if hasattr(maximize, "tolist") else maximize
    if isinstance(given, bool):
        return None if given else [-1.0] * m
    entries = given if isinstance(given, Iterable) else [given]
    flags = [entry.item() if hasattr(entry, "item") else entry for entry in entries]
    # A sign or a word would count as true.
    if not all(flag is True or flag is False for flag in flags):
        raise TypeError(f"maximize must be a bool, or one for each objective, not {maximize!r}")
    if len(flags) != m:
        raise ValueError(f"maximize has {len(flags)} entries but the points have {m} objectives")
    return None if all(flags) else [1.0 if flag else -1.0 for flag in flags]


def oriented(points: Tensor, maximize: Maximize) -> Tensor:
    """The points with every objective maximised."""
    factors = signs(maximize, points.shape[-1])
    return points if factors is None else points * points.new_tensor(factors)


def validity(points: Tensor, mask: Tensor | None, name: str = "mask") -> Tensor:
    """Which points count, [..., n]: those in the mask that have no NaN."""
    valid = ~points.isnan().any(-1)
    if mask is None:
        return valid
    check_mask(mask, points, name)
    return valid & mask


def read_points(points: Tensor, mask: Tensor | None, maximize: Maximize) -> tuple[Tensor, Tensor]:
    """Checked points with every objective maximised and no gradient, and which of them count."""
    check_points(points)
    points = points.detach()
    return oriented(points, maximize), validity(points, mask)


def check_finite(points: Tensor, valid: Tensor, name: str) -> None:
    """Refuse infinite coordinates in points that count."""
    if bool((points.isinf().any(-1) & valid).any()):
        raise ValueError(f"{name} has infinite coordinates; an exact value does not exist")


def read_reference(
    ref_point: Tensor | Sequence[float], points: Tensor, name: str = "ref_point"
) -> Tensor:
    """The reference point as a tensor [..., m] beside the points."""
    if ref_point is None and name == "ref_point":
        raise ValueError(
            "a reference point is needed and is never guessed; infer_reference_point proposes one"
        )
    if isinstance(ref_point, Tensor):
        if ref_point.device != points.device:
            raise ValueError(f"{name} is on {ref_point.device} but points is on {points.device}")
        if not ref_point.is_floating_point():
            raise TypeError(f"{name} must be a floating tensor, not {ref_point.dtype}")
        reference, finite = ref_point.to(points.dtype), bool(ref_point.isfinite().all())
    else:
        try:
            values = [float(value) for value in ref_point]
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be a tensor or m numbers, not {ref_point!r}") from None
        reference, finite = points.new_tensor(values), all(map(math.isfinite, values))
    if not finite:
        raise ValueError(f"{name} has NaN or infinite coordinates")
    m = points.shape[-1]
    if reference.dim() == 0 or reference.shape[-1] != m:
        raise ValueError(
            f"{name} has shape {list(reference.shape)} but the points have {m} objectives"
        )
    if reference.dim() > 1 and reference.shape[:-1] != points.shape[:-2]:
        raise ValueError(
            f"{name} has shape {list(reference.shape)}; with points {list(points.shape)} it "
            f"must be [{m}] or {[*points.shape[:-2], m]}"
        )
    return reference


def read_gains(
    points: Tensor, reference: Tensor, mask: Tensor | None, maximize: Maximize
) -> Tensor:
    """What each point gains over the reference point, [..., n, m]; zero rows count for nothing."""
    valid = validity(points, mask)
    check_finite(points, valid, "points")
    y = oriented(points, maximize) - oriented(reference, maximize).unsqueeze(-2)
    check_dominated(y.detach(), valid)
    inside = valid & (y > 0).all(-1)
    return torch.where(inside.unsqueeze(-1), y, torch.zeros_like(y))


def check_dominated(y: Tensor, valid: Tensor) -> None:
    """Refuse a reference point, at the origin of y, that no point of any front dominates."""
    better = (y >= 0).all(-1) & (y > 0).any(-1) & valid
    if bool(valid.any()) and not bool(better.any()):
        raise ValueError(
            "no point dominates the reference point; check its value and the direction of "
            "`maximize`"
        )
