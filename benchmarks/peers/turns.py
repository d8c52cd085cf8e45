"""What all contestants of `benchmarks/speed.py` share: the problems, and being timed in turns.

Nothing but the standard library, since each contestant runs in an environment of its own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One problem at one batch size.

    Trajectory balance, on-policy without exploration, a network with two hidden layers of 256 and
    ReLU on one-hot input, float32, Adam at 1e-3, log Z at 0.1.

    Attributes:
        problem: "tfbind8" (8 letters of 4, left to right, random rewards; a tree), "bits" (15
            words of 8 bits in any order, 60 modes, uniform P_B) or "grid" (4 dimensions, rewards
            0.1 / 0.5 / 2, learned P_B on the trunk of P_F).
        batch_size: trajectories per iteration.
        side: side of the grid.
        warm: iterations before measuring, so that trajectory lengths have settled.
        iterations: iterations of one window.
    """

    problem: str
    batch_size: int
    side: int = 0
    warm: int = 100
    iterations: int = 100


SETTINGS = {
    "tfbind8, batch 16": Setting("tfbind8", 16),
    "bits, batch 16": Setting("bits", 16, warm=20, iterations=10),
    "grid 8^4, batch 16": Setting("grid", 16, side=8, warm=400, iterations=50),
    "grid 8^4, batch 256": Setting("grid", 256, side=8, warm=300, iterations=8),
    "grid 20^4, batch 256": Setting("grid", 256, side=20, warm=200, iterations=4),
}


def serve(setting: Setting, run: Callable[[int], None], mean_length: Callable[[], float]) -> None:
    """Warm up, say so, and answer each line of the input by the milliseconds of one iteration.

    Args:
        setting: how many iterations to run.
        run: takes that many training iterations.
        mean_length: mean number of transitions of the last batch.
    """
    run(setting.warm)
    print(json.dumps({"mean_length": mean_length()}), flush=True)
    while sys.stdin.readline():
        start = time.process_time()
        run(setting.iterations)
        seconds = (time.process_time() - start) / setting.iterations
        print(json.dumps({"milliseconds": 1e3 * seconds}), flush=True)
