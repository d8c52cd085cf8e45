"""Who can take part: the baselines by name, and every trained method of the catalog."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from gflow.bench.bayes import qnehvi, qparego
from gflow.bench.encodings import genome
from gflow.bench.evolution import graph_ga, moead, nsga2, nsga3, regularized_evolution
from gflow.bench.ledger import Ledger
from gflow.bench.plan import Cell
from gflow.config import ConfigError, from_dict
from gflow.objectives.catalog import METHODS
from gflow.seeding import generator
from gflow.tasks import Task, make_task, near

_TOGETHER = 64


def random(task: Task, ledger: Ledger, seed: int) -> None:
    """Even draws from the space where it is a product, random constructions elsewhere."""
    code, stream = genome(task.env), generator(seed, "random")
    while True:
        ledger(code.states(code.random(_TOGETHER, stream)))


BASELINES: dict[str, Callable[..., None]] = {
    "random": random,
    "nsga2": nsga2,
    "nsga3": nsga3,
    "moead": moead,
    "qnehvi": qnehvi,
    "qparego": qparego,
    "regularized_evolution": regularized_evolution,
    "graph_ga": graph_ga,
}
"""Methods that are not of the catalog: function(task, ledger, seed, **settings)."""


def prepare_cell(cell: Cell) -> tuple[Task, Callable[[Ledger], None]]:
    """The cell's task, and what plays its contestant until the ledger ends it.

    Raises:
        ConfigError: unknown task, method or setting, or a method that does not fit the task.
    """
    problem, contestant, seed = cell
    if contestant.method in BASELINES:
        function = BASELINES[contestant.method]
        known = list(inspect.signature(function).parameters)[3:]
        for name in contestant.settings:
            if name not in known:
                raise ConfigError(
                    f"contestant {contestant.name!r} has no setting {name!r}: {near(name, known)}"
                )
        task = _counted(make_task(problem.task, problem.rewards, problem.options), problem.task)
        return task, lambda ledger: function(task, ledger, seed, **contestant.settings)
    if contestant.method not in METHODS:
        hint = near(contestant.method, [*BASELINES, *METHODS])
        raise ConfigError(f"there is no method {contestant.method!r}: {hint}")
    from gflow.bench.trained import train
    from gflow.setup import prepare

    settings: dict[str, Any] = {
        "task": problem.task,
        "rewards": problem.rewards,
        "options": problem.options,
        "method": contestant.method,
        "seed": seed,
    }
    settings |= merged(problem.settings, contestant.settings)
    setup = prepare(from_dict(settings, f"contestant {contestant.name!r}"))
    return _counted(setup.task, problem.task), partial(train, setup)


def _counted(task: Task, name: str) -> Task:
    """The task, if its rewards belong to objects alone, as a budget of distinct objects wants."""
    if task.conditions is not None:
        raise ConfigError(f"rewards of task {name!r} depend on prompts, not on objects alone")
    return task


def merged(general: dict[str, Any], special: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, those of `special` first."""
    both = dict(general)
    for name, value in special.items():
        old = both.get(name)
        both[name] = (
            merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return both
