"""Indicators of one set of points that are a single number each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gflow.pareto._check import (
    MEMORY_BUDGET,
    Maximize,
    check_finite,
    check_points,
    check_same,
    oriented,
    read_points,
    read_reference,
    validity,
)
from gflow.pareto._closest import blocks, closest, flat
from gflow.pareto.dominance import non_dominated


def r2(
    points: Tensor,
    weights: Tensor,
    mask: Tensor | None = None,
    *,
    ideal_point: Tensor | Sequence[float] | float = 1.0,
    normalize: Literal["mean", "frobenius"] = "mean",
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """R2 indicator: mean over weights of the best weighted Tchebycheff distance to the ideal.

    R2(A) = 1/|W| sum_w min_a max_j w_j |u_j - a_j|. Lower is better; infinite for an empty set.
    With normalize="frobenius" the sum is divided by the Frobenius norm of the weight matrix
    instead of |W|, as the multi-objective GFlowNet papers print it; that value grows with the
    number of weights.

    Args:
        points: [..., n, m], float32 or float64, in any direction.
        weights: [k, m], for example from `reference_directions`.
        mask: [..., n] bool.
        ideal_point: u, one number or [m]; 1 for rewards in [0, 1].
        normalize: "mean" or "frobenius".
        memory_budget: bytes for temporary tensors.

    Returns:
        [...].

    Raises:
        TypeError: integer or half precision points, or two dtypes.
        ValueError: wrong shapes or devices, infinite coordinates, or no weights.

    Source: Hansen, Jaszkiewicz, "Evaluating the quality of approximations to the non-dominated
    set", 1998; the Frobenius divisor: Jain et al., "Multi-objective GFlowNets", 2022 (arXiv
    2210.12765).
    """
    check_points(points)
    check_points(weights, "weights")
    check_same(points, weights, "points", "weights")
    if weights.dim() != 2 or len(weights) == 0:
        raise ValueError(f"weights must be [k, m] with k >= 1, not {list(weights.shape)}")
    if normalize not in ("mean", "frobenius"):
        raise ValueError(f"normalize must be mean or frobenius, not {normalize!r}")
    if isinstance(ideal_point, int | float):
        ideal_point = [float(ideal_point)] * points.shape[-1]
    valid = validity(points, mask)
    check_finite(points, valid, "points")
    ideal = read_reference(ideal_point, points, "ideal_point")
    short = (ideal.unsqueeze(-2) - points).abs()
    short = flat(short.masked_fill(~valid.unsqueeze(-1), 0))
    distances, _ = closest(
        lambda weight, lack: (weight * lack).amax(-1),
        weights.expand(len(short), *weights.shape),
        short,
        valid.reshape(short.shape[:-1]),
        memory_budget,
    )
    divisor = len(weights) if normalize == "mean" else weights.norm()
    return (distances.sum(-1) / divisor).view(points.shape[:-2])


def pc_entropy(
    points: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    *,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Pareto-coverage entropy: how evenly samples spread over a set of reference points.

    PC-ent = - sum_p q_p log(q_p + 1e-8), q_p the share of samples whose nearest reference point
    in Euclidean distance is p. Higher is better, at most log |P|. Meant for all samples, not only
    for the front; 0 for an empty set.

    Args:
        points: [..., n, m], float32 or float64, in any direction.
        reference: [p, m], for example the front or `cube_faces`.
        mask: [..., n] bool.
        memory_budget: bytes for temporary tensors.

    Returns:
        [...].

    Raises:
        TypeError: integer or half precision points, or two dtypes.
        ValueError: wrong shapes or devices, infinite coordinates, or an empty reference.

    Source: Roy et al., "Goal-conditioned GFlowNets for controllable multi-objective molecular
    design", 2023 (arXiv 2306.04620).
    """
    y, valid = read_points(points, mask, True)
    check_points(reference, "reference")
    check_same(points, reference, "points", "reference")
    check_finite(y, valid, "points")
    if reference.dim() != 2 or len(reference) == 0 or not bool(reference.isfinite().all()):
        raise ValueError(
            f"reference must be [p, m] with p >= 1 and finite, not {list(reference.shape)}"
        )
    rows = flat(y.masked_fill(~valid.unsqueeze(-1), 0))
    _, nearest = closest(
        lambda row, target: (row - target).square().sum(-1),
        rows,
        reference.expand(len(rows), *reference.shape),
        torch.ones(len(rows), len(reference), dtype=torch.bool, device=rows.device),
        memory_budget,
    )
    counted = valid.reshape(nearest.shape).to(y.dtype)
    hits = y.new_zeros(len(rows), len(reference)).scatter_add_(1, nearest, counted)
    share = hits / counted.sum(-1, keepdim=True).clamp(min=1)
    return -(share * (share + 1e-8).log()).sum(-1).view(points.shape[:-2])


def hsr(
    points: Tensor,
    mask: Tensor | None = None,
    *,
    lower: float = 0.0,
    upper: float = 1.0,
    margin: float = 0.1,
    maximize: Maximize = True,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Hypervolume Sharpe-ratio indicator: the best reward-to-risk ratio of a portfolio of points.

    With z_i the place of point i in the box [lower - margin, upper + margin], 0 worst and 1 best:
    p_i = prod_k z_ik, Q_ij = prod_k min(z_ik, z_jk) - p_i p_j,
    HSR = max over x >= 0, sum x = 1 of p.x / sqrt(x'Qx). Higher is better; 0 for an empty set.

    Args:
        points: [..., n, m], float32 or float64; solved in float64 on the CPU, without gradient.
        mask: [..., n] bool.
        lower: smallest value of every objective.
        upper: largest value of every objective.
        margin: widening of the range on both sides; papers use 0.1 and 0.3.
        maximize: one flag, or one for each objective.
        memory_budget: bytes for the matrices of one front, five numbers for each pair of points.

    Returns:
        [...], in the dtype of the points.

    Raises:
        TypeError: integer or half precision points.
        ValueError: wrong shapes or devices, infinite coordinates, an empty range, points outside
            the widened range, or a front too large for the budget.

    Source: Guerreiro, Fonseca, "Hypervolume Sharpe-ratio indicator: formalization and first
    theoretical results", 2016.
    """
    y, valid = read_points(points, mask, maximize)
    check_finite(y, valid, "points")
    if not upper > lower or margin < 0:
        raise ValueError(
            f"the range must not be empty: lower {lower}, upper {upper}, margin {margin}"
        )
    worst = oriented(points.new_tensor([[lower] * y.shape[-1], [upper] * y.shape[-1]]), maximize)
    floor = worst.amin(0) - margin
    places = (y - floor) / (upper - lower + 2 * margin)
    if bool(((places < 0) | (places > 1)).any(-1).logical_and(valid).any()):
        raise ValueError(f"points lie outside [{lower} - {margin}, {upper} + {margin}]")
    front = non_dominated(places, valid, deduplicate=True)
    sets = flat(places).double().cpu().numpy()
    kept = front.reshape(sets.shape[:2]).cpu().numpy()
    most = int(kept.sum(1).max(initial=0))
    if 40 * most**2 > memory_budget:
        raise ValueError(
            f"a front of {most} points needs {40 * most**2} bytes for its Sharpe ratio, more than "
            f"memory_budget = {memory_budget}"
        )
    values = [_sharpe(one[keep]) for one, keep in zip(sets, kept, strict=True)]
    return points.new_tensor(values).view(points.shape[:-2])


def _sharpe(places: NDArray[np.float64]) -> float:
    """HSR of distinct non-dominated places [n, m] in the unit box.

    min y'Qy with p.y = 1, y >= 0 has, up to scale, the solution of min y'Qy + (p.y - 1)^2: a
    non-negative least squares problem on the factor of Q + pp' = [prod_k min(z_ik, z_jk)].
    """
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import nnls

    places = places[(places > 0).all(1)]
    if len(places) == 0:
        return 0.0
    overlap = np.ones((len(places), len(places)))
    for place in places.T:
        overlap *= np.minimum.outer(place, place)
    returns = np.diagonal(overlap).copy()
    ridged = overlap.copy()
    np.fill_diagonal(ridged, returns + 1e-13 * returns.max())
    factor = cholesky(ridged, lower=True, overwrite_a=True)
    investments, _ = nnls(factor.T, solve_triangular(factor, returns, lower=True))
    investments /= investments.sum()
    gain = float(returns @ investments)
    risk = float(investments @ overlap @ investments) - gain**2
    return gain / max(risk, 0.0) ** 0.5 if risk > 0 else float("inf")


def spacing(
    points: Tensor,
    mask: Tensor | None = None,
    *,
    correction: int = 1,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Spacing: the spread of the distances between neighbouring points.

    S = sqrt(sum_i (mean(d) - d_i)^2 / (n - correction)), d_i = min_{j != i} sum_k |y_ik - y_jk|.
    0 where all neighbours are equally far, and for fewer than three points.

    Args:
        points: [..., n, m], float32 or float64, in any direction.
        mask: [..., n] bool.
        correction: 1 as published, 0 for the divisor n of some libraries.
        memory_budget: bytes for temporary tensors.

    Returns:
        [...].

    Raises:
        TypeError: integer or half precision points.
        ValueError: wrong shapes or devices, or infinite coordinates.

    Source: Schott, "Fault tolerant design using single and multicriteria genetic algorithm
    optimization", 1995.
    """
    y, valid = read_points(points, mask, True)
    check_finite(y, valid, "points")
    rows = flat(y.masked_fill(~valid.unsqueeze(-1), 0))
    batch, n, _ = rows.shape
    counted = valid.reshape(batch, n)
    size = memory_budget // max(1, 3 * batch * n * rows.element_size())
    nearest = rows.new_empty(batch, n)
    index = torch.arange(n, device=rows.device)
    start = 0
    for part, found in blocks(rows, nearest, size):
        own = index[start : start + part.shape[1], None] == index
        start += part.shape[1]
        distances = torch.cdist(part, rows, p=1)
        found[:] = distances.masked_fill(own | ~counted.unsqueeze(1), torch.inf).amin(-1)
    count = counted.sum(-1, keepdim=True)
    nearest = nearest.masked_fill(~counted | (count < 3), 0.0)
    mean = nearest.sum(-1, keepdim=True) / count.clamp(min=1)
    squares = (nearest - mean).square().masked_fill(~counted, 0.0).sum(-1)
    return (squares / (count.squeeze(-1) - correction).clamp(min=1)).sqrt().view(valid.shape[:-1])


def focus_accuracy(
    points: Tensor, direction: Tensor, mask: Tensor | None = None, *, threshold: float = 0.98
) -> Tensor:
    """Share of samples whose reward vector points along the focus direction.

    FA = mean over samples of [ r.d / (|r| |d|) >= threshold ]. A zero reward vector is out of
    focus; an empty set gives 0.

    Args:
        points: [..., n, m] non-negative rewards, float32 or float64.
        direction: [m], or any shape that broadcasts to the points (one for each sample, say).
        mask: [..., n] bool.
        threshold: least cosine in focus.

    Returns:
        [...].

    Raises:
        TypeError: integer or half precision points, or two dtypes.
        ValueError: wrong shapes or devices, a direction that is zero or does not broadcast, or a
            threshold outside [-1, 1].

    Source: Roy et al., "Goal-conditioned GFlowNets for controllable multi-objective molecular
    design", 2023 (arXiv 2306.04620).
    """
    y, valid = read_points(points, mask, True)
    check_points(torch.atleast_2d(direction), "direction")
    check_same(points, direction, "points", "direction")
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is a cosine in [-1, 1], not {threshold}")
    lengths = torch.linalg.vector_norm(direction, dim=-1)
    if not bool((lengths > 0).all()):
        raise ValueError("direction must not be zero or NaN")
    sizes = zip(direction.shape[::-1], y.shape[::-1], strict=False)
    if direction.dim() > y.dim() or any(own not in (1, size) for own, size in sizes):
        raise ValueError(
            f"direction {list(direction.shape)} does not broadcast to points {list(points.shape)}"
        )
    along = (y * direction).sum(-1)
    inside = (
        (along >= threshold * torch.linalg.vector_norm(y, dim=-1) * lengths)
        & (y != 0).any(-1)
        & valid
    )
    share: Tensor = inside.sum(-1).to(y.dtype) / valid.sum(-1).clamp(min=1)
    return share
