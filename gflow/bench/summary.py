"""From the logs of a benchmark to its results, with bootstrap intervals over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gflow.bench.ledger import Log, read_lines, read_log
from gflow.bench.measure import Reference, best_known_reference, exact_reference, measure
from gflow.bench.plan import Cell, Plan, Problem
from gflow.bench.schedule import playable
from gflow.seeding import generator
from gflow.tasks import Task
from gflow.training.checkpoint import write_atomically

Row = dict[str, Any]
"""problem, contestant, seed, calls, used, seconds and the metrics."""

RESAMPLES = 10_000
LOWER_IS_BETTER = ("regret", "igd_plus", "r2", "zero_advantage", "kl", "seconds")


@dataclass(frozen=True)
class Results:
    """What a benchmark found so far.

    Attributes:
        plan: what was run.
        rows: one for each finished cell and number of oracle calls.
        references: by name of the problem: is its front exact, number of its objects, volume.
        fronts: by problem and contestant: [n, K] rewards found by the first seed, non-dominated.
        reward_names: by name of the problem.
        skipped: one sentence for each part of the plan that was not played.
    """

    plan: Plan
    rows: list[Row]
    references: dict[str, dict[str, Any]]
    fronts: dict[str, dict[str, list[list[float]]]]
    reward_names: dict[str, list[str]]
    skipped: list[str]


def bootstrap_interval(
    values: Sequence[float], share: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of the values, and the percentile bootstrap interval of the mean.

    NaN is left out; without values, all three are NaN. (Efron, 1979.)

    Args:
        values: one for each seed.
        share: of the resampled means that the interval holds.
        seed: of the resampling.
    """
    numbers = torch.tensor([v for v in values if not math.isnan(v)], dtype=torch.float64)
    n = len(numbers)
    if not n:
        return (math.nan, math.nan, math.nan)
    if not bool(numbers.isfinite().all()):
        return (float(numbers.mean()), float(numbers.amin()), float(numbers.amax()))
    means = _shares(n, seed) @ numbers
    tail = (1 - share) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return (float(numbers.mean()), low, high)


@cache
def _shares(n: int, seed: int) -> Tensor:
    """Of each of `n` values in the mean of each resample, [RESAMPLES, n]."""
    drawn = torch.randint(n, (RESAMPLES, n), generator=generator(seed, "bootstrap", n))
    return torch.nn.functional.one_hot(drawn, n).double().mean(1)


def collect(folder: Path, plan: Plan) -> Results:
    """Measure every finished cell of the folder."""
    tasks, missing = playable(plan)
    results = Results(plan, [], {}, {}, {}, missing)
    for problem in plan.problems:
        if problem.name in tasks:
            _collect_problem(folder, plan, problem, tasks[problem.name], results)
    return results


def _collect_problem(
    folder: Path, plan: Plan, problem: Problem, task: Task, results: Results
) -> None:
    names = [reward.name for reward in task.oracle.rewards]
    logs: list[tuple[Cell, Log]] = []
    for cell in plan.cells():
        if cell.problem is not problem:
            continue
        log = read_log(folder / cell.path, len(names))
        if log.end == "skipped":
            sentence = f"{problem.name}, {cell.contestant.name}: {log.reason}"
            if sentence not in results.skipped:
                results.skipped.append(sentence)
        elif log.end:
            logs.append((cell, log))
    reference = exact_reference(task) or best_known_reference(task, [log for _, log in logs])
    if reference is None:
        return
    results.reward_names[problem.name] = names
    results.references[problem.name] = _described(reference)
    checkpoints = checkpoints_of(problem.budget, plan.checkpoints)
    for cell, log in logs:
        who = {"problem": problem.name, "contestant": cell.contestant.name, "seed": cell.seed}
        results.rows.extend(who | row for row in measure(task, log, reference, checkpoints))
        if cell.seed == plan.seeds[0]:
            fronts = results.fronts.setdefault(problem.name, {})
            fronts[cell.contestant.name] = _front(log)


def _front(log: Log) -> list[list[float]]:
    from gflow.pareto import non_dominated

    front: list[list[float]] = log.rewards[non_dominated(log.rewards)].unique(dim=0).tolist()
    return front


def _described(reference: Reference) -> dict[str, Any]:
    return {
        "exact": reference.exact,
        "objects": len(reference.members),
        "volume": reference.volume,
        "front": reference.front.tolist(),
    }


def checkpoints_of(budget: int, n: int) -> list[int]:
    """`n` numbers of calls evenly up to the budget, fewer where the budget is smaller."""
    return sorted({math.ceil(budget * i / n) for i in range(1, n + 1)})


def final_rows(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """The last row of each cell, by problem and contestant."""
    last: dict[tuple[str, str, int], Row] = {}
    for row in rows:
        last[row["problem"], row["contestant"], row["seed"]] = row
    grouped: dict[tuple[str, str], list[Row]] = {}
    for (problem, contestant, _), row in last.items():
        grouped.setdefault((problem, contestant), []).append(row)
    return grouped


def intervals(rows: Sequence[Row], metric: str) -> tuple[float, float, float]:
    """Mean and interval of one metric over rows of several seeds."""
    return bootstrap_interval([float(row.get(metric, math.nan)) for row in rows])


def markdown(results: Results, command: str) -> str:
    """Tables of the last rows, one for each problem; mean [bootstrap interval] over seeds."""
    plan = results.plan
    lines = [f"# {plan.title}", ""]
    lines += [plan.about.strip(), ""] if plan.about else []
    lines += [
        f"    {command}", "",
        "Mean over seeds, and the 95 % bootstrap interval of the mean. Budgets count distinct "
        "objects scored; seconds are CPU seconds of one thread.", "",
    ]  # fmt: skip
    grouped = final_rows(results.rows)
    for problem in plan.problems:
        present = [c for c in plan.contestants if (problem.name, c.name) in grouped]
        if not present:
            continue
        columns = [*columns_of(results, problem.name), "seconds"]
        lines += [f"## {problem.name}", "", _budget_line(results, problem), ""]
        lines += ["| method | seeds | " + " | ".join(columns) + " |"]
        lines += ["|" + " --- |" * (len(columns) + 2)]
        for contestant in present:
            rows = grouped[problem.name, contestant.name]
            cells = [cell_text(*intervals(rows, column)) for column in columns]
            lines.append(f"| {contestant.name} | {len(rows)} | " + " | ".join(cells) + " |")
        lines.append("")
    if results.skipped:
        lines += ["Not played:", "", *(f"- {sentence}" for sentence in results.skipped), ""]
    return "\n".join(lines)


def columns_of(results: Results, problem: str) -> list[str]:
    """The plan's columns; "best" and "mean" stand for one column for each reward."""
    columns: list[str] = []
    for column in results.plan.columns:
        several = column in ("best", "mean")
        names = results.reward_names[problem]
        columns += [f"{column} {name}" for name in names] if several else [column]
    return columns


def _budget_line(results: Results, problem: Problem) -> str:
    reference = results.references[problem.name]
    kind = "The exact front" if reference["exact"] else "The best known front"
    return (
        f"{problem.budget} oracle calls. {kind} has {reference['objects']} objects and "
        f"hypervolume {reference['volume']:.4f}."
    )


def cell_text(mean: float, low: float, high: float) -> str:
    """A mean with its interval."""
    return "-" if math.isnan(mean) else f"{_short(mean)} [{_short(low)}, {_short(high)}]"


def _short(value: float) -> str:
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """One JSON line for each row; numbers with six digits, NaN as null."""
    text = "".join(json.dumps({k: _number(v) for k, v in row.items()}) + "\n" for row in rows)
    write_atomically(path, lambda file: file.write(text.encode()))


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` wrote."""
    return [
        {name: math.nan if value is None else value for name, value in line.items()}
        for line in read_lines(path)
    ]


def _number(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
