"""The best candidates of a set and how different they are."""

from __future__ import annotations

import torch
from torch import Tensor

from gflow.pareto._check import check_mask


def _ranked(rewards: Tensor, mask: Tensor | None, k: int) -> Tensor:
    """Positions of the k best rewards, best first, [..., k]."""
    _check_rewards(rewards)
    valid = ~rewards.isnan()
    if mask is not None:
        check_mask(mask, rewards.unsqueeze(-1))
        valid = valid & mask
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    fewest = int(valid.sum(-1).min()) if valid.numel() else 0
    if fewest < k:
        raise ValueError(f"k is {k} but a set has only {fewest} rewards")
    scores = rewards.detach().masked_fill(~valid, -torch.inf)
    # A valid reward of minus infinity must still come before what does not count.
    order = valid.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    within = scores.gather(-1, order).argsort(dim=-1, descending=True, stable=True)
    return order.gather(-1, within)[..., :k]


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
    rewards: Tensor, similarity: Tensor, *, threshold: float = 0.7, k: int | None = None
) -> Tensor:
    """Positions of the modes: candidates unlike every better one that was kept.

    Going down the ranking, i is kept when similarity[i, j] < threshold for every kept j. With k
    it stops at the k-th mode, which is the diverse top k.

    Args:
        rewards: [n]; NaN is left out.
        similarity: [n, n], for example Tanimoto similarities.
        threshold: similarity from which two candidates are the same mode.
        k: how many modes at most.

    Returns:
        int64 [number of modes], best first.

    Raises:
        TypeError: rewards that are not floating.
        ValueError: rewards that are not [n], similarities of another shape, or k < 1.

    Source: Bengio et al., "Flow network based generative models for non-iterative diverse
    candidate generation", 2021 (arXiv 2106.04399).
    """
    _check_rewards(rewards)
    if rewards.dim() != 1:
        raise ValueError(f"rewards must be [n], not {list(rewards.shape)}")
    _check_matrix(similarity, rewards, "similarity")
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    count = int((~rewards.isnan()).sum())
    if count == 0:
        return torch.zeros(0, dtype=torch.long, device=rewards.device)
    order = _ranked(rewards, None, count)
    alike = (similarity[order][:, order] >= threshold).cpu()
    open_ = torch.ones_like(alike[0])
    kept: list[int] = []
    for i in range(count):
        if open_[i]:
            kept.append(i)
            open_ &= ~alike[:, i]
            if len(kept) == k:
                break
    return order[torch.tensor(kept, device=order.device)]


def _check_rewards(rewards: Tensor) -> None:
    if not isinstance(rewards, Tensor) or not rewards.is_floating_point() or rewards.dim() < 1:
        raise TypeError("rewards must be a floating tensor [..., n]")


def _check_matrix(matrix: Tensor, rewards: Tensor, name: str) -> None:
    wanted = [*rewards.shape, rewards.shape[-1]]
    if list(matrix.shape) != wanted:
        raise ValueError(f"{name} must have shape {wanted}, not {list(matrix.shape)}")
    if matrix.device != rewards.device:
        raise ValueError(f"{name} is on {matrix.device} but rewards is on {rewards.device}")
