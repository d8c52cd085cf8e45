"""Exclusive volumes: what a point dominates and its rivals do not.

One primitive serves everything exact in this package. With d >= 0 the gains over the reference
point, and E_m(p | Q) the measure of the box [0, p] that no q in Q covers:

    hypervolume     HV_m = sum_i d_im E_{m-1}(d_i | rows above i on the last axis)
    its gradient    dHV / dd_ij = E_{m-1}(d_i without j | rows above i on axis j)
    contribution    C_i = E_m(d_i | all other rows)

A box keeps only a corner of itself after the rivals that cover it on every axis but one, and few
rivals reach into that corner: the rest of the work is done there, on small sets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gflow.pareto._check import compiled
from gflow.pareto._host import host_volumes

Measure = Callable[[Tensor, Tensor, Tensor, int], Tensor]

STRIDE = 8
"""Among many rivals every 8th is enough for a first corner."""
MANY = 2048


def axis_order(values: Tensor) -> Tensor:
    """Place of each row of [..., n] in descending order; ties by position, so no two agree."""
    order = values.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(values.shape[-1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def sweep(x: Tensor, y: Tensor) -> Tensor:
    """Area under the staircase of rows [r, n], with x already in descending order."""
    steps = x.clone()
    steps[:, :-1] -= x[:, 1:]
    return (steps * y.cummax(-1).values).sum(-1)


def volume(gains: Tensor, memory_budget: int) -> Tensor:
    """Hypervolume over the origin of gains [B, n, m] >= 0; rows with a zero count for nothing."""
    if gains.shape[1] == 0:
        return gains.new_zeros(gains.shape[0])
    first = gains[..., 0].argsort(dim=-1, descending=True)
    ordered = gains.gather(1, first.unsqueeze(-1).expand_as(gains))
    return _volume(ordered.permute(2, 0, 1).contiguous(), memory_budget)


def _volume(columns: Tensor, memory_budget: int) -> Tensor:
    """The same for columns [m, B, n] whose first column is in descending order."""
    m = columns.shape[0]
    if m == 1:
        return columns[0].amax(-1)
    if m == 2:
        return sweep(columns[0], columns[1])
    order = axis_order(columns[-1])
    measure = _by_sweep if m == 3 else _by_corner
    bases = _exclusive(columns[:-1], columns[:-1], order, order, True, measure, memory_budget)
    return (columns[-1] * bases).sum(-1)


def exclusive(
    points: Tensor,
    rivals: Tensor,
    point_keys: Tensor,
    rival_keys: Tensor,
    earlier: bool,
    memory_budget: int,
) -> Tensor:
    """E(p | rivals) for every p, against the rivals with an earlier key, or with another key.

    Args:
        points: [m, B, k] gains over the reference point.
        rivals: [m, B, n] gains.
        point_keys: [B, k] int64, different within a front.
        rival_keys: [B, n] int64.
        earlier: True for the rivals with a smaller key, False for all with a different one.
        memory_budget: bytes for temporary tensors.

    Returns:
        [B, k].
    """
    if rivals.shape[-1] == 0:
        return points.prod(0)
    if not compiled(points):
        first = rivals[0].argsort(dim=-1, descending=True)
        rivals = rivals.gather(-1, first.expand_as(rivals))
        rival_keys = rival_keys.gather(-1, first)
    return _exclusive(points, rivals, point_keys, rival_keys, earlier, _by_corner, memory_budget)


def _exclusive(
    points: Tensor,
    rivals: Tensor,
    point_keys: Tensor,
    rival_keys: Tensor,
    earlier: bool,
    measure: Measure,
    memory_budget: int,
) -> Tensor:
    """The same, a block at a time; tensor code needs the first column in descending order."""
    m, batch, k = points.shape
    n = rivals.shape[-1]
    result = points.new_zeros(batch * k)
    flat = points.reshape(m, batch * k)
    keys = point_keys.reshape(-1, 1)
    # Live at once: copies of the rivals, their clipped share, a scan and its int64 indices.
    block = max(1, memory_budget // (2 * n * ((2 * m + 2) * points.element_size() + 16)))
    for start in range(0, batch * k, block):
        rows = slice(start, min(start + block, batch * k))
        if batch == 1:
            q, other = rivals, rival_keys
        else:
            fronts = torch.arange(rows.start, rows.stop, device=points.device) // k
            q, other = rivals[:, fronts], rival_keys[fronts]
        active = other < keys[rows] if earlier else other != keys[rows]
        result[rows] = measure(flat[:, rows, None], q, active, memory_budget)
    return result.clamp(min=0).view(batch, k)


def _by_sweep(p: Tensor, q: Tensor, active: Tensor, memory_budget: int) -> Tensor:
    """E for p [2, r, 1] against the active [r, n] of q [2, 1 or r, n], up to rounding of the box.

    Good enough for the slices of a volume, and quicker than finding the corner.
    """
    clipped = torch.minimum(q[1], p[1]) * active
    return p[:, :, 0].prod(0) - sweep(torch.minimum(q[0], p[0]).expand_as(clipped), clipped)


def _by_corner(p: Tensor, q: Tensor, active: Tensor, memory_budget: int) -> Tensor:
    """E for p [m, r, 1] against the active [r, n] of q [m, 1 or r, n]."""
    if len(p) == 1:
        return p[0, :, 0] - (q[0] * active).amax(-1)
    step = STRIDE if q.shape[-1] >= MANY else 1
    corner = _corner(p, q[..., ::step], active[:, ::step])
    edges = p[:, :, 0] - corner
    box = edges.prod(0)
    rows, inside = _reaching(q, active & (box > 0).unsqueeze(-1), corner, p)
    if step > 1:
        rows, inside, edges = _trimmed(rows, inside, edges)
        box = edges.prod(0)
    if len(rows) == 0:
        return box
    counts = rows.bincount(minlength=len(box))
    if compiled(p):
        return box - host_volumes(inside, counts, memory_budget)
    return box - _volumes(inside, rows, counts, memory_budget)


def _corner(p: Tensor, q: Tensor, active: Tensor) -> Tensor:
    """Lower corner [m, r] of what rivals that fall short of p on one axis at most leave of it."""
    short = [column < mine for column, mine in zip(q, p, strict=True)]
    missing = torch.stack(short).sum(0, dtype=torch.int8)
    corner = [
        (column * ((missing == lacks) & active)).amax(-1)
        for column, lacks in zip(q, short, strict=True)
    ]
    return torch.minimum(torch.stack(corner), p[:, :, 0])


def _reaching(q: Tensor, active: Tensor, corner: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The active rivals above the corner: the row of each, and its share of the box [m, total]."""
    near = active
    for column, low in zip(q, corner, strict=True):
        near = near & (column > low.unsqueeze(-1))
    rows, places = near.nonzero(as_tuple=True)
    reach = q[:, rows if q.shape[1] > 1 else torch.zeros_like(rows), places]
    return rows, torch.minimum(reach, p[:, rows, 0]) - corner[:, rows]


def _trimmed(rows: Tensor, inside: Tensor, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut boxes [m, r] once more, by the rivals that were found: what is left of all three."""
    short = inside < edges[:, rows]
    cuts = inside * (short.sum(0, dtype=torch.int8) == short)
    corner = torch.zeros_like(edges).scatter_reduce_(1, rows.expand_as(cuts), cuts, "amax")
    left = edges - corner
    near = ((inside > corner[:, rows]) & (left[:, rows] > 0)).all(0)
    rows, inside = rows[near], inside[:, near]
    return rows, inside - corner[:, rows], left


def _volumes(inside: Tensor, rows: Tensor, counts: Tensor, memory_budget: int) -> Tensor:
    """Hypervolumes [r] of ragged sets [m, total]; sets of like size are padded together."""
    volumes = torch.zeros(len(counts), dtype=inside.dtype, device=inside.device)
    low, high, most = 0, 4, int(counts.max())
    while low < most:
        chosen = (counts > low) & (counts <= high)
        mine = chosen[rows]
        places = (chosen.cumsum(0) - 1)[rows[mine]]
        padded = _padded(inside[:, mine], places, counts[chosen], min(high, most))
        volumes[chosen] = _volume(padded, memory_budget)
        low, high = high, 2 * high
    return volumes


def _padded(values: Tensor, rows: Tensor, counts: Tensor, most: int) -> Tensor:
    """Ragged rows [m, total] as [m, r, most], zeros behind the last of each row."""
    slots = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    padded = values.new_zeros(len(values), len(counts), most)
    padded[:, rows, slots] = values
    return padded
