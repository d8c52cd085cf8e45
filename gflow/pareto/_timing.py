"""Measuring one line of a benchmark table, and printing the table."""

from __future__ import annotations

import ctypes
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Work = Callable[[], Any]

AGREEMENT = 1e-9
"""Relative difference from a peer's values above which a time counts for nothing."""


@dataclass(frozen=True)
class Row:
    """One line of the table; times in seconds, memory in bytes, NaN where nothing was measured."""

    what: str
    setting: str
    ours: float
    peer: str
    theirs: float
    error: float
    memory: float
    bar: str
    met: bool | None

    @property
    def ratio(self) -> float:
        """How many times faster than the peer."""
        return self.theirs / self.ours


def peak_memory(work: Work, device: str = "cpu") -> float:
    """Bytes by which the peak rises while `work` runs; NaN where the system does not tell."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not os.access(reset, os.W_OK):
        work()
        return math.nan

    def resident(field: str) -> int:
        (line,) = [line for line in status.read_text().splitlines() if line.startswith(field)]
        return int(line.split()[1]) * 1024

    # Memory that was freed and not given back would hide what is used again.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    reset.write_text("5")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def _seconds(work: Work, device: str) -> float:
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _medians(ours: Work, theirs: Work | None, repeats: int, device: str) -> tuple[float, float]:
    """Median times, the two taken in turns so that a busy machine slows both."""
    pairs = [
        (_seconds(ours, device), _seconds(theirs, "cpu") if theirs else math.nan)
        for _ in range(repeats)
    ]
    first, second = zip(*pairs, strict=True)
    return statistics.median(first), statistics.median(second)


def compare(
    what: str,
    setting: str,
    ours: Work,
    peer: str,
    theirs: Work | None,
    *,
    repeats: int,
    faster: float | None = None,
    within: float | None = None,
    zeros: bool = True,
    device: str = "cpu",
) -> Row:
    """Measure one line.

    `faster` is the least ratio asked for, `within` the most seconds asked for; neither is met by
    values that differ from the peer's. Without `zeros` values for which the peer gives 0 are not
    compared.
    """
    memory = peak_memory(ours, device)
    value, wanted = ours(), theirs() if theirs else None
    error = math.nan
    if wanted is not None:
        a, b = (torch.as_tensor(x, dtype=torch.float64).cpu() for x in (value, wanted))
        gap = (a - b).abs() if zeros else (a - b)[b != 0].abs()
        error = float(gap.max() / b.abs().max())
    mine, others = _medians(ours, theirs, repeats, device)
    bar, met, agrees = "", None, not error > AGREEMENT
    if faster is not None:
        bar, met = f"time x {1 / faster:.3g}", agrees and others / mine >= faster
    elif within is not None:
        bar, met = f"{within * 1e3:.3g} ms", agrees and mine <= within
    return Row(what, setting, mine, peer, others, error, memory, bar, met)


def table(rows: list[Row]) -> str:
    head = ("what", "setting", "ours", "peer", "peer's", "ratio", "rel. error", "memory", "bar", "")
    lines = [head]
    for row in rows:
        met = "" if row.met is None else "met" if row.met else "MISSED"
        lines.append(
            (
                row.what,
                row.setting,
                _number(row.ours * 1e3, " ms"),
                row.peer,
                _number(row.theirs * 1e3, " ms"),
                _number(row.ratio, "x"),
                _number(row.error, ""),
                _number(row.memory / 2**20, " MB"),
                row.bar,
                met,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _number(value: float, unit: str) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}{unit}"
