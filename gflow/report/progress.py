"""What the search achieved: hypervolume over oracle calls, training curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gflow.candidates import Candidate, stack_rewards
from gflow.mdp import Reward
from gflow.pareto import hypervolume, non_dominated
from gflow.pareto.hypervolume import Method
from gflow.report.run import Run

_CHECKPOINTS = 30
_CURVE_POINTS = 400
_MAX_CURVES = 12
# Metrics most worth seeing come first; the others follow in the order of their names.
_FIRST = ("loss", "log_z", "hypervolume", "reward", "entropy", "grad_norm", "unique", "valid")


class Scale:
    """Maps rewards to [0, 1]: declared ranges where they are finite, seen ones elsewhere.

    Args:
        rewards: meanings of the K rewards.
        seen: [n, K] all rewards that will be scaled.
    """

    def __init__(self, rewards: Sequence[Reward], seen: Tensor) -> None:
        low = torch.tensor([reward.low for reward in rewards], dtype=torch.float64)
        high = torch.tensor([reward.high for reward in rewards], dtype=torch.float64)
        self.low = torch.where(low.isfinite(), low, seen.amin(0))
        self.high = torch.where(high.isfinite(), high, seen.amax(0))

    def __call__(self, rewards: Tensor) -> Tensor:
        """[n, K] rewards -> [n, K] in [0, 1]."""
        width = (self.high - self.low).clamp(min=1e-12)
        return ((rewards - self.low) / width).clamp(0, 1)


def hypervolume_curves(run: Run, scale: Scale) -> dict[str, dict[str, list[float]]]:
    """Hypervolume of everything scored so far over oracle calls, for "run" and "baseline".

    Rewards are scaled to [0, 1] and the reference point is 0, so 1 is the whole box. About 30
    marks lie up to the number of calls both have made, where they can be compared.
    """
    common = min(run.oracle_calls, run.baseline_calls or run.oracle_calls)
    gap = max(1.0, common / _CHECKPOINTS)
    curves = {"run": _hypervolume_curve(run.candidates, scale, gap, run.oracle_calls)}
    if run.baseline:
        curves["baseline"] = _hypervolume_curve(run.baseline, scale, gap, run.baseline_calls)
    return curves


def at_equal_calls(curves: dict[str, dict[str, list[float]]]) -> tuple[int, list[float]]:
    """The largest number of calls all curves reach, and the hypervolumes there."""
    calls = min(curve["x"][-1] for curve in curves.values())
    return int(calls), [curve["y"][curve["x"].index(calls)] for curve in curves.values()]


def _hypervolume_curve(
    candidates: Sequence[Candidate], scale: Scale, gap: float, last_call: int
) -> dict[str, list[float]]:
    n_rewards = len(scale.low)
    scaled = scale(stack_rewards(candidates, n_rewards))
    calls = torch.tensor([candidate.oracle_call or 0 for candidate in candidates])
    steps = range(1, _CHECKPOINTS + 1)
    marks = {round(gap * i) for i in steps} | {round(last_call * i / _CHECKPOINTS) for i in steps}
    # Exact values for many objectives and large fronts would take minutes.
    method: Method = "auto" if n_rewards <= 4 else "polar"
    front, start = scaled[:0], 0
    x: list[float] = []
    y: list[float] = []
    for mark in sorted(mark for mark in marks if 0 < mark <= last_call):
        end = int((calls <= mark).sum())
        front = torch.cat([front, scaled[start:end]])
        front, start = front[non_dominated(front, deduplicate=True)], end
        x.append(mark)
        # At the lower end of a range there is no volume, and fronts often start there.
        above = front[(front > 0).all(-1)]
        y.append(hypervolume(above, [0.0] * n_rewards, method=method).item() if len(above) else 0.0)
    return {"x": x, "y": y}


def training_curves(metrics: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """Name, steps and values of every metric with at least two finite values.

    Long curves are averaged in bins; the most telling twelve are kept.
    """
    names = {name for row in metrics for name in row} - {"step"}
    rank = {name: place for place, name in enumerate(_FIRST)}
    curves = []
    for name in sorted(names, key=lambda name: (rank.get(name, len(rank)), name)):
        pairs = [
            (row["step"], row[name])
            for row in metrics
            if "step" in row and math.isfinite(row.get(name, math.nan))
        ]
        if len(pairs) >= 2:
            curves.append({"name": name, **_binned(pairs)})
    return curves[:_MAX_CURVES]


def _binned(pairs: list[tuple[float, float]]) -> dict[str, list[float]]:
    size = -(-len(pairs) // _CURVE_POINTS)
    bins = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return {
        "x": [points[-1][0] for points in bins],
        "y": [sum(value for _, value in points) / len(points) for points in bins],
    }
