"""Hypervolume, its gradient, exclusive contributions and improvement, all exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gflow.pareto._check import (
    MEMORY_BUDGET,
    Maximize,
    check_dominated,
    check_finite,
    check_points,
    check_same,
    compiled,
    oriented,
    read_gains,
    read_reference,
    validity,
)
from gflow.pareto._closest import flat
from gflow.pareto._exclusive import exclusive
from gflow.pareto._host import host_measure
from gflow.pareto._measure import Improvement, Volume, contributions
from gflow.pareto.dominance import non_dominated
from gflow.pareto.polar import polar_hypervolume

Method = Literal["auto", "slices", "tiles", "polar"]
Reference = Tensor | Sequence[float]


def hypervolume(
    points: Tensor,
    ref_point: Reference,
    mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    method: Method = "auto",
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Hypervolume: the measure of the region between the reference point and the front.

    HV(Y) = measure of the union over y in Y of the boxes [ref, y].

    Dominated points, copies, points outside the mask or with a NaN and points that do not exceed
    the reference point in every objective change nothing; an empty set gives 0. The gradient is
    exact: dHV/dy_ij is the (m-1)-dimensional measure of the facet of point i across axis j that
    no other point covers (a facet shared by ties is credited to the first of them).

    Args:
        points: [..., n, m], float32 or float64.
        ref_point: [m] or [..., m], in the same direction as the points.
        mask: [..., n] bool.
        maximize: one flag, or one for each objective.
        method: "auto" takes the compiled routine for fronts on the CPU, by tiles where the
            front is large and m >= 5, and tensor code elsewhere; "slices" is the tensor code,
            "tiles" the grid of boxes, "polar" the estimate of `polar_hypervolume`.
        memory_budget: bytes for temporary tensors.

    Returns:
        [...], in the dtype of the points.

    Raises:
        TypeError: integer or half precision points.
        ValueError: wrong shapes or devices, infinite coordinates, no reference point, or one
            that no point dominates.

    Source: Zitzler, Thiele, "Multiobjective evolutionary algorithms: a comparative case study
    and the strength Pareto approach", 1999; slices: While et al., "A faster algorithm for
    calculating hypervolume", 2006; gradient: Emmerich, Deutz, "Time complexity and zeros of the
    hypervolume indicator gradient field", 2014.
    """
    check_points(points)
    reference = read_reference(ref_point, points)
    if method == "polar":
        return polar_hypervolume(
            points, reference, mask, maximize=maximize, memory_budget=memory_budget
        ).value
    if method not in ("auto", "slices", "tiles"):
        raise ValueError(f"method must be auto, slices, tiles or polar, not {method!r}")
    differentiable = torch.is_grad_enabled() and (points.requires_grad or reference.requires_grad)
    if method == "auto" and not differentiable and compiled(points):
        return _on_host(points, reference, mask, maximize, memory_budget)
    gains = read_gains(points.double(), reference.double(), mask, maximize)
    values: Tensor = Volume.apply(flat(gains), method, memory_budget)  # type: ignore[no-untyped-call]
    return values.view(gains.shape[:-2]).to(points.dtype)


def _on_host(
    points: Tensor,
    reference: Tensor,
    mask: Tensor | None,
    maximize: Maximize,
    memory_budget: int,
) -> Tensor:
    """Each front through the compiled routine, after one conversion of the whole batch."""
    y, ref = oriented(points.detach(), maximize), oriented(reference.detach(), maximize)
    costs: NDArray[np.float64] = np.negative(y.numpy(), dtype=np.float64)
    # Subtracting a reference point from rows of two or three numbers costs more than the sweep.
    origin = -ref.double().numpy()
    if ref.dim() > 1:
        costs -= origin[..., None, :]
        origin = np.zeros(ref.shape[-1])
    if mask is not None or not math.isfinite(costs.sum()):
        valid = validity(points, mask)
        check_finite(points, valid, "points")
        costs[~valid.numpy()] = origin
    measure = host_measure(origin, memory_budget)
    fronts = costs.reshape(math.prod(costs.shape[:-2]), *costs.shape[-2:])
    totals = [measure(front) for front in fronts]
    if not any(totals):
        check_dominated(torch.from_numpy(origin - costs), validity(points, mask))
    return points.new_tensor(totals).view(points.shape[:-2])


def hypervolume_contributions(
    points: Tensor,
    ref_point: Reference,
    mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Exclusive hypervolume contribution of each point of the front.

    C(p) = HV(F) - HV(F without p) = vol([ref, p]) - HV({min(p, q) : q in F, q != p}), with F the
    non-dominated points. Dominated points get 0 and take nothing from the others; each of
    several copies gets 0.

    Args:
        points: [..., n, m], float32 or float64.
        ref_point: [m] or [..., m], in the same direction as the points.
        mask: [..., n] bool.
        maximize: one flag, or one for each objective.
        memory_budget: bytes for temporary tensors.

    Returns:
        [..., n].

    Raises:
        TypeError: integer or half precision points.
        ValueError: wrong shapes or devices, infinite coordinates, no reference point, or one
            that no point dominates.

    Source: Bringmann, Friedrich, "Approximating the least hypervolume contributor", 2009
    (arXiv 0812.2636); the limit set: While, Bradstreet, Barone, "A fast way of calculating exact
    hypervolumes", 2012.
    """
    check_points(points)
    reference = read_reference(ref_point, points)
    gains = read_gains(points.detach().double(), reference.detach().double(), mask, maximize)
    front = non_dominated(gains, memory_budget=memory_budget)
    gains = gains * front.unsqueeze(-1)
    values = contributions(flat(gains), memory_budget).view(gains.shape[:-1])
    return values.to(points.dtype)


def hypervolume_improvement(
    new: Tensor,
    archive: Tensor,
    ref_point: Reference,
    mask: Tensor | None = None,
    archive_mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """What a set of new points adds to the hypervolume of an archive, as a set.

    HVI(Y | A) = HV(A and Y) - HV(A), summed point by point so that nothing cancels; its gradient
    with respect to the new points is that of the joint hypervolume.

    Args:
        new: [..., k, m], float32 or float64.
        archive: [..., n, m], same leading shape; no gradient flows to it.
        ref_point: [m] or [..., m], in the same direction as the points.
        mask: [..., k] bool.
        archive_mask: [..., n] bool.
        maximize: one flag, or one for each objective.
        memory_budget: bytes for temporary tensors.

    Returns:
        [...].

    Raises:
        TypeError: integer or half precision points, or two dtypes.
        ValueError: wrong shapes or devices, infinite coordinates, no reference point, or one
            that no point dominates.

    Source: Emmerich, Deutz, Klinkenberg, "Hypervolume-based expected improvement", 2011.
    """
    gains = _joint_gains(new, archive, ref_point, mask, archive_mask, maximize)
    values: Tensor = Improvement.apply(  # type: ignore[no-untyped-call]
        flat(gains), new.shape[-2], memory_budget
    )
    return values.view(gains.shape[:-2]).to(new.dtype)


def hypervolume_improvement_alone(
    new: Tensor,
    archive: Tensor,
    ref_point: Reference,
    mask: Tensor | None = None,
    archive_mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """What each new point by itself adds to the hypervolume of an archive; without gradient.

    HVI(y | A) = HV(A and y) - HV(A), for one y at a time.

    Arguments and errors as in `hypervolume_improvement`.

    Returns:
        [..., k], 0 for points outside the mask.
    """
    gains = _joint_gains(new, archive, ref_point, mask, archive_mask, maximize).detach()
    columns, k = flat(gains).permute(2, 0, 1), new.shape[-2]
    numbers = torch.arange(k, device=new.device).expand(columns.shape[1], k)
    rivals = numbers.new_full((columns.shape[1], columns.shape[2] - k), -1)
    values = exclusive(columns[..., :k], columns[..., k:], numbers, rivals, False, memory_budget)
    return values.view(*gains.shape[:-2], k).to(new.dtype)


def _joint_gains(
    new: Tensor,
    archive: Tensor,
    ref_point: Reference,
    mask: Tensor | None,
    archive_mask: Tensor | None,
    maximize: Maximize,
) -> Tensor:
    """Gains of k new points, then of n archived ones without gradient, [..., k + n, m] float64."""
    check_points(new, "new")
    check_points(archive, "archive")
    check_same(new, archive, "new", "archive")
    if new.shape[:-2] != archive.shape[:-2]:
        raise ValueError(
            f"new {list(new.shape)} and archive {list(archive.shape)} must have the same leading "
            "shape"
        )
    reference = read_reference(ref_point, new)
    valid = torch.cat(
        [validity(new, mask), validity(archive.detach(), archive_mask, "archive_mask")], -1
    )
    joint = torch.cat([new, archive.detach()], -2).double()
    return read_gains(joint, reference.double(), valid, maximize)
