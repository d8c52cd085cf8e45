"""A new reward for a sampler pre-trained without one, beside training from scratch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.tables import print_table
from gflow.conditions import Conditions
from gflow.envs.grid_rewards import CornerReward, GridObjectives
from gflow.mdp import Policy, States, Trajectories, concat_states
from gflow.objectives.balance import DetailedBalance, TrajectoryBalance
from gflow.objectives.outcome import AmortizedAdaptation, OutcomeMixture, outcome_condition
from gflow.policies import MLPPolicy
from gflow.sampling import Exploration, rollout
from gflow.seeding import generator
from tests.objectives.test_outcome import GOALS, GRID, AdaptedGrid, contrastive_batch, learn
from tests.objectives.training import distance, trainer

NEW_REWARDS: dict[str, Callable[[States], Tensor]] = {
    "corner": CornerReward(8),
    "branin ** 4": lambda states: GridObjectives(["branin"], side=8)(states) ** 4 + 0.01,
    "beale ** 4": lambda states: GridObjectives(["beale"], side=8)(states) ** 4,
}
TV_LEVELS = (0.2, 0.1, 0.05)


def adaptation_batch(
    policy: Policy, reward: Callable[[States], Tensor], n: int, random: torch.Generator
) -> Trajectories:
    """n trajectories, each with the outcome it reached and with two drawn evenly."""
    explore = Exploration(epsilon=0.1)
    batch = rollout(
        policy, GRID.initial(n), Conditions().sample(n), random, exploration=explore
    )  # fmt: skip
    even = GOALS.rows(torch.randint(GOALS.n, (2 * n,), generator=random))
    wanted = concat_states([batch.terminal, even])
    return replace(
        batch.rows(torch.arange(n).repeat(3)),
        condition=outcome_condition(GRID, wanted, torch.float32),
        log_reward=reward(wanted).squeeze(1).log().float(),
    )


def adapt(
    policy: Policy, reward: Callable[[States], Tensor], steps: int, every: int
) -> list[tuple[int, float]]:
    """Total variation while an amortised sampler learns the sum over outcomes."""
    adapted, random = AdaptedGrid(), generator(1, "adapt")
    objective = AmortizedAdaptation(outcomes=policy, floor=-10.0)
    optimizer = torch.optim.Adam(adapted.parameters(), lr=2e-3)
    curve = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        objective(adapted, adaptation_batch(adapted, reward, 32, random)).value.backward()
        optimizer.step()
        if step % every == 0:
            curve.append((step, distance(adapted, reward)))
    return curve


def from_scratch(
    reward: Callable[[States], Tensor], steps: int, every: int
) -> list[tuple[int, float]]:
    """Total variation while trajectory balance learns."""
    run = trainer(MLPPolicy(GRID, (64, 64)), TrajectoryBalance(), reward, rate=2e-3, batch_size=32)
    curve = []
    for step in range(every, steps + 1, every):
        run.run(step)
        curve.append((step, distance(run.policy, reward)))
    return curve


def transfer(quick: int) -> None:
    """OC-GFN pre-trained once and adapted to new rewards, against TB from scratch."""
    ahead, steps = max(2500 // quick, 2), max(1500 // quick, 2)
    every = max(steps // 60, 1)
    random = generator(0, "pre-train")
    started = time.process_time()
    policy = MLPPolicy(GRID, (128, 128), condition_size=GRID.observation_size, flow=True)
    learn(DetailedBalance(), policy, lambda: contrastive_batch(policy, 32, random), ahead)
    spent = time.process_time() - started
    share = ahead * 64 / len(NEW_REWARDS)

    def cells(curve: list[tuple[int, float]], charged: float) -> list[str]:
        """Steps / trajectories / trajectories with pre-training, to each level."""
        found = [next((x for x, tv in curve if tv < level), None) for level in TV_LEVELS]
        return ["never" if x is None else f"{x} / {32 * x} / {32 * x + charged:.0f}" for x in found]

    def rows() -> Iterable[Sequence]:
        for name, reward in NEW_REWARDS.items():
            mixture = OutcomeMixture(policy, GOALS, reward(GOALS).squeeze(1).log().float())
            arms = {
                "OC-GFN, conversion": lambda m=mixture, r=reward: [(0, distance(m, r))],
                "OC-GFN, amortised": lambda r=reward: adapt(policy, r, steps, every),
                "TB from scratch": lambda r=reward: from_scratch(r, steps, every),
            }
            for arm, make in arms.items():
                begun = time.process_time()
                curve = make()
                charged = 0.0 if arm.startswith("TB") else share
                best = min(tv for _, tv in curve)
                seconds = time.process_time() - begun
                yield name, arm, *cells(curve, charged), curve[-1][1], best, f"{seconds:.1f}"

    print_table(
        "Transfer: a new reward on the 8 x 8 grid, to the same total variation",
        f"""Seed 0. Pre-training, once and without a reward: {ahead} steps of 64 sampled
        trajectories ({spent:.0f} s), network 2 x 128, detailed balance with missed outcomes. Then
        up to {steps} steps of 32 trajectories, Adam 0.002, networks 2 x 64, looked at every
        {every} steps. Cells: steps / trajectories / trajectories with a third of the pre-training
        charged ({share:.0f}). Conversion reads the reward of all 64 points once.""",
        ("reward", "sampler", *(f"TV < {level}" for level in TV_LEVELS), "TV at the end",
         "best TV", "s"),
        rows(),
    )  # fmt: skip
