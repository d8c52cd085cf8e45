"""Exact hypervolume of one large front by a grid of boxes.

Hypervolume is additive over disjoint boxes. In a slab lo < y_j <= hi only the points above lo
matter, and after clipping at hi most of them are dominated: a few hundred small fronts cost far
less than one large one from five objectives on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gflow.pareto.dominance import non_dominated

SMALL = 24
"""Fronts of this size go straight to the base case."""


def tile_cuts(n: int, m: int) -> int:
    """Slabs on each of the first m - 2 axes; 1 where cutting does not pay."""
    if m < 5 or n < (2000 if m == 5 else 128):
        return 1
    points_per_tile = 80 if m == 5 else 8
    return max(2, round(math.pow(n / points_per_tile, 1 / (m - 2))))


def tiled_volume(
    gains: Tensor, base: Callable[[Tensor], Tensor], cuts: int, memory_budget: int
) -> Tensor:
    """Hypervolume over the origin of one front.

    HV(S) = sum over tiles of HV({min(d, hi) - lo : d in S, d > lo}), lo and hi on the cut axes.

    Args:
        gains: [n, m] >= 0; dominated rows change nothing but the time.
        base: hypervolume over the origin of a small front [k, m].
        cuts: slabs on each axis, at distinct quantiles of the points at hand, so that ties and
            clusters give fewer slabs and never an empty one.
        memory_budget: bytes for temporary tensors of the filter.

    Returns:
        a scalar tensor.
    """

    def fill(d: Tensor, axis: int) -> Tensor:
        n, m = d.shape
        if axis == m - 2 or n <= SMALL or cuts == 1:
            return base(d)
        values = d[:, axis].sort().values
        places = torch.arange(1, cuts + 1, device=d.device) * n // cuts - 1
        total = d.new_zeros(())
        low = 0.0
        for high in values[places].unique().tolist():
            slab = d[d[:, axis] > low]
            slab[:, axis] = slab[:, axis].clamp(max=high) - low
            keep = non_dominated(slab, deduplicate=True, memory_budget=memory_budget)
            total = total + fill(slab[keep], axis + 1)
            low = high
        return total

    return fill(gains[(gains > 0).all(-1)], 0)
