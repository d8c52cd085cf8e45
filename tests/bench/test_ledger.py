"""The one door to the oracle: what counts, when it ends, what survives."""

import json

import pytest
import torch

from gflow.bench.ledger import Ledger, Spent, finished, read_log
from gflow.envs.grids import HyperGrid
from gflow.envs.sequences.slots import Slots
from gflow.tasks import Task, flat_policy
from tests.bench.problems import Corners, Fragile


def grid_task():
    env = HyperGrid(2, 4)
    return Task(env, Corners(), flat_policy(env))


def text_task():
    env = Slots("ABC", 4)
    return Task(env, Fragile(), flat_policy(env))


def ledger(task, path, budget=5, patience=100, **more):
    return Ledger(task, path, budget, patience, **more)


def test_equal_objects_are_one_call_and_one_question(tmp_path):
    task = grid_task()
    book = ledger(task, tmp_path / "log.jsonl")
    points = [(0, 1), (3, 2), (0, 1), (0, 1)]
    rewards = book(task.env.encode(points))
    wanted = [[0, 1 / 3], [1, 2 / 3], [0, 1 / 3], [0, 1 / 3]]
    torch.testing.assert_close(rewards, torch.tensor(wanted, dtype=torch.float64))
    assert (book.calls, book.samples, task.oracle.asked) == (2, 4, 2)
    book(task.env.encode([(3, 2)]))
    assert (book.calls, book.samples, task.oracle.asked) == (2, 5, 2)


def test_it_ends_exactly_at_the_budget(tmp_path):
    task = grid_task()
    book = ledger(task, tmp_path / "log.jsonl", budget=3)
    with pytest.raises(Spent, match="budget"):
        book(task.env.encode([(0, 0), (0, 1), (0, 0), (0, 2), (0, 3), (1, 1)]))
    assert (book.calls, task.oracle.asked) == (3, 3)
    assert read_log(book.path, 2).objects == [(0, 0), (0, 1), (0, 2)]


def test_it_ends_when_nothing_new_comes(tmp_path):
    task = grid_task()
    book = ledger(task, tmp_path / "log.jsonl", patience=4)
    book(task.env.encode([(0, 0), (0, 0), (0, 0)]))
    book(task.env.encode([(0, 0), (0, 0), (0, 0)]))
    book(task.env.encode([(0, 1)]))
    book(task.env.encode([(0, 1)] * 3))
    with pytest.raises(Spent, match="no new objects"):
        book(task.env.encode([(0, 0)]))


def test_failures_are_calls_without_rewards(tmp_path):
    task = text_task()
    book = ledger(task, tmp_path / "log.jsonl")
    rewards = book(task.env.encode(["AABC", "BBCC"]))
    assert rewards[0].isnan().all() and rewards[1].tolist() == [0.5, 0.5]
    log = read_log(book.path, 2)
    assert log.objects == ["AABC", "BBCC"] and log.rewards[0].isnan().all()
    lines = [json.loads(line) for line in book.path.read_text().splitlines()]
    assert lines[1]["rewards"] is None and "b is NaN" in lines[1]["reason"]
    book.score(["AABC", "CCCC"])
    assert book.calls == 3 and task.oracle.asked == ["AABC", "BBCC", "CCCC"]


@pytest.mark.parametrize("make", [grid_task, text_task])
def test_a_killed_cell_asks_the_oracle_nothing_twice(make, tmp_path):
    path = tmp_path / "log.jsonl"
    first = make()
    everything = first.env.all_terminal_states()
    ledger(first, path, 9)(everything.rows(torch.tensor([4, 2, 7])))
    with open(path, "a") as file:
        file.write('{"object": [1, ')  # killed in the middle of a line

    again = make()
    book = ledger(again, path, 9)
    book(everything.rows(torch.tensor([4, 2])))
    with open(path, "a") as file:
        file.write('{"obj')  # and once more, before it got as far as the first time
    third = make()
    book = ledger(third, path, 9)
    book(everything.rows(torch.tensor([4, 2, 7, 1])))
    asked = third.oracle.asked
    assert (asked if isinstance(asked, int) else len(asked)) == 1
    assert again.oracle.asked in (0, [])
    whole = make()
    clean = ledger(whole, tmp_path / "clean.jsonl", 9)
    clean(everything.rows(torch.tensor([4, 2, 7, 1])))
    one, other = read_log(path, 2), read_log(clean.path, 2)
    assert one.objects == other.objects
    torch.testing.assert_close(one.rewards, other.rewards, equal_nan=True)


def test_time_of_replayed_calls_counts(tmp_path):
    task, path = grid_task(), tmp_path / "log.jsonl"
    line = {"object": [0, 1], "rewards": [0.0, 1 / 3], "seconds": 50.0, "oracle": 40.0}
    path.write_text(json.dumps(line) + "\n")
    book = ledger(task, path)
    book(task.env.encode([(1, 1)]))
    assert book.elapsed() < 40
    book(task.env.encode([(0, 1)]))
    assert 40 <= book.elapsed() < 50
    assert read_log(path, 2).seconds[1] >= 40


def test_only_a_last_line_makes_it_finished(tmp_path):
    task = grid_task()
    book = ledger(task, tmp_path / "log.jsonl")
    assert not finished(book.path)
    book(task.env.encode([(0, 0)]))
    book.note({"loss": 2.0})
    assert not finished(book.path)
    book.end("budget")
    assert finished(book.path)
    log = read_log(book.path, 2)
    assert log.end == "budget" and log.notes == [(1, {"loss": 2.0})]


def test_a_cell_without_its_benchmark_stops_before_the_oracle(tmp_path):
    task = grid_task()

    def check():
        raise SystemExit("gone")

    book = ledger(task, tmp_path / "log.jsonl", check=check)
    with pytest.raises(SystemExit):
        book(task.env.encode([(0, 0)]))
    assert task.oracle.asked == 0
