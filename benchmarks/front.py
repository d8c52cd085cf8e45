"""The main job on several seeds: hypervolume against random assembly, validity, preferences.

    python benchmarks/front.py [--seeds 3] [--rewards qed,sa] [--out runs/front] [gflow train flags]

Prints one row per seed and the mean and spread over seeds. Random assembly scores as many
distinct molecules as the trained sampler did.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from gflow.cli import main as gflow
from gflow.pareto import hypervolume
from gflow.store import CandidateStore


def volume(path: Path) -> tuple[float, int]:
    """Hypervolume from 0 of a store's candidates, and how many there are."""
    with CandidateStore(path) as store:
        rewards = store.rewards_tensor()
    return float(hypervolume(rewards, torch.zeros(rewards.shape[1]).double())), len(rewards)


def run(rewards: str, seed: int, out: Path, flags: list[str]) -> dict[str, float]:
    started = time.perf_counter()
    gflow(["train", "molecules", "--rewards", rewards, f"--seed={seed}", f"--out={out}", *flags])
    seconds = time.perf_counter() - started
    trained, candidates = volume(out / "candidates.sqlite")
    random, _ = volume(out / "baseline.sqlite")
    row = {
        "seconds": seconds,
        "candidates": candidates,
        "hypervolume": trained,
        "random": random,
    }
    samples = json.loads((out / "samples.json").read_text())
    valid = [r for s in samples for r in s["rewards"]]
    row["valid"] = sum(r is not None for r in valid) / len(valid)
    row["unique"] = statistics.mean(len(set(s["objects"])) / len(s["objects"]) for s in samples)
    names = [name.split(":")[0] for name in rewards.split(",")]
    for sample in samples:
        asked = "/".join(f"{w:.2g}" for w in sample["preference"])
        good = [r for r in sample["rewards"] if r is not None]
        for k, name in enumerate(names):
            row[f"{name} at {asked}"] = statistics.mean(r[k] for r in good)
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rewards", default="qed,sa")
    parser.add_argument("--out", default="runs/front")
    options, flags = parser.parse_known_args()
    rows = [
        run(options.rewards, seed, Path(options.out) / f"seed_{seed}", flags)
        for seed in range(options.seeds)
    ]
    width = max(len(name) for name in rows[0])
    print(f"{'':{width}s}  " + "  ".join(f"{f'seed {i}':>9s}" for i in range(len(rows))), end="")
    print("       mean    spread")
    for name in rows[0]:
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells = "  ".join(f"{value:9.4g}" for value in values)
        print(f"{name:{width}s}  {cells}  {statistics.mean(values):9.4g}  {spread:8.2g}")


if __name__ == "__main__":
    main()
