"""The one door to a problem's oracle: counts distinct objects, and stops at the budget.

Every contestant scores through a ledger, so that all pay alike: a distinct object is one oracle
call, an object met again costs nothing. What is scored is appended to a file of JSON lines, and a
contestant that was killed meets its own outcomes there when it starts anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflow.candidates import as_text
from gflow.config import ConfigError
from gflow.mdp import States
from gflow.oracles import OracleRunner
from gflow.tasks import Task
from gflow.training.checkpoint import write_atomically


class Spent(Exception):
    """The contestant may not go on; the message says why: "budget" or "no new objects"."""


class Log(NamedTuple):
    """What a cell's file holds.

    Attributes:
        objects: scored objects in the order of their oracle calls.
        rewards: [n, K] float64, a row of NaN where the oracle failed.
        seconds: CPU seconds of the cell when each was scored.
        notes: (oracle calls so far, scalars) of the training.
        end: what ended the cell, "" while it is under way.
        reason: more words on that.
    """

    objects: list[Any]
    rewards: Tensor
    seconds: list[float]
    notes: list[tuple[int, dict[str, float]]]
    end: str
    reason: str


class Ledger:
    """Scores for one contestant; an oracle on states, whatever the task's oracle reads.

    Args:
        task: the problem.
        path: the file of JSON lines.
        budget: oracle calls.
        patience: proposals in a row without a new object, after which the contestant is finished.
        settings: what decides the contestant's play; the first line of the file.
        check: called before every oracle call; may raise to end the process.

    Attributes:
        calls: distinct objects scored so far, failures included.
        samples: objects proposed so far.
    """

    on_states = True
    seconds = 0.0

    def __init__(
        self,
        task: Task,
        path: Path,
        budget: int,
        patience: int,
        settings: dict[str, Any] | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        self.task, self.path, self.budget, self.patience = task, path, budget, patience
        self.rewards, self.version = task.oracle.rewards, task.oracle.version
        self.check = check
        self.calls = self.samples = self._repeated = 0
        self._row: dict[str, int] = {}
        self._values = torch.full((budget, len(self.rewards)), torch.nan, dtype=torch.float64)
        self._known = self._take_over()
        self._write([{"cell": settings}])
        self._replayed = 0.0
        self._started = time.process_time()
        self._runner = None
        if not task.oracle.on_states:
            self._runner = OracleRunner(task.oracle, task.key, max_failed=1.0)

    def __call__(self, objects: States) -> Tensor:
        """Rewards [n, K] float64 of terminal states, NaN where the oracle failed.

        Raises:
            Spent: the budget is used up, or nothing new comes.
        """
        return self._score(self.task.env.decode(objects), objects)

    def score(self, objects: Sequence[Any]) -> Tensor:
        """The same for decoded objects, in the environment's reach or not."""
        return self._score(list(objects), None)

    def note(self, scalars: dict[str, float]) -> None:
        """Write down scalars of the training, such as its loss."""
        self._write([{"calls": self.calls, "note": scalars}])

    def end(self, why: str, reason: str = "") -> None:
        """Close the file: the cell is finished and will not run again."""
        self._write([{"end": why, "reason": reason, "samples": self.samples}])
        _known_file(self.path).unlink(missing_ok=True)

    def elapsed(self) -> float:
        """CPU seconds of this contestant, those of replayed oracle calls included."""
        return time.process_time() - self._started + self._replayed

    def _score(self, objects: list[Any], states: States | None) -> Tensor:
        keys = [self.task.key(item) for item in objects]
        new: dict[str, int] = {}
        for place, key in enumerate(keys):
            if key not in self._row:
                new.setdefault(key, place)
        places = list(new.values())[: self.budget - self.calls]
        if places:
            self._pay(places, [keys[place] for place in places], objects, states)
        self.samples += len(objects)
        self._repeated = 0 if places else self._repeated + len(objects)
        if self.calls >= self.budget:
            raise Spent("budget")
        if self._repeated >= self.patience:
            raise Spent("no new objects")
        return self._values[torch.tensor([self._row[key] for key in keys], dtype=torch.int64)]

    def _pay(
        self, places: list[int], keys: list[str], objects: list[Any], states: States | None
    ) -> None:
        self.check()
        fresh = [i for i, key in enumerate(keys) if key not in self._known]
        before = time.process_time()
        answers = self._ask([places[i] for i in fresh], objects, states)
        cost = (time.process_time() - before) / max(len(fresh), 1)
        for i, (rewards, reason) in zip(fresh, answers, strict=True):
            self._known[keys[i]] = (rewards, reason, cost)
        replayed = set(range(len(keys))) - set(fresh)
        self._replayed += sum(self._known[keys[i]][2] for i in replayed)
        elapsed = round(self.elapsed(), 4)
        lines = []
        for place, key in zip(places, keys, strict=True):
            values, reason, seconds = self._known.pop(key)
            if values is not None:
                self._values[self.calls] = torch.tensor(values, dtype=torch.float64)
            self._row[key] = self.calls
            self.calls += 1
            line = {"object": objects[place], "rewards": values, "seconds": elapsed}
            line |= {"oracle": round(seconds, 6)} | ({"reason": reason} if reason else {})
            lines.append(line)
        self._write(lines)

    def _ask(
        self, places: list[int], objects: list[Any], states: States | None
    ) -> list[tuple[list[float] | None, str]]:
        """Rewards, or None and the reason of the failure, of the objects at `places`."""
        if not places:
            return []
        chosen = [objects[place] for place in places]
        reasons: list[str | None] = [None] * len(places)
        if self._runner is not None:
            scores = self._runner.evaluate(chosen)
            found, reasons = scores.rewards, scores.reasons
        else:
            env = self.task.env
            rows = env.encode(chosen) if states is None else states.rows(torch.tensor(places))
            found = self.task.oracle(rows).double().cpu()
        good = torch.isfinite(found).all(1).tolist()
        return [
            (row, "") if fine else (None, reason or "no value")
            for row, fine, reason in zip(found.tolist(), good, reasons, strict=True)
        ]

    def _write(self, lines: list[dict[str, Any]]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(_line(line) for line in lines)

    def _take_over(self) -> dict[str, tuple[list[float] | None, str, float]]:
        """What a killed predecessor scored, by key; its log is set aside until this one ends."""
        kept = _known_file(self.path)
        lines = [
            line for path in (kept, self.path) for line in read_lines(path) if "object" in line
        ]
        if lines:
            text = "".join(_line(line) for line in lines).encode()
            write_atomically(kept, lambda file: file.write(text))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        return {
            self.task.key(as_object(line["object"])): (
                line["rewards"], line.get("reason", ""), line["oracle"],
            )
            for line in lines
        }  # fmt: skip


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file, none where there is no such file; a last half line is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # What follows the last line break was being written when the process was killed.
    return [json.loads(line) for line in lines[:-1]]


def read_log(path: Path, n_rewards: int) -> Log:
    """What is in a cell's file, finished or under way; empty where it has none yet."""
    lines = read_lines(path)
    scored = [line for line in lines if "object" in line]
    missing = [float("nan")] * n_rewards
    rewards = torch.tensor([line["rewards"] or missing for line in scored], dtype=torch.float64)
    end = lines[-1] if lines and "end" in lines[-1] else {"end": "", "reason": ""}
    return Log(
        objects=[as_object(line["object"]) for line in scored],
        rewards=rewards.view(-1, n_rewards),
        seconds=[line["seconds"] for line in scored],
        notes=[(line["calls"], line["note"]) for line in lines if "note" in line],
        end=end["end"],
        reason=end["reason"],
    )


def finished(path: Path, settings: dict[str, Any] | None = None) -> bool:
    """The cell was played to its end; one that was skipped may be playable next time.

    Raises:
        ConfigError: it was played with other settings.
    """
    lines = read_lines(path)
    if not lines or lines[-1].get("end", "skipped") == "skipped":
        return False
    if settings is not None and lines[0].get("cell", settings) != settings:
        raise ConfigError(f"{path} was played with other settings: choose another --out")
    return True


def as_object(value: Any) -> Any:
    """Lists, which is what JSON makes of tuples, as tuples again."""
    return tuple(as_object(item) for item in value) if isinstance(value, list) else value


def _line(value: dict[str, Any]) -> str:
    if "object" in value and not isinstance(value["object"], str):
        value = value | {"object": json.loads(as_text(value["object"]))}
    return json.dumps(value) + "\n"


def _known_file(path: Path) -> Path:
    return path.with_suffix(".known")
