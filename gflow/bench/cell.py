"""One cell of a benchmark in a process of its own: python -m gflow.bench.cell FOLDER ..."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from gflow.bench.contestants import prepare_cell
from gflow.bench.ledger import Ledger, Spent
from gflow.bench.plan import Cell, parse_plan
from gflow.config import ConfigError, one_sentence


def run_cell(folder: Path, cell: Cell, patience: int) -> None:
    """Play one contestant on one problem with one seed and write its log.

    A contestant that cannot play here is written down as "skipped", with the reason.
    """
    torch.set_num_threads(1)
    path = folder / cell.path
    parent = os.getppid()

    def check() -> None:
        if os.getppid() != parent:
            raise SystemExit("the benchmark that started this cell has ended")

    try:
        task, play = prepare_cell(cell)
    except (ConfigError, ValueError, OSError, ImportError) as error:
        skip(path, one_sentence(error))
        return
    ledger = Ledger(task, path, cell.problem.budget, patience, cell.settings(), check)
    why = "nothing left to propose"
    try:
        play(ledger)
    except Spent as end:
        why = str(end)
    except ConfigError as error:
        skip(path, str(error))
        return
    ledger.end(why)


def skip(path: Path, reason: str) -> None:
    """Write down why a cell was not played."""
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"end": "skipped", "reason": " ".join(reason.split())}) + "\n")


def main() -> None:
    """FOLDER, then the numbers of problem, contestant and seed in its plan."""
    folder, *numbers = sys.argv[1:]
    problem, contestant, seed = map(int, numbers)
    place = Path(folder) / "plan.yaml"
    plan = parse_plan(place.read_text(encoding="utf-8"), str(place))
    sys.path.insert(0, os.getcwd())
    cell = Cell(plan.problems[problem], plan.contestants[contestant], plan.seeds[seed])
    run_cell(Path(folder), cell, plan.patience)


if __name__ == "__main__":
    main()
