"""Sums over groups of rows, whatever their order and sizes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Groups(NamedTuple):
    """Which of N rows belong together.

    Attributes:
        member: [N] int64, number of each row's group, from 0 without gaps.
        order: [N] int64, the rows group by group.
        starts: [n] int64, where each group starts in `order`.
        sizes: [n] int64.
    """

    member: Tensor
    order: Tensor
    starts: Tensor
    sizes: Tensor

    @staticmethod
    def of(number: Tensor | Groups) -> Groups:
        """The groups of rows that share a `number` [N], any integers; groups are as they are."""
        if isinstance(number, Groups):
            return number
        numbers, run, sizes = _runs(number)
        if bool((numbers[1:] > numbers[:-1]).all()):
            # Most batches are in order: nothing to sort.
            order, member = torch.arange(len(number), device=number.device), run
        else:
            ordered, order = number.sort(stable=True)
            _, run, sizes = _runs(ordered)
            member = torch.empty_like(order).scatter_(0, order, run)
        return Groups(member, order, sizes.cumsum(0) - sizes, sizes)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over each group, [n, ...] from [N] or [N, K]."""
        table = values.unsqueeze(-1) if values.ndim == 1 else values
        # One bag a group: many times faster than adding row by row, and deterministic.
        total = torch.nn.functional.embedding_bag(self.order, table, self.starts, mode="sum")
        return total.squeeze(-1) if values.ndim == 1 else total

    def spread(self, values: Tensor) -> Tensor:
        """What each row's group has, [N, ...] from [n, ...]."""
        return values.index_select(0, self.member)


def _runs(number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values of unbroken runs, the run that each row is in, and the runs' lengths."""
    found: tuple[Tensor, Tensor, Tensor] = torch.unique_consecutive(
        number, return_inverse=True, return_counts=True
    )
    return found
