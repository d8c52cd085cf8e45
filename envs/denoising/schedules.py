"""Denoising environments by name: rectified flow, diffusion, Brownian motion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from gflow.envs.denoising import steps as tables
from gflow.envs.denoising.environment import Denoising
from gflow.envs.denoising.steps import Path, Steps

SAMPLERS: dict[str, Callable[..., Steps]] = {
    "euler": tables.euler,
    "flow_sde": tables.flow_sde,
    "dance_sde": tables.dance_sde,
    "sage_sde": tables.sage_sde,
    "cps": tables.cps,
    "dpm_sde": tables.dpm_sde,
}
"""Step samplers on the linear path."""

LEFT = 0.05
"""Noise that may be left where a schedule ends, as a share of the signal."""

KNOWN = 0.5
"""Signal that may be there where a schedule starts, as a share of the noise: walks start from pure
noise, and published schedulers with few steps from a little less."""


def flow(
    state_shape: Sequence[int],
    times: Tensor,
    sampler: str = "flow_sde",
    *,
    prediction: str = "velocity",
    clock: Tensor | None = None,
    **options: Any,
) -> Denoising:
    """A flow on the linear path x_t = (1 - t) x_0 + t eps, from a standard normal source.

    Args:
        state_shape: shape of a point.
        times: [N + 1] float64 from at most 1 down to 0, see `time_grid`.
        sampler: key of `SAMPLERS`.
        prediction: what the network predicts, one of `PREDICTIONS`.
        clock: [N + 1], what the network is fed; the times by default.
        **options: settings of the sampler, such as `noise`.

    Raises:
        ValueError: an unknown sampler, settings it does not have, noise below 0, or times that do
            not fall from noise, 1 or close to it, to 0.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}: choose from {', '.join(SAMPLERS)}")
    known = list(signature(SAMPLERS[sampler]).parameters)[2:]
    for name in options:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"unknown setting {name!r} of the sampler {sampler!r}: {has}")
    if not options.get("noise", 0) >= 0:
        raise ValueError(f"noise must be at least 0, not {options['noise']}")
    times = times.double()
    _check_falling(times)
    _check_start(tables.linear_path(times))
    t, t_next = times[:-1], times[1:]
    return _on_path(
        state_shape,
        SAMPLERS[sampler](t, t_next, **options),
        tables.linear_path(times),
        times if clock is None else clock,
        ("velocity", prediction),
        tables.euler(t, t_next),
        t - t_next,
        linear=times,
    )


def on_linear_path(env: Denoising) -> tuple[Tensor, str]:
    """Times [N + 1] of a flow and what its network predicts.

    Raises:
        ValueError: the schedule is not one of `flow`.
    """
    if env.linear is None:
        raise ValueError(
            "only a schedule of `flow` can be walked at other times: this one is not on the linear "
            "path"
        )
    return env.linear


def at_times(env: Denoising, times: Tensor) -> Denoising:
    """The deterministic steps of a flow at other times, its network fed and read as it was.

    Args:
        env: a schedule made by `flow`.
        times: [N + 1] float64, falling within the times of `env` to the last of them.

    Raises:
        ValueError: a schedule that is no flow, or one whose clock is not linear in time, so that
            nothing says what to feed the network between its steps.
    """
    grid, prediction = on_linear_path(env)
    clock = env.tables[-1][-len(grid) :]
    rate = (clock[0] - clock[-1]) / (grid[0] - grid[-1])

    def fed(t: Tensor) -> Tensor:
        return clock[-1] + rate * (t - grid[-1])

    if not torch.allclose(fed(grid), clock, rtol=0, atol=1e-5 * float(clock.abs().max())):
        raise ValueError(
            "a flow can only be walked at other times with a clock that is linear in time: nothing "
            "else says what to feed the network between its steps"
        )
    steps = tables.euler(times[:-1], times[1:])
    return _on_path(
        env.state_shape,
        steps,
        tables.linear_path(times),
        fed(times),
        ("velocity", prediction),
        steps,
        -times.diff(),
        linear=times,
    )


def diffusion(
    state_shape: Sequence[int],
    signal: Tensor,
    eta: float = 1.0,
    *,
    clock: Tensor,
    prediction: str = "noise",
) -> Denoising:
    """A diffusion x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) eps, sampled by DDIM (2010.02502).

    Args:
        state_shape: shape of a point.
        signal: [N + 1], cumulative alpha at the times of the walk, rising to that of data.
        eta: 1 for DDPM's posterior, 0 for deterministic steps.
        clock: [N + 1], what the network is fed.
        prediction: what the network predicts, one of `PREDICTIONS`.

    Raises:
        ValueError: alphas that do not rise within (0, 1] from noise to data, or eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], not {eta}: 0 is deterministic, 1 is DDPM")
    signal = signal.double()
    if not bool((signal.diff() > 0).all() and (signal > 0).all() and (signal <= 1).all()):
        raise ValueError("the cumulative alphas of a walk to data must rise within (0, 1]")
    _check_start(tables.variance_preserving(signal))
    return _on_path(
        state_shape,
        tables.ddim(signal[:-1], signal[1:], eta),
        tables.variance_preserving(signal),
        clock,
        ("noise", prediction),
        tables.ddim(signal[:-1], signal[1:], 0.0),
        -clock.diff() / (clock[0] - clock[-1]),
        linear=None,
    )


def brownian(state_shape: Sequence[int], steps: int = 100, variance: float = 1.0) -> Denoising:
    """Brownian motion from the origin; the network predicts the drift (PIS, 2111.15141).

    P_B is the Brownian bridge, so that without drift a normal target of that variance is met.

    Args:
        state_shape: shape of a point.
        steps: number of steps N.
        variance: that of the walk's end without drift.

    Raises:
        ValueError: fewer than one step, or a variance that is not above 0.
    """
    _check_variance(variance)
    times = tables.time_grid(steps)
    t, t_next = times[:-1], times[1:]
    forward = tables.brownian(t, t_next, variance)
    backward = tables.brownian_bridge(t, t_next, variance)
    return Denoising(state_shape, forward, backward, times)


def denoising_diffusion(
    state_shape: Sequence[int],
    steps: int = 100,
    variance: float = 1.0,
    ends: tuple[float, float] = (0.01, 1e-3),
) -> Denoising:
    """The denoising diffusion sampler (DDS, 2302.13834), from a normal source.

    P_B is the variance-preserving noising, so that without control a normal target of that
    variance is met. The nodes lie evenly in the log of signal over noise, so that every scale of
    the target gets its share of the steps.

    Args:
        state_shape: shape of a point.
        steps: number of steps N, at least 2.
        variance: that of the source.
        ends: share of the data's variance that is left at t = 1, and share of noise that the last
            step takes away.

    Raises:
        ValueError: fewer than 2 steps, ends that leave nothing between them, or a variance that
            is not above 0.
    """
    _check_variance(variance)
    left, last = ends
    if steps < 2 or not 0 < left < 1 - last < 1:
        raise ValueError(
            f"the denoising diffusion sampler needs 2 steps and ends within (0, 1), not {steps} "
            f"steps and {ends}"
        )
    first, latest = (math.log(share / (1 - share)) for share in (left, 1 - last))
    signal = torch.linspace(first, latest, steps, dtype=torch.float64).sigmoid()
    signal = torch.cat([signal, signal.new_ones(1)])
    forward = tables.dds(1 - signal[:-1] / signal[1:], variance)
    backward = Steps(forward.a, torch.zeros_like(forward.b), forward.s)
    times = tables.time_grid(steps)
    return Denoising(state_shape, forward, backward, times, source=math.sqrt(variance))


def _on_path(
    state_shape: Sequence[int],
    forward: Steps,
    path: Path,
    clock: Tensor,
    predictions: tuple[str, str],
    quiet: Steps,
    lengths: Tensor,
    linear: Tensor | None,
) -> Denoising:
    """A schedule whose sampler wants `predictions[0]` of a network that gives `predictions[1]`.

    `linear` holds the times, where the path is the linear one.
    """
    left = float(path.noise[-1] / path.signal[-1])
    if not left <= LEFT:
        raise ValueError(
            f"the schedule does not end at data: noise of {left:.3g} times the signal is left "
            f"at its last time {float(clock[-1]):g}"
        )
    here, there = (
        Path(path.signal[part], path.noise[part]) for part in (slice(-1), slice(1, None))
    )
    wanted, given = predictions
    straight = linear is not None
    alpha, beta = tables.translation(here, given, wanted, straight)
    return Denoising(
        state_shape,
        tables.predicting(forward, alpha, beta),
        tables.noising(here, there),
        clock,
        source=1.0,
        clean=tables.translation(here, given, "clean", straight),
        quiet=tables.predicting(quiet, alpha, beta),
        lengths=lengths,
        linear=None if linear is None else (linear, given),
    )


def _check_start(path: Path) -> None:
    """The starting noise N(0, I) must be what the path has there."""
    known = float(path.signal[0] / path.noise[0])
    if not known <= KNOWN:
        raise ValueError(
            f"the schedule does not start at noise: signal of {known:.3g} times the noise is there "
            "at its first time, and walks start from N(0, I)"
        )


def _check_variance(variance: float) -> None:
    if not variance > 0:
        raise ValueError(f"the variance of a walk must be above 0, not {variance}")


def _check_falling(times: Tensor) -> None:
    falling = times.ndim == 1 and len(times) > 1 and bool((times.diff() < 0).all())
    if not falling or times[0] > 1 or times[-1] < 0:
        raise ValueError("times must fall from at most 1 (noise) to 0 (data)")
