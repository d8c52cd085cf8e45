"""Partial rewards on sets: forward-looking objectives beside plain ones."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from benchmarks.tables import print_table
from gflow.conditions import Conditions
from gflow.envs.common import finished
from gflow.envs.set_rewards import SetEnergy
from gflow.envs.sets import Sets
from gflow.estimators import distinct
from gflow.mdp import Objective, States, Trajectories
from gflow.pareto import top_k_reward
from gflow.policies import MLPPolicy
from gflow.sampling import rollout
from gflow.sampling.strategies import Strategy
from gflow.seeding import generator
from gflow.training import Trainer
from tests.objectives.training import FIXED_TARGET, trainer

ONE = Conditions().sample(1)
"""The condition of samplers that are asked for nothing."""

SETS = SetEnergy.setting("small")
LEVELS = ((0, 1.0, True), (0, 0.3, True), (1, 0.2, True), (2, 0.1, False))
"""Which error, how small, and whether it must stay so."""


class CutShort:
    """The batches of another strategy, each trajectory ending unfinished after `steps` steps."""

    def __init__(self, strategy: Strategy, steps: int):
        self.strategy, self.steps = strategy, steps

    def __call__(self) -> Trajectories:
        batch, n = self.strategy(), self.steps + 1
        return replace(
            batch, states=batch.states[:, : n + 1], actions=batch.actions[:, :n],
            backward_actions=batch.backward_actions[:, :n], valid=batch.valid[:, :n],
            partial_log_reward=batch.partial_log_reward[:, : n + 1],
            complete=torch.zeros(batch.n, dtype=torch.bool),
        )  # fmt: skip


def set_run(objective: Objective, seed: int, cut: int | None = None) -> Trainer:
    """Batches of 16, network 2 x 256 with learned P_B, a tenth of the actions even."""
    env = Sets(30, SETS.size)
    policy = MLPPolicy(env, (256, 256), backward="learned", flow=True, seed=seed)
    wrap = None if cut is None else lambda sampler: CutShort(sampler, cut)
    return trainer(policy, objective, SETS, seed=seed, rate=1e-3, batch_size=16, wrap=wrap)


def top_100(states: States) -> float:
    """Mean reward of the 100 best distinct ones."""
    rewards = SETS(states.rows(distinct(states)[0])).squeeze(1)
    return float(top_k_reward(rewards, 100)) if len(rewards) >= 100 else math.nan


def set_scores(policy: MLPPolicy, random: torch.Generator) -> tuple[float, float, float]:
    """|log Z error|, mean log R and mean R of the best 100, of 1000 samples without exploration."""
    env = policy.env
    condition = Conditions().sample(1000)
    ends = rollout(policy, env.initial(1000), condition, random).terminal
    with torch.no_grad():
        flow = policy(env.initial(1), ONE, frozenset({"log_flow"})).log_flow
    error = abs(float(flow) - float(SETS.log_partition()))
    return error, float(SETS.partial_log_reward(ends).mean()), top_100(ends)


def exact_sets(n: int, random: torch.Generator) -> States:
    """n sets drawn from R / Z, item by item from the last."""
    gains = -SETS.energies
    log_e = torch.full((len(gains) + 1, SETS.size + 1), -torch.inf, dtype=torch.float64)
    log_e[:, 0] = 0.0
    for i, gain in enumerate(gains):
        log_e[i + 1, 1:] = torch.logaddexp(log_e[i, 1:], log_e[i, :-1] + gain)
    left = torch.full((n,), SETS.size)
    data = torch.zeros(n, len(gains), dtype=torch.int64)
    for i in reversed(range(len(gains))):
        share = (gains[i] + log_e[i, (left - 1).clamp(min=0)] - log_e[i + 1, left]).exp()
        data[:, i] = (torch.rand(n, generator=random) < share) & (left > 0)
        left -= data[:, i]
    return finished(data, data.sum(1))


def first_below(curve: Sequence[tuple[int, float]], level: float, held: bool) -> int | None:
    """Where a curve first goes below the level; with `held`, where it does so for good."""
    late = [x for x, value in curve if not value < level] if held else []
    after = [x for x, value in curve if value < level and (not late or x > late[-1])]
    return after[0] if after else None


def shown(values: Sequence[int | None]) -> str:
    """Mean of what was reached, and how often it was not."""
    reached = [value for value in values if value is not None]
    missed = f" ({len(values) - len(reached)} of {len(values)} never)" if None in values else ""
    return f"{statistics.mean(reached):.0f}{missed}" if reached else "never"


def sets(quick: int) -> None:
    """Forward-looking against plain objectives: to the same error, and without finished sets."""
    steps, seeds = max(1000 // quick, 4), 3 if quick == 1 else 1
    every, per_step = max(steps // 50, 1), 16 * SETS.size
    exact = exact_sets(1000, generator(0, "exact"))
    mean, best = float(SETS.partial_log_reward(exact).mean()), top_100(exact)

    def errors(objective: Objective, seed: int) -> list[tuple[int, list[float]]]:
        """States visited, and by how much log Z, mean log R and the best 100 are off."""
        run, random, curve = set_run(objective, seed), generator(seed, "scores"), []
        for at in range(every, steps + 1, every):
            run.run(at)
            log_z, found, top = set_scores(run.policy, random)
            curve.append((at * per_step, [log_z, abs(found - mean), abs(top / best - 1)]))
        return curve

    def rows() -> Iterable[Sequence]:
        for name in ("subtb", "fl_subtb", "db", "fl_db"):
            started = time.process_time()
            curves = [errors(FIXED_TARGET[name], seed) for seed in range(seeds)]
            reached = [
                shown([first_below([(x, e[kind]) for x, e in c], level, held) for c in curves])
                for kind, level, held in LEVELS
            ]
            ends = [statistics.mean(curve[-1][1][kind] for curve in curves) for kind in range(3)]
            yield name, *reached, *ends, f"{time.process_time() - started:.0f}"

    print_table(
        "Sets: states visited to the same error (20 of 30 items, log Z = 11.8924)",
        f"""Seeds 0..{seeds - 1}, {steps} steps of 16 trajectories of 20 states ({steps * per_step}
        states in all), network 2 x 256, learned P_B, Adam 0.001, epsilon 0.1, lambda 0.9; looked at
        every {every} steps. Columns 2 to 5: visited states until log F(s0) and the mean log R of
        1000 samples are, and stay, so near the exact values (11.8924 and {mean:.3f}), and until the
        mean R of the best 100 distinct samples is first within a tenth of that of 1000 exact
        samples ({best:.4f}); mean over seeds. Then the mean errors at the end.""",
        ("objective", "log Z within 1", "log Z within 0.3", "mean log R within 0.2",
         "top 100 within 10 %", "log Z error", "mean log R error", "top 100 error", "s"),
        rows(),
    )  # fmt: skip

    cut_steps = max(1000 // quick, 2)
    arms = {"untrained": None, "db": FIXED_TARGET["db"], "fl_db": FIXED_TARGET["fl_db"]}

    def cut_rows() -> Iterable[Sequence]:
        for name, objective in arms.items():
            started, found = time.process_time(), []
            for seed in range(seeds):
                run = set_run(objective or FIXED_TARGET["db"], seed, cut=10)
                run.run(cut_steps if objective else 0)
                found.append(set_scores(run.policy, generator(seed, "scores")))
            yield (
                name, " ".join(f"{scores[1]:.3f}" for scores in found),
                " ".join(f"{scores[2]:.4f}" for scores in found),
                f"{time.process_time() - started:.0f}",
            )  # fmt: skip
        yield "exact sampler", mean, f"{best:.4f}", "-"

    print_table(
        "Sets: every trajectory cut short at step 10 of 20",
        f"""The same runs, {cut_steps} steps, never a finished set; the policy then builds whole
        sets. Without a finished set log Z is not identified.""",
        ("objective", "mean log R of 1000 samples", "top 100 mean R", "s"),
        cut_rows(),
    )
