"""Small language models on sums: two rewards, format and correctness, from one short warm start.

    .venv/bin/python benchmarks/language.py run       # resumable, one JSON file for each cell
    .venv/bin/python benchmarks/language.py table     # benchmarks/results/language.md

Causal models are trained by GRPO and by GDPO (rewards normalised apart), masked diffusion models by
diffu-GRPO and by GDPO with bounds on the likelihood; three seeds, one thread, no downloads.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from gflow.config import PolicySettings
from gflow.objectives.catalog import get_method
from gflow.policies.reference import Anchored
from gflow.sampling import OnPolicy, Scorer
from gflow.tasks import make_task
from gflow.training import Events, Trainer, TrainerSettings

RESULTS = Path(__file__).parent / "results"
FOLDER = RESULTS / "language"
SEEDS = (0, 1, 2)
STEPS, EVERY, BATCH, GROUP = 200, 20, 96, 8
CELLS = {
    "grpo": ("arithmetic", {}),
    "gdpo": ("arithmetic", {}),
    "diffu_grpo": ("arithmetic_masked", {"likelihood": "one_step"}),
    "gdpo_elbo": ("arithmetic_masked", {"likelihood": "elbo"}),
}


def train(name: str, seed: int) -> dict[str, object]:
    """One cell: rewards before, on the way and after, on prompts drawn afresh."""
    task_name, options = CELLS[name]
    task, method = make_task(task_name, options=options), get_method(name)
    started = time.process_time()
    policy = task.make_policy(PolicySettings(), 0, False, False, seed)
    warm = time.process_time() - started
    objective = method.objective
    if objective.needs_reference:
        policy = Anchored(policy)
    score = Scorer(task.env, task.oracle, None)

    def draw(batch_size: int, stream: int) -> OnPolicy:
        return OnPolicy(
            policy, task.conditions, score, batch_size, stream, group_size=GROUP, keep_log_pf=True
        )

    curve = []

    def look(trainer: Trainer | None, info: dict[str, float]) -> None:
        rewards = draw(512, 10_000 + seed)().rewards
        both = float((rewards > 0.5).all(1).double().mean())
        curve.append([*rewards.mean(0).tolist(), both])

    look(None, {})
    settings = TrainerSettings(
        learning_rate=1e-3, clip_norm=1.0, log_every=0, eval_every=EVERY,
        updates=2, minibatches=2,
    )  # fmt: skip
    started = time.process_time()
    trainer = Trainer(policy, objective, draw(BATCH, seed), settings, events=Events(on_eval=[look]))
    trainer.run(STEPS)
    if trainer.step < STEPS:
        raise SystemExit("interrupted: the cell is not recorded")
    return {
        "method": name, "seed": seed, "every": EVERY, "curve": curve,
        "warm_seconds": warm, "seconds": time.process_time() - started,
    }  # fmt: skip


def run() -> None:
    """Train every cell that has no result yet."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        for name in CELLS:
            path = FOLDER / f"{name}-{seed}.json"
            if not path.exists():
                path.write_text(json.dumps(train(name, seed)) + "\n")
                print(path.read_text(), flush=True)


def table() -> None:
    """Rewards before and after, mean and range over seeds."""
    rows = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    lines = [
        "| method | format before | format after | correct before | correct after "
        "| both after | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in CELLS:
        mine = [row for row in rows if row["method"] == name]
        if not mine:
            continue
        cells = [
            _range([row["curve"][when][what] for row in mine])
            for what, when in ((0, 0), (0, -1), (1, 0), (1, -1), (2, -1))
        ]
        seconds = sum(row["seconds"] for row in mine) / len(mine)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {seconds:.0f} |")
    print("\n".join(lines))


def _range(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    {"run": run, "table": table}[sys.argv[1]]()
