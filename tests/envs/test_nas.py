"""The NAS-Bench-201 cell, its costs and its accuracies."""

import math

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
