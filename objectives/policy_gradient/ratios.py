"""Importance ratios of the current policy to the one that sampled, at the level of choice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LIMIT = 20.0
"""Log-ratios are clamped to this size before the exponential."""


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LIMIT, LIMIT).exp()


def _difference(log_p: Tensor, log_old: Tensor, mask: Tensor) -> Tensor:
    # Padding may hold anything, NaN included.
    return torch.where(mask, log_p - log_old, 0.0)


def _geometric(log_p: Tensor, log_old: Tensor, mask: Tensor) -> Tensor:
    length = mask.sum(1, keepdim=True).clamp(min=1)
    return _difference(log_p, log_old, mask).sum(1, keepdim=True) / length


def token(log_p: Tensor, log_old: Tensor, mask: Tensor) -> Tensor:
    """exp(log p - log old) of every step, [N, T]."""
    return _exp(_difference(log_p, log_old, mask))


def sequence_geometric(log_p: Tensor, log_old: Tensor, mask: Tensor) -> Tensor:
    """Geometric mean over the steps, [N, 1] (GSPO, 2025, arXiv 2507.18071)."""
    return _exp(_geometric(log_p, log_old, mask))


def sequence_geometric_token(log_p: Tensor, log_old: Tensor, mask: Tensor) -> Tensor:
    """The geometric mean with the gradient of each step's own log p, [N, T] (GSPO-token)."""
    own = torch.where(mask, log_p - log_p.detach(), 0.0)
    return _exp(own + _geometric(log_p, log_old, mask).detach())


def sequence_product(log_p: Tensor, log_old: Tensor, mask: Tensor) -> Tensor:
    """Ratio of whole trajectories, [N, 1]; of terms of bounds on log p it is that of the bounds."""
    return _exp(_difference(log_p, log_old, mask).sum(1, keepdim=True))


def none(log_p: Tensor, log_old: Tensor, mask: Tensor) -> Tensor:
    """1 everywhere, [N, T]: the batch is taken as drawn from the current policy."""
    return torch.ones_like(log_p)


RATIOS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "none": none,
    "token": token,
    "seq_geo": sequence_geometric,
    "seq_geo_token": sequence_geometric_token,
    "seq_prod": sequence_product,
    "elbo": sequence_product,
}
