"""Nearest pairs between batches of sets, in bounded memory and with a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Cost = Callable[[Tensor, Tensor], Tensor]


def flat(sets: Tensor) -> Tensor:
    """[..., n, m] as [B, n, m], empty ones too."""
    return sets.reshape(math.prod(sets.shape[:-2]), *sets.shape[-2:])


def blocks(rows: Tensor, result: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of about `size` rows along axis 1, each with the part of the result it fills."""
    return zip(rows.split(max(1, size), 1), result.split(max(1, size), 1), strict=True)


def closest(
    cost: Cost, rows: Tensor, targets: Tensor, valid: Tensor, memory_budget: int
) -> tuple[Tensor, Tensor]:
    """Least cost of each row over the targets, and the target that has it.

    The search runs without gradient, a block of rows at a time; the cost of the pairs found is
    then computed once more with it.

    Args:
        cost: cost(rows, targets) of tensors that broadcast to [..., m], giving [...].
        rows: [B, k, m].
        targets: [B, n, m].
        valid: [B, n], which targets count.
        memory_budget: bytes for temporary tensors.

    Returns:
        costs [B, k], infinite where no target counts, and indices [B, k].
    """
    if targets.shape[1] == 0:
        nothing = rows.new_full(rows.shape[:-1], torch.inf)
        return nothing, torch.zeros_like(nothing, dtype=torch.long)
    # Live at once: the differences, their sign changed, clamped, and squared.
    size = 6 * targets.numel() * targets.element_size()
    index = torch.empty(rows.shape[:-1], dtype=torch.long, device=rows.device)
    with torch.no_grad():
        # Results go into one tensor: small ones kept between the blocks would split the heap.
        for part, found in blocks(rows, index, memory_budget // max(1, size)):
            costs = cost(part.unsqueeze(2), targets.unsqueeze(1))
            found[:] = costs.masked_fill(~valid.unsqueeze(1), torch.inf).argmin(-1)
    pairs = targets.gather(1, index.unsqueeze(-1).expand(*index.shape, targets.shape[-1]))
    costs = cost(rows, pairs).masked_fill(~valid.any(-1, keepdim=True), torch.inf)
    return costs, index
