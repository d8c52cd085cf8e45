"""Likelihoods of masked diffusion models: the evidence lower bound and how to estimate it.

ELBO(y) = integral over t in (0, 1] of E[(1 / t) sum over masked i of log p(y_i | y_t)] dt, where
each token of y is masked with probability t, is at most log p(y), and equals it where the masked
conditionals belong to one joint distribution (MDLM, 2024, arXiv 2406.07524). Nearly all of an
estimate's variance comes from a random t: fixed nodes with random masks remove it (semi-
deterministic Monte Carlo; Improving Reasoning for Diffusion Language Models via Group Diffusion
Policy Optimization, 2025, arXiv 2510.08554). Masking a fixed number k = round(t L) of L tokens
instead of each with probability t removes more; the weight must then be L / k, since 1 / t is off
by the rounding.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor


def gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights [n] of Gauss-Legendre quadrature on [0, 1], float64, nodes increasing.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"quadrature needs at least one node, not {n}")
    nodes, weights = numpy.polynomial.legendre.leggauss(n)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def count_masks(draws: Tensor, valid: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Masks that hide k = round(t L), at least 1, of each row's L valid tokens.

    Args:
        draws: [n, M, T] uniform numbers; the k smallest among valid places are masked.
        valid: [n, T] bool.
        t: [M], the time of each draw.

    Returns:
        Masks [n, M, T] bool, and their weights L / k, [n, M].
    """
    length = valid.sum(1, keepdim=True)
    # Halves go up: torch rounds them to even.
    count = (t.to(draws.dtype) * length + 0.5).floor().clamp(min=1).minimum(length)
    order = torch.where(valid.unsqueeze(1), draws, torch.inf).argsort(-1).argsort(-1)
    masks = (order < count.unsqueeze(-1)) & valid.unsqueeze(1)
    return masks, length / count.clamp(min=1)


def probability_masks(draws: Tensor, valid: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Masks that hide each valid token with probability t, and their weights 1 / t.

    Args and returns as of `count_masks`.
    """
    time = t.to(draws.dtype)
    masks = (draws < time[:, None]) & valid.unsqueeze(1)
    return masks, (1 / time).expand(len(draws), -1)


def elbo_terms(log_probs: Tensor, masks: Tensor, weights: Tensor, shares: Tensor) -> Tensor:
    """What each token adds to the estimate of the ELBO, [n, T]; its sum over T is the estimate.

    Args:
        log_probs: [n, M, T], log p(y_i | y_masked) where masked, anything elsewhere.
        masks: [n, M, T] bool.
        weights: [n, M], 1 / t or L / k of each draw.
        shares: [M], quadrature weight over the number of draws at its node; they sum to 1.
    """
    scale = (weights * shares.to(weights.dtype)).unsqueeze(-1)
    return torch.where(masks, log_probs * scale, 0.0).sum(1)
