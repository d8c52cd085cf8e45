"""HyperGrid with free and forced stops, and its rewards."""

import math

import moocore
import pytest
import torch

from gflow.conditions import Conditions
from gflow.envs.grid_rewards import (
    OBJECTIVES,
    CornerReward,
    CosineReward,
    DeceptiveReward,
    GridObjectives,
    SparseReward,
)
from gflow.envs.grids import HyperGrid
from gflow.estimators import exact_flows, terminating_distribution
from gflow.policies import MLPPolicy
from tests.envs.conformance import Conformance


class TestGrid(Conformance):
    side, border = 4, False
    make = staticmethod(lambda: HyperGrid(3, 4))

    def model_children(self, data):
        children = {(data, True)}
        if self.border and self.side - 1 in data:
            return children
        for d, x in enumerate(data):
            if x < self.side - 1:
                children.add(((*data[:d], x + 1, *data[d + 1 :]), False))
        return children


class TestGridStoppingAtItsBorder(TestGrid):
    border = True
    make = staticmethod(lambda: HyperGrid(3, 4, stop_at_border=True))


@pytest.fixture(scope="module")
def border_grid():
    return HyperGrid(2, 32, stop_at_border=True)


def test_the_border_grid_has_1023_points(border_grid):
    points = border_grid.all_terminal_states()
    assert points.n == 1023
    assert [31, 31] not in points.data.tolist()


def test_a_border_point_has_one_parent(border_grid):
    finished = border_grid.encode([(30, 5), (31, 5)])
    states = border_grid.backstep(finished, torch.full((2,), border_grid.dim))
    assert border_grid.backward_mask(states).tolist() == [[True, True, False], [True, False, False]]
    assert border_grid.forward_mask(states).tolist() == [[True, True, True], [False, False, True]]


def test_dimension_four_flows_to_the_reward():
    env, reward = HyperGrid(4, 8), CornerReward(8)
    flows = exact_flows(env, lambda states: reward(states).squeeze(1).log())
    assert float(flows.log_flow[0]) == pytest.approx(6.344934, abs=1e-6)


@pytest.mark.parametrize(
    ("dim", "r0", "log_z", "modes"),
    [
        (2, 0.1, 3.109061, 4),
        (4, 0.1, 6.344934, 16),
        (2, 1e-3, 2.776581, 4),
        (4, 1e-3, 5.100452, 16),
    ],
)
def test_corner_reward(dim, r0, log_z, modes):
    values = CornerReward(8, r0)(HyperGrid(dim, 8).all_terminal_states())
    assert float(values.sum().log()) == pytest.approx(log_z, abs=1e-6)
    assert int((values >= r0 + 2.5 - 1e-9).sum()) == modes


@pytest.mark.parametrize("side", [3, 4, 5, 6, 11])
def test_grids_without_modes(side):
    values = CornerReward(side)(HyperGrid(2, side).all_terminal_states())
    assert float(values.max()) < 2.6


def test_sparse_reward():
    states = HyperGrid(2, 8).all_terminal_states()
    found = states.data[SparseReward(8)(states).squeeze(1) > 0.5].tolist()
    assert found == [[1, 6], [6, 1], [6, 6]]
    assert float(SparseReward(8)(states).min()) == 1e-12


def test_deceptive_reward_by_hand():
    env = HyperGrid(2, 11)
    # a = |s / 10 - 1/2|: the centre, the moat, one coordinate in the moat, a ring needs 0.3 < a.
    states = env.encode([(5, 5), (0, 0), (5, 0), (4, 6)])
    expected = [0.10001, 1e-5, 0.10001, 0.10001]
    assert DeceptiveReward(11)(states).squeeze(1).tolist() == pytest.approx(expected)
    ring = HyperGrid(2, 8).encode([(1, 6)])
    assert float(DeceptiveReward(8)(ring)) == pytest.approx(2 + 1e-5)


def test_cosine_reward_by_hand():
    states = HyperGrid(2, 3).encode([(1, 1), (0, 1)])
    peak = 2 / math.sqrt(2 * math.pi)
    side = (math.cos(25) + 1) * math.exp(-3.125) / math.sqrt(2 * math.pi)
    values = CosineReward(3)(states).squeeze(1).tolist()
    assert values == pytest.approx([0.1 + 0.5 * peak**2, 0.1 + 0.5 * peak * side])


@pytest.mark.parametrize(
    "oracle", [CornerReward(8), CosineReward(8), SparseReward(8), DeceptiveReward(8)]
)
def test_single_rewards_keep_their_range(oracle):
    values = oracle(HyperGrid(2, 8).all_terminal_states())
    assert values.shape == (64, 1) and values.dtype == torch.float64
    (reward,) = oracle.rewards
    assert reward.low <= float(values.min()) and float(values.max()) <= reward.high


@pytest.mark.parametrize(
    ("name", "low", "lowest", "high", "highest"),
    [
        ("branin", 0.000003, [0, 0], 0.998616, [4, 25]),
        ("currin", 0.085723, [0, 31], 1.001525, [7, 0]),
        ("shubert", 0.005753, [24, 30], 0.994499, [24, 24]),
        ("beale", 0.112627, [31, 13], 0.997503, [0, 0]),
    ],
)
def test_ranges_of_the_objectives(border_grid, name, low, lowest, high, highest):
    states = border_grid.all_terminal_states()
    values = GridObjectives([name])(states).squeeze(1)
    assert float(values.min()) == pytest.approx(low, abs=5e-7)
    assert float(values.max()) == pytest.approx(high, abs=5e-7)
    assert states.data[values.argmin()].tolist() == lowest
    assert states.data[values.argmax()].tolist() == highest


@pytest.mark.parametrize(
    ("names", "front", "weak", "volume"),
    [
        ("branin-currin", 36, 36, 0.982144),
        ("branin-shubert", 14, 14, 0.883845),
        ("branin-beale", 44, 44, 0.806667),
        ("currin-shubert", 32, 34, 0.734926),
        ("currin-beale", 8, 8, 0.897938),
        ("shubert-beale", 22, 30, 0.685916),
        ("branin-currin-shubert", 104, 107, 0.682080),
        ("branin-currin-beale", 229, 229, 0.763208),
        ("branin-shubert-beale", 147, 153, 0.547529),
        ("currin-shubert-beale", 127, 129, 0.532578),
        ("branin-currin-shubert-beale", 372, 374, 0.449265),
    ],
)
def test_true_fronts(border_grid, names, front, weak, volume):
    values = GridObjectives(names.split("-"))(border_grid.all_terminal_states())
    least, most = values.unsqueeze(1), values.unsqueeze(0)
    dominated = ((most >= least).all(-1) & (most > least).any(-1)).any(1)
    strictly = (most > least).all(-1).any(1)
    assert int((~dominated).sum()) == front
    assert int((~strictly).sum()) == weak
    zeros = [0.0] * values.shape[1]
    found = moocore.hypervolume(-values[~dominated].numpy(), ref=zeros)
    assert found == pytest.approx(volume, abs=1e-6)


def test_exact_targets_of_preferences(border_grid):
    """log Z and front mass of (w . r) ** beta, as published for branin-currin."""
    values = GridObjectives()(border_grid.all_terminal_states())
    log_r = 16 * (values @ torch.tensor([0.5, 0.5], dtype=torch.float64)).log()
    assert float(torch.logsumexp(log_r, 0)) == pytest.approx(3.528706, abs=1e-6)


def test_sphere_is_the_mean_square():
    states = HyperGrid(2, 3).encode([(0, 2), (1, 1), (2, 1)])
    assert OBJECTIVES["sphere"](torch.tensor(1.0), torch.tensor(0.0)) == 0.5
    assert GridObjectives(["sphere"], side=3)(states).squeeze(1).tolist() == [1.0, 0.0, 0.5]


def test_ranges_bound_the_rewards():
    oracle = GridObjectives(list(OBJECTIVES), side=9)
    values = oracle(HyperGrid(2, 9).all_terminal_states())
    for k, reward in enumerate(oracle.rewards):
        assert (reward.low, reward.high) == (float(values[:, k].min()), float(values[:, k].max()))


def test_an_untrained_policy_has_a_proper_distribution(border_grid):
    policy = MLPPolicy(border_grid, hidden=(4,))
    found = terminating_distribution(policy, Conditions().sample(1))
    assert found.states.n == 1023
    assert float(found.probability.sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(0, 0), (0, 8)], r"point 1, .* 0\.\.7"),
        ([(0, -1)], "point 0"),
        ([(0, 0, 0)], "2 coordinates"),
    ],
)
def test_bad_points(points, message):
    with pytest.raises(ValueError, match=message):
        HyperGrid(2, 8).encode(points)


def test_bad_settings(border_grid):
    with pytest.raises(ValueError, match="unreachable"):
        border_grid.encode([(31, 31)])
    with pytest.raises(ValueError, match="dim=0"):
        HyperGrid(0)
    with pytest.raises(ValueError, match=r"'brannin'.*branin"):
        GridObjectives(["brannin"])
    with pytest.raises(ValueError, match="once each"):
        GridObjectives(["branin", "branin"])
    with pytest.raises(ValueError, match="2 dimensions, not 3"):
        GridObjectives()(HyperGrid(3, 32).initial(1))
    large = HyperGrid(8, 8)
    assert not large.enumerable
    with pytest.raises(NotImplementedError, match="8 coordinates are too many"):
        large.all_terminal_states()
