"""How steps and trajectories are averaged: weights of single steps, and a weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor

AGGREGATIONS = (
    "seq_mean_token_mean",
    "token_mean",
    "seq_mean_token_sum",
    "const_norm",
    "seq_token_mean_sum",
    "rollout_turn_token",
)


def step_weights(
    mask: Tensor,
    how: str,
    dtype: torch.dtype = torch.float32,
    longest: int = 0,
    total: Tensor | float | None = None,
) -> Tensor:
    """Weight of every step in the aggregate of N trajectories, [N, T]; 0 outside `mask`.

    A trajectory without steps adds 0 and is counted among the N.

    Args:
        mask: [N, T] bool, real decisions.
        how: one of
            "seq_mean_token_mean": mean over trajectories of the mean over steps (GRPO);
            "token_mean": mean over all steps (DAPO);
            "seq_mean_token_sum": mean over trajectories of the sum over steps (REINFORCE);
            "const_norm": the same divided by `longest` (Dr. GRPO, 2025, arXiv 2503.20783);
            "seq_token_mean_sum": sum over trajectories of the mean over steps;
            "rollout_turn_token": mean over trajectories of the mean over turns, unbroken runs of
            steps, of the mean over steps (Flow-GRPO of AgentFlow, 2025, arXiv 2510.05592).
        dtype: dtype of the weights.
        longest: what "const_norm" divides by.
        total: what to divide by in place of this batch's N (or steps, for "token_mean"), where the
            batch is part of a larger one.
    """
    count: Tensor | float
    inside = mask.to(dtype)
    lengths = inside.sum(1, keepdim=True).clamp(min=1)
    if how == "token_mean":
        count = inside.sum().clamp(min=1) if total is None else total
        return inside / count
    count = max(len(mask), 1) if total is None else total
    if how == "seq_token_mean_sum":
        return inside / lengths
    if how == "seq_mean_token_mean":
        return inside / (lengths * count)
    if how == "seq_mean_token_sum":
        return inside / count
    if how == "const_norm":
        return inside / (longest * count)
    turn, turns = turns_of(mask)
    length = inside.new_zeros(inside.shape).scatter_add(1, turn, inside).gather(1, turn)
    return inside / (length.clamp(min=1) * turns.unsqueeze(1).clamp(min=1) * count)


def turns_of(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the turn each step is in, [N, T], and how many a trajectory has, [N].

    A turn is an unbroken run of the policy's own steps.
    """
    starts = mask & ~torch.nn.functional.pad(mask[:, :-1], (1, 0))
    number = starts.long().cumsum(1)
    return (number - 1).clamp(min=0), number[:, -1]


def aggregate(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the values [N, T]; whatever stands where the weight is 0 does not matter."""
    return (torch.where(weights > 0, values, 0.0) * weights).sum()
