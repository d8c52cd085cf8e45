"""Batches of states and of conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class States(NamedTuple):
    """A batch of n states.

    Attributes:
        data: [n, *state_shape], integer for discrete objects, float for denoising.
        step: [n] int64, number of forward transitions since the initial state.
        done: [n] bool, the row is a finished (terminal) object.
    """

    data: Tensor
    step: Tensor
    done: Tensor

    def rows(self, index: Tensor) -> States:
        """The states at `index` (integer or boolean, along the batch)."""
        return States(self.data[index], self.step[index], self.done[index])

    def to(self, device: torch.device | str) -> States:
        """The same states on `device`."""
        return States(self.data.to(device), self.step.to(device), self.done.to(device))

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.data.shape[0])


def concat_states(parts: Sequence[States]) -> States:
    """Join batches of states along the batch dimension."""
    return States(*(torch.cat(column) for column in zip(*parts, strict=True)))


def shared(values: Tensor) -> Tensor:
    """One for all, [1], of numbers [n] that are one in memory (stride 0), else the numbers.

    Walks of a fixed length from one start are at the same step in every row: kept so, nothing has
    to be looked up by row, and nobody has to look whether it is so.
    """
    return values[:1] if values.stride(0) == 0 else values


class Condition(NamedTuple):
    """What the sampler is asked for, one row per trajectory.

    Attributes:
        encoding: [n, C], what the networks see.
        preference: [n, K] weights on the simplex, or None when there is nothing to prefer.
        inverse_temperature: [n], the exponent beta of the reward.
    """

    encoding: Tensor
    preference: Tensor | None
    inverse_temperature: Tensor

    def rows(self, index: Tensor) -> Condition:
        """The conditions at `index` (integer or boolean)."""
        preference = None if self.preference is None else self.preference[index]
        return Condition(self.encoding[index], preference, self.inverse_temperature[index])

    def to(self, device: torch.device | str) -> Condition:
        """The same conditions on `device`."""
        preference = None if self.preference is None else self.preference.to(device)
        return Condition(self.encoding.to(device), preference, self.inverse_temperature.to(device))
