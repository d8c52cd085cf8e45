"""How good what a cell found is, after so many oracle calls."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gflow.bench.encodings import distances
from gflow.bench.ledger import Log
from gflow.conditions import simplex_lattice
from gflow.pareto import (
    hypervolume,
    igd_plus,
    non_dominated,
    pc_entropy,
    r2,
    top_k_diversity,
)
from gflow.tasks import Task

CHEAP = 1e-4
"""Seconds per object up to which a whole enumerable space is scored to know its front."""

TOP = 10
"""Candidates whose diversity is measured, for each preference."""


@dataclass(frozen=True)
class Reference:
    """The front that others are measured by.

    Attributes:
        front: [p, K] float64, its distinct reward vectors.
        members: keys of its objects.
        exact: it is the front of the whole space; otherwise the best known one.
        volume: its hypervolume.
    """

    front: Tensor
    members: frozenset[str]
    exact: bool
    volume: float


def exact_reference(task: Task) -> Reference | None:
    """The front of the whole space, where that can be enumerated and scored cheaply."""
    if not task.env.enumerable or not task.oracle.on_states or task.oracle.seconds > CHEAP:
        return None
    states = task.env.all_terminal_states()
    rewards = task.oracle(states).double().cpu()
    rows = non_dominated(rewards).nonzero().squeeze(1)
    members = frozenset(task.key(item) for item in task.env.decode(states.rows(rows)))
    return _reference(task, rewards[rows], members, exact=True)


def best_known_reference(task: Task, logs: Sequence[Log]) -> Reference | None:
    """The front of everything that any cell found; None while nothing was found."""
    rewards = torch.cat([log.rewards for log in logs])
    objects = [item for log in logs for item in log.objects]
    rows = non_dominated(rewards).nonzero().squeeze(1)
    if not len(rows):
        return None
    members = frozenset(task.key(objects[row]) for row in rows.tolist())
    return _reference(task, rewards[rows], members, exact=False)


def _reference(task: Task, front: Tensor, members: frozenset[str], exact: bool) -> Reference:
    front = front.unique(dim=0)
    return Reference(front, members, exact, _volume(task, front))


def _volume(task: Task, rewards: Tensor) -> float:
    """Hypervolume from the task's reference point; 0 where no point exceeds it."""
    reference = torch.tensor(task.reference_point, dtype=rewards.dtype)
    return float(hypervolume(rewards[(rewards > reference).all(1)], reference))


def measure(
    task: Task, log: Log, reference: Reference, checkpoints: Sequence[int]
) -> list[dict[str, float]]:
    """A row of metrics for each number of oracle calls.

    - hypervolume from the task's reference point, and regret, the share of the reference front's
      hypervolume that is missing;
    - igd_plus to the reference front;
    - r2 over a lattice of preferences, from the ideal rewards;
    - pc_entropy of the found front over the reference front;
    - front_share, the share of the reference front's objects that were found;
    - diversity: mean distance among the ten best for each preference, averaged over them;
    - best of each reward, and what the training noted last.

    Args:
        task: the problem.
        log: what the cell wrote.
        reference: the front to measure by.
        checkpoints: numbers of oracle calls. A cell that ended earlier keeps its last values.
    """
    keys = [task.key(item) for item in log.objects]
    noted = [calls for calls, _ in log.notes]
    rows = []
    for calls in checkpoints:
        used = min(calls, len(keys))
        row: dict[str, float] = {"calls": calls, "used": used}
        row["seconds"] = log.seconds[used - 1] if used else 0.0
        row |= quality(task, log.objects[:used], log.rewards[:used], reference)
        row["front_share"] = len(reference.members.intersection(keys[:used])) / len(
            reference.members
        )
        last = bisect.bisect_right(noted, calls) - 1
        row |= log.notes[last][1] if last >= 0 else {}
        rows.append(row)
    return rows


def quality(
    task: Task, objects: Sequence[Any], rewards: Tensor, reference: Reference
) -> dict[str, float]:
    """The metrics of n scored objects that need no more than their rewards [n, K]."""
    good = torch.isfinite(rewards).all(1)
    objects = [item for item, fine in zip(objects, good.tolist(), strict=True) if fine]
    rewards = rewards[good]
    k = rewards.shape[1]
    front = rewards[non_dominated(rewards)]
    volume = _volume(task, front)
    row = {"hypervolume": volume, "regret": 1 - volume / max(reference.volume, 1e-300)}
    row["igd_plus"] = float(igd_plus(front, reference.front))
    # The small number inside its logarithm makes the metric of a single point negative.
    row["pc_entropy"] = max(float(pc_entropy(front, reference.front)), 0.0)
    if k > 1:
        weights = simplex_lattice(k, {2: 21, 3: 11}.get(k, 6))
        ideal = [
            reward.high if reward.high < float("inf") else float(reference.front[:, i].amax())
            for i, reward in enumerate(task.oracle.rewards)
        ]
        row["r2"] = float(r2(front, weights, ideal_point=ideal))
    row["diversity"] = _diversity(task, objects, rewards)
    for i, reward in enumerate(task.oracle.rewards):
        row[f"best {reward.name}"] = float(rewards[:, i].amax()) if len(rewards) else float("nan")
    return row


def _diversity(task: Task, objects: Sequence[Any], rewards: Tensor) -> float:
    """Mean distance of the ten best by weighted sum, averaged over a lattice of preferences."""
    if len(rewards) < TOP:
        return float("nan")
    k = rewards.shape[1]
    weights = simplex_lattice(k, 5)
    scores = weights @ rewards.T
    wanted = scores.topk(TOP).indices.unique()
    apart = distances(task, [objects[row] for row in wanted.tolist()])
    chosen = scores[:, wanted]
    return float(top_k_diversity(chosen, apart.expand(len(chosen), -1, -1), TOP).mean())
