"""gflow bench fronts, gflow bench policies: run a plan, then write table, data and page."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from gflow.bench.plan import choose, read_plan
from gflow.config import ConfigError


def run(
    name: str,
    quick: bool,
    plan: str | None,
    out: str | None,
    problems: str,
    contestants: str,
    seeds: int,
    workers: int,
    ray: bool,
) -> None:
    """Run what is missing of a plan in its folder, and write `results.jsonl`, `table.md` and
    `page.html` there.
    """
    from gflow.assemble import available_processors
    from gflow.bench.page import write_page
    from gflow.bench.schedule import run_plan
    from gflow.bench.summary import collect, markdown, write_rows
    from gflow.training.checkpoint import write_atomically

    chosen = plan or (f"{name}-quick" if quick else name)
    what = choose(read_plan(chosen), _names(problems), _names(contestants), seeds)
    folder = Path(out or f"runs/bench-{Path(chosen).stem}")
    if workers < 0:
        raise ConfigError(f"workers must be 0 or more, not {workers}")
    broken = run_plan(folder, what, workers or available_processors(), ray)
    results = collect(folder, what)
    write_rows(folder / "results.jsonl", results.rows)
    text = markdown(results, "gflow " + shlex.join(sys.argv[1:]))
    write_atomically(folder / "table.md", lambda file: file.write(text.encode()))
    print(text)
    print(f"page: {write_page(folder / 'page.html', results)}", flush=True)
    if broken:
        raise ConfigError(f"{len(broken)} cells broke, run the command again: {broken[0]}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
