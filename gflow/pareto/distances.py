"""Distances between a set of points and a reference front."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gflow.pareto._check import (
    MEMORY_BUDGET,
    Maximize,
    check_finite,
    check_points,
    check_same,
    oriented,
    validity,
)
from gflow.pareto._closest import closest, flat

Gap = Callable[[Tensor], Tensor]
"""Size of what a point lacks to the reference, from reference - point [..., m] to [...]."""


def _euclidean(lack: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(lack, dim=-1)
    return size


def _dominance(lack: Tensor) -> Tensor:
    return _euclidean(lack.clamp(min=0))


def _largest(lack: Tensor) -> Tensor:
    return lack.amax(-1)


class _Pair:
    """Checked points and reference, flat over the batch: [B, n, m] beside [B, p, m]."""

    def __init__(
        self,
        points: Tensor,
        reference: Tensor,
        mask: Tensor | None,
        reference_mask: Tensor | None,
        maximize: Maximize,
        memory_budget: int,
    ) -> None:
        check_points(points)
        check_points(reference, "reference")
        check_same(points, reference, "points", "reference")
        self.valid = validity(points, mask)
        wanted = validity(reference, reference_mask, "reference_mask")
        check_finite(points, self.valid, "points")
        check_finite(reference, wanted, "reference")
        if not bool(wanted.any(-1).all()):
            raise ValueError("reference has a front without a single point to measure against")
        self.shape = points.shape[:-2]
        if reference.dim() == 2:
            reference = reference.expand(*self.shape, *reference.shape)
            wanted = wanted.expand(*self.shape, wanted.shape[-1])
        elif reference.shape[:-2] != self.shape:
            raise ValueError(
                f"reference {list(reference.shape)} must be [p, {points.shape[-1]}] or share the "
                f"leading shape of points {list(points.shape)}"
            )
        # Zeros stand in for rows that do not count: a NaN would pass through a masked gradient.
        self.points = flat(oriented(points, maximize).masked_fill(~self.valid.unsqueeze(-1), 0))
        self.reference = flat(oriented(reference, maximize).masked_fill(~wanted.unsqueeze(-1), 0))
        self.valid = self.valid.reshape(self.points.shape[:-1])
        self.wanted = wanted.reshape(self.reference.shape[:-1])
        self.memory_budget = memory_budget

    def to_reference(self, gap: Gap) -> Tensor:
        """Gap of each point to its nearest reference point, [B, n]."""
        return closest(
            lambda point, target: gap(target - point),
            self.points,
            self.reference,
            self.wanted,
            self.memory_budget,
        )[0]

    def to_points(self, gap: Gap) -> Tensor:
        """Gap of each reference point to its nearest point, [B, p]; infinite without points."""
        return closest(
            lambda target, point: gap(target - point),
            self.reference,
            self.points,
            self.valid,
            self.memory_budget,
        )[0]

    def average(self, gaps: Tensor, counted: Tensor, power: float) -> Tensor:
        """(mean of gaps^power over what counts)^(1 / power); infinite for an empty set."""
        if not 0 < power < torch.inf:
            raise ValueError(f"power must be positive and finite, not {power}")
        count = counted.sum(-1)
        total = gaps.masked_fill(~counted, 0.0)
        if power != 1:
            # Powers of zero have no slope to pass on, below one even an infinite one.
            total = torch.where(total > 0, total, 1.0).pow(power).masked_fill(total == 0, 0.0)
        mean = total.sum(-1) / count.clamp(min=1)
        if power != 1:
            mean = torch.where(mean > 0, mean, 1.0).pow(1 / power).masked_fill(mean == 0, 0.0)
        return mean.masked_fill(count == 0, torch.inf).view(self.shape)


def gd(
    points: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    reference_mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    power: float = 1.0,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Generational distance: how far the points are from the reference front.

    GD(A, P) = (mean_a min_p ||a - p||^power)^(1 / power). Lower is better; infinite for an empty
    set. The direction of the objectives does not matter.

    Args:
        points: [..., n, m], float32 or float64.
        reference: [p, m], or [..., p, m] with the leading shape of the points.
        mask: [..., n] bool.
        reference_mask: bool, the shape of the reference without m.
        maximize: one flag, or one for each objective.
        power: the exponent of the mean.
        memory_budget: bytes for temporary tensors.

    Returns:
        [...].

    Raises:
        TypeError: integer or half precision points, or two dtypes.
        ValueError: wrong shapes or devices, infinite coordinates, an empty reference, or a
            power that is not positive and finite.

    Source: Van Veldhuizen, "Multiobjective evolutionary algorithms", 1999; mean of powers: Schutze
    et al., "Using the averaged Hausdorff distance as a performance measure", 2012.
    """
    pair = _Pair(points, reference, mask, reference_mask, maximize, memory_budget)
    return pair.average(pair.to_reference(_euclidean), pair.valid, power)


def igd(
    points: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    reference_mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    power: float = 1.0,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Inverted generational distance: how far the reference front is from the points.

    IGD(A, P) = (mean_p min_a ||a - p||^power)^(1 / power). Lower is better; infinite for an empty
    set. The direction of the objectives does not matter.

    Arguments, shapes and errors as in `gd`.

    Source: Coello Coello, Reyes Sierra, "A study of the parallelization of a coevolutionary
    multi-objective evolutionary algorithm", 2004.
    """
    pair = _Pair(points, reference, mask, reference_mask, maximize, memory_budget)
    return pair.average(pair.to_points(_euclidean), pair.wanted, power)


def gd_plus(
    points: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    reference_mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    power: float = 1.0,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Generational distance that counts only what a point lacks.

    GD+(A, P) = (mean_a min_p ||max(p - a, 0)||^power)^(1 / power), maximising. Zero if and only
    if every point weakly dominates some reference point; infinite for an empty set.

    Arguments, shapes and errors as in `gd`.

    Source: Ishibuchi et al., "Modified distance calculation in generational distance and inverted
    generational distance", 2015.
    """
    pair = _Pair(points, reference, mask, reference_mask, maximize, memory_budget)
    return pair.average(pair.to_reference(_dominance), pair.valid, power)


def igd_plus(
    points: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    reference_mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    power: float = 1.0,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Inverted generational distance that counts only what the points lack.

    IGD+(A, P) = (mean_p min_a ||max(p - a, 0)||^power)^(1 / power), maximising. Weakly Pareto
    compliant: zero if and only if every reference point is weakly dominated; infinite for an
    empty set.

    Arguments, shapes and errors as in `gd`.

    Source: Ishibuchi et al., "Modified distance calculation in generational distance and inverted
    generational distance", 2015.
    """
    pair = _Pair(points, reference, mask, reference_mask, maximize, memory_budget)
    return pair.average(pair.to_points(_dominance), pair.wanted, power)


def averaged_hausdorff(
    points: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    reference_mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    power: float = 1.0,
    plus: bool = False,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Averaged Hausdorff distance: the larger of GD and IGD.

    d_H(A, P) = max(GD(A, P), IGD(A, P)); with `plus`, max(GD+, IGD+) as the order-preserving
    GFlowNets report it.

    Arguments, shapes and errors as in `gd`; `plus` counts only what the points lack.

    Source: Schutze et al., "Using the averaged Hausdorff distance as a performance measure", 2012;
    with plus: arXiv 2310.00386.
    """
    pair = _Pair(points, reference, mask, reference_mask, maximize, memory_budget)
    gap = _dominance if plus else _euclidean
    return torch.maximum(
        pair.average(pair.to_reference(gap), pair.valid, power),
        pair.average(pair.to_points(gap), pair.wanted, power),
    )


def epsilon_additive(
    points: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    reference_mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Additive epsilon: the least shift that makes the points weakly dominate the reference.

    eps(A, P) = max_p min_a max_j (p_j - a_j), maximising. Lower is better, negative where the
    points are ahead; infinite for an empty set.

    Arguments, shapes and errors as in `gd`, without `power`.

    Source: Zitzler et al., "Performance assessment of multiobjective optimizers", 2003.
    """
    pair = _Pair(points, reference, mask, reference_mask, maximize, memory_budget)
    gaps = pair.to_points(_largest)
    return gaps.masked_fill(~pair.wanted, -torch.inf).amax(-1).view(pair.shape)


def epsilon_multiplicative(
    points: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    reference_mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Multiplicative epsilon: the least factor that makes the points weakly dominate the reference.

    eps(A, P) = max_p min_a max_j p_j / a_j, maximising; a_j / p_j for a minimised objective.
    Lower is better, below 1 where the points are ahead; infinite for an empty set.

    Arguments, shapes and errors as in `gd`, without `power`; coordinates must be
    positive.

    Source: Zitzler et al., "Performance assessment of multiobjective optimizers", 2003.
    """
    points = _logarithms(points, mask, "points")
    reference = _logarithms(reference, reference_mask, "reference")
    pair = _Pair(points, reference, mask, reference_mask, maximize, memory_budget)
    gaps = pair.to_points(_largest).exp()
    return gaps.masked_fill(~pair.wanted, -torch.inf).amax(-1).view(pair.shape)


def _logarithms(points: Tensor, mask: Tensor | None, name: str) -> Tensor:
    check_points(points, name)
    valid = validity(points, mask)
    if bool(((points <= 0).any(-1) & valid).any()):
        raise ValueError(f"{name} must be positive for a multiplicative epsilon")
    return (
        points.masked_fill((~valid).unsqueeze(-1), 1).log().masked_fill(points.isnan(), torch.nan)
    )
