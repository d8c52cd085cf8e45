"""What the processes of one run know together."""

from __future__ import annotations

import time
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor

_lent: WeakSet[Tensor] = WeakSet()


def all_reduce(values: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
    """Replace the values by their reduction over all processes."""
    dist.all_reduce(values, op)
    _lent.add(values)


def all_gather(parts: list[Tensor], values: Tensor) -> None:
    """Fill the parts with the values of all processes, in the order of their ranks."""
    dist.all_gather(parts, values)
    _lent.update([*parts, values])


def wait_until_released(seconds: float = 1.0) -> None:
    """Wait until the threads of the process group have let go of the tensors they were lent.

    gloo's threads do so after the call has returned, under the interpreter's lock: an interpreter
    that ends before they had it aborts.
    """
    end = time.monotonic() + seconds
    while len(_lent) and time.monotonic() < end:
        time.sleep(1e-3)


def gather(values: Tensor) -> tuple[Tensor, slice]:
    """The rows of all processes in the order of their ranks, and which of them are this one's.

    Alone, or outside a process group, these are the rows as they are. No gradient passes.

    Args:
        values: [n, ...], where n may differ between processes.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return values, slice(0, len(values))
    rank, size = dist.get_rank(), dist.get_world_size()
    mine = torch.tensor([len(values)], device=values.device)
    counts = [torch.zeros_like(mine) for _ in range(size)]
    all_gather(counts, mine)
    lengths = [int(count) for count in counts]
    padded = values.new_zeros(max(lengths), *values.shape[1:])
    padded[: len(values)] = values.detach()
    parts = [torch.zeros_like(padded) for _ in range(size)]
    all_gather(parts, padded)
    start = sum(lengths[:rank])
    joined = torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])
    return joined, slice(start, start + len(values))
