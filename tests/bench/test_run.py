"""Whole benchmarks: plans, processes, kill and resume, results, page, command line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import yaml
from plotly.offline import get_plotlyjs

from gflow.bench.cell import run_cell
from gflow.bench.ledger import finished, read_log
from gflow.bench.page import document, write_page
from gflow.bench.plan import Cell, Contestant, choose, parse_plan, plan_names, read_plan
from gflow.bench.schedule import run_plan
from gflow.bench.summary import (
    bootstrap_interval,
    cell_text,
    collect,
    markdown,
    read_rows,
    write_rows,
)
from gflow.cli import main
from gflow.config import ConfigError
from gflow.tasks import TASKS
from tests.bench.problems import GRID, plan

TEXT = """
title: small
seeds: 2
checkpoints: 3
columns: [regret, best]
problems:
  - {name: grid, task: grid_objectives, rewards: "branin,currin", budget: 40, options: {side: 16}}
  - {name: measured, task: tf_binding, budget: 10, options: {path: nowhere.parquet}}
contestants:
  - random
  - {name: pairs, method: nsga2, settings: {population: 10}}
"""


def logs(folder):
    return {path.relative_to(folder): path.read_text() for path in folder.glob("cells/**/*.jsonl")}


def without_times(text):
    return re.sub(r'"(seconds|oracle|step_seconds)": [\d.e-]+', "", text)


def test_from_a_file_to_data_table_and_page(tmp_path, capsys):
    file, out = tmp_path / "small.yaml", tmp_path / "out"
    file.write_text(TEXT)
    main(["bench", "fronts", f"--plan={file}", f"--out={out}", "--workers=2"])
    printed = capsys.readouterr().out
    assert "[4/4]" in printed and "broke" not in printed
    rows = read_rows(out / "results.jsonl")
    assert len(rows) == 2 * 2 * 3 and {row["calls"] for row in rows} == {14, 27, 40}
    last = [r for r in rows if r["contestant"] == "pairs" and r["calls"] == 40]
    wanted = cell_text(*bootstrap_interval([row["regret"] for row in last]))
    table = (out / "table.md").read_text()
    assert f"| pairs | 2 | {wanted} |" in table and table in printed
    assert "| method | seeds | regret | best branin | best currin | seconds |" in table
    assert "- measured: there is no file nowhere.parquet" in table

    page = (out / "page.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert [problem["name"] for problem in data["problems"]] == ["grid"]
    grid = data["problems"][0]
    assert grid["contestants"] == ["random", "pairs"] and len(grid["table"]["rows"]) == 2
    assert grid["curves"]["pairs"]["regret"]["calls"]["x"] == [14, 27, 40]
    assert not re.search(r'(src|href)="http', page.replace(get_plotlyjs(), ""))

    before = logs(out)
    main(["bench", "fronts", f"--plan={file}", f"--out={out}"])
    assert logs(out) == before, "finished cells are left alone"
    assert "random, seed" not in capsys.readouterr().out


def test_more_seeds_and_methods_join_but_others_settings_do_not(tmp_path):
    for place in plan("random").cells():
        run_cell(tmp_path, place, 5000)
    path = tmp_path / "cells/grid/random/0.jsonl"
    before = path.read_text()
    settings = next(plan("random").cells()).settings()
    assert finished(path, settings) and json.loads(before.splitlines()[0]) == {"cell": settings}
    assert run_plan(tmp_path, plan("random", "nsga2"), 1) == []
    assert path.read_text() == before
    dearer = replace(GRID, budget=61)
    with pytest.raises(ConfigError, match="was played with other settings"):
        run_plan(tmp_path, plan("random", problems=(dearer,)), 1)


def test_a_broken_cell_is_tried_again(tmp_path):
    wanted = plan("random")
    (tmp_path / "cells").write_text("in the way")
    broken = run_plan(tmp_path, wanted, 1)
    assert len(broken) == 1 and broken[0].startswith("grid, random, seed 0: ")
    (tmp_path / "cells").unlink()
    assert run_plan(tmp_path, wanted, 1) == []
    assert finished(tmp_path / "cells/grid/random/0.jsonl")


SLOW_ORACLE = """
import time
import torch
from gflow.envs.sequences.slots import Slots
from gflow.mdp import Reward
from gflow.tasks import Task, flat_policy, register

class Slow:
    on_states = False
    seconds = 0.02
    version = "1"
    rewards = (Reward("a"), Reward("b"))
    def __call__(self, objects):
        with open("asked.txt", "a") as file:
            file.writelines(text + "\\\\n" for text in objects)
        time.sleep(0.02 * len(objects))
        return torch.tensor([[x.count("A") / 6, x.count("B") / 6] for x in objects])

@register
def slow() -> Task:
    "Slow."
    env = Slots("ABC", 6)
    return Task(env, Slow(), flat_policy(env))
"""


def test_kill_9_loses_nothing(tmp_path, monkeypatch):
    """A benchmark killed in the middle asks the oracle only for what it had not written down."""
    monkeypatch.chdir(tmp_path)
    # Found by every process started here: Python reads it before anything else.
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif 'SLOW' in os.environ:\n"
        + "".join(f"    {line}\n" for line in SLOW_ORACLE.replace("\\\\n", "\\n").splitlines())
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SLOW", "1")
    (tmp_path / "plan.yaml").write_text("""
title: slow
seeds: 1
problems: [{name: slow, task: slow, budget: 100, settings: {sampling: {batch_size: 4}}}]
contestants: [tb]
""")
    command = [sys.executable, "-m", "gflow.cli", "bench", "fronts", "--plan=plan.yaml"]
    command += ["--out=killed", "--workers=1"]
    first = subprocess.Popen(command)
    path = tmp_path / "killed/cells/slow/tb/0.jsonl"
    deadline = time.monotonic() + 600
    while not path.is_file() or path.read_text().count("object") < 20:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)  # the benchmark alone; its cell must notice by itself
    first.wait()
    subprocess.run(command, check=True, capture_output=True)
    asked = (tmp_path / "asked.txt").read_text().splitlines()
    assert 100 <= len(asked) <= 100 + 4, "at most the batch under way is asked again"
    assert not list((tmp_path / "killed").rglob("*.known"))
    killed = read_log(path, 2)
    assert killed.end == "budget"

    exec(SLOW_ORACLE.replace("\\\\n", "\\n"), {})
    try:
        run_cell(tmp_path, Cell(*read_plan("plan.yaml").problems, Contestant("tb", "tb"), 0), 5000)
    finally:
        del TASKS["slow"]
    whole = read_log(tmp_path / "cells/slow/tb/0.jsonl", 2)
    assert killed.objects == whole.objects
    calls, losses = zip(*((calls, note["loss"]) for calls, note in killed.notes), strict=True)
    assert list(calls) == [calls for calls, _ in whole.notes]
    assert list(losses) == [note["loss"] for _, note in whole.notes]


@pytest.mark.slow
def test_cells_are_the_same_in_any_company(tmp_path):
    both, one = plan("nsga2", seeds=(0, 1)), plan("nsga2", seeds=(1,))
    run_plan(tmp_path / "both", both, 2)
    run_plan(tmp_path / "one", one, 1)
    texts = [
        without_times((tmp_path / name / "cells/grid/nsga2/1.jsonl").read_text())
        for name in ("both", "one")
    ]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_ray_runs_the_same_cells(tmp_path):
    pytest.importorskip("ray")
    wanted = plan("random", "nsga2")
    assert run_plan(tmp_path / "ray", wanted, 1, ray=True) == []
    run_plan(tmp_path / "here", wanted, 1)
    for method in ("random", "nsga2"):
        texts = [
            without_times((tmp_path / place / f"cells/grid/{method}/0.jsonl").read_text())
            for place in ("ray", "here")
        ]
        assert texts[0] == texts[1]


def test_results_under_way(tmp_path):
    wanted = plan("random", "nsga2")
    for cell in wanted.cells():
        run_cell(tmp_path, cell, 5000)
    (tmp_path / "cells/grid/nsga2/0.jsonl").unlink()
    results = collect(tmp_path, wanted)
    assert {row["contestant"] for row in results.rows} == {"random"}
    assert "nsga2" not in markdown(results, "command")
    assert write_page(tmp_path / "page.html", results).stat().st_size > 1e6
    empty = collect(tmp_path / "nothing", wanted)
    assert empty.rows == [] and document(empty)["problems"] == []


def test_rows_keep_their_values(tmp_path):
    rows = [{"problem": "a", "calls": 3, "x": 0.1234567, "y": float("nan"), "z": float("inf")}]
    write_rows(tmp_path / "rows.jsonl", rows)
    (again,) = read_rows(tmp_path / "rows.jsonl")
    assert again["x"] == 0.123457 and again["calls"] == 3 and again["y"] != again["y"]


@pytest.mark.parametrize("name", plan_names())
def test_shipped_plans_can_be_read(name):
    shipped = read_plan(name)
    from gflow.bench.contestants import BASELINES
    from gflow.objectives.catalog import METHODS
    from gflow.tasks import TASKS

    assert {c.method for c in shipped.contestants} <= {*BASELINES, *METHODS}
    assert {problem.task for problem in shipped.problems} <= set(TASKS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"titel": "x"}, "unknown entry 'titel', did you mean title"),
        ({"problems": "grid"}, "problems must be a list"),
        ({"problems": [{"name": "a", "task": "sets"}]}, "problems 1: lacks budget"),
        ({"problems": [{"name": "a", "task": "sets", "budget": 0}]}, "budget must be a whole"),
        ({"contestants": []}, "names no contestant"),
        ({"contestants": ["random", "random"]}, "names contestant 'random' twice"),
        ({"contestants": [3]}, "contestants 1: expected entries by name, found int"),
        ({"seeds": [1, 1]}, "needs distinct seeds"),
        ({"checkpoints": 0}, "checkpoints must be at least 1"),
    ],
)
def test_plans_that_are_none(change, words):
    text = yaml.safe_dump(yaml.safe_load(TEXT) | change)
    with pytest.raises(ConfigError, match=words):
        parse_plan(text, "here")


def test_parts_of_a_plan():
    whole = parse_plan(TEXT, "here")
    part = choose(whole, ["grid"], ["pairs"], 3)
    assert [len(part.problems), len(part.contestants), part.seeds] == [1, 1, (0, 1, 2)]
    assert choose(whole, [], [], 0) == whole
    with pytest.raises(ConfigError, match="no contestant 'nsga2'"):
        choose(whole, [], ["nsga2"], 0)
    with pytest.raises(ConfigError, match="there is no plan or file 'frnts'"):
        read_plan("frnts")
    assert GRID.budget == 60
