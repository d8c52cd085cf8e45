"""Every strategy of the one Trainer still finds R / Z, resumes exactly, in both precisions."""

import copy

import pytest
import torch

from gflow.conditions import Conditions
from gflow.envs.grids import HyperGrid
from gflow.objectives.balance import SubTrajectoryBalance, TrajectoryBalance
from gflow.policies import MLPPolicy
from gflow.sampling import (
    ActionValues,
    Averaged,
    Bootstrap,
    EnsembleConditions,
    EnsemblePolicy,
    Exploration,
    FromData,
    Greedy,
    Joined,
    LocalSearch,
    OnPolicy,
    QLearning,
    Replay,
    Scorer,
    WithReplay,
)
from gflow.training import Trainer, TrainerSettings
from tests.problems import CornerOracle, grid_distance
from tests.sampling.records import parameters, same_batches

SIDE, STEPS = 8, 450
TB = TrajectoryBalance()
LOG_Z = 3.109061


def build(strategy, dtype=torch.float32, folder=None, objective=TB):
    """A Trainer on the 8x8 grid: 32 trajectories a step or so, of which 16 are fresh."""
    env, conditions = HyperGrid(2, SIDE), Conditions()
    oracle = CornerOracle(SIDE)
    score = Scorer(env, oracle)
    policy = MLPPolicy(env, (128,), backward="learned", flow=True)

    def fresh(source, n=16, seed=0, conditions=conditions, epsilon=0.0):
        return OnPolicy(
            source.to(dtype) if isinstance(source, torch.nn.Module) else source,
            conditions, score, n, seed, exploration=Exploration(epsilon), dtype=dtype,
        )  # fmt: skip

    if strategy == "replay":
        sampler = WithReplay(fresh(policy), Replay(500), 16, 0, 64)
    elif strategy == "prioritized objects":
        replay = Replay(500, prioritized=True)
        sampler = WithReplay(fresh(policy), replay, 16, 0, 64, retrace_by=policy)
    elif strategy == "data":
        objects = env.all_terminal_states().rows(torch.arange(0, 64, 3))
        data = FromData(policy, conditions, objects, oracle(objects), 16, 0, dtype=dtype)
        sampler = Joined(fresh(policy), data)
    elif strategy.startswith("local search"):
        accept = strategy.split()[-1]
        sampler = LocalSearch(fresh(policy, 8), policy, score, 0, rounds=3, steps=5, accept=accept)
    elif strategy == "search and replay":
        search = LocalSearch(fresh(policy, 8), policy, score, 0, rounds=1, steps=5)
        replay = Replay(500, prioritized=True)
        sampler = WithReplay(search, replay, 16, 0, 64, retrace_by=policy)
    elif strategy == "ensemble":
        policy = EnsemblePolicy(env, 4, (128,), backward="learned", flow=True)
        heads = EnsembleConditions(**vars(conditions), n_heads=4)
        sampler = Bootstrap(fresh(policy, conditions=heads), policy, 0)
    elif strategy == "average":
        average = copy.deepcopy(policy)
        sampler = Averaged(fresh(average, 32), average.to(dtype), policy, 0.9)
    else:
        mix, p = strategy.split()
        policy = ActionValues(policy, MLPPolicy(env, (128,), seed=1)).to(dtype)
        greedy = Greedy(policy, mix, float(p))
        sampler = Joined(fresh(policy), fresh(greedy, seed=1))
        objective = QLearning(objective, horizon=4)
    settings = TrainerSettings(learning_rate=5e-3, log_every=0)
    return Trainer(policy.to(dtype), objective, sampler, settings, folder=folder)


STRATEGIES = [
    "replay",
    "prioritized objects",
    "data",
    "local search greedy",
    "local search metropolis",
    "local search barker",
    "search and replay",
    "ensemble",
    "average",
    "greedy 0.3",
    "quantile 0.5",
    "of_max 0.8",
]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(strategy, tmp_path):
    whole = build(strategy)
    whole.run(12)
    first = build(strategy, folder=tmp_path)
    first.run(7)
    second = build(strategy, folder=tmp_path)
    second.load(tmp_path / "checkpoints" / "step_000000007.pt")
    second.run(12)
    assert torch.equal(parameters(whole.policy), parameters(second.policy))
    assert same_batches(whole.batch, second.batch)


def converge(strategy, dtype, folder, **options):
    """A trainer after 450 steps, the second half of them with everything built and loaded anew."""
    build(strategy, dtype, folder, **options).run(STEPS // 2)
    trainer = build(strategy, dtype, folder, **options)
    trainer.load(folder / "checkpoints" / f"step_{STEPS // 2:09d}.pt")
    trainer.run(STEPS)
    assert next(trainer.policy.parameters()).dtype == dtype
    return trainer


FAST = [name for name in STRATEGIES if name not in ("local search greedy", "local search barker")]
PRECISIONS = (torch.float32, torch.float64)
ALTERNATING = [(name, PRECISIONS[i % 2]) for i, name in enumerate(FAST)]
OTHERS = [
    (name, dtype) for name in STRATEGIES for dtype in PRECISIONS if (name, dtype) not in ALTERNATING
]


@pytest.mark.parametrize(
    "strategy, dtype",
    [*ALTERNATING, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)],
)
def test_trajectory_balance_converges_within_450_steps(strategy, dtype, tmp_path):
    """At 32 trajectories a step."""
    trainer = converge(strategy, dtype, tmp_path)
    assert grid_distance(trainer) < 0.03
    assert abs(trainer.policy.log_z.bias.item() - LOG_Z) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sub_trajectory_balance_converges_too(strategy, tmp_path):
    trainer = converge(strategy, torch.float32, tmp_path, objective=SubTrajectoryBalance())
    assert grid_distance(trainer) < 0.03
