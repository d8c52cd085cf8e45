"""Where batches come from, on a grid with hidden modes: docs/figures/exploration.svg.

`--seeds 3` and `--steps 1200` by default; every step scores 16 new trajectories.
"""

import argparse
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from common import save

import gflow
from gflow.envs.grid_rewards import CornerReward
from gflow.envs.grids import HyperGrid
from gflow.estimators import terminating_distribution, total_variation
from gflow.objectives.balance import TrajectoryBalance
from gflow.sampling import (
    Bootstrap,
    EnsembleConditions,
    EnsemblePolicy,
    Exploration,
    LocalSearch,
    Strategy,
)

SIDE, BATCH, EVERY = 16, 16, 20
ENV, ORACLE = HyperGrid(2, SIDE), CornerReward(SIDE, r0=3e-3)
SCORE = gflow.Scorer(ENV, ORACLE)
Made = tuple[gflow.MLPPolicy, Strategy]


def fresh(policy: gflow.MLPPolicy, seed: int, size: int = BATCH, **settings: float) -> Strategy:
    return gflow.OnPolicy(
        policy, gflow.Conditions(), SCORE, size, seed, exploration=Exploration(**settings)
    )


def plain(seed: int, **settings: float) -> Made:
    policy = gflow.MLPPolicy(ENV, hidden=(128, 128), seed=seed)
    return policy, fresh(policy, seed, **settings)


def replayed(seed: int) -> Made:
    policy, sampler = plain(seed, epsilon=0.1)
    buffer = gflow.Replay(2000, prioritized=True)
    return policy, gflow.WithReplay(sampler, buffer, BATCH, seed, retrace_by=policy)


def searched(seed: int) -> Made:
    policy = gflow.MLPPolicy(ENV, hidden=(128, 128), seed=seed)
    start = fresh(policy, seed, BATCH // 4, epsilon=0.1)
    return policy, LocalSearch(start, policy, SCORE, seed, rounds=3, steps=6)


def ensemble(seed: int) -> Made:
    policy = EnsemblePolicy(ENV, n_heads=10, hidden=(128, 128), seed=seed)
    sampler = gflow.OnPolicy(policy, EnsembleConditions(n_heads=10), SCORE, BATCH, seed)
    return policy, Bootstrap(sampler, policy, seed)


STRATEGIES: dict[str, Callable[[int], Made]] = {
    "on-policy": plain,
    "epsilon 0.1": lambda seed: plain(seed, epsilon=0.1),
    "temperature 2": lambda seed: plain(seed, temperature=2.0),
    "prioritised replay": replayed,
    "local search": searched,
    "Thompson, 10 heads": ensemble,
}


def curve(made: Made, steps: int) -> torch.Tensor:
    """Total variation to the target before training and after every `EVERY` steps."""
    policy, sampler = made
    trainer = gflow.Trainer(policy, TrajectoryBalance(), sampler)
    distances = []
    for step in range(0, steps + 1, EVERY):
        trainer.run(step)
        found = terminating_distribution(policy, gflow.Conditions().sample(1))
        reward = ORACLE(found.states)[:, 0]
        distances.append(total_variation(found.probability, reward / reward.sum()))
    return torch.stack(distances)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()
    figure, axis = plt.subplots(figsize=(5.6, 3.4))
    for name, make in STRATEGIES.items():
        runs = torch.stack([curve(make(seed), arguments.steps) for seed in range(arguments.seeds)])
        x = range(0, BATCH * (arguments.steps + 1), BATCH * EVERY)
        axis.plot(x, runs.mean(0), label=name)
        axis.fill_between(x, runs.amin(0), runs.amax(0), alpha=0.12)
        ends = ", ".join(f"{value:.3f}" for value in runs[:, -1].tolist())
        print(f"{name:20} total variation at the end: {ends}", flush=True)
    axis.set_xlabel("trajectories scored")
    axis.set_ylabel("total variation to the target")
    axis.set_ylim(0, 1)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, "exploration.svg")


if __name__ == "__main__":
    main()
