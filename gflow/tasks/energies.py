"""Tasks: points drawn from a target density, where log Z is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from gflow.config import ConfigError, PolicySettings

from .registry import Task, near, point_key, register

if TYPE_CHECKING:
    from gflow.envs.denoising.energies import Energy


@register
def gmm9(
    steps: int = 40, reference: str = "dds", variance: float = 20.0, guide: bool = True
) -> Task:
    """9 normal distributions on a grid of the plane, far apart; log Z = 0.

    Args:
        steps: denoising steps.
        reference: brownian (from the origin) or dds (from normal noise).
        variance: that of the reference at its end.
        guide: the network also sees the gradient of the log-density.
    """
    from gflow.envs.denoising.energies import gaussians9

    return _target(gaussians9(), steps, reference, variance, "gmm9", guide)


@register
def gmm25(
    steps: int = 40, reference: str = "dds", variance: float = 50.0, guide: bool = True
) -> Task:
    """25 normal distributions on a grid of the plane, far apart; log Z = 0.

    Args:
        steps: denoising steps.
        reference: brownian (from the origin) or dds (from normal noise).
        variance: that of the reference at its end.
        guide: the network also sees the gradient of the log-density.
    """
    from gflow.envs.denoising.energies import gaussians25

    return _target(gaussians25(), steps, reference, variance, "gmm25", guide)


@register
def gmm40(steps: int = 40, variance: float = 800.0, guide: bool = True, modes: int = 0) -> Task:
    """40 normal distributions strewn over a wide plane; log Z = 0.

    Args:
        steps: denoising steps.
        variance: that of the reference at its end.
        guide: the network also sees the gradient of the log-density.
        modes: seeds the places of the modes.
    """
    from gflow.envs.denoising.energies import gaussians40

    return _target(gaussians40(modes), steps, "dds", variance, f"gmm40-{modes}", guide)


@register
def funnel(scale: float = 1.0, steps: int = 40, variance: float = 1.0, guide: bool = True) -> Task:
    """A ten-dimensional funnel whose neck is hard to enter; log Z = 0.

    Args:
        scale: 1 is the easy, 3 the hard funnel.
        steps: denoising steps.
        variance: that of the reference at its end.
        guide: the network also sees the gradient of the log-density.
    """
    from gflow.envs.denoising.energies import Funnel

    return _target(Funnel(10, scale), steps, "brownian", variance, f"funnel-{scale:g}", guide)


@register
def many_well(dim: int = 32, steps: int = 40, variance: float = 1.0, guide: bool = True) -> Task:
    """Pairs of a double well and a normal: 2^(dim / 2) modes; log Z is 164.696 for 32 axes.

    Args:
        dim: number of coordinates, even.
        steps: denoising steps.
        variance: that of the reference at its end.
        guide: the network also sees the gradient of the log-density.
    """
    from gflow.envs.denoising.energies import ManyWell

    return _target(ManyWell(dim), steps, "brownian", variance, f"many-well-{dim}", guide)


@register
def cox(side: int = 40, steps: int = 40, variance: float = 1.0, guide: bool = True) -> Task:
    """Log-intensities of a spatial point process given its counts; log Z is not known.

    Args:
        side: cells along the edge of the square; the published one has 40.
        steps: denoising steps.
        variance: that of the reference at its end.
        guide: the network also sees the gradient of the log-density.
    """
    from gflow.envs.denoising.energies import LogGaussianCox

    return _target(LogGaussianCox(side), steps, "brownian", variance, f"cox-{side}", guide)


def _target(
    target: Energy,
    steps: int,
    reference: str,
    variance: float,
    version: str,
    guide: bool = False,
) -> Task:
    from gflow.envs.denoising import brownian, denoising_diffusion
    from gflow.envs.denoising.energies import EnergyOracle
    from gflow.policies.denoiser import DenoiserPolicy, GradientGuided, TimeMLP

    references = {"brownian": brownian, "dds": denoising_diffusion}
    if reference not in references:
        raise ConfigError(f"there is no reference {reference!r}: {near(reference, references)}")
    if variance <= 0:
        raise ConfigError(f"the variance of the reference must be positive, not {variance}")
    env = references[reference]((target.dim,), steps, variance)

    def make_policy(
        settings: PolicySettings, condition_size: int, flow: bool, energy: bool, seed: int
    ) -> nn.Module:
        if energy or settings.backward not in (None, "uniform"):
            raise ValueError("denoising has a fixed backward policy, and no learned energies")
        shape = {"hidden": settings.hidden or 64, "layers": settings.layers or 2}
        network: nn.Module = TimeMLP(target.dim, target.dim, condition_size, **shape, seed=seed)
        if guide:
            network = GradientGuided(network, target.log_density, seed=seed + 1)
        log_flow = TimeMLP(target.dim, 1, condition_size, **shape, seed=seed + 2) if flow else None
        return DenoiserPolicy(env, network, condition_size=condition_size, flow=log_flow)

    return Task(
        env,
        EnergyOracle(target, env, version),
        make_policy,
        kind="point",
        key=point_key,
        reference_point=(-1000.0,),
        partial_rewards=True,
        scalarization="log_linear",
        record_every=25,
    )
