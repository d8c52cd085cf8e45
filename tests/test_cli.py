"""The command line from end to end, on tiny settings."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from gflow.cli import main
from gflow.store import CandidateStore
from gflow.training.checkpoint import list_checkpoints, load_checkpoint

TINY = "--steps 2 --samples 4 --baseline false --sampling.batch_size 8 --oracle.workers 0"
MOLECULES = f"train molecules --policy.hidden 16 --policy.layers 1 {TINY}"
GRID = f"train hypergrid --options.dim 2 --method tb {TINY}"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of molecules, not to be changed."""
    path = tmp_path_factory.mktemp("finished") / "run"
    main(f"{MOLECULES} --out {path}".split())
    return path


def refused(capsys, command):
    """The sentence with which `command` is refused."""
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.err.count("\n") == 1
    assert captured.err.startswith("gflow: ")
    return captured.err[7:].strip()


def parameters(run):
    return load_checkpoint(list_checkpoints(Path(run) / "checkpoints")[-1])["policy"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stored(run):
    with CandidateStore(Path(run) / "candidates.sqlite") as store:
        return {c.key: c for c in store.candidates("1")}


def test_a_run_leaves_everything_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    promised = "config.yaml environment.json metrics.jsonl candidates.sqlite checkpoints"
    assert set(f"{promised} samples.json report.html CARD.md".split()) <= names
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == 2 and metrics[-1]["hypervolume"] > 0
    assert "random construction" not in (finished / "CARD.md").read_text()
    samples = json.loads((finished / "samples.json").read_text())
    assert len(samples) == 5 and all(len(entry["objects"]) == 4 for entry in samples)


def test_train_hypergrid_with_a_baseline():
    main(f"{GRID} --baseline true --out grid".split())
    assert "random construction" in Path("grid/CARD.md").read_text()
    with CandidateStore("grid/baseline.sqlite") as store:
        assert store.oracle_calls >= len(stored("grid"))


def test_report_is_written_anew(finished, capsys):
    main(f"report {finished} --output page.html".split())
    assert capsys.readouterr().out.strip() == "page.html"
    assert Path("page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("suffix", ["csv", "sdf", "smi", "jsonl", "parquet"])
def test_samples_in_every_format(finished, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    before = stored(finished)
    main(f"sample {finished} -n 6 --preference qed=0.7,sa=0.3 -o o.{suffix}".split())
    assert stored(finished) == before
    content = Path(f"o.{suffix}").read_bytes()
    rows = {
        "csv": lambda: len(list(csv.DictReader(content.decode().splitlines()))),
        "sdf": lambda: content.count(b"$$$$"),
        "smi": lambda: len(content.splitlines()),
        "jsonl": lambda: len([json.loads(line) for line in content.splitlines()]),
        "parquet": lambda: __import__("pyarrow.parquet").parquet.read_table("o.parquet").num_rows,
    }
    assert 1 <= rows[suffix]() <= 6


def test_samples_are_those_asked_for(finished):
    for name, words in {
        "named": "--preference sa=0.3,qed=0.7",
        "in order": "--preference 0.7,0.3",
        "other seed": "--preference 0.7,0.3 --seed 1",
        "sharp": "--preference 0.7,0.3 --inverse_temperature 160",
    }.items():
        main([*f"sample {finished} -n 6 {words} -o".split(), f"{name}.csv"])
    assert Path("named.csv").read_text() == Path("in order.csv").read_text()
    assert Path("named.csv").read_text() != Path("other seed.csv").read_text()
    row = next(csv.DictReader(Path("sharp.csv").read_text().splitlines()))
    assert float(row["preference_qed"]) == pytest.approx(0.7)
    assert float(row["inverse_temperature"]) == 160


def test_a_resumed_run_is_the_uninterrupted_one():
    options = "--method tb_pessimistic --sampling.batch_size 32 --trainer.eval_every 2"
    main(f"{GRID} {options} --steps 40 --out whole".split())
    main(f"{GRID} {options} --steps 33 --out parts".split())
    assert not same(parameters("whole"), parameters("parts"))
    main("resume parts --steps 40".split())
    assert same(parameters("whole"), parameters("parts"))
    assert stored("whole").keys() == stored("parts").keys()
    rows = [
        [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert [row["loss"] for row in rows[0]][-3:] == [row["loss"] for row in rows[1]][-3:]


def test_config_goes_out_and_in(capsys):
    main(f"{MOLECULES} --seed 3 --options.max_fragments 3 --out first".split())
    settings = yaml.safe_load(Path("first/config.yaml").read_text())
    assert settings["seed"] == 3 and settings["options"] == {"max_fragments": 3}
    main("train --config first/config.yaml --out second".split())
    assert same(parameters("first"), parameters("second"))
    main("train molecules --config first/config.yaml --out third --seed 4".split())
    assert not same(parameters("first"), parameters("third"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(f"{GRID} --print_config".split())
    assert stopped.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["task"] == "hypergrid" and shown["sampling"]["batch_size"] == 8
    assert shown["options"] == {"dim": 2}


def test_lists_of_tasks_and_methods(capsys):
    main(["tasks"])
    tasks = capsys.readouterr().out
    assert "molecules: " in tasks and "--options.side (default 8): values of each" in tasks
    main(["methods"])
    methods = capsys.readouterr().out
    assert "mogfn_pc: " in methods and "arXiv 2210.12765" in methods


def test_fragments_of_known_molecules_become_a_run(capsys):
    known = ["O=C(Nc1ccccc1)C1CCNCC1", "O=C(Nc1ccncc1)C1CCCC1", "O=C(NCCO)c1ccccc1", "nonsense"]
    Path("known.csv").write_text("name,smiles\n" + "".join(f"x,{line}\n" for line in known))
    main("fragments known.csv -o mine.csv --min_count 1".split())
    said = capsys.readouterr().out
    assert "4 rows: 3 different molecules cut" in said
    assert "line 5: RDKit cannot read it: nonsense" in said
    main(f"{MOLECULES} --options.vocabulary mine.csv --known known.csv --out mine".split())
    assert Path("mine/known.smi").read_text().splitlines() == known
    assert len(stored("mine")) > 1


REFUSED = {
    "train molecule": "no task 'molecule': did you mean molecules?",
    "train molecules --rewards qde,sa": "unknown reward 'qde'; did you mean qed?",
    "train molecules --rewards similar:C1CC": "RDKit cannot read 'C1CC'",
    "train molecules --rewards qed,nowhere:f": "cannot import nowhere",
    "train molecules --method mogfn": "no method 'mogfn': did you mean mogfn_pc",
    "train molecules --method rtb": "needs more than settings can say: use gflow.objectives from "
    "Python, see docs/denoising.md",
    "train molecules --method fl_db": "task 'molecules' does not have",
    "train molecules --method led_db": "no network for learned energies",
    "train molecules --method vargrad": "groups of at least two trajectories",
    "train molecules --options.vocab a": "no option 'vocab': did you mean vocabulary?",
    "train molecules --options.vocabulary none.csv": "none.csv: No such file",
    "train molecules --options.max_fragments few": "'max_fragments' must be a whole number",
    "train molecules --policy.backward up": "backward must be one of uniform, learned",
    "train molecules --policy.backward tree": "have many parents",
    "train molecules --policy.hidden -3": "hidden must be 0 or more, not -3",
    "train molecules --known none.csv": "none.csv: cannot be read",
    "train molecules --dtype float16": "dtype 'float16': did you mean",
    "train molecules --device abacus": "device 'abacus': choose cpu or cuda",
    "train molecules --steps many": '"steps"',
    "train molecules --colour red": "--colour",
    "train molecules --sampling.scalarization weighted": "did you mean weighted_sum",
    "train molecules --sampling.inverse_temperature hot": "inverse temperature 'hot'",
    "train molecules --sampling.batch_size 0": "batch_size must be at least 1, not 0",
    "train molecules --sampling.group_size 5": "a divisor of the batch size 64",
    "train molecules --sampling.epsilon 2": "epsilon must be in [0, 1], not 2.0",
    "train molecules --oracle.timeout -1": "timeout must be a positive number",
    "train hypergrid --options.dim 0": "HyperGrid needs dim >= 1",
    "train hypergrid --rewards corner": "no rewards to choose from",
    "train hypergrid --sampling.scalarization tchebycheff": "takes rewards from 0 to 1",
    "train --config none.yaml": "none.yaml",
    "resume nowhere": "no run folder",
    "report nowhere": "no such run folder",
    "sample nowhere": "no run folder",
    "fragments none.csv": "none.csv: No such file",
    "bench speed": "no benchmark 'speed': choose from pareto-metrics",
    "fly": "invalid choice",
}


@pytest.mark.parametrize("command", REFUSED)
def test_bad_input_is_one_sentence_and_leaves_nothing(capsys, command):
    more = " --out refused" if command.startswith("train") else ""
    assert REFUSED[command] in refused(capsys, command + more)
    assert not Path("refused").exists()


def test_bad_questions_to_a_sampler(finished, capsys):
    before = stored(finished)
    for words, said in {
        "--preference qde=1": "no reward 'qde', did you mean qed?",
        "--preference qed=0.5": "must sum to 1",
        "--preference qed=1.5,sa=-0.5": "must not be negative",
        "--preference qed=x": "'x' is no number",
        "--preference 0.2,0.3,0.5": "write name=weight for qed, sa",
        "--inverse_temperature 1": "was trained from 32 to 160",
        "-n 0": "at least 1, not 0",
        "-o o.xyz": "cannot write .xyz",
        "-o nowhere/o.csv": "no folder nowhere",
    }.items():
        assert said in refused(capsys, f"sample {finished} {words}")
    assert stored(finished) == before and not list(Path().iterdir())


def test_malformed_fragments_are_named_by_file_and_line(capsys):
    Path("bad.csv").write_text("smiles,sites\nCCO,0\nC1CC,0\nCCN,9\n")
    with pytest.raises(SystemExit) as stopped:
        main(f"{MOLECULES} --options.vocabulary bad.csv --out refused".split())
    said = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and not Path("refused").exists()
    assert said[0] == "gflow: bad.csv: 2 unusable fragments"
    assert "line 3" in said[1] and "C1CC" in said[1] and "line 4" in said[2] and "9" in said[2]


def test_a_run_is_never_overwritten(finished, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert "already holds a run" in refused(capsys, f"{MOLECULES} --out {finished}")
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_unusable_checkpoints_stop_and_change_nothing(capsys):
    main(f"{GRID} --out run".split())
    path = list_checkpoints(Path("run/checkpoints"))[-1]
    whole, before = path.read_bytes(), stored("run")
    state = torch.load(path, weights_only=True)
    path.write_bytes(whole[: len(whole) // 2])
    for command in ("resume run --steps 4", "sample run"):
        assert "damaged or no checkpoint" in refused(capsys, command)
    torch.save({**state, "version": 99}, path)
    assert "has format 99" in refused(capsys, "resume run --steps 4")
    settings = Path("run/config.yaml").read_text()
    Path("run/config.yaml").write_text(settings.replace("hidden: 0", "hidden: 8"))
    path.write_bytes(whole)
    assert "does not fit" in refused(capsys, "resume run --steps 4")
    Path("run/config.yaml").write_text(settings)
    assert stored("run") == before and [path] == list_checkpoints(path.parent)
    main("resume run --steps 4".split())


ORACLES = """
import math, os, time

def picky(smiles):
    if any(len(text) % 7 == 0 for text in smiles):
        raise ValueError(f"cannot do {next(text for text in smiles if len(text) % 7 == 0)}")
    return [math.nan if len(text) % 7 == 1 else min(1, len(text) / 50) for text in smiles]

def broken(smiles):
    raise RuntimeError("the licence has expired")

def hangs(smiles):
    # The first molecule that is scored hangs, and is remembered for that.
    if not os.path.exists("victim"):
        with open("victim", "w") as file:
            file.write(smiles[0])
    if open("victim").read() in smiles:
        time.sleep(60)
    return [0.5] * len(smiles)
"""


def test_failures_of_an_oracle_are_recorded_per_object(capsys):
    Path("picky_oracle.py").write_text(ORACLES)
    main(f"{MOLECULES} --rewards qed,picky_oracle:picky --steps 4 --out run".split())
    found = stored("run").values()
    raised = [c for c in found if len(c.object) % 7 == 0]
    missing = [c for c in found if len(c.object) % 7 == 1]
    good = [c for c in found if len(c.object) % 7 > 1]
    assert raised and missing and good
    assert all(c.reason.startswith("ValueError: cannot do") for c in raised)
    assert {c.reason for c in missing} == {"picky is NaN"}
    assert all(c.rewards is None for c in [*raised, *missing])
    assert all(c.reason is None and c.rewards[1] > 0 for c in good)


def test_an_oracle_that_fails_on_most_stops_the_run(capsys):
    Path("broken_oracle.py").write_text(ORACLES)
    said = refused(capsys, f"{MOLECULES} --rewards qed,broken_oracle:broken --out run")
    assert "failed on 8 of 8 objects" in said and "the licence has expired" in said
    assert {c.reason for c in stored("run").values()} == {"RuntimeError: the licence has expired"}
    Path("broken_oracle.py").write_text("def broken(smiles):\n    return [0.5] * len(smiles)\n")
    del sys.modules["broken_oracle"]
    main("resume run".split())
    assert {c.reason for c in stored("run").values()} >= {None}
    assert load_checkpoint(list_checkpoints(Path("run/checkpoints"))[-1])["step"] == 2


def test_an_oracle_that_hangs_costs_one_object():
    Path("hanging_oracle.py").write_text(ORACLES)
    options = "--oracle.timeout 1 --samples 1 --steps 1"
    main(f"{MOLECULES} --rewards hanging_oracle:hangs {options} --out run".split())
    failed = [c for c in stored("run").values() if c.reason is not None]
    assert [c.object for c in failed] == [Path("victim").read_text()]
    assert "timed out" in failed[0].reason or "timeout" in failed[0].reason


def start(command):
    """A run in a process of its own, once it has stored candidates."""
    code = f"from gflow.cli import main; main({command.split()!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    store = Path("run/candidates.sqlite-wal")
    while process.poll() is None and not (store.exists() and store.stat().st_size > 100_000):
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
    return process


@pytest.mark.parametrize("every", [0, 5])
def test_a_killed_run_keeps_its_candidates_and_goes_on(every):
    options = f"--steps 100000 --trainer.checkpoint_every {every} --options.side 32"
    process = start(f"{GRID} {options} --out run")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = stored("run")
    assert before and all(c.rewards is not None for c in before.values())
    assert bool(list_checkpoints(Path("run/checkpoints"))) == bool(every)
    rows = Path("run/metrics.jsonl").read_text() if every else ""
    Path("run/metrics.jsonl").write_text(rows + '{"step": 1')
    reached = int(list_checkpoints(Path("run/checkpoints"))[-1].stem[5:]) if every else 0
    main(f"resume run --steps {reached + 3}".split())
    after = stored("run")
    assert before.keys() <= after.keys()
    assert all(after[key].rewards == before[key].rewards for key in before)
    assert parameters("run") and Path("run/report.html").is_file()
    for line in Path("run/metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["step"] <= reached + 3


def test_ctrl_c_saves_and_leaves_cleanly():
    process = start(f"{GRID} --steps 100000 --options.side 32 --out run")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and not err
    (path,) = list_checkpoints(Path("run/checkpoints"))
    assert f"stopped at step {int(path.stem[5:])} and saved: gflow resume run" in out


def test_ctrl_c_outside_the_training_loop_leaves_no_trace_of_the_code(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr("gflow.draw.write_samples", interrupted)
        main(f"{GRID} --out run".split())
    assert stopped.value.code == 130 and capsys.readouterr().err == "gflow: interrupted\n"
    main("resume run".split())
    assert Path("run/report.html").is_file()
