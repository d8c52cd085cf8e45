"""What an objective remembers of every condition from one batch to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gflow.mdp import Trajectories, concat_trajectories
from gflow.objectives.policy_gradient.advantages import Moments


class Memory:
    """A table of conditions with a mean, a standard deviation and a count of each.

    Conditions are told apart by their encoding, so statistics are worth something where conditions
    come back: prompts, or a pool of preferences. Beside the table it keeps the last trajectory of
    each condition and the last batch, where a baseline asks for them.

    Args:
        count: count of a condition not seen before.
        mean: its mean.
        capacity: conditions it can hold.
    """

    def __init__(self, count: float = 0.0, mean: float = 0.0, capacity: int = 65_536):
        self.start, self.capacity = (mean, 0.0, count), capacity
        self.keys: Tensor | None = None
        self.table = Moments(*(torch.zeros(0) for _ in range(3)))
        self.last: Trajectories | None = None
        self.pending: Trajectories | None = None

    def find(self, encoding: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the table that hold the conditions encoded as [N, C], [N]; new ones are added.

        Raises:
            ValueError: more conditions than the table can hold.
        """
        # A constant column: without conditions everything is one row.
        asked = torch.nn.functional.pad(encoding, (0, 1), value=1.0)
        if self.keys is None:
            self.keys = asked[:0]
            self.table = Moments(*(asked.new_zeros(0, dtype=dtype) for _ in range(3)))
        known = len(self.keys)
        everything, number = torch.cat([self.keys, asked]).unique(dim=0, return_inverse=True)
        place = torch.full((len(everything),), -1, device=number.device)
        place[number[:known]] = torch.arange(known, device=number.device)
        fresh = (place < 0).nonzero().squeeze(1)
        if known + len(fresh) > self.capacity:
            raise ValueError(
                f"more than {self.capacity} different conditions: statistics of each need "
                "conditions that come back, such as those of a pool"
            )
        place[fresh] = known + torch.arange(len(fresh), device=number.device)
        self.keys = torch.cat([self.keys, everything[fresh]])
        self.table = Moments(
            *(
                torch.cat([column, column.new_full((len(fresh),), value)])
                for column, value in zip(self.table, self.start, strict=True)
            )
        )
        return place[number[known:]]

    def rows(self, index: Tensor) -> Moments:
        """Statistics at `index`."""
        return Moments(*(column[index] for column in self.table))

    def put(self, index: Tensor, values: Moments) -> None:
        """Overwrite the statistics at `index`, which names no row twice."""
        self.table = Moments(
            *(
                column.index_copy(0, index, new.to(column.dtype))
                for column, new in zip(self.table, values, strict=True)
            )
        )

    def number(self, batch: Trajectories) -> Tensor:
        """Rows of the table that hold the conditions of `batch`, [B]."""
        return self.find(batch.condition.encoding, self.table.mean.dtype)

    def remember(self, batch: Trajectories, seen: Tensor) -> None:
        """Keep `batch`, and forget older trajectories of the conditions in the rows `seen`."""
        if self.last is not None:
            older = ~torch.isin(self.number(self.last), seen)
            batch = concat_trajectories([self.last.rows(older), batch])
        self.last = batch

    def state_dict(self) -> dict[str, Any]:
        """The table and what is kept beside it."""
        return {
            "keys": self.keys,
            "table": tuple(self.table),
            "last": None if self.last is None else self.last.state_dict(),
            "pending": None if self.pending is None else self.pending.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""

        def batch(values: dict[str, Any] | None) -> Trajectories | None:
            return None if values is None else Trajectories.from_state_dict(values)

        self.keys, self.table = state["keys"], Moments(*state["table"])
        self.last, self.pending = batch(state["last"]), batch(state["pending"])
