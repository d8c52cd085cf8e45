"""Small experiments on what the variants of policy optimisation claim, with tabular policies.

Two rewards: does normalising them apart keep the rarer one alive (GDPO)? Questions of unequal
difficulty: what do groups waste, and what do remembered statistics save (DCPO, SPO)? Reused
batches: which clipping learns fastest (PPO, CISPO, DISPO)? Claims that do not show are listed
beside those that do.

    python benchmarks/policy_gradient.py [--seeds 5] [--speed]

writes `benchmarks/results/policy_gradient.json` and prints a table (half a minute on one core).
`--speed` times the advantages of 4,096 groups of 16 trajectories with 8 rewards instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gflow.kernels import gumbel_noise
from gflow.objectives.policy_gradient import (
    Groups,
    Moments,
    advantage,
    aggregate,
    moments,
    step_weights,
    whiten,
)
from gflow.objectives.policy_gradient.surrogates import clipped_weight, ppo_clip
from gflow.objectives.policy_gradient.tracking import (
    pool_moments,
    priority,
    retention,
    smooth_advantage,
    track,
)
from gflow.pareto import hypervolume
from gflow.seeding import generator

F64 = torch.float64
RESULTS = Path(__file__).parent / "results" / "policy_gradient.json"
Update = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def draw(logits: Tensor, n: int, random: torch.Generator) -> Tensor:
    """n actions from each of the last but one dimension's distributions, [n, ...]."""
    noise = gumbel_noise((n, *logits.shape), random, F64, "cpu")
    return (logits + noise).argmax(-1)


def score_step(logits: Tensor, rows: Tensor, actions: Tensor, weights: Tensor, rate: float) -> None:
    """Gradient ascent on mean(weights * sum of log p of the actions of `rows`)."""
    chosen = logits.detach().requires_grad_()
    log_p = chosen.log_softmax(-1)[rows]
    picked = log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    if picked.ndim == 2:
        picked = picked.sum(1)
    (weights * picked).mean().backward()
    with torch.no_grad():
        logits += rate * chosen.grad


def two_rewards(method: str, seed: int) -> dict[str, float]:
    """Six tokens of four kinds: a format (the first one) in [0, 1], correctness in [-3, 3]."""
    random = generator(seed, "two rewards")
    logits = torch.zeros(6, 4, dtype=F64)
    group = torch.arange(16).repeat_interleave(4)
    found = {}
    settings = {
        "grpo": {},
        "grpo without std": {"scale": "none", "whitening": "sequence"},
        "gdpo": {"combine": "norm_then_sum", "whitening": "sequence"},
    }[method]
    for step in range(1, 101):
        tokens = draw(logits, 64, random)
        right = (tokens[:, 1:] == 1).to(F64).mean(1)
        rewards = torch.stack([(tokens[:, 0] == 0).to(F64), 6 * right - 3], 1)
        a = advantage(rewards, group, torch.full((64,), 6), **settings)
        chosen = logits.detach().requires_grad_()
        log_p = chosen.log_softmax(-1).expand(64, -1, -1)
        picked = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).sum(1)
        (a * picked).mean().backward()
        logits = logits + 0.15 * chosen.grad
        if step in (50, 100):
            p = logits.softmax(-1)
            found[f"format {step}"] = float(p[0, 0])
            found[f"correct {step}"] = float(p[1:, 1].mean())
            drawn = torch.stack([rewards[:, 0], right], 1)
            found[f"hypervolume {step}"] = float(hypervolume(drawn, torch.zeros(2, dtype=F64)))
    return found


QUESTIONS, ARMS, BUDGET = 64, 10, 64


def questions() -> Tensor:
    """Logits [64, 10] whose first arm is right with probabilities from 0.01 to 0.95."""
    right = torch.linspace(0.01, 0.95, QUESTIONS, dtype=F64)
    wrong = ((1 - right) / (ARMS - 1)).unsqueeze(1).expand(-1, ARMS - 1)
    return torch.cat([right.unsqueeze(1), wrong], 1).log()


def bandits(method: str, seed: int, rate: float = 6.0) -> dict[str, float]:
    """64 independent questions, 64 answers a step: 8 questions in groups of 8, or one each."""
    random = generator(seed, "bandits")
    logits = questions()
    visits = Moments(*(torch.zeros(QUESTIONS, dtype=F64) for _ in range(3)))
    value = torch.full((QUESTIONS,), 0.5, dtype=F64)
    weight = torch.ones(QUESTIONS, dtype=F64)
    last = logits.log_softmax(-1)
    found: dict[str, float] = {}
    silent = []
    size = 1 if method.startswith("spo") else 8
    for step in range(1, 201):
        chance = priority(value, weight) if method == "spo" else torch.ones(QUESTIONS)
        asked = torch.multinomial(chance.float(), BUDGET // size, generator=random)
        rows = asked.repeat_interleave(size)
        noise = gumbel_noise((BUDGET, ARMS), random, F64, "cpu")
        actions = (logits[rows] + noise).argmax(-1)
        rewards = (actions == 0).to(F64)
        groups = Groups.of(rows)
        if size == 1:
            a = whiten(rewards - value[rows], torch.ones(BUDGET), 1e-8)
        elif method == "dcpo":
            place = rows[groups.order[groups.starts]]
            new, _ = moments(rewards, groups)
            pooled = pool_moments(Moments(*(column[place] for column in visits)), new)
            a = smooth_advantage(rewards, groups, new, pooled)
            for column, fresh in zip(visits, pooled, strict=True):
                column[place] = fresh
        else:
            how = {"rloo": {"baseline": "leave_one_out", "scale": "none"}, "grpo": {}}[method]
            a = advantage(rewards.unsqueeze(1), rows, torch.ones(BUDGET), **how)
        silent.append(float((a == 0).double().mean()))
        score_step(logits, rows, actions, a, rate)
        if size == 1:
            now = logits.log_softmax(-1)
            place = rows[groups.order[groups.starts]]
            picked = actions[groups.order[groups.starts]]
            change = (now - last)[place, picked].abs()
            value[place], weight[place] = track(
                value[place], weight[place], rewards, groups, retention(change)
            )
            last[place] = now[place]
        if step in (50, 100, 200):
            right = logits.softmax(-1)[:, 0]
            found[f"accuracy {step}"] = float(right.mean())
            if step == 100:
                found["hardest quarter 100"] = float(right[: QUESTIONS // 4].mean())
    found["without advantage"] = statistics.mean(silent)
    return found


def reuse(method: str, seed: int) -> dict[str, float]:
    """Six tokens of eight kinds, two of them must be right; 128 rollouts serve 16 updates."""
    random = generator(seed, "reuse")
    logits = torch.zeros(6, 8, dtype=F64)
    mask = torch.ones(128, 6, dtype=torch.bool)
    weights = step_weights(mask, "token_mean", F64)
    found = {}
    bounds = {
        "cispo": ((0.0, 5.0), (0.0, 5.0)),
        "dispo": ((0.8, 11.0), (0.0, 101.0)),
        "dispo, no exploration": ((0.8, 1.0), (0.0, 101.0)),
    }
    for rollout in range(1, 21):
        tokens = draw(logits, 128, random)
        rewards = (tokens[:, :2] == 0).all(1).to(F64).unsqueeze(1)
        group = torch.arange(8).repeat_interleave(16)
        a = advantage(rewards, group, torch.full((128,), 6)).unsqueeze(1)
        index = tokens.unsqueeze(-1)
        old = logits.log_softmax(-1).expand(128, -1, -1).gather(-1, index).squeeze(-1)
        for _ in range(16):
            chosen = logits.detach().requires_grad_()
            log_p = chosen.log_softmax(-1).expand(128, -1, -1).gather(-1, index).squeeze(-1)
            ratio = (log_p - old).exp()
            if method == "ppo":
                each = ppo_clip(ratio, a, 0.8, 1.28)
            else:
                each = clipped_weight(ratio, a, log_p, *bounds[method])
            aggregate(each, weights).backward()
            logits = logits + 3.0 * chosen.grad
        if rollout in (2, 20):
            p = logits.softmax(-1)
            found[f"success {rollout}"] = float(p[0, 0] * p[1, 0])
            found[f"entropy {rollout}"] = float(-(p * p.log()).sum(-1).mean())
    return found


EXPERIMENTS = {
    "two rewards": (two_rewards, ("grpo", "grpo without std", "gdpo")),
    "bandits": (bandits, ("grpo", "rloo", "dcpo", "spo", "spo, even")),
    "reuse": (reuse, ("ppo", "cispo", "dispo", "dispo, no exploration")),
}


CLAIMS = [
    ("GDPO learns the rarer reward sooner than GRPO", "two rewards", "format 50", "gdpo", "grpo"),
    ("SPO is more accurate than GRPO", "bandits", "accuracy 100", "spo", "grpo"),
    ("SPO is more accurate on hard questions", "bandits", "hardest quarter 100", "spo", "grpo"),
    ("DCPO leaves fewer answers without advantage", "bandits", "without advantage",
     "grpo", "dcpo"),
    ("DCPO is more accurate than GRPO", "bandits", "accuracy 200", "dcpo", "grpo"),
    ("SPO gains from prioritised questions", "bandits", "accuracy 100", "spo", "spo, even"),
    ("GRPO without standard deviations is worse", "two rewards", "format 50",
     "grpo", "grpo without std"),
    ("Clipped weights learn faster than PPO from reused batches", "reuse", "success 2",
     "dispo", "ppo"),
    ("DISPO's high bound keeps entropy up", "reuse", "entropy 20",
     "dispo", "dispo, no exploration"),
]  # fmt: skip
"""Text, experiment, figure, and the methods for which it should be larger and smaller."""

Results = dict[str, dict[str, dict[str, list[float]]]]


def run(experiments: dict[str, tuple], seeds: int) -> Results:
    """Every experiment's figures by method and name, one number for each seed."""
    results: Results = {}
    for name, (experiment, methods) in experiments.items():
        results[name] = {}
        for method in methods:
            rows = [experiment(method, seed) for seed in range(seeds)]
            results[name][method] = {key: [row[key] for row in rows] for key in rows[0]}
    return results


def report(results: Results, claims: list[tuple[str, ...]], path: Path) -> None:
    """Write the results, and print them and on how many seeds each claim holds."""
    held = []
    for text, name, figure, better, worse in claims:
        pairs = zip(results[name][better][figure], results[name][worse][figure], strict=True)
        above = [a > b for a, b in pairs]
        held.append((text, sum(above), len(above)))
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"results": results, "claims": held}, indent=1) + "\n")
    for name, methods in results.items():
        figures = list(next(iter(methods.values())))
        print(f"\n{name}: " + ", ".join(figures))
        for method, values in methods.items():
            print(f"  {method}: " + ", ".join(f"{statistics.mean(values[f]):.3f}" for f in figures))
    print()
    for text, count, total in held:
        print(f"{text}: {count} of {total} seeds")


def speed() -> None:
    """Processor time of the advantages of 4,096 x 16 trajectories with 8 rewards."""
    random = generator(0, "speed")
    rewards = torch.rand(65_536, 8, generator=random)
    order = torch.randperm(65_536, generator=random)
    group = torch.arange(4096).repeat_interleave(16)
    lengths = torch.full((65_536,), 10)
    for name, settings in {
        "GRPO": {}, "RLOO": {"baseline": "leave_one_out", "scale": "none"},
        "GDPO": {"combine": "norm_then_sum", "whitening": "sequence"},
    }.items():  # fmt: skip
        for text, g in (("in order", group), ("shuffled", group[order])):
            times = []
            for _ in range(31):
                started = time.process_time()
                advantage(rewards, g, lengths, **settings)
                times.append(1e3 * (time.process_time() - started))
            print(f"{name}, groups {text}: {statistics.median(times):.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--speed", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.speed:
        speed()
        return
    report(run(EXPERIMENTS, chosen.seeds), CLAIMS, RESULTS)


if __name__ == "__main__":
    main()
