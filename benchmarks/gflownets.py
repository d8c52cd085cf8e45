"""The GFlowNet family where the truth is known: fronts, sets, transfer of a reward, exact targets.

    python -m benchmarks.gflownets [fronts] [sets] [transfer] [targets] [--quick]

Run from the repository's root (small policies and runs are shared with its tests). Every part
prints its budget and a Markdown table; seconds are CPU seconds of one thread. `--quick` takes a
fiftieth of the steps and one seed.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from gflow.conditions import Conditions, InverseTemperature
from gflow.envs.grid_rewards import CornerReward, GridObjectives
from gflow.envs.grids import HyperGrid
from gflow.envs.sequences.orders import AppendSequences, InsertSequences, PrependAppendSequences
from gflow.envs.sequences.slots import Slots
from gflow.envs.set_rewards import SetEnergy
from gflow.envs.sets import Sets
from gflow.estimators import distinct, terminating_distribution
from gflow.mdp import (
    Condition,
    Environment,
    Objective,
    Policy,
    States,
    Trajectories,
    concat_states,
)
from gflow.objectives.balance import DetailedBalance, SubTrajectoryBalance, TrajectoryBalance
from gflow.objectives.ordering import Ordering, dominance
from gflow.objectives.outcome import AmortizedAdaptation, OutcomeMixture, outcome_condition
from gflow.pareto import top_k_reward
from gflow.policies import MLPPolicy
from gflow.sampling import Exploration, OnPolicy, Scorer, rollout
from gflow.sampling.strategies import Strategy
from gflow.scalarize import log_reward
from gflow.seeding import generator
from gflow.training import Trainer, TrainerSettings
from tests.diamond import DiamondOracle, diamond
from tests.objectives.test_outcome import GOALS, GRID, AdaptedGrid, contrastive_batch, learn
from tests.objectives.training import FIXED_TARGET, anneal, distance, learned_log_z, trainer
from tests.tabular import TabularPolicy

ONE = Conditions().sample(1)
"""The condition of samplers that are asked for nothing."""


def print_table(title: str, budget: str, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """A Markdown table, each row as soon as it is known."""
    print(f"\n## {title}\n\n{' '.join(budget.split())}\n")
    print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header), flush=True)
    for row in rows:
        print("| " + " | ".join(_cell(value) for value in row) + " |", flush=True)


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


# Fronts: order-preserving against preference-conditional.

FUNCTIONS = ("branin", "currin", "shubert", "beale")
COMBINATIONS = [names for k in (2, 3, 4) for names in itertools.combinations(FUNCTIONS, k)]
BETA, CONCENTRATION, ASKED = 16.0, 1.5, 32


def front_trainer(
    policy: nn.Module, objective: Objective, conditions: Conditions, names: Sequence[str],
    settings: TrainerSettings,
) -> Trainer:  # fmt: skip
    """Batches of 128 on the 32 x 32 grid, 1 % of the actions even."""
    sampler = OnPolicy(
        policy, conditions, Scorer(policy.env, GridObjectives(names)), 128, 0,
        exploration=Exploration(epsilon=0.01),
    )  # fmt: skip
    return Trainer(policy, objective, sampler, settings)


def front_mass(policy: Policy, names: Sequence[str], conditions: Iterable[Condition]) -> float:
    """Exact probability of the true front, averaged over conditions."""
    masses = []
    for condition in conditions:
        found = terminating_distribution(policy, condition)
        best = ~dominance(GridObjectives(names)(found.states)).any(0)
        masses.append(float(found.probability[best].sum()))
    return statistics.mean(masses)


def order_preserving(names: Sequence[str], checks: Sequence[int], network: bool = False) -> list:
    """Probability of the front after each of `checks` steps."""
    env = HyperGrid(2, 32, stop_at_border=True)
    if network:
        policy = MLPPolicy(env, (64, 64, 64))
        settings = TrainerSettings(learning_rate=1e-2, weight_decay=1e-4, log_every=0)
    else:
        policy = TabularPolicy(env, 32, dtype=torch.float32)
        policy.logits.data[..., -1] = -3.0
        settings = TrainerSettings(learning_rate=0.05, log_every=0)
    run = front_trainer(policy, Ordering(), Conditions(len(names)), names, settings)
    found = []
    for steps in checks:
        run.run(steps)
        found.append(front_mass(policy, names, [ONE]))
    return found


def preference_conditional(names: Sequence[str], steps: int) -> tuple[float, float]:
    """Probability of the front of a trained sampler and of its exact limit, over preferences."""
    conditions = Conditions(len(names), InverseTemperature("constant", BETA), CONCENTRATION)
    env = HyperGrid(2, 32, stop_at_border=True)
    policy = MLPPolicy(env, (64, 64, 64), conditions.encoding_size)
    settings = TrainerSettings(5e-3, log_z_learning_rate=0.1, weight_decay=1e-4, log_every=0)
    run = front_trainer(policy, TrajectoryBalance(), conditions, names, settings)
    anneal(run, steps)
    asked = conditions.sample(ASKED, generator(0, "asked"))
    rows = [asked.rows(torch.tensor([i])) for i in range(ASKED)]
    rewards = GridObjectives(names)(env.all_terminal_states())
    best = ~dominance(rewards).any(0)
    n = len(rewards)
    limits = [
        log_reward(rewards, row.rows(torch.zeros(n, dtype=torch.int64))).softmax(0)[best].sum()
        for row in rows
    ]
    return front_mass(policy, names, rows), float(torch.stack(limits).mean())


def fronts(quick: int) -> None:
    """OP-TB on every combination of the four functions, beside MOGFN-PC and its limit."""
    long, steps = max(3000 // quick, 2), max(1000 // quick, 2)

    def rows() -> Iterable[Sequence]:
        for names in COMBINATIONS:
            started = time.process_time()
            checks = (steps, long) if names == ("branin", "currin") else (steps,)
            op = order_preserving(names, checks)
            network = order_preserving(names, (steps,), network=True) if len(checks) > 1 else ["-"]
            middle = time.process_time()
            trained, limit = preference_conditional(names, steps)
            rewards = GridObjectives(names)(
                HyperGrid(2, 32, stop_at_border=True).all_terminal_states()
            )
            size = int((~dominance(rewards).any(0)).sum())
            yield (
                "-".join(names), size, op[0], op[1] if len(op) > 1 else "-", network[0], trained,
                limit, f"{middle - started:.0f}", f"{time.process_time() - middle:.0f}",
            )  # fmt: skip

    print_table(
        "Fronts: exact probability of the true front, 32 x 32 grid",
        f"""Seed 0, batch 128, epsilon 0.01 in training, uniform P_B; probabilities of P_F itself by
        dynamic programming. OP-TB: table of logits (stop starts at -3), Adam 0.05, {steps} steps
        ({long} where shown); network 3 x 64, Adam 0.01. Preference-conditional TB: network 3 x 64,
        Adam 0.005 annealed, {steps} steps, weighted sum, beta {BETA:.0f}, preferences
        Dirichlet({CONCENTRATION}), averaged over {ASKED} preferences; its limit is the exact target
        averaged over the same.""",
        ("rewards", "front", f"OP-TB {steps}", f"OP-TB {long}", f"OP-TB network {steps}",
         "PC trained", "PC limit", "s OP", "s PC"),
        rows(),
    )  # fmt: skip


# Sets: partial rewards.

SETS = SetEnergy.setting("small")
SET_LEVELS = (0.3, 0.1)


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
    env, gains = Sets(30, SETS.size), -SETS.energies
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
    return env._finished(data)


def first_below(curve: Sequence[tuple[int, float]], level: float) -> int | None:
    """Where a curve goes below the level for good."""
    late = [x for x, value in curve if not value < level]
    after = [x for x, _ in curve if not late or x > late[-1]]
    return after[0] if after else None


def shown(values: Sequence[int | None]) -> str:
    """Mean of what was reached, and how often it was not."""
    reached = [value for value in values if value is not None]
    missed = f" ({len(values) - len(reached)} of {len(values)} never)" if None in values else ""
    return f"{statistics.mean(reached):.0f}{missed}" if reached else "never"


def sets(quick: int) -> None:
    """FL-SubTB against SubTB to the same error, FL-DB against DB on cut-short trajectories."""
    steps, seeds = max(2000 // quick, 2), 3 if quick == 1 else 1
    every, per_step = max(steps // 20, 1), 16 * SETS.size
    reference = top_100(exact_sets(1000, generator(0, "exact")))
    whole = {"subtb": SubTrajectoryBalance(), "fl_subtb": FIXED_TARGET["fl_subtb"]}

    def rows() -> Iterable[Sequence]:
        for name, objective in whole.items():
            started = time.process_time()
            errors, tops = [], []
            for seed in range(seeds):
                run, random = set_run(objective, seed), generator(seed, "scores")
                error, top = [], []
                for at in range(every, steps + 1, every):
                    run.run(at)
                    scores = set_scores(run.policy, random)
                    error.append((at * per_step, scores[0]))
                    top.append((at * per_step, abs(scores[2] / reference - 1)))
                errors.append(error)
                tops.append(top)
            yield (
                name, *(shown([first_below(curve, level) for curve in errors])
                        for level in SET_LEVELS),
                shown([first_below(curve, 0.05) for curve in tops]),
                " ".join(f"{curve[-1][1]:.3f}" for curve in errors),
                " ".join(f"{curve[-1][1]:.1%}" for curve in tops),
                f"{time.process_time() - started:.0f}",
            )  # fmt: skip

    print_table(
        "Sets: states visited to the same error (20 of 30 items, log Z = 11.8924)",
        f"""Seeds 0..{seeds - 1}, {steps} steps of 16 trajectories of 20 states, network 2 x 256,
        learned P_B, Adam 0.001, epsilon 0.1, lambda 0.9; looked at every {every} steps. Columns 2
        to 4: visited states after which the error stays below the level, mean over seeds. The top
        100 are the distinct best of 1000 samples, compared with those of 1000 exact samples
        (mean R {reference:.4f}).""",
        ("objective", *(f"log Z within {level}" for level in SET_LEVELS), "top 100 within 5 %",
         "log Z error at the end", "top 100 off at the end", "s"),
        rows(),
    )  # fmt: skip

    cut_steps = max(1000 // quick, 2)
    exact = exact_sets(1000, generator(0, "exact"))
    arms = {"untrained": None, "db": DetailedBalance(), "fl_db": FIXED_TARGET["fl_db"]}

    def cut_rows() -> Iterable[Sequence]:
        for name, objective in arms.items():
            started, found = time.process_time(), []
            for seed in range(seeds):
                run = set_run(objective or DetailedBalance(), seed, cut=10)
                run.run(cut_steps if objective else 0)
                found.append(set_scores(run.policy, generator(seed, "scores")))
            yield (
                name, " ".join(f"{scores[1]:.3f}" for scores in found),
                " ".join(f"{scores[2]:.4f}" for scores in found),
                f"{time.process_time() - started:.0f}",
            )  # fmt: skip
        yield "exact sampler", float(SETS.partial_log_reward(exact).mean()), f"{reference:.4f}", "-"

    print_table(
        "Sets: every trajectory cut short at step 10 of 20",
        f"""The same runs, {cut_steps} steps, never a finished set; the policy then builds whole
        sets. Without a finished set log Z is not identified.""",
        ("objective", "mean log R of 1000 samples", "top 100 mean R", "s"),
        cut_rows(),
    )


# Transfer: outcome-conditioned pre-training.

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


# Targets: every objective with a fixed optimum.


class TableReward:
    """exp(noise) for every state, finished or not, from a table."""

    rewards = ()
    version = "1"
    on_states = True
    seconds = 0.0

    def __init__(self, env: Environment, base: int, scale: float = 0.7):
        size = base ** env.state_shape[0]
        self.radix = base ** torch.arange(env.state_shape[0])
        self.table = (scale * torch.randn(size, generator=generator(0, "reward")).double()).exp()

    def __call__(self, states: States) -> Tensor:
        return self.table[states.data @ self.radix].unsqueeze(-1)


def _tabled(env: Environment, base: int) -> tuple[Environment, int, object]:
    return env, base, TableReward(env, base)


# An empty place is -1: as an index it wraps round, so rows of base V + 1 keep numbers of their own.
SPACES: dict[str, tuple[Environment, int, object]] = {
    "diamond": (diamond(), 2, DiamondOracle()),
    "sets of 4": _tabled(Sets(4, 4, stop=True), 2),
    "grid 8 x 8": (HyperGrid(2, 8), 8, CornerReward(8)),
    "append": _tabled(AppendSequences("ABC", 3, 1), 4),
    "prepend-append": _tabled(PrependAppendSequences("ABC", 3, 1), 4),
    "insert": _tabled(InsertSequences("ABC", 3, 1), 4),
    "slots": _tabled(Slots("ABC", 3, stop=True), 4),
}
SLOW = {"led_db": 2, "soft_q": 2, "munchausen": 2}
"""Objectives that chase a target of their own take more steps."""


def reach(
    space: tuple[Environment, int, object], name: str, dtype: torch.dtype, steps: int
) -> tuple[float, float] | None:
    """Total variation and |log Z error| after `steps` steps; None where refused."""
    env, base, oracle = space
    if name == "tlm" and env.tree:
        return None
    objective = FIXED_TARGET[name]
    try:
        objective.check(env)
    except (AttributeError, ValueError):
        return None
    kind = "learned" if name == "tlm" else "uniform"
    policy = TabularPolicy(env, base, backward=kind, dtype=dtype)
    run = trainer(policy, objective, oracle, rate=0.05, batch_size=32)
    anneal(run, steps)
    exact = float(oracle(env.all_terminal_states()).sum().log())
    return distance(policy, oracle), abs(learned_log_z(run) - exact)


def targets(quick: int) -> None:
    """Total variation and log Z error of every objective on every small space."""
    steps = max(600 // quick, 2)
    worst = {}

    def cell(space: str, name: str, dtype: torch.dtype) -> str:
        found = reach(SPACES[space], name, dtype, steps * SLOW.get(name, 1))
        if found is None:
            return "refused"
        worst[name, space, dtype] = found
        return f"{found[0]:.3f} / {found[1]:.3f}" + " *" * (found[0] >= 0.03 or found[1] >= 0.02)

    for dtype in (torch.float32, torch.float64):

        def rows(dtype: torch.dtype = dtype) -> Iterable[Sequence]:
            for name in FIXED_TARGET:
                started = time.process_time()
                found = [cell(space, name, dtype) for space in SPACES]
                yield name, *found, f"{time.process_time() - started:.0f}"

        print_table(
            f"Targets: total variation / log Z error, {str(dtype).removeprefix('torch.')}",
            f"""Seed 0, tables of logits, {steps} steps of 32 ({", ".join(SLOW)}: twice as many),
            Adam 0.05 annealed, epsilon 0.1, uniform P_B (tlm: learned). A star: total variation
            not below 0.03 or log Z not within 0.02.""",
            ("objective", *SPACES, "s"),
            rows(),
        )
    good = sum(tv < 0.03 and error < 0.02 for tv, error in worst.values())
    print(f"\n{good} of {len(worst)} within both bounds.")


PARTS = {"fronts": fronts, "sets": sets, "transfer": transfer, "targets": targets}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="|".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the steps, one seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}: choose from {', '.join(PARTS)}")
        PARTS[part](50 if options.quick else 1)


if __name__ == "__main__":
    main()
