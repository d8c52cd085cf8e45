"""Time, memory and agreement of the Pareto metrics against pymoo, moocore and botorch."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def peak_memory(work: Callable[[], object], device: str = "cpu") -> float:
    """Bytes by which the peak rises while `work` runs; NaN where the system does not tell."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")
    except OSError:
        work()
        return math.nan

    def resident(field: str) -> int:
        (line,) = [line for line in status.read_text().splitlines() if line.startswith(field)]
        return int(line.split()[1]) * 1024

    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before
