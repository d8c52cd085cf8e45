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

from collections.abc import Iterator

import torch
from torch import Tensor

from gflow.pareto._check import close_budget, compiled
from gflow.pareto._host import host_volumes
from gflow.pareto._order import ascending, least, places, reached, taken

STRIDE = 6
"""Among many rivals every 6th is enough for a first corner."""
MANY = 2048


def axis_order(values: Tensor) -> Tensor:
    """Place of each row of [..., n] in descending order; ties by position, so no two agree."""
    order = ascending(-values)[1]
    counted = torch.arange(values.shape[-1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, counted)


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
    keys, bases = axis_order(columns[-1]), columns[:-1]
    if m == 3:
        areas = _slices(bases, keys, memory_budget)
    else:
        areas = _corners(*_placed(bases, bases), keys, keys, True, memory_budget)
    return (columns[-1] * areas).sum(-1)


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
        point_keys: [B, k] int64 below k + n, different within a front.
        rival_keys: [B, n] int64, the same from -1.
        earlier: True for the rivals with a smaller key, False for all with a different one.
        memory_budget: bytes for temporary tensors.

    Returns:
        [B, k].
    """
    if rivals.shape[-1] == 0:
        return points.prod(0)
    placed = _placed(points, rivals)
    return exclusive_at(*placed, point_keys, rival_keys, earlier, memory_budget)


def exclusive_at(
    points: Tensor,
    rivals: Tensor,
    values: Tensor,
    point_keys: Tensor,
    rival_keys: Tensor,
    earlier: bool,
    memory_budget: int,
) -> Tensor:
    """`exclusive` for points [m, B, k] and rivals [m, B, n] that are places, n > 0.

    Place i of an axis is `values` [m, B, most] there, which ascend from 0; equal values share a
    place.
    """
    if not compiled(values):
        first = rivals[0].argsort(dim=-1, descending=True)
        rivals = rivals.gather(-1, first.expand_as(rivals))
        rival_keys = rival_keys.gather(-1, first)
    return _corners(points, rivals, values, point_keys, rival_keys, earlier, memory_budget)


def _placed(points: Tensor, rivals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Places of points [m, B, k] and rivals [m, B, n] on the axes, and the values there."""
    # Zero is put in front, so it is at place 0.
    joint = torch.nn.functional.pad(torch.cat([points, rivals], -1), (1, 0))
    values, order = ascending(joint, stable=False)
    ranks = places(values, order)[..., 1:]
    return ranks[..., : points.shape[-1]], ranks[..., points.shape[-1] :], values


def _blocks(total: int, bytes_each: int, memory_budget: int) -> Iterator[slice]:
    """Ranges of `total` rows that fit the budget."""
    size = max(1, memory_budget // max(1, bytes_each))
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _slices(columns: Tensor, keys: Tensor, memory_budget: int) -> Tensor:
    """E for each row of [2, B, n] against those with an earlier key, up to rounding of the box.

    Good enough for the slices of a volume, and quicker than finding the corner. The first column
    is in descending order.
    """
    _, batch, n = columns.shape
    points, own = columns.reshape(2, batch * n, 1), keys.reshape(-1, 1)
    areas = columns.new_empty(batch * n)
    # Live at once: copies of the rivals, their clipped share, a scan and its int64 indices.
    for rows in _blocks(batch * n, 2 * n * (6 * columns.element_size() + 16), memory_budget):
        q, other = columns, keys
        if batch > 1:
            fronts = torch.arange(rows.start, rows.stop, device=keys.device) // n
            q, other = columns[:, fronts], keys[fronts]
        p = points[:, rows]
        clipped = torch.minimum(q[1], p[1]) * (other < own[rows])
        covered = sweep(torch.minimum(q[0], p[0]).expand_as(clipped), clipped)
        areas[rows] = p[:, :, 0].prod(0) - covered
    return areas.clamp(min=0).view(batch, n)


def _corners(
    points: Tensor,
    rivals: Tensor,
    values: Tensor,
    point_keys: Tensor,
    rival_keys: Tensor,
    earlier: bool,
    memory_budget: int,
) -> Tensor:
    """`exclusive_at`; tensor code needs the first column of the rivals in descending order."""
    m, batch, k = points.shape
    n, most = rivals.shape[-1], values.shape[-1]
    p, q = points.reshape(m, batch * k, 1), rivals.contiguous()
    own, other = point_keys.reshape(-1, 1).to(p.dtype), rival_keys.to(p.dtype)
    step = STRIDE if n >= MANY else 1
    few = q[..., ::step].contiguous()
    boxes = values.gather(-1, points.long()).flatten(1)
    others = values.gather(-1, rivals.long()).flatten(1)
    values = values.flatten(1)
    result = values.new_zeros(batch * k)
    live = n * p.element_size() * (4 + 3 * m // step + (m if batch > 1 else 0))
    for rows in _blocks(batch * k, live, close_budget(p, memory_budget)):
        fronts = torch.arange(rows.start, rows.stop, device=p.device) // k
        at = slice(None) if batch == 1 else fronts
        if earlier:
            active = (own[rows] - 1) - other[at]
        else:
            active = (own[rows] - other[at]).abs_() - 1
        box, near = boxes[:, rows], q[:, at]
        low = _corner(p[:, rows], few[:, at], active[:, ::step].contiguous())
        corner = values.gather(1, fronts * most + low)
        edges = box - corner
        floor = (low + 1).masked_fill(~(edges > 0).all(0), torch.iinfo(low.dtype).max)
        room = least(near, floor.unsqueeze(2))
        row, place = reached(torch.minimum(room, active, out=room))
        reach = taken(others, fronts[row] * n + place)
        inside = torch.minimum(reach, taken(box, row)) - taken(corner, row)
        result[rows] = _rest(row, inside, edges, step > 1, memory_budget)
    return result.clamp(min=0).view(batch, k)


def _corner(p: Tensor, q: Tensor, active: Tensor) -> Tensor:
    """Places [m, r] of the lower corner that is left of boxes by rivals short on one axis at most.

    Places of the boxes p [m, r, 1] and of the rivals q [m, 1 or r, n]; active [r, n] is negative
    for those that do not count.
    """
    ahead = [active]
    for mine, column in zip(p[:-1], q[:-1], strict=True):
        ahead.append(torch.minimum(ahead[-1], column - mine))
    corner, behind = [], torch.full_like(active[:, :1], torch.iinfo(active.dtype).max)
    for mine, column, before in zip(p.flip(0), q.flip(0), reversed(ahead), strict=True):
        others = torch.minimum(before, behind)
        # -1 where a rival falls short on another axis.
        corner.append((others.clamp_(-1, 0) | column).amax(-1))
        behind = torch.minimum(behind, column - mine)
    return torch.minimum(torch.stack(corner[::-1]).clamp(min=0), p[:, :, 0])


def _rest(rows: Tensor, inside: Tensor, edges: Tensor, again: bool, memory_budget: int) -> Tensor:
    """What the shares [m, total] of the boxes with these edges [m, r] leave, [r]."""
    if again:
        rows, inside, edges = _trimmed(rows, inside, edges)
    box = edges.prod(0)
    if len(rows) == 0:
        return box
    counts = rows.bincount(minlength=len(box))
    if compiled(edges):
        return box - host_volumes(inside, counts, memory_budget)
    return box - _volumes(inside, rows, counts, memory_budget)


def _trimmed(rows: Tensor, inside: Tensor, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut boxes [m, r] once more, by the rivals that were found: what is left of all three."""
    short = inside < taken(edges, rows)
    cuts = inside * (short.sum(0, dtype=torch.int8) == short)
    corner = torch.zeros_like(edges).scatter_reduce_(1, rows.expand_as(cuts), cuts, "amax")
    left = edges - corner
    alive = (left > 0).all(0)
    above = inside - taken(corner, rows)
    near = ((above.amin(0) > 0) & alive[rows]).nonzero().squeeze(1)
    return rows[near], taken(above, near), left


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
