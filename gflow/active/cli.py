"""`gflow propose` and `gflow tell`: a plate to measure, and what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gflow.config import ConfigError, filled


def propose(folder: str, n: int = 96, output: str = "plate.csv", **settings: Any) -> None:
    """Propose a batch of objects to measure: gflow propose RUN -n 96 -o plate.csv.

    Args:
        folder: the session's folder; a new session starts there with the settings below.
        n: size of the batch.
        output: CSV file with the objects, and a column to fill in for each measured reward.
        **settings: a new session's `SessionConfig`; an old one refuses others than its own.
    """
    from gflow.active.session import Session
    from gflow.active.settings import SessionConfig

    if n < 1:
        raise ConfigError(f"n must be at least 1, not {n}")
    path = Path(output)
    if path.suffix.lower() != ".csv":
        raise ConfigError(f"{path}: a plate is a .csv file")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    config = filled(SessionConfig(), settings, "command line")
    with Session(folder, config) as session:
        if session.started_from is not None:
            print(session.started_from, flush=True)
        number = session.undelivered()
        if number is None:
            session.ask(n)
            number = session.round
        else:
            print(f"round {number} was chosen before but not handed over: here it is", flush=True)
        batch = session.deliver(number, path)
        waiting = len(session.pending()) - len(batch)
        fewer = f" (of {n} asked for: the sampler met no more)" if len(batch) < n else ""
        print(
            f"round {number}: {len(batch)} objects{fewer} to measure, {waiting} pending from "
            f"earlier rounds\n{path}\nthen: gflow tell {folder} {path}"
        )


def tell(folder: str, results: str) -> None:
    """Store results in any order, and say what was taken: gflow tell RUN results.csv.

    Args:
        folder: the session's folder.
        results: CSV file with a column smiles, object or sequence, and one for each measured
            reward; a folder made by `gflow import` serves too.
    """
    from gflow.active.session import Session

    with Session(folder) as session:
        found = session.read(results)
        before = session.progress()[-1].hypervolume
        told = session.tell(found.objects, found.values, found.reasons)
        after = session.progress()[-1]
        print(found.account)
        print(f"{told.stored} new results, {told.repeated} known already")
        if told.corrected:
            print(f"{len(told.corrected)} objects had other results, now replaced: "
                  f"{_some(told.corrected)}")  # fmt: skip
        if told.unproposed:
            print(f"{len(told.unproposed)} objects were never proposed; their results are stored "
                  f"and used all the same: {_some(told.unproposed)}")  # fmt: skip
        print(f"{after.measured} objects measured, {len(session.pending())} pending; "
              f"hypervolume {before:.4g} -> {after.hypervolume:.4g}")  # fmt: skip


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + ", ..." * (len(keys) > 3)
