"""Everyone plays: exactly to the budget, the same again for the same seed, and not at random."""

import pytest
import torch

from gflow.bench.cell import run_cell
from gflow.bench.contestants import BASELINES, merged, prepare_cell
from gflow.bench.evolution import WORST, _survivors
from gflow.bench.ledger import Ledger, Spent, read_log
from gflow.bench.measure import exact_reference, measure
from gflow.bench.plan import Cell, Contestant, Problem
from gflow.config import ConfigError
from tests.bench.problems import BITS, GRID, MOLECULES, cell

EVOLUTION = {"population": 12}
BAYES = {"initial": 24, "batch": 18, "together": 9, "pool": 40, "points": 30}
SMALL = {"sampling": {"batch_size": 8, "replay": 8}}
SETTINGS = {
    "random": {},
    "nsga2": EVOLUTION,
    "nsga3": EVOLUTION,
    "moead": EVOLUTION,
    "regularized_evolution": EVOLUTION | {"tournament": 4},
    "qnehvi": BAYES,
    "qparego": BAYES,
    "mogfn_pc": SMALL,
    "op_tb": SMALL,
    "tb": SMALL,
}


def played(place, folder, patience=2000):
    run_cell(folder, place, patience)
    task, _ = prepare_cell(place)
    return task, read_log(folder / place.path, len(task.oracle.rewards))


@pytest.mark.parametrize("method", SETTINGS)
def test_it_plays_to_the_budget_and_again_the_same(method, tmp_path):
    place = cell(method, **SETTINGS[method])
    torch.manual_seed(1)
    task, log = played(place, tmp_path / "one")
    assert log.end == "budget" and len(log.objects) == GRID.budget
    assert len(set(log.objects)) == GRID.budget
    torch.testing.assert_close(log.rewards, task.oracle(task.env.encode(log.objects)).double())
    torch.manual_seed(2)
    _, again = played(place, tmp_path / "two")
    assert again.objects == log.objects, "the global generator must not matter"
    played(cell(method, seed=1, **SETTINGS[method]), tmp_path / "three")
    other = read_log(tmp_path / "three" / cell(method, seed=1).path, 2)
    assert other.objects != log.objects
    assert torch.random.initial_seed() == 2, "nor be changed"


def test_guided_search_beats_chance_on_a_grid(tmp_path):
    """Mean share of the exact front over three seeds, of 36 points in 1023."""
    problem = Problem("grid", "grid_objectives", 160, rewards="branin,currin")
    found = {}
    for method in ("random", "nsga2", "nsga3", "moead"):
        settings = {} if method == "random" else {"population": 20}
        shares = []
        for seed in range(3):
            task, log = played(cell(method, problem, seed, **settings), tmp_path)
            (row,) = measure(task, log, exact_reference(task), [160])
            shares.append(row["front_share"])
        found[method] = sum(shares) / 3
    assert found.pop("random") == pytest.approx(160 / 1024, abs=0.08)
    assert min(found.values()) > 0.3, found


def test_regularized_evolution_climbs(tmp_path):
    """16 bits, 2 modes: the best reward after 300 calls, exp(-flips / 10), on three seeds."""
    options = {"bits": 16, "word": 1, "modes": 2, "order": "slots"}
    problem = Problem("bits", "bit_sequences", 300, options=options)
    best = {}
    for method in ("random", "regularized_evolution"):
        runs = [played(cell(method, problem, seed), tmp_path)[1] for seed in range(3)]
        best[method] = [float(log.rewards.amax()) for log in runs]
    assert min(best["regularized_evolution"]) == 1.0 > max(best["random"])


@pytest.mark.slow
def test_bayesian_optimisation_beats_chance_on_a_grid(tmp_path):
    problem = Problem("grid", "grid_objectives", 60, rewards="branin,currin")
    shares = {}
    for method in ("random", "qnehvi", "qparego"):
        settings = {} if method == "random" else {"initial": 20, "batch": 8, "pool": 200}
        task, log = played(cell(method, problem, **settings), tmp_path)
        (row,) = measure(task, log, exact_reference(task), [60])
        shares[method] = row["front_share"]
    assert shares["qnehvi"] > 0.4 and shares["qparego"] > 0.25 > shares["random"]


def test_single_rewards_and_names(tmp_path):
    for method in ("random", "nsga2", "regularized_evolution", "qparego", "tb"):
        _, log = played(cell(method, BITS, **SETTINGS[method]), tmp_path)
        assert log.end == "budget" and len(log.objects) == BITS.budget
    for method in ("nsga3", "moead"):
        _, log = played(cell(method, BITS), tmp_path)
        assert log.end == "skipped" and "at least two rewards" in log.reason


def test_molecules_by_construction_and_by_graphs(tmp_path):
    for method, settings in (
        ("random", {}), ("nsga2", EVOLUTION), ("graph_ga", EVOLUTION), ("mogfn_pc", SMALL),
    ):  # fmt: skip
        if method == "graph_ga":
            pytest.importorskip("mol_ga")
        _, log = played(cell(method, MOLECULES, **settings), tmp_path)
        assert log.end == "budget" and len(set(log.objects)) == MOLECULES.budget
    _, again = played(cell("graph_ga", MOLECULES, **EVOLUTION), tmp_path / "again")
    assert again.objects == read_log(tmp_path / cell("graph_ga", MOLECULES).path, 2).objects
    _, log = played(cell("qnehvi", MOLECULES), tmp_path)
    assert log.end == "skipped" and "rows of integers" in log.reason
    _, log = played(cell("graph_ga", GRID), tmp_path)
    assert log.end == "skipped" and log.reason == "graph_ga makes molecules only"


def test_a_whole_space_ends_by_patience(tmp_path):
    problem = Problem("tiny", "grid_objectives", 60, rewards="branin,currin", options={"side": 4})
    _, log = played(cell("random", problem), tmp_path, patience=300)
    assert log.end == "no new objects" and len(log.objects) == 15


def test_notes_of_training(tmp_path):
    _, log = played(cell("mogfn_pc", **SMALL), tmp_path)
    calls, last = log.notes[-1]
    assert 0 < calls <= GRID.budget
    assert {"loss", "mean branin", "mean currin", "entropy", "log_z"} <= set(last)
    assert last["entropy"] > 0 and 0 <= last["mean branin"] <= 1


def test_failed_objects_come_last_in_every_generation():
    nan = float("nan")
    rewards = torch.tensor([[nan, nan], [0.1, 0.9], [0.9, 0.1], [0.5, 0.5], [0.2, 0.2]]).double()
    assert sorted(_survivors(rewards, 3)) == [1, 2, 3]
    assert _survivors(rewards, 5)[-2:] == [4, 0]
    assert WORST > 1


@pytest.mark.parametrize(
    ("contestant", "words"),
    [
        (Contestant("x", "nsga22"), "there is no method 'nsga22': did you mean nsga2"),
        (Contestant("x", "nsga2", {"popsize": 3}), "no setting 'popsize'"),
        (Contestant("x", "random", {"a": 3}), "no setting 'a': it takes none"),
        (Contestant("x", "tb", {"sampling": {"batchsize": 3}}), "unknown setting 'batchsize'"),
        (Contestant("x", "rtb"), "needs more than settings can say"),
    ],
)
def test_entries_that_cannot_play(contestant, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        prepare_cell(Cell(GRID, contestant, 0))


def test_scores_of_unfinished_objects_are_refused(tmp_path):
    _, log = played(cell("fl_db"), tmp_path)
    assert log.end == "skipped" and "scored on unfinished objects" in log.reason


@pytest.mark.parametrize(
    ("task", "words"), [("gmm9", "are continuous"), ("arithmetic", "depend on prompts")]
)
def test_tasks_that_are_no_contest(task, words, tmp_path):
    if task == "arithmetic":
        pytest.importorskip("transformers")
    run_cell(tmp_path, cell("random", Problem("other", task, 10)), 100)
    (line,) = (tmp_path / "cells/other/random/0.jsonl").read_text().splitlines()
    assert words in line and "skipped" in line


def test_settings_of_the_contestant_win():
    both = merged({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}, "c": 5})
    assert both == {"a": {"x": 1, "y": 4}, "b": 3, "c": 5}


def test_the_budget_is_no_error(tmp_path):
    task, play = prepare_cell(cell("random"))
    with pytest.raises(Spent):
        play(Ledger(task, tmp_path / "log.jsonl", 10, 100))
    assert set(BASELINES) >= {"random", "nsga2", "qnehvi", "graph_ga"}
