"""Target densities of samplers: unnormalised, most with known log Z and exact samples.

An energy is what `Energy` says; log-densities are differentiable in the points [n, dim] and work in
their dtype and on their device.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gflow.envs.denoising.environment import Denoising
from gflow.mdp import Reward, States


class Energy(Protocol):
    """A target density R(x) / Z on R^dim."""

    @property
    def dim(self) -> int:
        """Number of coordinates."""

    @property
    def log_z(self) -> float | None:
        """log of the integral of R, None where it is not known."""

    def log_density(self, x: Tensor) -> Tensor:
        """log R of points [n, dim], [n]."""

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """`n` exact samples, [n, dim] float64 on the CPU."""


def _normal(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return torch.empty(shape, dtype=torch.float64).normal_(generator=generator)


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of round normal distributions of one width.

    Attributes:
        means: [M, dim], float64.
        std: standard deviation of every component.
        log_weights: [M], up to a constant; even by default.
    """

    means: Tensor
    std: float
    log_weights: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"components need a standard deviation above 0, not {self.std}")

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return int(self.means.shape[1])

    @property
    def log_z(self) -> float:
        """The density is normalised."""
        return 0.0

    @property
    def modes(self) -> Tensor:
        """Where the components sit, [M, dim]."""
        return self.means

    def _log_weights(self) -> Tensor:
        weights = self.log_weights
        return (torch.zeros(len(self.means)).double() if weights is None else weights).log_softmax(
            0
        )

    def log_density(self, x: Tensor) -> Tensor:
        """log R of points [n, dim], [n]."""
        means = self.means.to(x.device, x.dtype)
        weights = self._log_weights().to(x.device, x.dtype)
        distance = (x.unsqueeze(1) - means).square().sum(-1)
        constant = self.dim * (math.log(self.std) + 0.5 * math.log(2 * math.pi))
        return (weights - 0.5 * distance / self.std**2).logsumexp(1) - constant

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """`n` exact samples."""
        weights = self._log_weights().exp()
        row = torch.multinomial(weights, n, replacement=True, generator=generator)
        return self.means[row] + self.std * _normal((n, self.dim), generator)


def gaussians25() -> GaussianMixture:
    """25 modes on the grid {-10, -5, 0, 5, 10}^2, covariance 0.3 I."""
    return _on_grid((-10.0, -5.0, 0.0, 5.0, 10.0), math.sqrt(0.3))


def gaussians9() -> GaussianMixture:
    """9 modes on the grid {-5, 0, 5}^2, covariance 0.3 I."""
    return _on_grid((-5.0, 0.0, 5.0), math.sqrt(0.3))


def gaussians40(seed: int = 0) -> GaussianMixture:
    """40 modes even in [-40, 40]^2, drawn from the seed; standard deviation log(1 + e)."""
    source = torch.Generator().manual_seed(seed)
    means = torch.rand(40, 2, generator=source, dtype=torch.float64)
    return GaussianMixture(80 * means - 40, math.log(1 + math.e))


def _on_grid(places: tuple[float, ...], std: float) -> GaussianMixture:
    axis = torch.tensor(places, dtype=torch.float64)
    return GaussianMixture(torch.cartesian_prod(axis, axis), std)


@dataclass(frozen=True)
class Funnel:
    """x_0 ~ N(0, scale^2) and x_i ~ N(0, exp(x_0)): a neck that few samplers enter.

    Attributes:
        dim: number of coordinates.
        scale: 1 is the easy, 3 the hard funnel.
    """

    dim: int = 10
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.dim < 2 or not self.scale > 0:
            raise ValueError(
                "a funnel needs at least 2 coordinates and a scale above 0, not "
                f"{self.dim} and {self.scale}"
            )

    @property
    def log_z(self) -> float:
        """The density is normalised."""
        return 0.0

    def log_density(self, x: Tensor) -> Tensor:
        """log R of points [n, dim], [n]."""
        neck, rest = x[:, 0], x[:, 1:]
        log_neck = -0.5 * (neck / self.scale).square() - math.log(self.scale)
        log_rest = -0.5 * (rest.square().sum(1) * (-neck).exp() + (self.dim - 1) * neck)
        return log_neck + log_rest - 0.5 * self.dim * math.log(2 * math.pi)

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """`n` exact samples."""
        z = _normal((n, self.dim), generator)
        neck = self.scale * z[:, :1]
        return torch.cat([neck, (neck / 2).exp() * z[:, 1:]], 1)


@dataclass(frozen=True)
class ManyWell:
    """Pairs of a tilted double well and a normal: 2^(dim / 2) modes of unequal weight.

    log R of a pair is -a^4 + 6 a^2 + a / 2 - b^2 / 2.

    Attributes:
        dim: number of coordinates, even.
    """

    dim: int = 32

    def __post_init__(self) -> None:
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"a many-well needs an even number of coordinates, not {self.dim}")

    @property
    def log_z(self) -> float:
        """By the double well's integral, 11784.50927."""
        return self.dim / 2 * (math.log(11784.50926922917) + 0.5 * math.log(2 * math.pi))

    def log_density(self, x: Tensor) -> Tensor:
        """log R of points [n, dim], [n]."""
        a, b = x[:, 0::2], x[:, 1::2]
        return (_double_well(a) - 0.5 * b.square()).sum(1)

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """`n` samples; the double well by its inverse distribution function on a fine grid."""
        grid, below = _double_well_quantiles()
        u = torch.rand(n, self.dim // 2, generator=generator, dtype=torch.float64)
        right = torch.searchsorted(below, u).clamp(1, len(grid) - 1)
        low, high = below[right - 1], below[right]
        a = grid[right - 1] + (u - low) / (high - low) * (grid[right] - grid[right - 1])
        return torch.stack([a, _normal((n, self.dim // 2), generator)], 2).flatten(1)

    def wells(self, x: Tensor) -> Tensor:
        """Share of the points [n, dim] in the right, deeper well of each pair, [dim / 2]."""
        return (x[:, 0::2] > 0).double().mean(0)


def _double_well(a: Tensor) -> Tensor:
    return -a.pow(4) + 6 * a.square() + 0.5 * a


@functools.cache
def _double_well_quantiles() -> tuple[Tensor, Tensor]:
    """A grid and the distribution function on it, where neighbors differ."""
    grid = torch.linspace(-3.5, 3.5, 200_001, dtype=torch.float64)
    density = _double_well(grid).exp()
    below = torch.cumulative_trapezoid(density, grid)
    below = torch.cat([below.new_zeros(1), below]) / below[-1]
    rising = torch.cat([below.diff() > 0, below.new_ones(1).bool()])
    return grid[rising], below[rising]


class LogGaussianCox:
    """Posterior of a log-Gaussian Cox process on a square of counts; log Z is not known.

    The prior of the log-intensity is a Gaussian process of mean log 126 - variance / 2, variance
    1.91 and covariance variance exp(-distance 33 / side), distances in cells; counts are drawn
    from it with the seed. A point is the log-intensity of every cell.

    Args:
        side: cells along an edge; the published one has 40.
        seed: seeds the counts.
    """

    log_z = None

    def __init__(self, side: int = 40, seed: int = 0):
        self.side, self.dim = side, side * side
        variance = 1.91
        self.mean = math.log(126.0) - variance / 2
        axis = torch.arange(side, dtype=torch.float64)
        cells = torch.cartesian_prod(axis, axis)
        distance = torch.cdist(cells, cells, compute_mode="donot_use_mm_for_euclid_dist")
        covariance = variance * (-distance * 33 / side).exp()
        self.root = torch.linalg.cholesky(covariance)
        source = torch.Generator().manual_seed(seed)
        truth = self.mean + self.root @ _normal((self.dim,), source)
        self.counts = torch.poisson(truth.exp() / self.dim, generator=source)

    def log_density(self, x: Tensor) -> Tensor:
        """log prior + log likelihood of log-intensities [n, dim] up to a constant, [n]."""
        root, counts = self.root.to(x), self.counts.to(x)
        z: Tensor = torch.linalg.solve_triangular(root, (x - self.mean).T, upper=False)
        log_prior: Tensor = -0.5 * z.square().sum(0) - root.diagonal().log().sum()
        log_prior = log_prior - 0.5 * self.dim * math.log(2 * math.pi)
        return log_prior + (x * counts - x.exp() / self.dim).sum(1)

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Refused: the posterior has no exact samples."""
        raise NotImplementedError("a log-Gaussian Cox process has no exact samples")


class EnergyOracle:
    """log R(x) as the reward of a denoising environment's states.

    Its scalarisation is "log_linear", since the reward is a log-reward already. Of states on the
    way it knows (1 - u) log N(x; 0, spread^2) + u log R(x), u the share of the steps taken and
    `spread` that of a walk without predictions (2402.05098).

    Args:
        energy: the target.
        env: environment whose states are scored.
        version: identifies the energy.

    Raises:
        ValueError: points of another shape than the energy's.
    """

    on_states = True
    seconds = 0.0

    def __init__(self, energy: Energy, env: Denoising, version: str = "1"):
        if env.state_shape != (energy.dim,):
            raise ValueError(f"points {env.state_shape} do not fit an energy on {energy.dim} axes")
        self.energy, self.env, self.version = energy, env, version
        self.rewards = (
            Reward("log_density", "nat", -math.inf, math.inf, description="log R(x), unnormalised"),
        )

    def __call__(self, states: States) -> Tensor:
        """log R of terminal states, [n, 1]."""
        return self.energy.log_density(states.data).unsqueeze(1)

    def partial_log_reward(self, states: States) -> Tensor:
        """A guess of log F of states on the way, [n]; the first step stands for the start."""
        step = states.step.clamp(min=1)
        std = self.env.spread.to(states.data)[step]
        share = step / self.env.max_steps
        x = states.data
        log_normal = -0.5 * (x / std.unsqueeze(1)).square().sum(1) - self.energy.dim * (
            std.log() + 0.5 * math.log(2 * math.pi)
        )
        return (1 - share) * log_normal + share * self.energy.log_density(x)
