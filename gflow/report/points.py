"""What the report knows about points: a cloud of them, and bounds of log Z."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gflow.report.run import Run

MAX_POINTS = 3000


def is_point(item: object) -> bool:
    """An object that is a row of at least two numbers with a fraction."""
    return (
        isinstance(item, (list, tuple))
        and len(item) > 1
        and all(isinstance(value, float) for value in item)
    )


def plane(run: Run) -> dict[str, Any] | None:
    """First two coordinates of what training met and of what the trained sampler gave."""
    met = [c.object for c in run.candidates if is_point(c.object)]
    if not met:
        return None
    drawn = [c.object for sample in run.samples for c in sample.candidates if is_point(c.object)]
    return {"training": _thinned(met), "sampler": _thinned(drawn), "axes": len(met[0])}


def _thinned(points: Sequence[Any]) -> dict[str, list[float]]:
    step = max(1, math.ceil(len(points) / MAX_POINTS))
    some = points[::step]
    return {"x": [round(p[0], 4) for p in some], "y": [round(p[1], 4) for p in some]}


def bound_facts(run: Run) -> list[dict[str, str]]:
    """The last bounds of log Z that the run logged."""
    row = next((row for row in reversed(run.metrics) if "elbo" in row), None)
    if row is None:
        return []
    error = row.get("log_z_error")
    note = "by importance weights" + ("" if error is None else f"; {error:+.3f} from the truth")
    between = f"from {row['elbo']:.3f}" + (f" to {row['eubo']:.3f}" if "eubo" in row else " up")
    return [
        {"value": f"{row['log_z_estimate']:.3f}", "label": "log Z", "note": note},
        {"value": between, "label": "bounds of log Z", "note": "of the sampler's own weights"},
        {
            "value": f"{100 * row['effective_samples']:.0f} %",
            "label": "effective samples",
            "note": "share that importance weights leave",
        },
    ]
