"""Speed of the oracles, and how busy the runner keeps its workers.

    python benchmarks/oracles.py [--seh FILE] [--vina FILE]

Rates are per second of one core's CPU time, the best of several repetitions: other work on the
machine can only slow them down. The share in which workers are busy is that of the time from the
first object's start to the last one's end in which they compute, taken from the workers' own
records; other work on the machine lengthens both alike.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

import torch
from molecules import uniform_steps
from torch import Tensor

from gflow.envs.molecules import FragmentMolecules, MoleculeOracle
from gflow.envs.sequences.rna import RNAOracle
from gflow.mdp import Oracle, Reward
from gflow.oracles import OracleRunner

WORKERS = 2
SECONDS = 0.5


class BusyLoop:
    """Burns the same CPU time for each object, and records when."""

    rewards = (Reward("zero"),)
    version = "1"
    on_states = False

    def __init__(self, folder: str, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds

    def __call__(self, objects: list[str]) -> Tensor:
        for text in objects:
            start, until = time.monotonic(), time.process_time() + self.seconds
            while time.process_time() < until:
                pass
            record = f"{os.getpid()} {start} {time.monotonic()}"
            (Path(self.folder) / text).write_text(record)
        return torch.zeros(len(objects), 1)


def rate(oracle: Oracle, objects: list[str], repeats: int = 5) -> float:
    """Objects per second of CPU time."""
    rates = []
    for _ in range(repeats):
        start = time.process_time()
        oracle(objects)
        rates.append(len(objects) / (time.process_time() - start))
    return max(rates)


def busy_share(n: int) -> tuple[float, float]:
    """Share of the workers' time spent computing, and their CPU time per second of it."""
    with tempfile.TemporaryDirectory() as folder:
        oracle = BusyLoop(folder, SECONDS)
        with OracleRunner(oracle, str, workers=WORKERS, timeout=60.0) as runner:
            runner.evaluate([f"warm{i}" for i in range(WORKERS)])
            names = [f"n{i}" for i in range(n)]
            runner.evaluate(names)
        records = [(Path(folder) / name).read_text().split() for name in names]
    starts, ends = ([float(record[i]) for record in records] for i in (1, 2))
    span = max(ends) - min(starts)
    computing = sum(ends) - sum(starts)
    return computing / (WORKERS * span), n * SECONDS / computing


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seh", help="weights of the sEH proxy")
    parser.add_argument("--vina", help="configuration of a docking pocket")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    row = "{:60} {:>12} {:>8}".format
    print(row("one core, objects per second of CPU time", "measured", "bar"))
    # 27 heavy atoms on average
    env = FragmentMolecules(max_fragments=5)
    smiles = env.decode(uniform_steps(env, 512, torch.Generator().manual_seed(0))[1])
    specifications = {
        "qed,sa": 400,
        "qed,sa,logp:1..4,tpsa:40..90": 400,
        "qed,sa,logp:1..4,tpsa:40..90,mw:200..450,rings:2..4,sp3": 400,
        "guacamol:osimertinib": 0,
        "guacamol:fexofenadine": 0,
        "guacamol:ranolazine": 0,
        "guacamol:sitagliptin": 0,
        "guacamol:valsartan": 0,
    }
    for text, bar in specifications.items():
        print(row(text, f"{rate(MoleculeOracle.parse(text), smiles):,.0f}", bar or ""))
    print(
        row(
            "guacamol:deco_hop",
            f"{rate(MoleculeOracle.parse('guacamol:deco_hop'), smiles[:8], 2):,.0f}",
            "",
        )
    )
    if chosen.seh:
        print(row("seh", f"{rate(MoleculeOracle.parse(f'seh:{chosen.seh}'), smiles):,.0f}", ""))
    if chosen.vina:
        oracle = MoleculeOracle.parse(f"vina:{chosen.vina}")
        print(row("vina", f"{rate(oracle, smiles[:4], 1):,.2f}", ""))
    letters = random.Random(0)
    for length in (30, 60, 100):
        strands = ["".join(letters.choices("ACGU", k=length)) for _ in range(128)]
        text = f"rna energy,pairs, {length} letters"
        print(row(text, f"{rate(RNAOracle(['energy', 'pairs'], 10, length), strands, 3):,.0f}", ""))
    share, cpu = busy_share(40)
    label = f"{WORKERS} workers, oracle of {SECONDS:g} s: share of time computing"
    print(row(label, f"{share:.1%}", "90%"))
    print(f"(each had {cpu:.0%} of a core to compute with)")


if __name__ == "__main__":
    main()
