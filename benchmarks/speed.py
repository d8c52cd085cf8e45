"""Milliseconds per training iteration, beside torchgfn and gfnx where they are installed.

Trajectory balance with the same network, batch and learning rates everywhere; see
`peers/turns.py` for the problems. Each library runs in a process of its own, with one thread on one
core. All wait until the others have warmed up, then they take turns; the figures are medians over
windows of their process's CPU time. gflow runs eagerly and, with --compile, in compiled blocks too.

    python benchmarks/speed.py --torchgfn /path/to/python --gfnx /path/to/python

The paths are those of interpreters that have the peer installed, each in an environment of its own:
GFNOrg/torchgfn (it needs numpy < 2), and d-tiapkin/gfnx with equinox and optax.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from peers.turns import SETTINGS

PEERS = Path(__file__).parent / "peers"
BARS = {
    ("tfbind8, batch 16", "torchgfn"): 3.0,
    ("bits, batch 16", "torchgfn"): 3.0,
    ("grid 8^4, batch 256", "gfnx"): 1.3,
    ("grid 20^4, batch 256", "gfnx"): 1.3,
}
"""How many times as long as gflow a peer must take at least."""


class Contestant:
    """A library at one setting, in a process that answers every line by a window's time."""

    def __init__(self, command: list[str], setting: str):
        one_thread = {
            "OMP_NUM_THREADS": "1",
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
        }
        self.process = subprocess.Popen(
            [command[0], str(PEERS / command[1]), setting, *command[2:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **one_thread},
        )
        self.milliseconds: list[float] = []
        self.mean_length = self._answer().get("mean_length")

    def take_turn(self) -> None:
        """Measure one window; nothing where the process has ended."""
        if self.process.poll() is None and self.process.stdin is not None:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            self.milliseconds += self._answer().values()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, float] = json.loads(line)
                return answer
        return {}

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def compare(setting: str, commands: dict[str, list[str]], windows: int) -> None:
    """Print the row of each contestant at one setting."""
    contestants = {name: Contestant(command, setting) for name, command in commands.items()}
    for _ in range(windows):
        for contestant in contestants.values():
            contestant.take_turn()
    for contestant in contestants.values():
        contestant.close()
    median = {
        name: statistics.median(contestant.milliseconds)
        for name, contestant in contestants.items()
        if contestant.milliseconds
    }
    for name, contestant in contestants.items():
        if name not in median:
            print(f"{setting:22s} {name:16s}   does not run", flush=True)
            continue
        row = f"{setting:22s} {name:16s} {median[name]:8.2f} {contestant.mean_length:8.1f}"
        spread = min(contestant.milliseconds), max(contestant.milliseconds)
        row += f"   {spread[0]:7.2f} .. {spread[1]:7.2f}"
        row += "".join(f"{median[name] / median[own]:9.2f}" for own in median if "gflow " in own)
        bar = BARS.get((setting, name))
        print(row + (f"   bar {bar}" if bar else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--torchgfn", metavar="PYTHON", help="interpreter that has torchgfn")
    parser.add_argument("--gfnx", metavar="PYTHON", help="interpreter that has gfnx")
    parser.add_argument("--compile", action="store_true", help="also gflow in compiled blocks")
    parser.add_argument("--windows", type=int, default=9)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    commands = {"gflow eager": [sys.executable, "with_gflow.py"]}
    if options.compile:
        commands["gflow compiled"] = [sys.executable, "with_gflow.py", "--compile"]
    if options.torchgfn:
        commands["torchgfn"] = [options.torchgfn, "with_torchgfn.py"]
    if options.gfnx:
        commands["gfnx"] = [options.gfnx, "with_gfnx.py"]
    own = [name for name in commands if "gflow " in name]
    heads = "".join(f"{'x ' + name.split()[1]:>9s}" for name in own)
    print(f"{'setting':22s} {'library':16s} {'ms/iter':>8s} {'length':>8s}   {'range':18s}{heads}")
    for setting in options.settings:
        compare(setting, commands, options.windows)


if __name__ == "__main__":
    main()
