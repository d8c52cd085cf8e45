"""Everything the page shows, as one JSON document made from a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from gflow.candidates import Candidate, as_text, stack_rewards
from gflow.pareto import non_dominated
from gflow.report import molecules, pictures
from gflow.report.markdown import to_html
from gflow.report.points import bound_facts, plane
from gflow.report.progress import Scale, at_equal_calls, hypervolume_curves, training_curves
from gflow.report.run import Run, Sample

MAX_DRAWINGS = 500
MAX_POINTS = 4000
_MAX_FRONT_DRAWINGS = 350
_TABLE_ROWS = 12
_TABLE_POOL = 1000
_FACT_SAMPLE = 1000

Draw = Callable[[object], str]


class Points:
    """The objects on the page, each once: candidates first met in the store or among samples."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._places: dict[str, int] = {}

    def place(self, candidate: Candidate) -> int:
        """Index of the point of a candidate, made on first sight."""
        if candidate.key not in self._places:
            self._places[candidate.key] = len(self.rows)
            self.rows.append(
                {
                    "text": pictures.caption(candidate.object) or as_text(candidate.object),
                    "object": candidate.object,
                    "rewards": candidate.rewards,
                    "source": candidate.source,
                    "call": candidate.oracle_call,
                    "step": candidate.step,
                    "preference": candidate.preference,
                    "front": False,
                    "drawing": -1,
                }
            )
        return self._places[candidate.key]

    def draw(self, order: Sequence[int], draw: Draw) -> list[str]:
        """Draw the points in `order`, at most `MAX_DRAWINGS` of them; drawings, each once."""
        drawings: dict[str, int] = {}
        for place in order:
            row = self.rows[place]
            if row["drawing"] < 0 and len(drawings) < MAX_DRAWINGS:
                drawing = draw(row["object"])
                if drawing:
                    row["drawing"] = drawings.setdefault(drawing, len(drawings))
        return list(drawings)

    def columns(self) -> dict[str, list[Any]]:
        """The points column by column."""
        names = ("text", "rewards", "source", "call", "step", "preference", "front", "drawing")
        return {name: [row.get(name) for row in self.rows] for name in names}


def build(run: Run, title: str | None, draw: Draw | None) -> tuple[dict[str, Any], list[str]]:
    """The page's document and its drawings.

    Args:
        run: the run.
        title: headline of the page; None names task and objectives.
        draw: makes SVG or HTML of an object; None draws molecules where the task is molecules,
            and pictures.
    """
    are_molecules = "molecule" in _task(run)
    draw = draw or (molecules.draw_molecule if are_molecules else pictures.draw_picture)
    seen = stack_rewards([*run.candidates, *run.baseline], len(run.rewards))
    scale = Scale(run.rewards, seen)

    points = Points()
    front = [points.place(candidate) for candidate in run.front]
    for place in front:
        points.rows[place]["front"] = True
    tables = [_table(*choice, run, points, scale, are_molecules) for choice in _choices(run)]
    listed = [place for table in tables for place in table["rows"]]
    cloud = [points.place(candidate) for candidate in _spread(run.candidates, MAX_POINTS)]
    order = [*_spread(front, _MAX_FRONT_DRAWINGS), *listed, *_spread(cloud, MAX_DRAWINGS)]
    drawings = points.draw(order, draw)

    volume = hypervolume_curves(run, scale)
    document = {
        "title": title or _title(run),
        "subtitle": _subtitle(run),
        "headline": _headline(run, volume),
        "rewards": [_reward(run, k) for k in range(len(run.rewards))],
        "points": points.columns(),
        "n_candidates": len(run.candidates),
        "n_shown": sum(row["call"] is not None for row in points.rows),
        "molecules": are_molecules,
        "tables": tables,
        "hypervolume": volume,
        "reference": scale.low.tolist(),
        "baseline_front": _baseline_front(run),
        "baseline_calls": run.baseline_calls,
        "estimated": len(run.rewards) > 4,
        "facts": [*_facts(run, are_molecules), *bound_facts(run)],
        "cloud": plane(run),
        "curves": training_curves(run.metrics),
        "counted": run.counted,
        "card": to_html(run.card),
        "config": run.config,
        "environment": run.environment,
    }
    return document, drawings


def _task(run: Run) -> str:
    task = run.config.get("task", "")
    return str(task.get("name", "") if isinstance(task, dict) else task)


def _spread(items: Sequence[Any], n: int) -> list[Any]:
    """At most `n` of the items, evenly spaced."""
    step = max(1.0, len(items) / n)
    return [items[int(i * step)] for i in range(min(n, len(items)))]


def _choices(run: Run) -> list[tuple[tuple[float, ...], Sample | None]]:
    """The preferences with a table of their own: those sampled, or corners and the middle."""
    if run.samples:
        return [(sample.preference, sample) for sample in run.samples]
    k = len(run.rewards)
    middle = tuple([1 / k] * k)
    if k == 1:
        return [((1.0,), None)]
    if k == 2:
        return [((1 - w, w), None) for w in (0.0, 0.25, 0.5, 0.75, 1.0)]
    corners = [tuple(float(i == j) for j in range(k)) for i in range(k)]
    return [(middle, None), *((corner, None) for corner in corners)]


def _table(
    preference: tuple[float, ...],
    sample: Sample | None,
    run: Run,
    points: Points,
    scale: Scale,
    are_molecules: bool,
) -> dict[str, Any]:
    """The best candidates for one preference that are not alike."""
    pool = run.candidates if sample is None else sample.candidates
    if not pool:
        return {"preference": preference, "rows": [], "scores": [], "mean": None, "n": 0}
    rewards = stack_rewards(pool, len(run.rewards))
    scores = scale(rewards) @ torch.tensor(preference, dtype=torch.float64)
    ranked = scores.argsort(descending=True, stable=True)[:_TABLE_POOL].tolist()
    picks = list(range(min(_TABLE_ROWS, len(ranked))))
    if are_molecules:
        picks = molecules.pick_diverse([pool[i].object for i in ranked], _TABLE_ROWS)
    chosen = [ranked[pick] for pick in picks]
    return {
        "preference": preference,
        "rows": [points.place(pool[i]) for i in chosen],
        "scores": scores[chosen].tolist(),
        "mean": sample.mean if sample else None,
        "n": sample.n if sample else len(pool),
    }


def _reward(run: Run, k: int) -> dict[str, Any]:
    reward = run.rewards[k]
    values = [c.rewards[k] for c in run.candidates if c.rewards is not None]
    return reward._asdict() | {"seen": [min(values), max(values)]}


def _baseline_front(run: Run) -> list[tuple[float, ...]]:
    """The front of random assembly, where a line can show it."""
    if len(run.rewards) != 2 or not run.baseline:
        return []
    rewards = stack_rewards(run.baseline, 2)
    return [tuple(row) for row in rewards[non_dominated(rewards, deduplicate=True)].tolist()]


def _headline(run: Run, volume: dict[str, dict[str, list[float]]]) -> list[dict[str, str]]:
    n, failed = len(run.candidates), run.n_failed
    lines = [
        {"value": f"{len(run.front):,}", "label": "candidates on the front"},
        {"value": f"{n:,}", "label": "different candidates scored"},
    ]
    if failed:
        lines[1]["note"] = f"{failed:,} more could not be scored"
    what = "hypervolume, of at most 1" if len(run.rewards) > 1 else "best reward, of its range"
    mine = {"value": f"{volume['run']['y'][-1]:.3f}", "label": what}
    if "baseline" in volume:
        calls, (ours, theirs) = at_equal_calls(volume)
        mine["value"] = f"{ours:.3f}"
        mine["note"] = f"{theirs:.3f} by random assembly, both after {calls:,} oracle calls"
    return [*lines, mine]


def _facts(run: Run, are_molecules: bool) -> list[dict[str, str]]:
    if not are_molecules:
        return []
    front = [candidate.object for candidate in run.front]
    sample = [candidate.object for candidate in _spread(run.candidates, _FACT_SAMPLE)]
    facts = molecules.diversity_facts(front, sample)
    known = molecules.readable(run.known)
    return [*facts, molecules.novelty_fact(front, known)] if known else facts


def _title(run: Run) -> str:
    names = [reward.name for reward in run.rewards]
    objectives = " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
    task = _task(run)
    return f"{task[0].upper()}{task[1:]}: {objectives}" if task else objectives


def _subtitle(run: Run) -> str:
    ended = max(candidate.last_seen for candidate in run.candidates)
    day = datetime.fromtimestamp(ended, tz=UTC).strftime("%-d %B %Y")
    method = run.config.get("method")
    words = [str(method)] if isinstance(method, str) else []
    return " · ".join([*words, f"run {run.folder.resolve().name}", day])
