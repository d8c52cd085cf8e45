"""The last rewards of every condition, for advantages that remember earlier batches (DDPO)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gflow.objectives.policy_gradient.groups import Groups
from gflow.objectives.policy_gradient.memory import Memory


class RewardBuffer:
    """Rings of the last `size` rewards of each condition, told apart by their encodings.

    Args:
        size: rewards kept of each condition.
        least: rewards below which a condition takes the statistics of the batch instead.

    Raises:
        ValueError: a size below 2, or more rewards needed than are kept.
    """

    def __init__(self, size: int, least: int):
        if size < 2 or not 1 <= least <= size:
            raise ValueError(f"a buffer of {size} rewards cannot wait for {least}")
        self.size, self.least = size, least
        self.known = Memory()
        self.ring = torch.zeros(0, size)
        self.written = torch.zeros(0, dtype=torch.int64)

    def standardized(self, encoding: Tensor, rewards: Tensor, eps: float) -> Tensor:
        """Add rewards [N] of conditions [N, C]; (r - mean) / (std + eps) over each ring, [N].

        Standard deviations are plain ones. (Training Diffusion Models with Reinforcement Learning,
        2023, arXiv 2305.13301.)
        """
        place = self.known.find(encoding, rewards.dtype)
        self._push(place, rewards)
        kept = self.written.clamp(max=self.size)
        there = torch.arange(self.size, device=rewards.device) < kept.unsqueeze(1)
        mean = torch.where(there, self.ring, 0.0).sum(1) / kept.clamp(min=1)
        square = torch.where(there, (self.ring - mean.unsqueeze(1)).square(), 0.0).sum(1)
        std = (square / kept.clamp(min=1)).sqrt()
        enough = kept >= self.least
        mean = torch.where(enough, mean, rewards.mean())
        std = torch.where(enough, std, rewards.std(correction=0))
        return (rewards - mean[place]) / (std[place] + eps)

    def _push(self, place: Tensor, rewards: Tensor) -> None:
        """Write rewards into the rings of the conditions at `place`, in their order."""
        assert self.known.keys is not None
        grown = len(self.known.keys) - len(self.ring)
        self.ring = torch.cat([self.ring.to(rewards), rewards.new_zeros(grown, self.size)])
        self.written = torch.nn.functional.pad(self.written.to(place.device), (0, grown))
        groups = Groups.of(place)
        number = torch.arange(len(place), device=place.device)
        rank = torch.empty_like(place)
        rank[groups.order] = number - groups.starts[groups.member[groups.order]]
        # Of more rewards than a ring holds only the last are written.
        late = rank >= groups.spread(groups.sizes) - self.size
        position = (self.written[place] + rank) % self.size
        self.ring[place[late], position[late]] = rewards[late]
        self.written.index_add_(0, place, torch.ones_like(place))

    def state_dict(self) -> dict[str, Any]:
        """The rings and whose they are."""
        return {"known": self.known.state_dict(), "ring": self.ring, "written": self.written}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.known.load_state_dict(state["known"])
        self.ring, self.written = state["ring"], state["written"]
