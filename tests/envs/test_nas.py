"""The NAS-Bench-201 cell, its costs and its accuracies."""

import math
import sys
import types

import pytest
import torch

from gflow.envs.nas import NASCell, flops, parameters
from gflow.envs.nas.cell import EDGES, OPERATIONS
from gflow.envs.nas.oracle import nas_bench_201
from gflow.estimators import exact_flows
from tests.envs.conformance import pseudo_log_reward
from tests.envs.data import table, write_parquet

FIRST = (
    "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
    "+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
)


def uniform(operation):
    o = OPERATIONS[operation]
    return f"|{o}~0|+|{o}~0|{o}~1|+|{o}~0|{o}~1|{o}~2|"


@pytest.fixture(scope="module")
def env():
    return NASCell()


@pytest.fixture(scope="module")
def flows(env):
    return exact_flows(env, pseudo_log_reward)


def test_sizes_of_the_graph(env, flows):
    assert env.all_terminal_states().n == int(flows.states.done.sum()) == 15_625
    assert int((~flows.states.done).sum()) == 46_656
    paths = env.log_n_paths(env.all_terminal_states()).exp().sum()
    assert float(paths) == pytest.approx(11_250_000)
    assert (flows.states.step[flows.states.done] == 7).all()


def test_exact_flow(env, flows):
    log_z = torch.logsumexp(pseudo_log_reward(env.all_terminal_states()), 0)
    assert float(flows.log_flow[0]) == pytest.approx(float(log_z), abs=1e-10)


def test_actions_are_numbered_as_published(env):
    states = env.initial(1)
    assert env.action_sizes == (31,) and states.data.tolist() == [[-1] * 6]
    for operation, edge in [(3, 2), (0, 0), (4, 5), (1, 1), (2, 3)]:
        states = env.step(states, torch.tensor([operation * 6 + edge]))
    assert states.data.tolist() == [[0, 1, 3, 2, -1, 4]]
    mask = env.forward_mask(states)
    assert mask.nonzero()[:, 1].tolist() == [4, 10, 16, 22, 28]
    full = env.step(states, torch.tensor([4]))
    assert not full.done and env.forward_mask(full).nonzero()[:, 1].tolist() == [30]
    assert env.backward_mask(full).tolist() == [[True] * 6 + [False]]
    finished = env.step(full, torch.tensor([30]))
    assert finished.done and env.backward_mask(finished).tolist() == [[False] * 6 + [True]]


def test_strings(env):
    states = env.encode([FIRST, uniform(3)])
    assert states.data.tolist() == [[4, 2, 1, 2, 1, 1], [3] * 6]
    assert env.decode(states) == [FIRST, uniform(3)]
    everything = env.all_terminal_states()
    again = env.encode(env.decode(everything))
    assert torch.equal(again.data, everything.data) and torch.equal(again.step, everything.step)
    assert EDGES == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("|none~0|+|none~0|none~1|", "cell 0, .*has not the form"),
        (uniform(0).replace("none~2", "conv~2"), "unknown operation 'conv'"),
        (uniform(0).replace("~2", "~1"), "has not the form"),
    ],
)
def test_bad_strings(env, text, message):
    with pytest.raises(ValueError, match=message):
        env.encode([text])


@pytest.mark.parametrize(
    ("cell", "multiply_adds", "weights"),
    [
        (FIRST, 15_647_370, 129_306),
        (uniform(3), 220_119_690, 1_531_546),
        (uniform(0), 7_783_050, 73_306),
        (uniform(1), 7_783_050, 73_306),
        (uniform(4), 7_783_050, 73_306),
    ],
)
def test_costs(env, cell, multiply_adds, weights):
    data = env.encode([cell]).data
    assert flops(data).tolist() == [multiply_adds]
    assert parameters(data).tolist() == [weights]


def test_there_are_28_distinct_costs(env):
    data = env.all_terminal_states().data
    assert len(flops(data).unique()) == len(parameters(data).unique()) == 28


@pytest.mark.parametrize(
    ("dataset", "best"), [("cifar10", 0.8916), ("cifar100", 0.6118), ("imagenet16", 0.3827)]
)
def test_accuracies_are_those_of_twelve_epochs(env, dataset, best):
    oracle = nas_bench_201(table("nas_bench_201.parquet"), dataset)
    values = oracle(env.all_terminal_states())
    assert float(values[:, 0].max()) == pytest.approx(best, abs=5e-5)
    assert "12 epochs" in oracle.rewards[0].description
    assert values[:, 1:].amin(0).tolist() == [0, 0] and values[:, 1:].amax(0).tolist() == [1, 1]


def test_oracle_of_known_cells(env):
    oracle = nas_bench_201(table("nas_bench_201.parquet"))
    values = oracle(env.encode([FIRST, uniform(3), uniform(0)]))
    dear, cheap = 220_119_690, 7_783_050
    expected = [(dear - 15_647_370) / (dear - cheap), 0, 1]
    assert values[:, 1].tolist() == pytest.approx(expected)
    assert float(values[0, 0]) == pytest.approx(0.6955, abs=1e-6)
    assert [reward.flipped for reward in oracle.rewards] == [False, True, True]


def test_chosen_rewards(env):
    path = table("nas_bench_201.parquet")
    states = env.encode([FIRST, uniform(3)])
    every = nas_bench_201(path)
    some = nas_bench_201(path, names=["parameters", "accuracy"])
    assert torch.equal(some(states), every(states)[:, [2, 0]])
    assert [reward.name for reward in some.rewards] == ["few parameters", "accuracy"]
    with pytest.raises(ValueError, match="'latency': choose from accuracy, flops, parameters"):
        nas_bench_201(path, names=["latency"])


def test_bad_tables(env, tmp_path):
    with pytest.raises(ValueError, match="'mnist'"):
        nas_bench_201(tmp_path / "none", "mnist")
    cells = {"cell": [FIRST, "junk"], "cifar10_test": [1.0, 2.0]}
    path = write_parquet(tmp_path / "junk.parquet", **cells)
    with pytest.raises(ValueError, match=r"junk\.parquet: cell 1, 'junk'"):
        nas_bench_201(path)
    path = write_parquet(tmp_path / "short.parquet", cell=[FIRST], cifar10_test=[1.0])
    with pytest.raises(ValueError, match="1 of 15625 rows"):
        nas_bench_201(path)
    with pytest.raises(ValueError, match="no column 'cifar100_val'"):
        nas_bench_201(path, "cifar100", "val")


def test_order_of_setting_edges_does_not_matter(env):
    assert float(env.log_n_paths(env.encode([FIRST]))) == pytest.approx(math.log(720))


class FakeNats:
    """The three calls of nats_bench that are needed; accuracies are the cell's number."""

    def __init__(self, cells):
        self.cells = {cell: number for number, cell in enumerate(cells)}

    def query_index_by_arch(self, cell):
        return self.cells.get(cell, -1)

    def get_more_info(self, index, dataset, hp, is_random):
        assert is_random is False
        shift = {"cifar10": 0, "cifar10-valid": 1, "cifar100": 2, "ImageNet16-120": 3}[dataset]
        known = {"test-accuracy": index / 200 + shift + int(hp) / 100}
        if dataset != "cifar10":
            known["valid-accuracy"] = index / 200 + shift
        return known


class TestNatsBench:
    @pytest.fixture
    def nats(self, env, monkeypatch, tmp_path):
        """A folder that a stand-in for nats_bench opens."""
        api = FakeNats(reversed(env.decode(env.all_terminal_states())))
        module = types.ModuleType("nats_bench")

        def create(path, space, fast_mode, verbose):
            assert (path, space, fast_mode, verbose) == (str(tmp_path), "tss", True, False)
            return api

        module.create = create
        monkeypatch.setitem(sys.modules, "nats_bench", module)
        return api

    def test_accuracies_of_both_schedules(self, env, nats, tmp_path):
        first, last = 0, 15_624
        states = env.all_terminal_states()
        for dataset, split, epochs, low in [
            ("cifar10", "test", 12, 0.12),
            ("cifar10", "test", 200, 2.0),
            ("cifar10", "val", 12, 1.0),
            ("imagenet16", "test", 200, 5.0),
            ("cifar100", "val", 12, 2.0),
        ]:
            oracle = nas_bench_201(tmp_path, dataset, split, epochs)
            accuracy = 100 * oracle(states)[:, 0]
            assert float(accuracy[last]) == pytest.approx(low)
            assert float(accuracy[first]) == pytest.approx(low + last / 200)
            assert f"after {epochs} epochs" in oracle.rewards[0].description

    def test_a_lost_cell_or_accuracy_is_named(self, nats, tmp_path):
        del nats.cells[uniform(0)]
        with pytest.raises(ValueError, match=r"no cell '\|none~0\|"):
            nas_bench_201(tmp_path)
        nats.cells[uniform(0)] = 0
        nats.get_more_info = lambda *_, **__: {"test-accuracy": None}
        with pytest.raises(ValueError, match=r"no test-accuracy of .* on cifar10, 12 epochs"):
            nas_bench_201(tmp_path)

    def test_epochs_that_are_not_there(self, tmp_path):
        with pytest.raises(ValueError, match="12, or 200 with a file of nats_bench, not 90"):
            nas_bench_201(tmp_path, epochs=90)
        with pytest.raises(ValueError, match="12, or 200 with a file of nats_bench, not 200"):
            nas_bench_201(tmp_path / "t.parquet", epochs=200)

    def test_without_the_package(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "nats_bench", None)
        with pytest.raises(ImportError, match=r"needs nats_bench: .*pip install nats_bench"):
            nas_bench_201(tmp_path)

    def test_what_nats_bench_refuses(self, nats, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no file .*NATS\.pickle\.pbz2"):
            nas_bench_201(tmp_path / "NATS.pickle.pbz2")
        (tmp_path / "other").mkdir()
        with pytest.raises(ValueError, match="is no topology file of nats_bench"):
            nas_bench_201(tmp_path / "other")


def test_without_a_reader_of_tables(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow: .*gflow\[data\]"):
        nas_bench_201(tmp_path / "t.parquet")
