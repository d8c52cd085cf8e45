"""The candidate store: unique rows, outcomes as a cache, safe against crashes; and exports."""

import csv
import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gflow.export import export, import_objects, read_objects
from gflow.mdp import Reward
from gflow.oracles import OracleRunner
from gflow.pareto import non_dominated
from gflow.store import CandidateStore, StoreError
from tests.oracle_zoo import Zoo

NAN = float("nan")
QED = Reward("qed")
LOGP = Reward("logp", "log units", -5.0, 10.0, flipped=True, description="octanol-water")
REWARDS = (QED, LOGP)


def fill(
    store: CandidateStore, names: list[str], rewards: list[list[float]], **more: object
) -> int:
    values = torch.tensor(rewards, dtype=torch.float64)
    return store.add(names, names, values, **more)  # type: ignore[arg-type]


def test_one_row_per_unique_object_and_the_first_meeting_stays(tmp_path: Path) -> None:
    with CandidateStore(tmp_path / "c.sqlite", REWARDS) as store:
        weights = torch.tensor([[0.7, 0.3], [0.5, 0.5]])
        rows = [[0.5, 1.0], [0.25, 2.0]]
        assert fill(store, ["CCO", "CCN"], rows, preference=weights, step=3) == 2
        assert fill(store, ["CCO", "CCC", "CCO"], [rows[0]] * 3, step=9, source="random") == 1
        ethanol, amine, propane = store.candidates()
    assert (ethanol.object, ethanol.count, ethanol.step) == ("CCO", 3, 3)
    assert ethanol.source == "policy" and ethanol.preference == pytest.approx((0.7, 0.3))
    assert amine.rewards == (0.25, 2.0) and amine.preference == (0.5, 0.5)
    assert (propane.source, propane.preference, propane.count) == ("random", None, 1)
    assert [c.oracle_call for c in (ethanol, amine, propane)] == [1, 2, 3]
    assert ethanol.last_seen >= ethanol.first_seen > 1.6e9


def test_any_objects_come_back(tmp_path: Path) -> None:
    objects = ["C/C=C\\C", (1, (2, 3)), 7, 0.5, torch.tensor([[1, 2]])]
    keys = [str(i) for i in range(5)]
    with CandidateStore(tmp_path / "c.sqlite", REWARDS) as store:
        store.add(objects, keys, torch.rand(5, 2, generator=torch.Generator().manual_seed(0)))
        found = [candidate.object for candidate in store.candidates()]
        with pytest.raises(TypeError, match="a object cannot be stored"):
            store.add([object()], ["x"])
        assert len(store) == 5
    assert found == ["C/C=C\\C", (1, (2, 3)), 7, 0.5, ((1, 2),)]


def test_objects_that_are_not_kept_are_counted(tmp_path: Path) -> None:
    with CandidateStore(tmp_path / "c.sqlite", REWARDS) as store:
        store.skip(3)
        store.add(["a"], ["a"], torch.zeros(1, 2))
        store.skip(2)
        assert store.candidates()[0].oracle_call == 4
    with CandidateStore(tmp_path / "c.sqlite") as store:
        assert store.oracle_calls == 6
        store.add(["a", "b"], ["a", "b"], torch.zeros(2, 2))
        assert store.oracle_calls == 7 and len(store) == 2


def test_failures_are_kept_with_reason_and_out_of_the_front(tmp_path: Path) -> None:
    with CandidateStore(tmp_path / "c.sqlite", REWARDS) as store:
        rows = [[1.0, 0.0], [NAN, 9.0], [0.0, 1.0], [0.0, 0.5], [NAN, NAN]]
        store.add(list("abcde"), list("abcde"), torch.tensor(rows), [None, "hang", *[None] * 3])
        assert store.rewards_tensor().tolist() == [rows[0], rows[2], rows[3]]
        assert [candidate.key for candidate in store.front()] == ["a", "c"]
        failed = store.candidates("reason IS NOT NULL")
        assert [(c.key, c.reason) for c in failed] == [("b", "hang"), ("e", "no value")]
        assert len(store) == store.oracle_calls == 5
        assert store.candidates("step = ?", [0], limit=2)[1].key == "b"


def test_front_of_many_rows_with_equal_ones(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randint(0, 300, (9000, 2), generator=generator).double() / 300
    rewards[::1000] = torch.tensor([0.999, 0.999], dtype=torch.float64)
    keys = [str(i) for i in range(9000)]
    with CandidateStore(tmp_path / "c.sqlite", REWARDS) as store:
        store.add(keys, keys, rewards)
        front = [int(candidate.key) for candidate in store.front()]
    assert front == non_dominated(rewards).nonzero().squeeze(1).tolist()
    assert len(front) >= 9


def test_empty_store_has_an_empty_front(tmp_path: Path) -> None:
    with CandidateStore(tmp_path / "c.sqlite", REWARDS) as store:
        assert store.front() == [] and store.rewards_tensor().shape == (0, 2)
        assert store.add([], [], torch.zeros(0, 2)) == 0


def test_the_store_is_the_cache_of_a_runner(tmp_path: Path) -> None:
    path, oracle = tmp_path / "c.sqlite", Zoo()
    for expected in ([["aa", "nan"], ["b"]], [["nan"]]):
        # A second session scores failures again, and nothing else.
        oracle.calls.clear()
        with CandidateStore(path, oracle.rewards, oracle.version) as store:
            runner = OracleRunner(oracle, str, cache=store)
            for batch in (["aa", "nan", "aa"], ["nan", "b"], ["b", "aa"]):
                scores = runner.evaluate(batch)
                store.add(batch, scores.keys, scores.rewards, scores.reasons)
        assert oracle.calls == expected
    with CandidateStore(path, oracle.rewards, "2") as store:
        assert store.lookup(["aa", "b"]) == {} and store.candidates() == []
        fill(store, ["aa"], [[2.0, 1.0]])
        assert store.lookup(["aa", "b"]) == {"aa": (2.0, 1.0)}
        assert [c.key for c in store.candidates()] == ["aa"]


def test_reading_while_another_connection_writes(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with CandidateStore(path, REWARDS, "v1") as writer:
        fill(writer, ["a"], [[1.0, 1.0]])
        with CandidateStore(path) as reader:
            assert reader.rewards == REWARDS and reader.oracle_version == "v1"
            with writer._transaction():
                writer._db.execute("DELETE FROM candidates")
                assert len(reader) == 1
            assert len(reader) == 0


def test_a_batch_is_stored_wholly_or_not_at_all(tmp_path: Path) -> None:
    with CandidateStore(tmp_path / "c.sqlite", REWARDS) as store:
        with pytest.raises(sqlite3.Error):
            store.add(["a", "b"], ["a", None], torch.rand(2, 2), source=None)  # type: ignore[list-item,arg-type]
        assert len(store) == 0
        with pytest.raises(ValueError, match="expected"):
            store.add(["a"], ["a"], torch.rand(1, 3))
        with pytest.raises(ValueError, match="expected 1 rows, got 2"):
            store.add(["a"], ["a"], log_pf=torch.zeros(2))


KILLED = """
import sys, torch
from gflow.mdp import Reward
from gflow.store import CandidateStore
store = CandidateStore(sys.argv[1], [Reward("qed"), Reward("sa")])
for batch in range(10**6):
    names = [f"{batch}-{i}" for i in range(50)]
    store.add(names, names, torch.full((50, 2), 0.5))
    print(batch, flush=True)
"""


def test_kill_9_leaves_every_finished_batch(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 20:
            process.send_signal(signal.SIGKILL)
            break
    finished = 21 + len(process.stdout.read().splitlines())
    assert process.wait() == -signal.SIGKILL
    with CandidateStore(path) as store:
        n = len(store)
        assert n % 50 == 0 and n >= 50 * finished
        assert store.oracle_calls == n
        assert fill(store, ["more"], [[0.1, 0.2]]) == 1


CROWD = """
import sys, torch
from gflow.mdp import Reward
from gflow.store import CandidateStore
print("ready", flush=True)
sys.stdin.readline()
with CandidateStore(sys.argv[1], [Reward("qed"), Reward("sa")]) as store:
    for batch in range(8):
        names = ["shared", *(f"{sys.argv[2]}-{batch}-{i}" for i in range(4))]
        store.add(names, names, torch.full((5, 2), 0.5))
"""


def test_several_processes_may_create_and_fill_one_store(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, str(path), str(i)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in crowd:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in crowd:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in crowd:
        process.communicate()
        assert process.returncode == 0
    with CandidateStore(path) as store:
        found = store.candidates()
        assert [candidate.oracle_call for candidate in found] == list(range(1, 66))
        assert {c.key: c.count for c in found}["shared"] == 16


def test_files_that_are_no_store_are_refused_and_left_alone(tmp_path: Path) -> None:
    good = tmp_path / "good.sqlite"
    with CandidateStore(good, REWARDS) as store:
        names = [f"molecule {i}" for i in range(2000)]
        fill(store, names, [[0.5, 0.5]] * 2000)
    text = tmp_path / "text.sqlite"
    text.write_text("chembl_id,smiles\n" * 100)
    cut = tmp_path / "cut.sqlite"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    holed = tmp_path / "holed.sqlite"
    content = bytearray(good.read_bytes())
    content[8 * 4096 : 10 * 4096] = bytes(2 * 4096)
    holed.write_bytes(content)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE wine (year)")
    newer = tmp_path / "newer.sqlite"
    newer.write_bytes(good.read_bytes())
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version=99")
    cases = {text: "not a candidate store", cut: "damaged", holed: "damaged"}
    for path, message in {
        **cases,
        other: "not a candidate store",
        newer: "schema version 99",
    }.items():
        before = path.read_bytes()
        for rewards in (None, REWARDS):
            with pytest.raises(StoreError, match=f"{path.name}: .*{message}"):
                CandidateStore(path, rewards)
        assert path.read_bytes() == before
    with pytest.raises(StoreError, match="no such candidate store"):
        CandidateStore(tmp_path / "missing.sqlite")
    assert not (tmp_path / "missing.sqlite").exists()
    with pytest.raises(StoreError, match="holds rewards qed, logp, not qed"):
        CandidateStore(good, [QED])


def test_a_run_killed_before_its_first_batch_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    path.touch()
    with pytest.raises(StoreError, match="holds nothing yet"):
        CandidateStore(path)
    with CandidateStore(path, REWARDS) as store:
        assert len(store) == 0


@pytest.fixture
def molecules(tmp_path: Path) -> CandidateStore:
    store = CandidateStore(tmp_path / "m.sqlite", REWARDS)
    rows = [[0.4, 1.5], [NAN, NAN], [0.6, -0.3]]
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    fill(store, ["CCO", "C1CC1", "c1ccccc1O"], rows, preference=weights, log_pf=torch.zeros(3))
    return store


def test_csv_and_json_lines_hold_everything(tmp_path: Path, molecules: CandidateStore) -> None:
    everything = molecules.candidates("1")
    path = export(everything, tmp_path / "out.csv", REWARDS, column="smiles")
    rows = list(csv.DictReader(path.open()))
    assert [row["smiles"] for row in rows] == ["CCO", "C1CC1", "c1ccccc1O"]
    assert [row["qed"] for row in rows] == ["0.4", "", "0.6"]
    assert [row["failure"] for row in rows] == ["", "no value", ""]
    assert rows[2]["preference_logp"] == "1.0" and rows[1]["oracle_call"] == "2"
    lines = export(everything, tmp_path / "out.jsonl", REWARDS).read_text().splitlines()
    assert json.loads(lines[0])["object"] == "CCO" and json.loads(lines[1])["qed"] is None
    assert sorted(p.name for p in tmp_path.glob("*out*")) == ["out.csv", "out.jsonl"]


def test_sdf_and_smi_read_back(tmp_path: Path, molecules: CandidateStore) -> None:
    from rdkit import Chem

    found = molecules.candidates()
    path = export(found, tmp_path / "out.sdf", REWARDS)
    back = list(Chem.SDMolSupplier(str(path)))
    assert [Chem.MolToSmiles(m) for m in back] == ["CCO", "Oc1ccccc1"]
    assert back[1].GetProp("logp") == "-0.3" and back[0].GetProp("_Name") == "CCO"
    assert not back[0].HasProp("failure")
    smi = export(found, tmp_path / "out.smi", REWARDS)
    assert read_objects(smi) == [(1, "CCO"), (2, "c1ccccc1O")]


def test_parquet_reads_back_even_when_empty(tmp_path: Path, molecules: CandidateStore) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = export(molecules.candidates("1"), tmp_path / "out.parquet", REWARDS)
    table = parquet.read_table(path).to_pydict()
    assert table["qed"] == [0.4, None, 0.6] and table["step"] == [0, 0, 0]
    empty = parquet.read_table(export([], tmp_path / "empty.parquet", REWARDS))
    assert empty.num_rows == 0 and empty.schema == parquet.read_table(path).schema


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, molecules: CandidateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StoreError, match=r"gflow\[data\]"):
        export(molecules.candidates(), tmp_path / "out.parquet", REWARDS)
    assert not list(tmp_path.glob("*out*"))


def test_export_refuses_with_a_sentence(tmp_path: Path) -> None:
    with CandidateStore(tmp_path / "c.sqlite", REWARDS) as store:
        store.add([(1, 2), "nonsense"], ["x", "y"], torch.rand(2, 2))
        found = store.candidates()
    old = tmp_path / "out.sdf"
    old.write_text("precious")
    with pytest.raises(StoreError, match=r"\(1, 2\) is not a molecule"):
        export(found, old, REWARDS)
    with pytest.raises(StoreError, match="'nonsense' is not a molecule"):
        export(found[1:], tmp_path / "out.smi", REWARDS)
    assert old.read_text() == "precious"
    with pytest.raises(StoreError, match=r"\.xlsx; \.csv, \.jsonl"):
        export(found, tmp_path / "out.xlsx", REWARDS)
    with pytest.raises(StoreError, match="no folder"):
        export(found, tmp_path / "no" / "out.csv", REWARDS)
    rows = list(csv.reader(export(found, tmp_path / "out.csv", REWARDS).open()))
    assert rows[1][0] == "[1, 2]"


def test_import_names_file_and_line_of_what_it_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "known.csv"
    path.write_text('name,Smiles\n"two\nlines",CCO\nbad,C(C\nagain,OCC\nnone,\n')

    def parse(text: str) -> str:
        if text.count("(") != text.count(")"):
            raise ValueError(f"{text!r} is not a molecule")
        return text

    with CandidateStore(tmp_path / "c.sqlite", REWARDS) as store:
        problems = import_objects(store, path, parse, lambda text: "".join(sorted(text)))
        assert problems == [f"{path}:4: 'C(C' is not a molecule"]
        (only,) = store.candidates("source = 'imported'")
        assert (only.object, only.rewards, only.reason, only.count) == ("CCO", None, None, 2)
        assert store.oracle_calls == 0 and store.candidates() == []
        fill(store, ["CCO"], [[0.5, 1.0]], source="policy")
        with pytest.raises(StoreError, match="no column activity; it has name, Smiles"):
            read_objects(path, "activity")
        with pytest.raises(StoreError, match="cannot be read"):
            read_objects(tmp_path / "missing.smi")
