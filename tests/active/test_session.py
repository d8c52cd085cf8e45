"""Sessions of ask and tell: late results, restarts, and processes killed at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gflow.active import Session, SessionConfig, SessionError
from gflow.active.proposer import Proposer
from gflow.config import ConfigError
from gflow.mdp import Reward
from gflow.pareto import hypervolume
from gflow.report.content import build
from gflow.report.run import read_run
from gflow.store import CandidateStore, StoreError

from .small import CONFIG, Words, measured, session, task

ROOT = Path(__file__).parents[2]


def test_rounds_from_nothing(tmp_path):
    with session(tmp_path) as one:
        assert one.round == 0 and one.pending() == []
        first = one.ask(12)
        assert len(set(first)) == 12 and one.round == 1
        assert [c.object for c in one.pending()] == first == [c.object for c in one.batch(1)]
        told = measured(one, first)
        assert told.stored == 12 and not (told.corrected or told.unproposed or told.repeated)
        assert one.pending() == []
        second = one.ask(12)
        assert len(set(second)) == 12 and not set(first) & set(second)
        measured(one, second)
        progress = one.progress()
        assert [row.measured for row in progress] == [0, 12, 24]
        assert [row.proposed for row in progress] == [0, 12, 12]
        volumes = [row.hypervolume for row in progress]
        assert volumes[0] == 0 and volumes == sorted(volumes)
        rewards = Words()(first)
        rewards = rewards[(rewards > 0).all(1)]
        assert volumes[1] == pytest.approx(float(hypervolume(rewards, torch.zeros(2))))
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["hypervolume"] for line in lines] == volumes


def test_results_in_any_order_late_twice_and_of_strangers(tmp_path):
    with session(tmp_path) as one:
        first, second = one.ask(6), one.ask(6)
        assert not set(first) & set(second) and len(one.pending()) == 12
        assert measured(one, second[3:]).stored == 3
        assert {c.object for c in one.pending()} == {*first, *second[:3]}
        mixed = [first[0], second[4], "AAAAA"]
        told = measured(one, mixed)
        assert (told.stored, told.repeated, told.unproposed) == (2, 1, ["AAAAA"])
        assert one.progress()[1].measured == 1  # first[0]; the others belong to round 2
        third = one.ask(6)
        assert not set(third) & {*first, *second, "AAAAA"}
        told = one.tell([first[0], first[1]], [[0.5, 0.5], [float("nan")] * 2], [None, "broke"])
        assert told.corrected == [first[0]] and told.stored == 1
        stored = {c.object: c for c in one.store.candidates("1")}
        assert stored[first[0]].rewards == (0.5, 0.5) and stored[first[0]].step == 1
        assert stored[first[1]].reason == "broke"
        assert first[1] not in {c.object for c in one.pending()}
        assert one.tell([first[1]], [[float("nan")] * 2], ["broke"]).repeated == 1
        # A failure is no last word.
        assert one.tell([first[1]], [[0.2, 0.1]]).corrected == [first[1]]
        assert len(one.measured()) == len({c.object for c in one.measured()})


def test_an_object_told_twice_at_once_counts_with_its_last_result(tmp_path):
    with session(tmp_path) as one:
        told = one.tell(["AAAAA", "CCCCC", "AAAAA"], [[0.1, 0.1], [0.2, 0.2], [0.9, 0.9]])
        assert told.stored == 2
        assert {c.object: c.rewards[0] for c in one.measured()} == {"AAAAA": 0.9, "CCCCC": 0.2}


def test_files_hold_rewards_as_they_are_and_measured_values_as_the_laboratory_has_them(tmp_path):
    class Turned(Words):
        rewards = (Reward("a"), Reward("ac", flipped=True))

    (tmp_path / "back.csv").write_text("object,a,ac,cost\nAAAAA,0.75,0.5,7\n")
    with Session(tmp_path / "scores", CONFIG, replace(task(), oracle=Turned())) as one:
        assert one.read(tmp_path / "back.csv").values.tolist() == [[0.75, 0.5]]
    with session(tmp_path / "raw", replace(CONFIG, measure="cost:9..0")) as one:
        assert one.read(tmp_path / "back.csv").values.tolist() == [[-7.0]]


def test_a_session_goes_on_after_a_restart(tmp_path):
    def run(folder, restarts):
        one = session(folder)
        batches = []
        for _ in range(3):
            batches.append(one.ask(8))
            if restarts:
                one.close()
                one = session(folder, None)
            measured(one, batches[-1])
        one.close()
        return batches

    assert run(tmp_path / "one", False) == run(tmp_path / "other", True)


def test_an_interrupted_ask_loses_nothing(tmp_path, monkeypatch):
    batches = []
    for name in ("whole", "cut"):
        with session(tmp_path / name) as one:
            measured(one, one.ask(8))
            if name == "cut":
                search = Proposer.search

                def stopped(self, *arguments, search=search):
                    search(self, *arguments)
                    raise KeyboardInterrupt

                monkeypatch.setattr(Proposer, "search", stopped)
                with pytest.raises(KeyboardInterrupt):
                    one.ask(8)
                monkeypatch.undo()
        with session(tmp_path / name, None) as one:
            assert one.round == 1 and one.pending() == []
            batches.append(one.ask(8))
    assert batches[0] == batches[1]


def child(folder, code):
    """A process that runs `code` with a session `one` of six-letter words."""
    prelude = (
        "import itertools, sys\nimport torch\ntorch.set_num_threads(1)\n"
        "from tests.active.small import Words, session\n"
        f"one = session({str(folder)!r}, length=6)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-u", "-c", prelude + code],
        stdout=subprocess.PIPE, cwd=ROOT, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_kill_9_during_tell_loses_nothing(tmp_path, delay):
    size = 400
    process = child(
        tmp_path,
        "words = [''.join(w) for w in itertools.product('ACGT', repeat=6)]\n"
        f"for start in range(0, len(words), {size}):\n"
        f"    part = words[start:start + {size}]\n"
        "    one.tell(part, Words()(part))\n"
        "    print(start + len(part))\n",
    )
    reported = [int(process.stdout.readline()) for _ in range(2)][-1]
    time.sleep(delay)
    kill(process)
    with session(tmp_path, None, length=6) as one:
        found = one.measured()
        # Whole tells only: all that were reported, and at most some of the following.
        assert len(found) >= reported and (len(found) % size == 0 or len(found) == 4**6)
        assert [c.rewards for c in found] == [
            tuple(row) for row in Words()([c.object for c in found]).tolist()
        ]
        again = [c.object for c in found[-size:]] + ["TTTTTT"]
        told = measured(one, again)
        assert told.repeated + told.stored == len(again) and told.corrected == []


def test_kill_9_during_ask_loses_nothing(tmp_path):
    with session(tmp_path / "whole", length=6) as one:
        measured(one, one.ask(8))
        expected = one.ask(8)
    process = child(
        tmp_path / "cut",
        "batch = one.ask(8)\n"
        "one.tell(batch, Words()(batch))\n"
        "from gflow.active.rounds import Round\n"
        "choose = Round.choose\n"
        "def slow(self, *given):\n"
        "    print('choosing')\n"
        "    sys.stdin.read()\n"
        "    return choose(self, *given)\n"
        "Round.choose = slow\n"
        "one.ask(8)\n",
    )
    assert process.stdout.readline() == "choosing\n"
    kill(process)
    with session(tmp_path / "cut", None, length=6) as one:
        assert one.round == 1 and len(one.measured()) == 8 and one.pending() == []
        assert one.ask(8) == expected


@pytest.mark.parametrize("settings", [{"surrogate": "ensemble"}, {"surrogate": "multitask"},
                                      {"acquisition": "ucb"}], ids=str)  # fmt: skip
def test_every_surrogate_and_acquisition(tmp_path, settings):
    with session(tmp_path, replace(CONFIG, **settings)) as one:
        measured(one, one.ask(8))
        assert len(one.ask(5)) == 5


def test_two_processes_do_not_propose_the_same_round(tmp_path, monkeypatch):
    with session(tmp_path) as one, session(tmp_path, None) as other:
        measured(one, one.ask(6))
        search = Proposer.search

        def slow(self, *arguments):
            monkeypatch.undo()
            other.ask(6)
            return search(self, *arguments)

        monkeypatch.setattr(Proposer, "search", slow)
        with pytest.raises(SessionError, match="another process proposed round 2 meanwhile"):
            one.ask(6)
        assert len(one.pending()) == 6
        assert len(one.ask(6)) == 6 and one.round == 3


def test_an_ensemble_that_expects_nothing_still_fills_the_plate(tmp_path):
    with session(tmp_path, replace(CONFIG, surrogate="ensemble")) as one:
        batch = one.ask(8)
        one.tell(batch, [[1.0, 1.0]] * 7 + [[0.1, 0.1]])
        assert len(one.ask(8)) == 8


def test_measured_beside_computed_rewards(tmp_path):
    config = replace(CONFIG, measure="affinity:4..9,cost:100..10")
    with session(tmp_path, config) as one:
        assert [r.name for r in one.rewards] == ["affinity", "cost", "a", "ac"]
        assert one.reference.tolist() == [4, -100, 0, 0] and one.rewards[1].flipped
        batch = one.ask(8)
        one.tell(batch, [[6.0 + i / 8, -50.0 - i] for i in range(8)])
        rewards = one.store.rewards_tensor()
        assert rewards[:, 2:].equal(Words()(batch)) and rewards[3, :2].tolist() == [6.375, -53.0]
        assert len(one.ask(4)) == 4
        with pytest.raises(ValueError, match=r"must be \[1, 2\]"):
            one.tell(["AAAAA"], [[1.0, 2.0, 3.0, 4.0]])


def test_results_from_files(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text(
        "sequence,cost,affinity\nAAAAA,20,7\nAAAAA,40,8\nCCCCC,>90,5\nGGGGG,10,\nXXXXX,1,1\n"
        "TTTTT,ten,6\nACGTA,30,8\nAC,1,1\n"
    )
    with session(tmp_path / "run", replace(CONFIG, measure="affinity:4..9,cost:100..10")) as one:
        found = one.read(file)
        assert found.objects == ["AAAAA", "CCCCC", "ACGTA"]
        assert found.values[0].tolist() == [7.5, -30.0] and found.values[2].tolist() == [8, -30]
        assert found.reasons[0] is None and "cost > 90" in found.reasons[1]
        for line in ("(line 6)", "(line 9)", "(line 7)", "(lines 5, 7)"):
            assert line in found.account or "lines" in found.account
        one.tell(found.objects, found.values, found.reasons)
        assert len(one.measured()) == 2 and one.pending() == []
    with session(tmp_path / "start", replace(CONFIG, measure="affinity:4..9", start=str(file))) as (
        one
    ):
        assert len(one.measured()) == 4 and one.started_from is not None
        assert {c.source for c in one.measured()} == {"told"} and one.round == 0
    with session(tmp_path / "start", None) as one:
        assert len(one.measured()) == 4 and one.started_from is None


def test_starting_from_an_imported_folder(tmp_path):
    from gflow.importing import import_file

    file = tmp_path / "raw.csv"
    file.write_text("sequence,Kd\nAAAAA,10\nCCCCC,1000\nGGGGG,<1\n")
    import_file(str(file), str(tmp_path / "known"), "Kd", unit="nM", negative_log=True, kind="text")
    config = replace(CONFIG, measure="Kd:4..10", start=str(tmp_path / "known"))
    with session(tmp_path / "run", config) as one:
        assert {c.object: round(c.rewards[0], 6) for c in one.measured()} == {
            "AAAAA": 8.0, "CCCCC": 6.0,
        }  # fmt: skip
        assert "Kd" in next(c.reason for c in one.store.candidates("reason IS NOT NULL"))
    for measure, match in (("Ki:4..10", "holds rewards Kd"), ("Kd:10..4", "other direction")):
        with pytest.raises(StoreError, match=match):
            session(tmp_path / measure[:2], replace(config, measure=measure))
        # Nothing was begun, so the corrected command starts the session.
        assert not (tmp_path / measure[:2] / "session.yaml").exists()


def test_a_batch_that_was_not_handed_over_comes_again(tmp_path):
    with session(tmp_path / "run") as one:
        batch = one.ask(4)
        assert one.undelivered() == 1
    with session(tmp_path / "run", None) as one:
        assert one.undelivered() == 1
        one.deliver(1, tmp_path / "plate.csv")
        assert one.undelivered() is None
    rows = (tmp_path / "plate.csv").read_text().splitlines()
    assert rows == ["object,a,ac,round", *(f"{word},,,1" for word in batch)]


def test_what_is_refused(tmp_path):
    with session(tmp_path) as one:
        with pytest.raises(ValueError, match="at least 1 object"):
            one.ask(0)
        with pytest.raises(ValueError, match="infinite"):
            one.tell(["AAAAA"], [[1.0, float("inf")]])
        with pytest.raises(StoreError, match="cannot be read"):
            one.read(tmp_path / "nowhere.csv")
    with pytest.raises(ConfigError, match="with seed 5, not 6"):
        session(tmp_path, replace(CONFIG, seed=6))
    with session(tmp_path, SessionConfig()) as one:
        assert one.config == CONFIG
    with pytest.raises(ConfigError, match="holds no session"):
        Session(tmp_path / "nothing")
    for measure in ("pIC50", "pIC50:4", "pIC50:4..4", ":1..2"):
        with pytest.raises(ConfigError, match=r"NAME:WORST\.\.BEST"):
            SessionConfig(measure=measure)
    with pytest.raises(ConfigError, match="once"):
        SessionConfig(measure="x:0..1,x:0..2")
    with pytest.raises(ConfigError, match="once"):
        session(tmp_path / "twice", replace(CONFIG, measure="ac:0..1"))
    with pytest.raises(ConfigError, match="surrogate must be one of"):
        SessionConfig(surrogate="forest")


def test_a_space_that_is_used_up(tmp_path):
    words = ["".join(pair) for pair in __import__("itertools").product("ACGT", repeat=2)]
    with session(tmp_path, length=2) as one:
        measured(one, words[:14])
        assert sorted(one.ask(5)) == words[14:]
        with pytest.raises(SessionError, match="nothing that is not measured or pending"):
            one.ask(5)


def test_molecules_have_one_key_however_they_are_written(tmp_path):
    config = SessionConfig(measure="pIC50:4..11", rewards="qed", steps=1, batch_size=4)
    with Session(tmp_path, config) as one:
        told = one.tell(["OCC", "c1ccccc1O"], [[5.0], [6.0]])
        assert told.stored == 2
        assert one.tell(["CCO"], [[5.0]]).repeated == 1
        assert one.store.rewards_tensor()[:, 1].min() > 0.3  # qed
        one.deliver(0, tmp_path / "none.csv")
        assert (tmp_path / "none.csv").read_text().splitlines() == ["smiles,pIC50,round"]


def test_other_processes_may_tell_meanwhile(tmp_path):
    with session(tmp_path) as one, session(tmp_path, None) as other:
        batch = one.ask(8)
        measured(other, batch[:4])
        assert len(one.pending()) == 4
        assert len(one.ask(4)) == 4 and len(other.pending()) == 8
    with CandidateStore(tmp_path / "candidates.sqlite") as store:
        assert len(store) == 12


def test_a_task_of_other_objects(tmp_path):
    config = SessionConfig(task="grid_objectives", steps=2, batch_size=16)
    file = tmp_path / "measured.csv"
    file.write_text('object,branin,currin\n"[3, 4]",0.1,0.5\n"[9, 40]",1,1\n"[0, 1]",0.3,0.2\n')
    with Session(tmp_path / "run", config) as one:
        found = one.read(file)
        assert found.objects == [(3, 4), (0, 1)]
        one.tell(found.objects, found.values, found.reasons)
        batch = one.ask(3)
        assert len(batch) == 3 and all(isinstance(item, tuple) for item in batch)


def test_the_small_laboratory():
    assert Words()(["AACAC"]).tolist() == [[0.6, 1.0]] and task().env.length == 5


def test_rounds_are_in_the_report(tmp_path):
    with session(tmp_path) as one:
        for _ in range(2):
            measured(one, one.ask(8))
        volumes = [row.hypervolume for row in one.progress()]
    document, _ = build(read_run(tmp_path), None, None)
    curves = {curve["name"]: curve for curve in document["curves"]}
    assert document["counted"] == "round" and "Words" in document["title"]
    assert curves["hypervolume"] == {"name": "hypervolume", "x": [0, 1, 2], "y": volumes}
    assert curves["measured"]["y"] == [0, 8, 16]
