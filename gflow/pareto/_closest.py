"""Nearest pairs between batches of sets, in bounded memory and with a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Cost = Callable[[Tensor, Tensor], Tensor]


def flat(sets: Tensor) -> Tensor:
    """[..., n, m] as [B, n, m], empty ones too."""
    return sets.reshape(math.prod(sets.shape[:-2]), *sets.shape[-2:])


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
    size = 3 * targets.numel() * targets.element_size()
    found = []
    with torch.no_grad():
        for block in rows.split(max(1, memory_budget // max(1, size)), dim=1):
            costs = cost(block.unsqueeze(2), targets.unsqueeze(1))
            found.append(costs.masked_fill(~valid.unsqueeze(1), torch.inf).argmin(-1))
    index = torch.cat(found, 1)
    pairs = targets.gather(1, index.unsqueeze(-1).expand(*index.shape, targets.shape[-1]))
    costs = cost(rows, pairs).masked_fill(~valid.any(-1, keepdim=True), torch.inf)
    return costs, index
