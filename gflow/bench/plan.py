"""What a benchmark runs: problems x contestants x seeds, read from YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from gflow.config import ConfigError
from gflow.tasks import near

METRICS = (
    "hypervolume", "regret", "igd_plus", "r2", "pc_entropy", "diversity", "front_share",
)  # fmt: skip
"""What every cell is measured by; rewards and training metrics come on top."""


@dataclass(frozen=True)
class Problem:
    """A task at a budget.

    Attributes:
        name: how tables call it.
        task: name of the task, see `gflow tasks`.
        budget: oracle calls, that is, distinct objects scored.
        rewards: the task's rewards, where it has some to choose from.
        options: further settings of the task.
        settings: settings of training runs on this task, as in a run's `config.yaml`.
    """

    name: str
    task: str
    budget: int
    rewards: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.budget, int) or self.budget < 1:
            raise ConfigError(
                f"problem {self.name!r}: the budget must be a whole number of oracle calls, "
                f"not {self.budget!r}"
            )


@dataclass(frozen=True)
class Contestant:
    """A method with its settings.

    Attributes:
        name: how tables call it.
        method: a baseline, or a row of the catalog of methods.
        settings: arguments of the baseline; or settings of a training run.
    """

    name: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)


class Cell(NamedTuple):
    """One process: a contestant on a problem with a seed."""

    problem: Problem
    contestant: Contestant
    seed: int

    @property
    def path(self) -> Path:
        """Where its log lies, below the benchmark's folder."""
        parts = [_file_name(self.problem.name), _file_name(self.contestant.name)]
        return Path("cells", *parts, f"{self.seed}.jsonl")

    def settings(self) -> dict[str, Any]:
        """All that decides the cell, as JSON has it."""
        parts = {"problem": asdict(self.problem), "contestant": asdict(self.contestant)}
        plain: dict[str, Any] = json.loads(json.dumps(parts | {"seed": self.seed}))
        return plain


@dataclass(frozen=True)
class Plan:
    """Problems x contestants x seeds.

    Attributes:
        title: headline of the page.
        problems: what is solved.
        contestants: by whom.
        seeds: how often.
        columns: metrics of the printed table.
        checkpoints: numbers of oracle calls at which a cell is measured, evenly up to the budget.
        patience: a contestant that proposes so many known objects in a row is finished.
        about: a sentence or two under the headline.
    """

    title: str
    problems: tuple[Problem, ...]
    contestants: tuple[Contestant, ...]
    seeds: tuple[int, ...]
    columns: tuple[str, ...] = ("hypervolume", "igd_plus", "front_share", "diversity")
    checkpoints: int = 20
    patience: int = 5000
    about: str = ""

    def __post_init__(self) -> None:
        for what, names in (
            ("problem", [problem.name for problem in self.problems]),
            ("contestant", [contestant.name for contestant in self.contestants]),
        ):
            files = [_file_name(name) for name in names]
            twice = [name for name, file in zip(names, files, strict=True) if files.count(file) > 1]
            if not names or twice:
                why = f"{what} {twice[0]!r} twice" if twice else f"no {what}"
                raise ConfigError(f"plan {self.title!r}: names {why}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(
                f"plan {self.title!r}: needs distinct seeds, at least one, not {list(self.seeds)}"
            )
        for name in ("checkpoints", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"plan {self.title!r}: {name} must be at least 1")

    def cells(self) -> Iterator[Cell]:
        """Seed by seed, so that a benchmark under way compares like with like."""
        for seed in self.seeds:
            for problem in self.problems:
                for contestant in self.contestants:
                    yield Cell(problem, contestant, seed)


def read_plan(name: str) -> Plan:
    """The plan shipped under `name`, or the one in the file of that name.

    Raises:
        ConfigError: there is none, it is not YAML, or it has unknown or missing entries.
    """
    text, where = _text_of(name)
    return parse_plan(text, where)


def parse_plan(text: str, where: str) -> Plan:
    """The plan written in `text`; `where` it was found, for error messages.

    Raises:
        ConfigError: not YAML, or unknown or missing entries.
    """
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error
    values = dict(_mapping(values, where))
    for kind, part in (("problems", Problem), ("contestants", Contestant)):
        entries = values.get(kind)
        if not isinstance(entries, list):
            raise ConfigError(f"{where}: {kind} must be a list")
        values[kind] = tuple(
            _built(part, _named(entry, part), f"{where}: {kind} {number}")
            for number, entry in enumerate(entries, 1)
        )
    seeds = values.get("seeds")
    if isinstance(seeds, int):
        values["seeds"] = range(seeds)
    for kind in ("seeds", "columns"):
        if kind in values:
            values[kind] = tuple(values[kind])
    plan: Plan = _built(Plan, values, where)
    return plan


def plan_names() -> list[str]:
    """Names of the shipped plans."""
    found = (resources.files("gflow.bench") / "plans").iterdir()
    return sorted(Path(item.name).stem for item in found if item.name.endswith(".yaml"))


def choose(plan: Plan, problems: Sequence[str], contestants: Sequence[str], seeds: int) -> Plan:
    """The part of a plan with these problems and contestants (all where empty) and `seeds` seeds.

    Raises:
        ConfigError: a name the plan does not have.
    """
    changes: dict[str, Any] = {}
    for kind, wanted in (("problems", problems), ("contestants", contestants)):
        known = {part.name: part for part in getattr(plan, kind)}
        for name in wanted:
            if name not in known:
                raise ConfigError(f"the plan has no {kind[:-1]} {name!r}: {near(name, known)}")
        changes[kind] = tuple(known[name] for name in wanted) or getattr(plan, kind)
    changes["seeds"] = tuple(range(seeds)) if seeds else plan.seeds
    return replace(plan, **changes)


def _text_of(name: str) -> tuple[str, str]:
    if name in plan_names():
        file = resources.files("gflow.bench") / "plans" / f"{name}.yaml"
        return file.read_text(encoding="utf-8"), f"plan {name}"
    if not Path(name).is_file():
        raise ConfigError(f"there is no plan or file {name!r}: {near(name, plan_names())}")
    return Path(name).read_text(encoding="utf-8"), name


def _named(entry: Any, part: type) -> Any:
    """A bare name is a contestant without settings, and a method is its own name."""
    if part is Contestant and isinstance(entry, str):
        entry = {"method": entry}
    if part is Contestant and isinstance(entry, dict) and "method" in entry:
        entry = {"name": entry["method"], **entry}
    return entry


def _mapping(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected entries by name, found {type(values).__name__}")
    return values


def _built(kind: type, values: Any, where: str) -> Any:
    values = _mapping(values, where)
    known = {item.name for item in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where}: unknown entry {unknown[0]!r}, {near(unknown[0], known)}")
    try:
        return kind(**values)
    except TypeError as error:
        missing = re.findall(r"'(\w+)'", str(error))
        raise ConfigError(f"{where}: lacks {', '.join(missing)}") from error


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)
