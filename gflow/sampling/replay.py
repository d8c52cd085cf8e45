"""Replay buffer of trajectories: a ring of padded tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gflow.mdp import Trajectories, concat_trajectories, pad_trajectories, trim_trajectories


class Replay:
    """The last `capacity` trajectories, detached, on the CPU.

    Args:
        capacity: number of trajectories kept; the oldest leave first.
        prioritized: draw half of each sample from the tenth with the highest log-reward, half
            from the rest, ties with its lowest in both (2023, arXiv 2305.07170). Below 10
            trajectories there is no such tenth yet and all are drawn alike.

    Raises:
        ValueError: capacity below 1.
    """

    def __init__(self, capacity: int, prioritized: bool = False):
        if capacity < 1:
            raise ValueError(f"a replay buffer needs a capacity of at least 1, not {capacity}")
        self.capacity, self.prioritized = capacity, prioritized
        self.kept: Trajectories | None = None
        self.next = 0

    def __len__(self) -> int:
        return 0 if self.kept is None else self.kept.n

    def add(self, batch: Trajectories) -> None:
        """Append a batch with its log-rewards; of more than `capacity` rows the last ones."""
        batch = batch.to("cpu")
        if batch.n > self.capacity:
            batch = batch.rows(torch.arange(batch.n - self.capacity, batch.n))
        free = self.capacity - len(self)
        if self.kept is None or free > 0:
            new = batch.rows(torch.arange(min(free, batch.n)))
            self.kept = new if self.kept is None else concat_trajectories([self.kept, new])
            batch = batch.rows(torch.arange(new.n, batch.n))
        if batch.n:
            self.kept = pad_trajectories(self.kept, batch.valid.shape[1])
            batch = pad_trajectories(batch, self.kept.valid.shape[1])
            place = (self.next + torch.arange(batch.n)) % self.capacity
            self.kept.put_rows_(place, batch)
            self.next = int(place[-1] + 1) % self.capacity

    def sample(self, n: int, generator: torch.Generator) -> Trajectories:
        """`n` trajectories with replacement, trimmed to the longest of them."""
        if self.kept is None:
            raise ValueError("the replay buffer is empty")
        return trim_trajectories(self.kept.rows(self._draw(n, generator)))

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        size = len(self)
        if not self.prioritized or size < 10:
            return torch.randint(size, (n,), generator=generator)
        assert self.kept is not None and self.kept.log_reward is not None
        log_reward = self.kept.log_reward
        threshold = log_reward.quantile(0.9)
        best = (log_reward >= threshold).nonzero().squeeze(1)
        rest = (log_reward <= threshold).nonzero().squeeze(1)
        halves = [(best, n // 2), (rest, n - n // 2)]
        return torch.cat(
            [rows[torch.randint(len(rows), (k,), generator=generator)] for rows, k in halves]
        )

    def state_dict(self) -> dict[str, Any]:
        """The stored trajectories as plain tensors."""
        return {"next": self.next, "kept": None if self.kept is None else self.kept.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the content."""
        self.next, self.kept = state["next"], None
        if state["kept"] is not None:
            kept = Trajectories.from_state_dict(state["kept"]).to("cpu")
            # A copy, since rows are overwritten in place.
            self.kept = kept.rows(torch.arange(kept.n))
