"""Metrics after so many calls, against numbers worked out by hand."""

import itertools
import math

import pytest
import torch

from gflow.bench.ledger import Log
from gflow.bench.measure import best_known_reference, exact_reference, measure
from gflow.bench.summary import bootstrap_interval, checkpoints_of
from gflow.envs.grids import HyperGrid
from gflow.tasks import Task, flat_policy, make_task
from tests.bench.problems import Corners


def task():
    env = HyperGrid(2, 4)
    return Task(env, Corners(), flat_policy(env))


def log_of(points, notes=()):
    rewards = torch.tensor([[x / 3, y / 3] for x, y in points], dtype=torch.float64).view(-1, 2)
    seconds = [1.5 * (i + 1) for i in range(len(points))]
    return Log(list(points), rewards, seconds, list(notes), "budget", "")


def test_the_exact_front_of_a_space():
    reference = exact_reference(task())
    assert reference.exact and reference.members == {"(3, 3)"}
    assert reference.front.tolist() == [[1.0, 1.0]] and reference.volume == pytest.approx(1.0)


def test_rows_by_hand():
    grid = task()
    rows = measure(
        grid, log_of([(2, 2), (3, 1), (0, 0), (3, 3)]), exact_reference(grid), [1, 2, 3, 4, 6]
    )
    assert [row["used"] for row in rows] == [1, 2, 3, 4, 4]
    assert [row["seconds"] for row in rows] == [1.5, 3.0, 4.5, 6.0, 6.0]
    volumes = [4 / 9, 5 / 9, 5 / 9, 1, 1]
    assert [row["hypervolume"] for row in rows] == pytest.approx(volumes)
    assert [row["regret"] for row in rows] == pytest.approx([1 - v for v in volumes])
    assert [row["front_share"] for row in rows] == [0, 0, 0, 1, 1]
    gap = math.sqrt(2) / 3
    assert [row["igd_plus"] for row in rows] == pytest.approx([gap, gap, gap, 0, 0])
    assert [row["best x"] for row in rows] == pytest.approx([2 / 3, 1, 1, 1, 1])
    assert [row["best y"] for row in rows] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 1, 1])
    # R2 over w = (i, 20 - i) / 20: first max(w) / 3 from (2, 2), then min with w_y 2/3 of (3, 1).
    first = sum(max(i, 20 - i) for i in range(21)) / 20 / 3 / 21
    second = sum(min(max(i, 20 - i) / 3, (20 - i) * 2 / 3) for i in range(21)) / 20 / 21
    assert [row["r2"] for row in rows] == pytest.approx([first, second, second, 0, 0])
    assert all(math.isnan(row["diversity"]) for row in rows), "fewer than ten objects"


def test_diversity_of_ten_equally_good_points_by_hand():
    grid = task()
    line = [(3, y) for y in range(4)] + [(x, 3) for x in range(3)]
    rest = [(0, 0), (1, 0), (0, 1)]
    points = line + rest
    (row,) = measure(grid, log_of(points), exact_reference(grid), [10])
    pairs = [
        (abs(a[0] - b[0]) + abs(a[1] - b[1])) / 6 for a, b in itertools.combinations(points, 2)
    ]
    assert row["diversity"] == pytest.approx(sum(pairs) / 45)


def test_failures_and_empty_logs():
    grid = task()
    log = log_of([(2, 2), (3, 1)])
    log.rewards[1] = torch.nan
    one, two = measure(grid, log, exact_reference(grid), [1, 2])
    assert two["hypervolume"] == one["hypervolume"] and two["used"] == 2
    (row,) = measure(grid, log_of([]), exact_reference(grid), [5])
    assert row["hypervolume"] == 0 and row["regret"] == 1 and row["igd_plus"] == math.inf


def test_notes_are_those_known_by_then():
    grid = task()
    notes = [(0, {"loss": 9.0}), (2, {"loss": 5.0}), (4, {"loss": 1.0})]
    log = log_of([(0, 0), (0, 1), (0, 2), (0, 3)], notes)
    rows = measure(grid, log, exact_reference(grid), [1, 2, 3, 4])
    assert [row["loss"] for row in rows] == [9, 5, 5, 1]


def test_a_space_too_large_is_measured_by_what_all_found():
    molecules = make_task("molecules")
    assert exact_reference(molecules) is None
    grid = task()
    logs = [log_of([(2, 2), (0, 0)]), log_of([(3, 1), (1, 1)]), log_of([])]
    reference = best_known_reference(grid, logs)
    assert not reference.exact and reference.members == {"(2, 2)", "(3, 1)"}
    assert reference.volume == pytest.approx(5 / 9)
    (row,) = measure(grid, logs[0], reference, [2])
    assert row["front_share"] == 0.5 and row["regret"] == pytest.approx(1 / 5)
    assert best_known_reference(grid, [log_of([])]) is None


def test_checkpoints_end_at_the_budget():
    assert checkpoints_of(100, 4) == [25, 50, 75, 100]
    assert checkpoints_of(3, 20) == [1, 2, 3]
    assert checkpoints_of(1310, 3) == [437, 874, 1310]


def test_bootstrap_of_two_values_by_hand():
    # The means are a, (a + b) / 2 and b with chances 1/4, 1/2, 1/4.
    assert bootstrap_interval([1.0, 3.0]) == (2.0, 1.0, 3.0)
    assert bootstrap_interval([1.0, 3.0], share=0.4) == (2.0, 2.0, 2.0)


def test_bootstrap_of_five_values_against_all_resamples():
    values = [0.2, 1.0, 1.7, 2.0, 4.5]
    means = sorted(sum(draw) / 5 for draw in itertools.product(values, repeat=5))
    wanted = torch.tensor(means).quantile(torch.tensor([0.025, 0.975])).tolist()
    mean, low, high = bootstrap_interval(values)
    assert mean == pytest.approx(sum(values) / 5)
    assert [low, high] == pytest.approx(wanted, abs=0.06)
    assert bootstrap_interval(values, seed=0) == bootstrap_interval(values, seed=0)


def test_bootstrap_of_odd_sets():
    assert bootstrap_interval([2.5]) == (2.5, 2.5, 2.5)
    assert bootstrap_interval([math.nan, 2.5]) == (2.5, 2.5, 2.5)
    assert all(math.isnan(value) for value in bootstrap_interval([]))
    assert bootstrap_interval([1.0, math.inf])[2] == math.inf
