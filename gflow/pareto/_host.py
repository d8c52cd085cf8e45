"""Hypervolumes of single fronts on the CPU by the compiled routine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gflow.pareto._check import moocore
from gflow.pareto.tiles import SMALL, tile_cuts, tiled_volume

Costs = NDArray[np.float64]


def host_measure(origin: Costs, memory_budget: int) -> Callable[[Costs], float]:
    """Hypervolume of costs [n, m] below an origin [m], for many fronts with the same origin."""
    library, m = moocore(), len(origin)
    indicator: Callable[[Any], float] = library.Hypervolume(ref=origin)
    if m < 5:
        return lambda costs: indicator(costs) if len(costs) else 0.0
    centred: Callable[[Any], float] = library.Hypervolume(ref=np.zeros(m))

    def base(gains: Tensor) -> Tensor:
        return gains.new_tensor(centred(gains.neg().numpy()))

    def measure(costs: Costs) -> float:
        if len(costs) <= SMALL:
            return indicator(costs) if len(costs) else 0.0
        # From five objectives on the routine spends most of its time on dominated points.
        front = costs[library.is_nondominated(costs)]
        cuts = tile_cuts(len(front), m)
        if cuts == 1:
            return indicator(front)
        return float(tiled_volume(torch.from_numpy(origin - front), base, cuts, memory_budget))

    return measure


def host_volumes(inside: Tensor, counts: Tensor, memory_budget: int) -> Tensor:
    """Hypervolumes over the origin of ragged sets [m, total] of gains, cut by their counts."""
    measure = host_measure(np.zeros(len(inside)), memory_budget)
    costs = inside.neg().T.contiguous().double().numpy()
    volumes, start = [], 0
    for stop in counts.cumsum(0).tolist():
        volumes.append(measure(costs[start:stop]))
        start = stop
    return inside.new_tensor(volumes)
