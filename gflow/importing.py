"""`gflow import`: measured objects into a run's candidate store."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gflow.config import ConfigError
from gflow.measurements import Endpoint, Measurements, read_measurements
from gflow.store import CandidateStore


def import_file(
    file: str,
    run: str,
    values: str,
    column: str | None = None,
    where: str = "",
    relation: str | None = None,
    units: str | None = None,
    unit: str = "",
    negative_log: bool = False,
    minimize: bool = False,
    kind: str = "molecule",
) -> None:
    """Bring measured objects of a CSV file into a run's store, and say what was left out.

    Args:
        file: CSV file with a header.
        run: folder of the run; made when it is missing.
        values: columns of the measured numbers, with commas between them; NAME=COLUMN renames.
        column: column of the objects; smiles, object or sequence when left out.
        where: only rows with this, such as type=IC50; several with commas.
        relation: column of =, < and >.
        units: column of units; rows in other units are converted where they can be.
        unit: unit to convert to, or the unit of all rows.
        negative_log: turn concentrations into -log10 of mol/L, as in pIC50.
        minimize: small values are good.
        kind: molecule or text.
    """
    parsers = {"molecule": _molecule, "text": _as_it_is}
    if kind not in parsers:
        raise ConfigError(f"kind must be one of {', '.join(parsers)}, not {kind!r}")
    condition = dict(_pair(entry, "where") for entry in where.split(",") if entry)
    try:
        endpoints = [
            Endpoint(
                *(_pair(entry, "values") if "=" in entry else (entry, entry)),
                unit=unit,
                unit_column=units,
                relation_column=relation,
                where=condition,
                negative_log=negative_log,
                minimize=minimize,
            )
            for entry in values.split(",")
        ]
        measured = read_measurements(file, endpoints, column=column, parse=parsers[kind]())
    except ValueError as error:
        raise ConfigError(str(error)) from error
    folder = Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    rewards = [endpoint.reward for endpoint in measured.endpoints]
    with CandidateStore(folder / "candidates.sqlite", rewards) as store:
        measured, new = add_measurements(store, measured)
    left_out = folder / f"{Path(file).stem}_left_out.csv"
    with left_out.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(("line", "kind", "reason"))
        writer.writerows(measured.notes)
    print(f"{measured.summary()}\n{new} objects new in {folder}; every line left out: {left_out}")


def add_measurements(store: CandidateStore, measured: Measurements) -> tuple[Measurements, int]:
    """Store measured objects with source "measured".

    Objects with an exact value of every quantity become candidates; the others are kept with what
    is known of them as the reason why they are none. A value outside the range that the store
    declares for its reward is left out.

    Args:
        store: its rewards have the names of the end points, in their order.
        measured: what to store.

    Returns:
        The measurements stored, with notes on those that were not, and how many objects are new.
    """
    low = torch.tensor([reward.low for reward in store.rewards], dtype=torch.float64)
    high = torch.tensor([reward.high for reward in store.rewards], dtype=torch.float64)
    outside = ((measured.rewards < low) | (measured.rewards > high)).any(1).tolist()
    known = store.lookup(measured.keys)
    reasons: dict[int, tuple[str, str]] = {}
    for i, key in enumerate(measured.keys):
        if outside[i]:
            values = str(measured.rewards[i].tolist())
            reasons[i] = ("outside the range of the rewards", values)
        elif isinstance(known.get(key), tuple):
            reasons[i] = ("the store has values already, which stay", key)
    measured = measured.without(reasons)
    bounds = [measured.bounds(i) or None for i in range(len(measured.objects))]
    new = store.add(measured.objects, measured.keys, measured.rewards, bounds, source="measured")
    return measured, new


def _pair(entry: str, option: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in entry.partition("="))
    if not (name and equals and value):
        raise ConfigError(f"{option}: {entry!r} is not of the form NAME=VALUE")
    return name, value


def _molecule() -> Callable[[str], Any]:
    from gflow.envs.molecules.chemistry import canonical_smiles

    return canonical_smiles


def _as_it_is() -> Callable[[str], Any]:
    return str
