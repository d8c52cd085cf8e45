"""Rewards of grid points: test functions for several objectives, and the classical single ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gflow.envs.common import all_digits
from gflow.mdp import Reward, States


def _branin(x: Tensor, y: Tensor) -> Tensor:
    a, b = 15 * (x + 1) / 2 - 5, 15 * (y + 1) / 2
    bowl = (b - 5.1 * a**2 / (4 * math.pi**2) + 5 * a / math.pi - 6) ** 2
    return 1 - (bowl + 10 * (1 - 1 / (8 * math.pi)) * a.cos() + 10) / 308.13


def _currin(x: Tensor, y: Tensor) -> Tensor:
    a, b = (x + 1) / 2, (y + 1) / 2
    ratio = (2300 * a**3 + 1900 * a**2 + 2092 * a + 60) / (100 * a**3 + 500 * a**2 + 4 * a + 20)
    return (1 - (-1 / (2 * b + 1e-10)).exp()) * ratio / 13.77


def _shubert(x: Tensor, y: Tensor) -> Tensor:
    def waves(t: Tensor) -> Tensor:
        return torch.stack([i * ((i + 1) * t + i).cos() for i in range(1, 6)]).sum(0)

    return (waves(-1.5 * x) * waves(-1.5 * y) + 186.8) / 397


def _beale(x: Tensor, y: Tensor) -> Tensor:
    terms = ((1.5, 1), (2.25, 2), (2.625, 3))
    return torch.stack([(c - x + x * y**k) ** 2 for c, k in terms]).sum(0) / 38.8


def _sphere(x: Tensor, y: Tensor) -> Tensor:
    return (x**2 + y**2) / 2


OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "branin": _branin,
    "currin": _currin,
    "shubert": _shubert,
    "beale": _beale,
    "sphere": _sphere,
}
"""Functions of x and y in [-1, 1], scaled to about [0, 1] and maximised (2310.00386)."""


class GridObjectives:
    """Several objectives on a two-dimensional grid whose coordinates are spread over [-1, 1].

    (Order-Preserving GFlowNets, 2023, arXiv 2310.00386; Jain et al., 2022, arXiv 2210.12765.)

    Args:
        names: objectives, keys of `OBJECTIVES`.
        side: number of values of each coordinate.

    Raises:
        ValueError: no name, or an unknown or repeated one.
    """

    version = "1"
    on_states = True
    seconds = 0.0

    def __init__(self, names: Sequence[str] = ("branin", "currin"), side: int = 32):
        if not names or len(set(names)) < len(names):
            raise ValueError(f"grid objectives must be named once each, not {list(names)}")
        for name in names:
            if name not in OBJECTIVES:
                raise ValueError(
                    f"there is no grid objective {name!r}: choose from {', '.join(OBJECTIVES)}"
                )
        self.names, self.side = tuple(names), side
        values = self._values(all_digits(side, 2))
        low, high = values.amin(0).tolist(), values.amax(0).tolist()
        self.rewards = tuple(
            Reward(name, low=low[k], high=high[k], description=f"{name} function on the grid")
            for k, name in enumerate(names)
        )

    def __call__(self, objects: States) -> Tensor:
        """Rewards [n, K] float64 of states [n, 2].

        Raises:
            ValueError: the grid has not two dimensions.
        """
        if objects.data.shape[-1] != 2:
            raise ValueError(
                f"grid objectives need a grid of 2 dimensions, not {objects.data.shape[-1]}"
            )
        return self._values(objects.data)

    def _values(self, data: Tensor) -> Tensor:
        x, y = (2 * data.double() / (self.side - 1) - 1).unbind(-1)
        return torch.stack([OBJECTIVES[name](x, y) for name in self.names], -1)


def corner_reward(
    data: Tensor, side: int, r0: float = 0.1, r1: float = 0.5, r2: float = 2.0
) -> Tensor:
    """The standard HyperGrid reward, [n], with 2 ** dim modes.

    R = r0 + r1 prod 1[a > 1/4] + r2 prod 1[0.3 < a < 0.4], a = |s / (side - 1) - 1/2|
    (2106.04399).
    """
    a = _centered(data, side)
    return r0 + r1 * (a > 0.25 + _EDGE).all(-1).double() + r2 * _ring(a)


def cosine_reward(data: Tensor, side: int, r0: float = 0.1, r1: float = 0.5) -> Tensor:
    """R = r0 + r1 prod (cos 50a + 1) phi(5a), [n], with phi the standard normal density."""
    a = _centered(data, side)
    density = (-12.5 * a**2).exp() / math.sqrt(2 * math.pi)
    return r0 + r1 * ((50 * a).cos().add(1) * density).prod(-1)


def sparse_reward(data: Tensor, side: int) -> Tensor:
    """1 where every coordinate is 1 or side - 2 and at least one is side - 2; [n].

    1e-12 is added everywhere (Generative Augmented Flow Networks, 2022, arXiv 2210.03308).
    """
    on_target = ((data == 1) | (data == side - 2)).all(-1) & (data == side - 2).any(-1)
    return on_target.double() + 1e-12


def deceptive_reward(
    data: Tensor, side: int, r0: float = 1e-5, r1: float = 0.1, r2: float = 2.0
) -> Tensor:
    """R = r0 + r1 - r1 prod 1[a > 0.1] + r2 prod 1[0.3 < a < 0.4], [n]: a moat round the modes."""
    a = _centered(data, side)
    return r0 + r1 * (a <= 0.1 + _EDGE).any(-1).double() + r2 * _ring(a)


_EDGE = 1e-12
"""Inequalities are strict; rounding of s / (side - 1) must not decide them."""


def _centered(data: Tensor, side: int) -> Tensor:
    return (data.double() / (side - 1) - 0.5).abs()


def _ring(a: Tensor) -> Tensor:
    return ((a > 0.3 + _EDGE) & (a < 0.4 - _EDGE)).all(-1).double()


class _SingleReward:
    """One reward, a function of coordinates."""

    version = "1"
    on_states = True
    seconds = 0.0

    def __init__(self, reward: Reward, side: int, function: Callable[..., Tensor], *levels: float):
        self.rewards = (reward,)
        self.side, self._function, self._levels = side, function, levels

    def __call__(self, objects: States) -> Tensor:
        """Rewards [n, 1] float64."""
        return self._function(objects.data, self.side, *self._levels).unsqueeze(-1)


class CornerReward(_SingleReward):
    """The standard HyperGrid reward as an oracle, see `corner_reward`."""

    def __init__(self, side: int, r0: float = 0.1, r1: float = 0.5, r2: float = 2.0):
        reward = Reward("corner", low=r0, high=r0 + r1 + r2, description="2 ** dim corner modes")
        super().__init__(reward, side, corner_reward, r0, r1, r2)


class CosineReward(_SingleReward):
    """Many equal bumps under a bell as an oracle, see `cosine_reward`."""

    def __init__(self, side: int, dim: int = 2, r0: float = 0.1, r1: float = 0.5):
        high = r0 + r1 * (2 / math.sqrt(2 * math.pi)) ** dim
        reward = Reward("cosine", low=r0, high=high, description="bumps under a bell")
        super().__init__(reward, side, cosine_reward, r0, r1)


class SparseReward(_SingleReward):
    """A few isolated targets as an oracle, see `sparse_reward`."""

    def __init__(self, side: int):
        reward = Reward("sparse", low=1e-12, high=1 + 1e-12, description="isolated targets")
        super().__init__(reward, side, sparse_reward)


class DeceptiveReward(_SingleReward):
    """Modes behind a moat as an oracle, see `deceptive_reward`."""

    def __init__(self, side: int, r0: float = 1e-5, r1: float = 0.1, r2: float = 2.0):
        reward = Reward("deceptive", low=r0, high=r0 + max(r1, r2), description="moated modes")
        super().__init__(reward, side, deceptive_reward, r0, r1, r2)
