"""A policy with an anchor: a copy of itself that stays as it was, or follows slowly."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Anchored(nn.Module):
    """A policy and the reference it is compared with.

    Inside `reference()` it computes what the reference would; everything else is the policy's own.
    Optimisers see the policy's parameters only, checkpoints hold both. Policies with adapters need
    no copy: their `reference()` switches the adapters off.

    Args:
        policy: any module satisfying `gflow.mdp.Policy`, whose copy shares its environment, or
            the network inside of one.
        every: `move` moves the reference at every so many calls; 0 freezes it.
        share: how far the reference then moves towards the policy, 1 for all the way. With
            `every=1` it is an exponential moving average with decay 1 - share.

    Raises:
        ValueError: a negative interval, or a share outside (0, 1].
    """

    calls: Tensor

    def __init__(self, policy: nn.Module, every: int = 0, share: float = 1.0):
        super().__init__()
        self._referring = False
        if every < 0 or not 0 < share <= 1:
            raise ValueError(
                f"a reference moves every 0 or more calls by a share in (0, 1], not every {every} "
                f"by {share}"
            )
        self.policy, self.every, self.share = policy, every, share
        env = getattr(policy, "env", None)
        self.anchor = copy.deepcopy(policy, {id(env): env}).requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "policy" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self._active, name)

    @property
    def _active(self) -> Any:
        return self._modules["anchor" if self._referring else "policy"]

    def forward(self, *inputs: Any) -> Any:
        """What the policy returns, or the reference inside `reference()`."""
        return self._active(*inputs)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, everything is computed by the reference."""
        before, self._referring = self._referring, True
        try:
            yield
        finally:
            self._referring = before

    @torch.no_grad()
    def move(self, *_: Any) -> None:
        """Count one step, and move the reference when it is due; fits `Events.on_step`."""
        if not self.every:
            return
        self.calls += 1
        if int(self.calls) % self.every:
            return
        pairs = zip(self.anchor.parameters(), self.policy.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, self.share)
