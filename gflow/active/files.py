"""Files between a session and the laboratory: plates to measure, results measured."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gflow.candidates import Candidate, as_text
from gflow.mdp import Environment, Reward
from gflow.measurements import Endpoint, read_measurements
from gflow.store import CandidateStore, StoreError
from gflow.training.checkpoint import write_atomically


@dataclass(frozen=True)
class Results:
    """What a file says about n objects.

    Attributes:
        objects: [n].
        values: [n, k] float64, maximised, NaN in rows without exact values.
        reasons: [n], what is known where there are no exact values.
        account: what was taken and what was not, in a few lines.
    """

    objects: list[Any]
    values: Tensor
    reasons: list[str | None]
    account: str


def parser(env: Environment, kind: str) -> Callable[[str], Any]:
    """From text to an object that the environment knows; raises ValueError elsewhere.

    Any molecule will do, also one that the environment could not have built.
    """
    if kind == "molecule":
        from gflow.envs.molecules.chemistry import canonical_smiles

        return canonical_smiles

    def parse(text: str) -> Any:
        item = _tuples(json.loads(text)) if text.startswith("[") else text
        env.encode([item])
        return item

    return parse


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def read_results(
    path: str | Path,
    rewards: Sequence[Reward],
    parse: Callable[[str], Any],
    key: Callable[[Any], str],
) -> Results:
    """Results from a CSV file with a column for each reward, or from a folder of `gflow import`.

    Values are in the laboratory's sense: large ones are bad where a reward is flipped. Repeated
    measurements become their median; an object whose value is known only as < or > has a reason
    instead. An object that lacks a value altogether is left out, with a note.

    Raises:
        StoreError: the file cannot be read, or lacks a column.
    """
    path = Path(path)
    if path.is_dir():
        return _from_store(path / "candidates.sqlite", rewards)
    endpoints = [Endpoint(reward.name, minimize=reward.flipped) for reward in rewards]
    found = read_measurements(path, endpoints, parse=parse, key=key)
    missing = (found.counts == 0) & found.above.isnan() & found.below.isnan()
    whole = (~missing.any(1)).nonzero().squeeze(1).tolist()
    account = found.summary()
    if partial := [i for i in range(len(found.objects)) if i not in set(whole)]:
        lines = ", ".join(str(found.lines[i][0]) for i in partial[:5])
        account += (
            f"\nleft out, not all of {', '.join(reward.name for reward in rewards)} measured: "
            f"{len(partial)} (lines {lines}{', ...' * (len(partial) > 5)})"
        )
    return Results(
        [found.objects[i] for i in whole],
        found.rewards[whole],
        [found.bounds(i) or None for i in whole],
        account,
    )


def _from_store(path: Path, rewards: Sequence[Reward]) -> Results:
    with CandidateStore(path) as store:
        names = [reward.name for reward in store.rewards]
        for reward in rewards:
            if reward.name not in names:
                raise StoreError(f"{path}: holds rewards {', '.join(names)}, not {reward.name}")
            if store.rewards[names.index(reward.name)].flipped != reward.flipped:
                raise StoreError(f"{path}: {reward.name} is better in the other direction there")
        candidates = store.candidates("rewards IS NOT NULL OR reason IS NOT NULL")
    columns = [names.index(reward.name) for reward in rewards]
    values = torch.full((len(candidates), len(columns)), torch.nan, dtype=torch.float64)
    for row, candidate in zip(values, candidates, strict=True):
        if candidate.rewards is not None:
            row[:] = torch.tensor([candidate.rewards[k] for k in columns], dtype=torch.float64)
    exact = int((~values.isnan()).all(1).sum())
    account = f"{len(candidates)} objects of {path}, {exact} with values"
    objects = [candidate.object for candidate in candidates]
    return Results(objects, values, [candidate.reason for candidate in candidates], account)


def write_plate(
    path: Path, batch: Sequence[Candidate], rewards: Sequence[Reward], kind: str
) -> None:
    """A CSV file of objects to measure, with empty columns for the results, written atomically.

    Filled in, it is what `read_results` reads.
    """
    column = "smiles" if kind == "molecule" else "object"
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([column, *(reward.name for reward in rewards), "round"])
    for candidate in batch:
        writer.writerow([as_text(candidate.object), *("" for _ in rewards), candidate.step])
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
