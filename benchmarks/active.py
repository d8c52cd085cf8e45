"""Active learning in rounds of 96: gflow beside qNEHVI by local search and random construction.

    python benchmarks/active.py [--seeds 5] [--rounds 5] [--tasks tf_binding,rna]
                                [--out runs/active] [--table]

The laboratory is simulated by the task's oracle. All methods share the first random batch of a
seed, the surrogate (independent Gaussian processes on n-gram counts), the acquisition function
(noisy expected hypervolume improvement) and the choice of a batch from a pool; they differ in
where the pool comes from:

    gflow    what a GFlowNet meets that is trained on the acquisition function
    qnehvi   a local search for it: edits of the best strings so far, and fresh random ones, with as
             many evaluations of the acquisition function as gflow has
    random   no pool, nothing learned: new objects by random construction

Every finished cell (task, method, seed) is one line of OUT/cells.jsonl, and is not run again. With
--table the table and the cells are written to benchmarks/results/active.md and active.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gflow.active import Round, SessionConfig, fit_surrogate
from gflow.active.features import Features, featurizer
from gflow.active.proposer import Proposer
from gflow.active.rounds import active_set
from gflow.config import PolicySettings
from gflow.pareto import hypervolume
from gflow.seeding import generator
from gflow.tasks import Task, make_task

BATCH = 96
STEPS = 100
TASKS: dict[str, dict[str, Any]] = {
    "tf_binding": {"options": {"bind": "SIX6,CRX", "avoid": "PAX4"}},
    "rna": {"rewards": "energy,stems,pairs"},
}
METHODS = ("random", "qnehvi", "gflow")
RESULTS = Path(__file__).parent / "results" / "active.md"
EVALUATIONS = 64 * (STEPS + 1)
HEAD = f"""    python benchmarks/active.py

Batches of {BATCH}. The sampler of gflow (two layers of 128) trains {STEPS} steps of 64 a round, so
that it and the local search of qnehvi evaluate the acquisition function {EVALUATIONS} times each.
One thread, CPU seconds on a busy shared machine. Numbers of seeds in brackets; every cell is a
line of active.jsonl."""


def measure(task: Task, objects: list[str]) -> Tensor:
    oracle = task.oracle
    return oracle(task.env.encode(objects) if oracle.on_states else objects).double()


def volume(rewards: Tensor, reference: Tensor) -> float:
    above = rewards[(rewards > reference).all(1)]
    return float(hypervolume(above, reference)) if len(above) else 0.0


def edited(text: str, letters: str, shortest: int, longest: int, random: torch.Generator) -> str:
    """One letter replaced, put in or taken out."""
    kinds = ["replace"]
    kinds += ["insert"] * (len(text) < longest) + ["delete"] * (len(text) > shortest)
    draw = torch.rand(3, generator=random).tolist()
    kind = kinds[int(draw[0] * len(kinds))]
    place = int(draw[1] * (len(text) + (kind == "insert")))
    letter = "" if kind == "delete" else letters[int(draw[2] * len(letters))]
    return text[:place] + letter + text[place + (kind != "insert") :]


def local_search(
    value: Callable[[list[str]], Tensor],
    starts: list[str],
    fresh: Callable[[int], list[str]],
    edit: Callable[[str], str],
    budget: int,
) -> dict[str, Tensor]:
    """Every string met and its value: the 50 best so far are edited 20 times each, in turns."""
    met: dict[str, float] = {}
    waiting = [*starts, *fresh(budget // 4)]
    while len(met) < budget:
        new = [text for text in dict.fromkeys(waiting) if text not in met][: budget - len(met)]
        if new:
            met |= zip(new, value(new).squeeze(1).tolist(), strict=True)
        best = sorted(met, key=lambda text: -met[text])[:50]
        # Some fresh strings in every turn: where the edits bring nothing new, the search goes on.
        waiting = [edit(text) for text in best for _ in range(20)] + fresh(200)
    return {text: torch.tensor([x]) for text, x in met.items()}


def cell(name: str, method: str, seed: int, rounds: int) -> dict[str, Any]:
    """Hypervolumes after every round, of one method with one seed."""
    started = time.process_time()
    task = make_task(name, TASKS[name].get("rewards"), TASKS[name].get("options"))
    config = SessionConfig(task=name, seed=seed, steps=STEPS, policy=PolicySettings(hidden=128))
    key = task.key
    features = Features(featurizer(task.env, task.kind))
    reference = torch.tensor(task.reference_point, dtype=torch.float64)
    proposer = Proposer(task, len(task.oracle.rewards), config, key)
    random, turns = generator(seed, "edits"), itertools.count(1000)
    letters = "".join(task.env.vocabulary)
    shortest, longest = task.env.min_length, task.env.length

    def distinct(n: int, number: int) -> list[str]:
        return list(dict.fromkeys(proposer.random(n, number)))

    objects = distinct(4 * BATCH, 0)[:BATCH]
    rewards = measure(task, objects)
    volumes = [volume(rewards, reference)]
    for number in range(1, rounds + 1):
        taken = set(objects)
        if method == "random":
            batch = [x for x in distinct(8 * BATCH, number) if x not in taken][:BATCH]
        else:
            seen = features(objects)
            this = Round(
                fit_surrogate(config.surrogate, seen, rewards),
                features, seen, seen[:0], rewards, reference, taken, key,
                generator(seed, "acquisition", number),
            )  # fmt: skip
            value = this.log_improvement
            if method == "gflow":
                met = proposer.search(value, number, [objects[i] for i in active_set(rewards)])
                met = {key: found for key, (_, found) in met.items()}
            else:
                order = value_order(this, objects)
                met = local_search(
                    value,
                    [edited(x, letters, shortest, longest, random) for x in order[:50]],
                    lambda n: distinct(n, next(turns)),
                    lambda x: edited(x, letters, shortest, longest, random),
                    EVALUATIONS,
                )
            batch = this.choose(list(met), torch.cat(list(met.values())), BATCH)
        objects += batch
        rewards = torch.cat([rewards, measure(task, batch)])
        volumes.append(volume(rewards, reference))
    seconds = time.process_time() - started
    return {
        "task": name, "method": method, "seed": seed, "hypervolume": volumes,
        "measured": len(objects), "cpu_seconds": round(seconds, 1),
    }  # fmt: skip


def value_order(this: Round, objects: list[str]) -> list[str]:
    """Measured objects, those with the largest improvement of an unmeasured twin first."""
    values = this.improvement(this.features(objects))
    return [objects[i] for i in values.argsort(descending=True).tolist()]


def table(cells: list[dict[str, Any]]) -> str:
    lines = []
    for name in TASKS:
        rows = [row for row in cells if row["task"] == name]
        if not rows:
            continue
        rounds = min(len(row["hypervolume"]) for row in rows)
        share = exact(name)
        what = "share of the exact hypervolume" if share else "hypervolume"
        lines += [f"## {name}: {TASKS[name]}", "", f"Mean ± standard error of the {what}.", ""]
        lines += ["| measured | " + " | ".join(METHODS) + " |", "| --- |" + " --- |" * len(METHODS)]
        for number in range(rounds):
            parts = []
            for method in METHODS:
                values = [
                    row["hypervolume"][number] / (share or 1.0)
                    for row in rows
                    if row["method"] == method
                ]
                error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0
                parts.append(
                    f"{statistics.mean(values):.3f} ± {error:.3f} ({len(values)})" if values else ""
                )
            lines.append(f"| {BATCH * (number + 1)} | " + " | ".join(parts) + " |")
        seconds = [
            f"{method} {statistics.mean(found):.0f}"
            for method in METHODS
            if (found := [row["cpu_seconds"] for row in rows if row["method"] == method])
        ]
        lines += ["", f"CPU seconds per cell: {', '.join(seconds)}.", ""]
    return "\n".join(lines)


def exact(name: str) -> float | None:
    """Hypervolume of the whole space, where it is known."""
    task = make_task(name, TASKS[name].get("rewards"), TASKS[name].get("options"))
    values = getattr(task.oracle, "values", None)
    return None if values is None else volume(values, torch.zeros(values.shape[1]).double())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="runs/active")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(options.out) / "cells.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not options.table:
        done = {(row["task"], row["method"], row["seed"]) for row in cells}
        for seed in range(options.seeds):
            for name in options.tasks.split(","):
                for method in METHODS:
                    if (name, method, seed) in done:
                        continue
                    row = cell(name, method, seed, options.rounds)
                    cells.append(row)
                    with path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(row, flush=True)
    text = table(cells)
    print(text)
    if options.table:
        RESULTS.write_text(f"# Active learning\n\n{HEAD}\n\n{text}")
        lines = "".join(json.dumps(row) + "\n" for row in cells)
        RESULTS.with_suffix(".jsonl").write_text(lines)


if __name__ == "__main__":
    main()
