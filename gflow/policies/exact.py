"""Velocities in closed form: denoisers of normal data and mixtures, without training."""

from __future__ import annotations

from torch import Tensor, nn


class MixtureVelocity(nn.Module):
    """E[eps - x_0 | x_t] on the linear path for data from a mixture of round normals.

    Args:
        means: [M, dim].
        std: standard deviation of every component.
        log_weights: [M], up to a constant; even by default.
    """

    means: Tensor
    log_weights: Tensor

    def __init__(self, means: Tensor, std: float, log_weights: Tensor | None = None):
        super().__init__()
        even = means.new_zeros(len(means)) if log_weights is None else log_weights
        self.std = std
        self.register_buffer("means", means.float(), persistent=False)
        self.register_buffer("log_weights", even.float().log_softmax(0), persistent=False)

    def forward(self, x: Tensor, t: Tensor, encoding: Tensor) -> Tensor:
        """Velocities [n, dim] at points [n, dim] and times [n] above 0."""
        t = t.unsqueeze(1)
        means = self.means.to(x.dtype)
        variance = (1 - t).square() * self.std**2 + t.square()
        off = x.unsqueeze(1) - (1 - t).unsqueeze(2) * means
        log_p = self.log_weights.to(x.dtype) - off.square().sum(2) / (2 * variance)
        weight = log_p.softmax(1).unsqueeze(2)
        gain = (1 - t) * self.std**2 / variance
        clean = (weight * (means + gain.unsqueeze(2) * off)).sum(1)
        return (x - clean) / t
