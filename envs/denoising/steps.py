"""Step samplers of denoising: each is a table of (A, B, s) for every step of a time grid.

One step is x' = A x + B v(x, t) + s eps with eps ~ N(0, I), where v is what the network predicts.
Time runs from t = 1 (noise) to t = 0 (data). On the linear path x_t = (1 - t) x_0 + t eps the
prediction is the velocity eps - x_0; `predicting` rewrites a table for other predictions. All
functions take times as float64 tensors of one shape and return float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Steps(NamedTuple):
    """Coefficients of affine-Gaussian steps, each of the shape of the times.

    Attributes:
        a: factor A of the state.
        b: factor B of the network's prediction.
        s: standard deviation of the noise; 0 where the step is deterministic.
    """

    a: Tensor
    b: Tensor
    s: Tensor


def time_grid(steps: int, shift: float = 1.0) -> Tensor:
    """`steps` + 1 times from 1 down to 0, t = shift u / (1 + (shift - 1) u) of an even grid u.

    Raises:
        ValueError: fewer than one step, or a shift that is not positive.
    """
    if steps < 1 or not shift > 0:
        raise ValueError(f"a time grid needs steps >= 1 and shift > 0, not {steps} and {shift}")
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * u / (1 + (shift - 1) * u)


def euler(t: Tensor, t_next: Tensor) -> Steps:
    """The probability-flow ODE by Euler's rule, without noise (rectified flow, 2209.03003)."""
    return Steps(torch.ones_like(t), t_next - t, torch.zeros_like(t))


def reverse_sde(t: Tensor, t_next: Tensor, variance: Tensor) -> Steps:
    """The ODE with noise of the given variance, corrected by the score so that marginals stay.

    dx = (v - g^2 score / 2) dt + g dw with score = -(x + (1 - t) v) / t, over one step.

    Args:
        t: times the steps leave, above 0.
        t_next: times they enter.
        variance: g^2 h of each step, or its integral.
    """
    share = variance / (2 * t)
    return Steps(1 - share, t_next - t - share * (1 - t), variance.sqrt())


def flow_sde(t: Tensor, t_next: Tensor, noise: float = 0.7) -> Steps:
    """g^2 = noise^2 t / (1 - t) (Flow-GRPO, 2025, arXiv 2505.05470).

    At t = 1 the denominator takes the next time, so that the first step has s = noise whatever
    the grid; this leaves a bias of the marginals that no finer grid removes.
    """
    inside = torch.where(t == 1, t_next, t)
    return reverse_sde(t, t_next, noise**2 * t / (1 - inside) * (t - t_next))


def dance_sde(t: Tensor, t_next: Tensor, noise: float = 0.3) -> Steps:
    """Constant g = noise (DanceGRPO, 2025, arXiv 2505.07818)."""
    return reverse_sde(t, t_next, noise**2 * (t - t_next))


def sage_sde(t: Tensor, t_next: Tensor, noise: float = 0.5, clamp: float = 3e-3) -> Steps:
    """g^2 = noise^2 t / (1 - t), integrated over the step (SAGE-GRPO, 2026, arXiv 2603.21872).

    t is clamped to 1 - `clamp` in the integral; a step inside the clamped range has no noise.
    """
    integral = t_next - t + ((1 - t_next) / (1 - t.clamp(max=1 - clamp))).log()
    return reverse_sde(t, t_next, noise**2 * integral.clamp(min=0))


def cps(t: Tensor, t_next: Tensor, noise: float = 0.8) -> Steps:
    """Coefficients-preserving sampling: x' mixes x0_hat, x1_hat and noise as the path does.

    Its marginals are not those of the path, even on fine grids (2025, arXiv 2509.05952).
    """
    kept = t_next * math.cos(noise * math.pi / 2)
    clean = 1 - t_next
    return Steps(clean + kept, (1 - t) * kept - t * clean, t_next * math.sin(noise * math.pi / 2))


def _decay(t: Tensor, t_next: Tensor) -> Tensor:
    """exp(lambda - lambda') of a step, lambda = log((1 - t) / t)."""
    return (1 - t) * t_next / (t * (1 - t_next))


def dpm_sde(t: Tensor, t_next: Tensor) -> Steps:
    """DPM-Solver++ of order 1 on the diffusion SDE (2022, arXiv 2211.01095)."""
    decay = _decay(t, t_next)
    clean = (1 - t_next) * (1 - decay.square())
    kept = t_next / t * decay
    return Steps(kept + clean, -t * clean, t_next * (1 - decay.square()).sqrt())


class Multistep(NamedTuple):
    """Coefficients of a deterministic step with memory: x' = A x + B x0_hat + C x0_hat_before."""

    a: Tensor
    b: Tensor
    c: Tensor


def dpm_multistep(t: Tensor, t_next: Tensor, t_before: Tensor) -> Multistep:
    """DPM-Solver++ 2M, midpoint form, on the ODE (2022, arXiv 2211.01095).

    Args:
        t: times the steps leave.
        t_next: times they enter.
        t_before: times of the estimates before; NaN where there are none. There, after a step
            from t = 1 and in a step to t = 0 the order is 1, which is Euler's rule.
    """
    decay = _decay(t, t_next)
    weight = (1 - t_next) * (1 - decay)
    log_snr, before = ((1 - t) / t).log(), ((1 - t_before) / t_before).log()
    inverse_ratio = -decay.log() / (log_snr - before)
    second = torch.isfinite(inverse_ratio) & torch.isfinite(before) & (t_next > 0)
    half = torch.where(second, inverse_ratio / 2, 0.0)
    return Multistep(t_next / t, weight * (1 + half), -weight * half)


def ddim(signal: Tensor, signal_next: Tensor, eta: float = 1.0) -> Steps:
    """DDIM on a variance-preserving path; predictions are of the noise (2010.02502).

    eta = 1 is the posterior of DDPM (2006.11239), eta = 0 is deterministic.

    Args:
        signal: cumulative alpha of the times the steps leave, in (0, 1).
        signal_next: that of the times they enter, in (0, 1].
        eta: share of the posterior's standard deviation.
    """
    variance = eta**2 * (1 - signal_next) / (1 - signal) * (1 - signal / signal_next)
    a = (signal_next / signal).sqrt()
    # Rounding may leave the difference a hair below 0 in the last step.
    b = (1 - signal_next - variance).clamp(min=0).sqrt() - a * (1 - signal).sqrt()
    return Steps(a, b, variance.clamp(min=0).sqrt())


def brownian(t: Tensor, t_next: Tensor, variance: float = 1.0) -> Steps:
    """Brownian motion from one point, drift predicted (Path Integral Sampler, 2111.15141).

    Args:
        t: times the steps leave.
        t_next: times they enter.
        variance: sigma^2, the variance that a walk without drift has at t = 0.
    """
    h = t - t_next
    return Steps(torch.ones_like(t), h, (variance * h).sqrt())


def dds(forgotten: Tensor, variance: float = 1.0) -> Steps:
    """Denoising diffusion sampler; predictions are of the control (DDS, 2023, arXiv 2302.13834).

    Args:
        forgotten: share alpha_k of the variance that step k renews, in (0, 1).
        variance: sigma^2 of the noise at t = 1.
    """
    kept = (1 - forgotten).sqrt()
    return Steps(kept, 2 * variance * (1 - kept), (variance * forgotten).sqrt())


class Path(NamedTuple):
    """Marginals x_t = signal x_0 + noise eps of a forward process, at some times."""

    signal: Tensor
    noise: Tensor


def linear_path(t: Tensor) -> Path:
    """x_t = (1 - t) x_0 + t eps."""
    return Path(1 - t, t)


def variance_preserving(signal: Tensor) -> Path:
    """x_t = sqrt(alpha) x_0 + sqrt(1 - alpha) eps, cumulative alpha given."""
    return Path(signal.sqrt(), (1 - signal).sqrt())


PREDICTIONS = ("velocity", "noise", "clean")
"""What a network may predict: eps - x_0 (on a variance-preserving path sqrt(alpha) eps -
sqrt(1 - alpha) x_0), eps, or x_0."""


def _combination(path: Path, prediction: str, linear: bool) -> tuple[Tensor, Tensor]:
    """p, q with prediction = p x_0 + q eps."""
    one, zero = torch.ones_like(path.signal), torch.zeros_like(path.signal)
    if prediction == "velocity":
        return (-one, one) if linear else (-path.noise, path.signal)
    return (zero, one) if prediction == "noise" else (one, zero)


def translation(path: Path, given: str, wanted: str, linear: bool = True) -> tuple[Tensor, Tensor]:
    """alpha, beta with wanted = alpha x_t + beta given, for the predictions of one network.

    Args:
        path: marginals at the times the network is asked.
        given: what the network predicts, one of `PREDICTIONS`.
        wanted: what is wanted, one of `PREDICTIONS`.
        linear: the velocity is that of the linear path.

    Raises:
        ValueError: an unknown prediction, or one that says nothing at one of the times (the noise
            where there is no signal, the clean point where there is no noise).
    """
    for name in (given, wanted):
        if name not in PREDICTIONS:
            raise ValueError(f"unknown prediction {name!r}: choose from {', '.join(PREDICTIONS)}")
    if given == wanted:
        return torch.zeros_like(path.signal), torch.ones_like(path.signal)
    p, q = _combination(path, given, linear)
    r, w = _combination(path, wanted, linear)
    scale = path.signal * q - path.noise * p
    if bool((scale.abs() < 1e-6).any()):
        raise ValueError(
            f"a prediction of {given!r} does not determine {wanted!r} at the ends of the path: "
            "keep the times inside (0, 1), or predict the velocity"
        )
    return (r * q - w * p) / scale, (w * path.signal - r * path.noise) / scale


def predicting(steps: Steps, alpha: Tensor, beta: Tensor) -> Steps:
    """The table for a network whose output o enters as alpha x + beta o, see `translation`."""
    return Steps(steps.a + steps.b * alpha, steps.b * beta, steps.s)


def noising(path: Path, nearer: Path) -> Steps:
    """The forward process x_t given x_t', t > t': x_t = a x_t' + s eps; b is 0.

    Args:
        path: marginals at t.
        nearer: marginals at t', nearer to the data.
    """
    a = path.signal / nearer.signal
    # Rounding may leave the difference a hair below 0.
    s = (path.noise.square() - (a * nearer.noise).square()).clamp(min=0).sqrt()
    return Steps(a, torch.zeros_like(a), s)


def brownian_bridge(t: Tensor, t_next: Tensor, variance: float = 1.0) -> Steps:
    """Brownian motion from 0 at t = 1, seen backward: x_t given x_t', a = (1 - t) / (1 - t')."""
    a = (1 - t) / (1 - t_next)
    return Steps(a, torch.zeros_like(a), (variance * a * (t - t_next)).sqrt())
