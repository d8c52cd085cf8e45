"""The best candidates of a set and how different they are."""

from __future__ import annotations

import torch
from torch import Tensor

from gflow.pareto._check import check_mask


def _valid(rewards: Tensor, mask: Tensor | None) -> Tensor:
    """Which rewards count, [..., n]."""
    _check_rewards(rewards)
    valid = ~rewards.isnan()
    if mask is not None:
        check_mask(mask, rewards.unsqueeze(-1))
        valid = valid & mask
    return valid


def _descending(rewards: Tensor, valid: Tensor) -> Tensor:
    """Positions of the rewards, best first and those that do not count last, [..., n]."""
    scores = rewards.detach().masked_fill(~valid, -torch.inf)
    # A valid reward of minus infinity must still come before what does not count.
    order = valid.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    within = scores.gather(-1, order).argsort(dim=-1, descending=True, stable=True)
    return order.gather(-1, within)


def _ranked(rewards: Tensor, mask: Tensor | None, k: int) -> Tensor:
    """Positions of the k best rewards, best first, [..., k]."""
    valid = _valid(rewards, mask)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    fewest = int(valid.sum(-1).min()) if valid.numel() else 0
    if fewest < k:
        raise ValueError(f"k is {k} but a set has only {fewest} rewards")
    return _descending(rewards, valid)[..., :k]


def top_k_reward(rewards: Tensor, k: int = 10, mask: Tensor | None = None) -> Tensor:
    """Mean of the k largest rewards: `topk(rewards, k).mean()`.

    Args:
        rewards: [..., n] scalarised rewards, one set for each preference.
        k: how many count.
        mask: [..., n] bool.

    Returns:
        [...]; papers report its mean over preferences.

    Raises:
        TypeError: rewards that are not floating, or a mask that is not bool.
        ValueError: fewer than k rewards in a set.

    Source: Jain et al., "Multi-objective GFlowNets", 2022 (arXiv 2210.12765).
    """
    return rewards.gather(-1, _ranked(rewards, mask, k)).mean(-1)


def top_k_diversity(
    rewards: Tensor, distances: Tensor, k: int = 10, mask: Tensor | None = None
) -> Tensor:
    """Mean pairwise distance among the k candidates with the largest rewards.

    D = 2 / (k (k - 1)) sum_{i < j} d_ij over the top k.

    Args:
        rewards: [..., n] scalarised rewards.
        distances: [..., n, n] symmetric: edit distances of sequences (integers too), 1 - Tanimoto
            similarity of molecules.
        k: how many count, at least 2.
        mask: [..., n] bool.

    Returns:
        [...].

    Raises:
        TypeError: rewards that are not floating, or a mask that is not bool.
        ValueError: fewer than k rewards in a set, k < 2, or distances of another shape.

    Source: Jain et al., "Multi-objective GFlowNets", 2022 (arXiv 2210.12765).
    """
    best = _ranked(rewards, mask, k)
    _check_matrix(distances, rewards, "distances")
    if k < 2:
        raise ValueError(f"k must be at least 2 for a pair to exist, not {k}")
    n = rewards.shape[-1]
    rows = distances.gather(-2, best.unsqueeze(-1).expand(*best.shape, n))
    pairs = rows.gather(-1, best.unsqueeze(-2).expand(*best.shape, k))
    if not pairs.is_floating_point():
        pairs = pairs.to(rewards.dtype)
    upper = torch.ones(k, k, dtype=torch.bool, device=pairs.device).triu(1)
    return pairs[..., upper].mean(-1)


def modes(
    rewards: Tensor,
    similarity: Tensor,
    mask: Tensor | None = None,
    *,
    threshold: float = 0.7,
    k: int | None = None,
) -> Tensor:
    """Which candidates are modes: unlike every better one that is a mode.

    Going down the ranking, i is a mode when similarity[i, j] < threshold for every mode j before
    it. With k it stops at the k-th mode, which is the diverse top k.

    Args:
        rewards: [..., n]; NaN is left out.
        similarity: [..., n, n], for example Tanimoto similarities.
        mask: [..., n] bool.
        threshold: similarity from which two candidates are the same mode.
        k: how many modes at most.

    Returns:
        bool [..., n]; `.sum(-1)` counts them, `rewards[modes]` are the rewards of one set's.

    Raises:
        TypeError: rewards that are not floating, or a mask that is not bool.
        ValueError: similarities of another shape or device, or k < 1.

    Source: Bengio et al., "Flow network based generative models for non-iterative diverse
    candidate generation", 2021 (arXiv 2106.04399).
    """
    valid = _valid(rewards, mask)
    _check_matrix(similarity, rewards, "similarity")
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    order = _descending(rewards, valid)
    rows = similarity.gather(-2, order.unsqueeze(-1).expand_as(similarity))
    alike = rows.gather(-1, order.unsqueeze(-2).expand_as(similarity)) >= threshold
    free, found = valid.gather(-1, order), torch.zeros_like(valid)
    for i in range(rewards.shape[-1]):
        taken = free[..., i]
        if k is not None:
            taken = taken & (found.sum(-1) < k)
        found[..., i] = taken
        free = free & ~(alike[..., i] & taken.unsqueeze(-1))
    return torch.zeros_like(found).scatter(-1, order, found)


def _check_rewards(rewards: Tensor) -> None:
    if not isinstance(rewards, Tensor) or not rewards.is_floating_point() or rewards.dim() < 1:
        raise TypeError("rewards must be a floating tensor [..., n]")


def _check_matrix(matrix: Tensor, rewards: Tensor, name: str) -> None:
    wanted = [*rewards.shape, rewards.shape[-1]]
    if list(matrix.shape) != wanted:
        raise ValueError(f"{name} must have shape {wanted}, not {list(matrix.shape)}")
    if matrix.device != rewards.device:
        raise ValueError(f"{name} is on {matrix.device} but rewards is on {rewards.device}")
