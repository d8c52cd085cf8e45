"""Run the cells of a plan, each in a process of its own, as many at a time as asked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gflow.bench.ledger import finished
from gflow.bench.plan import Cell, Plan
from gflow.config import ConfigError, one_sentence
from gflow.tasks import Task, make_task
from gflow.training.checkpoint import write_atomically


def run_plan(folder: Path, plan: Plan, workers: int, ray: bool = False) -> list[str]:
    """Run every cell that is not finished yet.

    Args:
        folder: where plan and logs lie; on a cluster, a folder that all its machines share.
        plan: what to run.
        workers: cells at a time.
        ray: hand the cells to Ray, which knows how many can run at a time.

    Returns:
        One sentence for each cell that broke; it will be tried again by the next run.

    Raises:
        ConfigError: a cell was played with other settings, or Ray is not installed.
    """
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder) as lock:
        possible, _ = playable(plan)
        cells = [cell for cell in plan.cells() if cell.problem.name in possible]
        waiting = [cell for cell in cells if not finished(folder / cell.path, cell.settings())]
        # Every cell reads it; what earlier runs played has its settings in its own file.
        text = yaml.safe_dump(_plain(asdict(plan)), sort_keys=False, allow_unicode=True)
        write_atomically(folder / "plan.yaml", lambda file: file.write(text.encode()))
        total = len(cells)
        commands = [_command(folder, plan, cell) for cell in waiting]
        runs = _with_ray(commands) if ray else _with_processes(commands, workers, lock)
        broken = []
        for done, (place, code, complaint) in enumerate(runs, total - len(waiting) + 1):
            cell = waiting[place]
            name = f"{cell.problem.name}, {cell.contestant.name}, seed {cell.seed}"
            print(f"[{done}/{total}] {name}{' broke' if code else ''}", flush=True)
            if code:
                broken.append(f"{name}: {complaint}")
        return broken


def playable(plan: Plan) -> tuple[dict[str, Task], list[str]]:
    """Tasks of the problems that can be built, by name; and one sentence for each that cannot."""
    tasks, missing = {}, []
    for problem in plan.problems:
        try:
            tasks[problem.name] = make_task(problem.task, problem.rewards, problem.options)
        except (ConfigError, ValueError, OSError, ImportError) as error:
            missing.append(f"{problem.name}: {one_sentence(error)}")
    return tasks, missing


def _command(folder: Path, plan: Plan, cell: Cell) -> list[str]:
    numbers = (
        plan.problems.index(cell.problem),
        plan.contestants.index(cell.contestant),
        plan.seeds.index(cell.seed),
    )
    return [sys.executable, "-m", "gflow.bench.cell", str(folder), *map(str, numbers)]


def _environment() -> dict[str, str]:
    """One thread for each cell, and no warnings of libraries in between."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


Finished = Iterator[tuple[int, int, str]]
"""Place of a command in its list, exit code, and the last line of its complaint."""


def _with_processes(commands: Sequence[list[str]], workers: int, lock: int) -> Finished:
    waiting = deque(enumerate(commands))
    running: dict[int, subprocess.Popen[str]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                place, command = waiting.popleft()
                running[place] = subprocess.Popen(
                    command, env=_environment(), stderr=subprocess.PIPE, text=True, pass_fds=[lock],
                )  # fmt: skip
            ended = [place for place, process in running.items() if process.poll() is not None]
            for place in ended:
                process = running.pop(place)
                yield place, process.returncode, _last_line(process.communicate()[1])
            if not ended:
                time.sleep(0.05)
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def _with_ray(commands: Sequence[list[str]]) -> Finished:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--ray needs Ray: pip install gflow[distributed]") from error
    ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)

    def call(command: list[str], folder: str) -> tuple[int, str]:
        ended = subprocess.run(
            command, env=_environment(), stderr=subprocess.PIPE, text=True, cwd=folder
        )
        return ended.returncode, _last_line(ended.stderr)

    remote = ray.remote(num_cpus=1, max_retries=0)(call)
    places = {remote.remote(command, os.getcwd()): i for i, command in enumerate(commands)}
    try:
        while places:
            (ready,), _ = ray.wait(list(places), num_returns=1)
            code, complaint = ray.get(ready)
            yield places.pop(ready), code, complaint
    finally:
        ray.shutdown()


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Wait until no process of an earlier run is left in the folder.

    The cells inherit the lock: when this process is killed, theirs keep it until they notice.
    """
    import fcntl

    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: waiting for an earlier run to end", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _plain(value: Any) -> Any:
    """Tuples as lists, which is what YAML has."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
