"""Energies against closed forms and quadrature; distances between clouds."""

import math

import pytest
import torch

from gflow.envs.denoising import brownian, denoising_diffusion
from gflow.envs.denoising.energies import (
    EnergyOracle,
    Funnel,
    GaussianMixture,
    LogGaussianCox,
    ManyWell,
    gaussians9,
    gaussians25,
    gaussians40,
)
from gflow.estimators import mode_shares, squared_mmd, wasserstein
from gflow.mdp import States


def points(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_log_densities():
    def near(energy, x, expected):
        assert torch.allclose(energy.log_density(x), points(expected)[0], rtol=0, atol=1e-7)

    near(gaussians25(), points([0, 0], [2.5, 0]), (-3.8527801, -13.5762996))
    spike = points([1.0, *[0.5] * 9])
    near(Funnel(10, 1.0), spike, (-14.6032497,))
    near(Funnel(10, 3.0), spike, (-15.2574175,))
    near(ManyWell(2), points([1, 0.5]), (5.375,))
    assert abs(ManyWell(32).log_z - 164.6956753) < 1e-7
    assert len(gaussians9().modes) == 9 and len(gaussians25().modes) == 25
    forty = gaussians40()
    assert forty.modes.abs().max() <= 40 and len(forty.modes) == 40
    assert abs(forty.std - 1.3132617) < 1e-7
    assert torch.equal(forty.modes, gaussians40().modes)
    assert not torch.equal(forty.modes, gaussians40(1).modes)


@pytest.mark.parametrize(
    "energy, limit, cells",
    [
        (gaussians25(), 14, 600),
        (gaussians9(), 9, 500),
        (GaussianMixture(points([0, 0], [2, 1]), 0.7, points([0.0, 1.0])[0]), 8, 400),
        (Funnel(2, 1.0), 40, 4000),
        (ManyWell(2), 6, 1000),
    ],
)
def test_log_z_by_quadrature(energy, limit, cells):
    axis = torch.linspace(-limit, limit, cells + 1, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_sum = torch.cat([energy.log_density(part) for part in grid.split(100_000)]).logsumexp(0)
    found = log_sum + 2 * math.log(2 * limit / cells)
    assert abs(found - energy.log_z) < 2e-3


@pytest.mark.parametrize("energy", [gaussians25(), Funnel(3, 1.0), ManyWell(4)])
def test_exact_samples(energy):
    """E[grad log R . h] = -E[div h] (Stein) for h = x / (1 + |x|^2), which bounds every moment."""
    n = 100_000
    x = energy.sample(n, torch.Generator().manual_seed(0)).requires_grad_(True)
    (score,) = torch.autograd.grad(energy.log_density(x).sum(), x)
    x = x.detach()
    bottom = 1 + x.square().sum(1)
    terms = (score * x).sum(1) / bottom + energy.dim / bottom - 2 * (bottom - 1) / bottom.square()
    assert abs(terms.mean()) < 4 * terms.std() / math.sqrt(n)
    assert terms.std() < 10


def test_samples_depend_on_the_generator_only():
    for energy in (gaussians25(), Funnel(), ManyWell()):
        one, two, three = (
            energy.sample(5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
        )
        assert torch.equal(one, two) and not torch.equal(one, three)


def test_many_well_weights():
    energy = ManyWell(8)
    share = energy.wells(energy.sample(50_000, torch.Generator().manual_seed(0)))
    grid = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    density = (-grid.pow(4) + 6 * grid.square() + grid / 2).exp()
    right = density[grid > 0].sum() / density.sum()
    assert (share - right).abs().max() < 0.01
    with pytest.raises(ValueError, match="even"):
        ManyWell(3)


def test_log_gaussian_cox():
    energy = LogGaussianCox(side=4, seed=1)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 4
    covariance = energy.root @ energy.root.T
    assert torch.allclose(covariance.diagonal(), torch.tensor(1.91, dtype=torch.float64))
    assert torch.allclose(covariance[0, 1].log(), torch.tensor(math.log(1.91) - 33 / 4).double())
    prior = torch.distributions.MultivariateNormal(
        torch.full((16,), energy.mean, dtype=torch.float64), covariance
    )
    poisson = torch.distributions.Poisson(x.exp() / 16)
    # Counts' factorials and the cells' area do not depend on x.
    constant = torch.lgamma(energy.counts + 1).sum() + energy.counts.sum() * math.log(16)
    wanted = prior.log_prob(x) + poisson.log_prob(energy.counts).sum(1) + constant
    assert torch.allclose(energy.log_density(x), wanted)
    assert LogGaussianCox().dim == 1600
    assert torch.equal(LogGaussianCox(4, 1).counts, energy.counts)
    with pytest.raises(NotImplementedError):
        energy.sample(3, None)


@pytest.mark.parametrize("make", [brownian, denoising_diffusion])
def test_log_rewards_on_the_way(make):
    """Against a normal target of the reference's own end, the guess of log F is exact."""
    env = make((2,), 10, 4.0)
    energy = GaussianMixture(points([0, 0]), 2.0)
    oracle = EnergyOracle(energy, env)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in (0, 1, 4, env.max_steps):
        states = States(x, torch.full((6,), step), torch.zeros(6, dtype=torch.bool))
        spread = 2.0 * (math.sqrt(max(step, 1) / 10) if make is brownian else 1.0)
        share = max(step, 1) / env.max_steps
        reference = torch.distributions.Normal(0.0, spread).log_prob(x).sum(1)
        wanted = (1 - share) * reference + share * energy.log_density(x)
        assert torch.allclose(oracle.partial_log_reward(states), wanted)
    assert torch.equal(oracle(states)[:, 0], energy.log_density(x))
    with pytest.raises(ValueError, match="do not fit"):
        EnergyOracle(Funnel(3), env)


def test_distances_between_clouds():
    x, y = points([0, 0], [1, 0]), points([0, 1], [2, 0])
    assert torch.allclose(wasserstein(x, y), torch.tensor(1.0).double())
    assert torch.allclose(wasserstein(x, y, order=1), torch.tensor(1.0).double())
    moved = points([3, 0], [0, 0])
    assert torch.allclose(wasserstein(x, moved), torch.tensor(math.sqrt(2.0)).double())
    assert abs(squared_mmd(x, y, (1.0,)) - 0.4861698) < 1e-7
    assert abs(squared_mmd(x, x)) < 1e-15
    with pytest.raises(ValueError, match="clouds of one size"):
        wasserstein(x, y[:1])


def test_mode_shares():
    modes = points([0, 0], [10, 0], [0, 10])
    x = points([0.1, 0], [0, -0.9], [10.5, 0], [5, 5])
    assert torch.allclose(mode_shares(x, modes, 1.0), torch.tensor([0.5, 0.25, 0.0]))
    many = gaussians25().sample(20_000, torch.Generator().manual_seed(0))
    assert (mode_shares(many, gaussians25().modes, 2.0) - 0.04).abs().max() < 0.01


def test_energies_without_a_width_are_refused():
    with pytest.raises(ValueError, match="standard deviation above 0, not 0"):
        GaussianMixture(torch.zeros(1, 2).double(), 0.0)
    for dim, scale in ((1, 1.0), (3, 0.0)):
        with pytest.raises(ValueError, match="at least 2 coordinates and a scale above 0"):
            Funnel(dim, scale)
