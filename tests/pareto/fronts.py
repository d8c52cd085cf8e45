"""Fronts of every kind, maximised against the origin, and a hypervolume without rounding."""

import itertools
from fractions import Fraction

import numpy as np
import torch

from gflow.pareto import non_dominated

KINDS = ("random", "concave", "convex", "linear", "clustered", "tied", "degenerate")


def front(kind: str, n: int, m: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    rng = np.random.default_rng([seed, n, m, KINDS.index(kind)])
    sphere = np.abs(rng.normal(size=(n, m)))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    if kind == "random":
        points = rng.random((n, m))
    elif kind == "concave":
        points = sphere
    elif kind == "convex":
        points = 1.1 - sphere
    elif kind == "linear":
        points = rng.dirichlet(np.ones(m), n)
    elif kind == "clustered":
        centres = sphere[rng.integers(0, min(n, 8), n)]
        points = centres * (1 + 0.02 * rng.normal(size=(n, m)))
    elif kind == "tied":
        points = np.round(sphere * 5) / 5
    else:
        points = np.repeat(sphere[:, :1], m, axis=1)
        points[:, 0] = 0.5
        points[n // 2 :] = points[: n - n // 2]
    return torch.tensor(np.clip(points, 0, None), dtype=dtype)


def sphere_batch(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(*shape, generator=generator, dtype=dtype).abs()
    return points / points.norm(dim=-1, keepdim=True)


def exact_hypervolume(points: torch.Tensor) -> Fraction:
    """Hypervolume over the origin in rational arithmetic, slice by slice."""
    return _slices([tuple(map(Fraction, row)) for row in points.tolist() if min(row) > 0])


def _slices(rows: list[tuple[Fraction, ...]]) -> Fraction:
    if not rows or len(rows[0]) == 1:
        return max((row[0] for row in rows), default=Fraction(0))
    rows = sorted(rows, key=lambda row: row[-1], reverse=True)
    total, active = Fraction(0), []
    for row, below in itertools.zip_longest(rows, rows[1:], fillvalue=None):
        base = row[:-1]
        if not any(all(a >= b for a, b in zip(other, base, strict=True)) for other in active):
            active.append(base)
        thickness = row[-1] - (below[-1] if below else 0)
        if thickness:
            total += thickness * _slices(active)
    return total


def by_removal(points):
    """HV(F) - HV(F without p) without rounding, with F the non-dominated points."""
    kept = non_dominated(points)
    total = exact_hypervolume(points)
    rows = []
    for i in range(len(points)):
        rest = kept.clone()
        rest[i] = False
        rows.append(float(total - exact_hypervolume(points[rest])) if kept[i] else 0.0)
    return torch.tensor(rows, dtype=torch.float64)


def finite_differences(function, points, step=1e-6):
    gradient = torch.zeros_like(points)
    for i in range(points.numel()):
        for sign in (1, -1):
            moved = points.clone().view(-1)
            moved[i] += sign * step
            gradient.view(-1)[i] += sign * function(moved.view_as(points)).sum() / (2 * step)
    return gradient
