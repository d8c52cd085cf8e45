"""A benchmark as one self-contained HTML page: tables, curves, fronts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gflow.bench.plan import METRICS, Problem
from gflow.bench.summary import (
    LOWER_IS_BETTER,
    Results,
    Row,
    columns_of,
    final_rows,
    intervals,
)
from gflow.report.page import fill, template
from gflow.training.checkpoint import write_atomically

MOMENTS = 25
"""Points of a curve over seconds."""


def write_page(path: Path, results: Results) -> Path:
    """Write the page of a benchmark under way or finished; returns its path."""
    scripts = [template("common.js"), template("bench.js", "gflow.bench")]
    page = fill(template("page.html", "gflow.bench"), document(results), scripts)
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def document(results: Results) -> dict[str, Any]:
    """What the page's scripts read."""
    plan = results.plan
    cells = {(row["problem"], row["contestant"], row["seed"]) for row in results.rows}
    return {
        "title": plan.title,
        "about": plan.about,
        "headline": [
            {"label": "problems", "value": len(results.references)},
            {"label": "methods", "value": len({name for _, name in final_rows(results.rows)})},
            {"label": "seeds", "value": len(plan.seeds)},
            {"label": "runs finished", "value": len(cells)},
        ],
        "problems": [
            _problem(results, problem)
            for problem in plan.problems
            if any(row["problem"] == problem.name for row in results.rows)
        ],
        "skipped": results.skipped,
    }


def _problem(results: Results, problem: Problem) -> dict[str, Any]:
    rows = [row for row in results.rows if row["problem"] == problem.name]
    names = [c.name for c in results.plan.contestants]
    present = [name for name in names if any(row["contestant"] == name for row in rows)]
    metrics = _metrics(rows)
    fronts = results.fronts.get(problem.name, {})
    reference = results.references[problem.name]
    return {
        "name": problem.name,
        "budget": problem.budget,
        "rewards": results.reward_names[problem.name],
        "reference": reference,
        "contestants": present,
        "colors": [names.index(name) for name in present],
        "table": _table(results, problem, present),
        "metrics": metrics,
        "lower": [name for name in metrics if name in LOWER_IS_BETTER],
        "curves": {
            name: {
                metric: {
                    "calls": _over_calls(mine, metric),
                    "seconds": _over_seconds(mine, metric),
                }
                for metric in metrics
                if any(metric in row for row in mine)
            }
            for name in present
            if (mine := [row for row in rows if row["contestant"] == name])
        },
        "fronts": {name: fronts[name] for name in present if name in fronts},
    }


def _metrics(rows: Sequence[Row]) -> list[str]:
    """The metrics at hand: the usual ones first, then rewards, then what training noted."""
    seen = dict.fromkeys(name for row in rows for name in row)
    others = [name for name in seen if name not in METRICS]
    fixed = {"problem", "contestant", "seed", "calls", "used", "seconds", "step_seconds"}
    usual = [name for name in METRICS if name in seen]
    return usual + [name for name in others if name not in fixed]


def _table(results: Results, problem: Problem, present: Sequence[str]) -> dict[str, Any]:
    columns = [*columns_of(results, problem.name), "seconds"]
    final = final_rows(results.rows)
    values = {
        name: [intervals(final[problem.name, name], column) for column in columns]
        for name in present
    }
    best: list[list[str]] = []
    for place, column in enumerate(columns):
        found = [(values[name][place], name) for name in present]
        found = [(value, name) for value, name in found if not math.isnan(value[0])]
        best.append(_best(found, column in LOWER_IS_BETTER) if column != "seconds" else [])
    return {
        "columns": columns,
        "lower": [column in LOWER_IS_BETTER for column in columns],
        "rows": [
            {
                "name": name,
                "seeds": len(final[problem.name, name]),
                "values": values[name],
                "best": [name in best[place] for place in range(len(columns))],
            }
            for name in present
        ],
    }


def _best(found: Sequence[tuple[tuple[float, float, float], str]], lower: bool) -> list[str]:
    """The best mean, and those whose interval overlaps with its."""
    if not found:
        return []
    sign = -1 if lower else 1
    (_, low, high), _ = max(found, key=lambda item: sign * item[0][0])
    return [name for (_, own_low, own_high), name in found if own_low <= high and low <= own_high]


def _band(points: Sequence[tuple[float, tuple[float, float, float]]]) -> dict[str, list[float]]:
    kept = [(x, value) for x, value in points if math.isfinite(value[0])]
    return {
        "x": [x for x, _ in kept],
        "mean": [value[0] for _, value in kept],
        "low": [value[1] for _, value in kept],
        "high": [value[2] for _, value in kept],
    }


def _over_calls(rows: Sequence[Row], metric: str) -> dict[str, list[float]]:
    moments = sorted({row["calls"] for row in rows})
    at = {calls: [row for row in rows if row["calls"] == calls] for calls in moments}
    return _band([(calls, intervals(at[calls], metric)) for calls in moments])


def _over_seconds(rows: Sequence[Row], metric: str) -> dict[str, list[float]]:
    """Each seed keeps its last value until its next one; a moment needs a value of every seed."""
    seeds = sorted({row["seed"] for row in rows})
    runs = [
        sorted((row["seconds"], row.get(metric, math.nan)) for row in rows if row["seed"] == seed)
        for seed in seeds
    ]
    start = max(max(run[0][0] for run in runs), 1e-3)
    stop = max(run[-1][0] for run in runs)
    ratio = max(stop / start, 1.0)
    points = []
    for i in range(MOMENTS):
        moment = start * ratio ** (i / (MOMENTS - 1))
        last = [[value for second, value in run if second <= moment * (1 + 1e-9)] for run in runs]
        found = [{metric: values[-1]} for values in last if values]
        if len(found) == len(runs):
            points.append((moment, intervals(found, metric)))
    return _band(points)
