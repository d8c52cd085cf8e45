"""Every objective with a fixed target trains to it: P_T(x) = R(x) / Z, and log Z where it says so.

Budgets: 300 batches of 16 on the diamond, 1000 batches of 32 on the 8 x 8 grid.
"""

import math

import pytest
import torch

from gflow.envs.grid_rewards import CornerReward
from gflow.envs.grids import HyperGrid
from gflow.envs.set_rewards import SetEnergy
from gflow.envs.sets import Sets
from gflow.objectives.balance import DetailedBalance, SubTrajectoryBalance
from gflow.policies import MLPPolicy
from gflow.sampling import Replay, WithReplay
from tests.diamond import DiamondOracle, diamond_policy
from tests.objectives.training import FIXED_TARGET, anneal, distance, learned_log_z, trainer
from tests.tabular import TabularPolicy

CORNER = CornerReward(8)
GRID_STEPS = {"led_db": 4000, "soft_q": 2000, "munchausen": 2000}
"""Objectives that chase a target of their own take longer; the others take 1000 steps."""


def replayed(sampler):
    """The same sampler with as many replayed trajectories as fresh ones."""
    return WithReplay(sampler, Replay(200), 16, seed=1)


def check_diamond(name, backward, dtype, wrap=None):
    oracle = DiamondOracle()
    policy = diamond_policy(backward="learned" if name == "tlm" else backward, dtype=dtype)
    run = trainer(policy, FIXED_TARGET[name], oracle, wrap=wrap)
    assert distance(policy, oracle) > 0.1
    anneal(run, 300)
    assert policy.logits.dtype == dtype
    assert distance(policy, oracle) < 0.03
    assert abs(learned_log_z(run) - math.log(10)) < 0.02


@pytest.mark.parametrize("name", FIXED_TARGET)
@pytest.mark.parametrize(
    ("backward", "dtype"), [("uniform", torch.float32), ("learned", torch.float64)]
)
def test_diamond(name, backward, dtype):
    check_diamond(name, backward, dtype)


@pytest.mark.parametrize("name", ["tb", "db", "subtb", "munchausen"])
def test_diamond_with_even_construction_sequences(name):
    check_diamond(name, "paths", torch.float32)


@pytest.mark.parametrize("name", ["tb", "fm", "fl_db"])
def test_diamond_with_replay(name):
    check_diamond(name, "uniform", torch.float32, replayed)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED_TARGET)
@pytest.mark.parametrize("backward", ["uniform", "learned", "paths"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrap", [None, replayed])
def test_diamond_in_every_combination(name, backward, dtype, wrap):
    check_diamond(name, backward, dtype, wrap)


def check_grid(name, backward, dtype):
    env = HyperGrid(2, 8)
    backward = "learned" if name == "tlm" else backward
    policy = MLPPolicy(env, (64, 64), backward=backward, flow=True, energy=True).to(dtype)
    run = trainer(policy, FIXED_TARGET[name], CORNER, rate=3e-3, batch_size=32)
    assert distance(policy, CORNER) > 0.2
    anneal(run, GRID_STEPS.get(name, 1000))
    assert distance(policy, CORNER) < 0.03
    assert abs(learned_log_z(run) - math.log(22.4)) < 0.02


@pytest.mark.parametrize("name", ["tb", "db"])
def test_grid(name):
    check_grid(name, "uniform", torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED_TARGET)
@pytest.mark.parametrize(
    ("backward", "dtype"),
    [("uniform", torch.float32), ("learned", torch.float64), ("paths", torch.float32)],
)
def test_grid_in_every_combination(name, backward, dtype):
    check_grid(name, backward, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fl_db", "fl_subtb"])
def test_partial_rewards_help_on_sets(name):
    """Sets of 4 of 8 items: at equal budgets the forward-looking version is nearer the target."""
    oracle = SetEnergy([-1.0, -0.6, -0.2, 0.0, 0.3, 0.6, 0.9, 1.2], 4)
    plain = {"fl_db": DetailedBalance(), "fl_subtb": SubTrajectoryBalance()}[name]
    found = []
    for objective in (FIXED_TARGET[name], plain):
        policy = TabularPolicy(Sets(8, 4), 2, dtype=torch.float32)
        anneal(trainer(policy, objective, oracle, rate=0.02), 400)
        found.append(distance(policy, oracle))
    assert found[0] < found[1], found
