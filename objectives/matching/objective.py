"""Conditional flow matching on a batch of clean samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from gflow.mdp import Loss
from gflow.objectives.matching.functions import interpolate, matching_error

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class Draws(NamedTuple):
    """Clean samples with the times and noise to match at.

    Attributes:
        x: [n, *shape], data.
        noise: [n, *shape], standard normal.
        t: [n], times in [0, 1].
        encoding: [n, C], what each sample was asked for.
    """

    x: Tensor
    noise: Tensor
    t: Tensor
    encoding: Tensor


def flow_matching(network: Network, draws: Draws) -> Loss:
    """Mean squared error of the velocities, the pre-training loss of every flow model."""
    point = interpolate(draws.x, draws.noise, draws.t)
    velocity = network(point, draws.t, draws.encoding)
    error = matching_error(velocity, draws.x, draws.noise)
    return Loss(error.mean(), {}, len(error))
