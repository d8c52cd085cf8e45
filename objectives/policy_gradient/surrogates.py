"""What is maximised at every step: S(ratio, advantage, log p), elementwise.

Bounds of ratios are absolute, for example 0.8 and 1.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gflow.objectives.policy_gradient.groups import Groups

Bound = float | Tensor


def reinforce(advantage: Tensor, log_p: Tensor) -> Tensor:
    """A log p: the score function."""
    return advantage * log_p


def ppo_clip(
    ratio: Tensor, advantage: Tensor, low: Bound, high: Bound, dual: float = 0.0
) -> Tensor:
    """min(rho A, clip(rho, low, high) A) (PPO, 2017, arXiv 1707.06347).

    With `dual` above 0 it is at least `dual` times A where A < 0 (dual clip, 2019,
    arXiv 1912.09729).
    """
    # Where A > 0 only the upper bound matters, elsewhere only the lower one and the dual clip.
    good = advantage > 0
    lower = torch.where(good, ratio.new_zeros(()), low)
    upper = torch.where(good, high, ratio.new_tensor(dual or torch.inf))
    return ratio.clamp(lower, upper) * advantage


def dynamic_bounds(
    log_old: Tensor, low: float, high: float, cap: float = 10.0
) -> tuple[Tensor, Tensor]:
    """Bounds of the ratio that widen for rare actions (DCPO, 2025, arXiv 2509.02333).

    |(rho - 1) rho q| <= epsilon for an action of old probability q gives
    1/2 + 1/2 sqrt(max(1 - 4 low / q, 0)) and min(1/2 + 1/2 sqrt(1 + 4 high / q), cap).

    Args:
        log_old: log q.
        low: epsilon of the lower bound.
        high: epsilon of the upper bound.
        cap: largest upper bound.
    """
    inverse = torch.exp(-log_old)
    lower = 0.5 + 0.5 * (1 - 4 * low * inverse).clamp(min=0).sqrt()
    upper = 0.5 + 0.5 * (1 + 4 * high * inverse).sqrt()
    return lower, upper.clamp(max=cap)


def clipped_weight(
    ratio: Tensor,
    advantage: Tensor,
    log_p: Tensor,
    positive: tuple[float, float],
    negative: tuple[float, float],
) -> Tensor:
    """sg[clip(rho)] A log p, with bounds by the sign of A; no step ever loses its gradient.

    Equal bounds for both signs give CISPO (2025, arXiv 2506.13585), four of them DISPO (2026,
    arXiv 2602.00983).
    """
    fixed = ratio.detach()
    weight = torch.where(advantage > 0, fixed.clamp(*positive), fixed.clamp(*negative))
    return weight * advantage * log_p


def score_difference(
    score: Tensor, label: Tensor, groups: Groups, temperature: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean over groups of: positives' mean score minus the negatives' (DisCO, 2505.12366).

    With a temperature the negatives enter by t log mean exp(s / t), which presses on the hardest.

    Args:
        score: [N], of each trajectory.
        label: [N], above 0 for positives, below for negatives; 0 takes no part.
        groups: trajectories that answer the same question.
        temperature: t, or 0 for the plain mean.

    Returns:
        The scalar to maximise, and the number of groups it is a mean over. Groups without
        positives or without negatives contribute 0 and are counted.
    """
    positive, negative = (label > 0).to(score.dtype), (label < 0).to(score.dtype)
    n_positive, n_negative = groups.sum(positive), groups.sum(negative)
    good = groups.sum(positive * score) / n_positive.clamp(min=1)
    if temperature:
        # Shifted by the largest score of the batch's negatives: a constant that drops out.
        shift = torch.where(label < 0, score.detach(), -torch.inf).amax().clamp(min=-1e30)
        spread = negative * ((score - shift).clamp(max=0) / temperature).exp()
        mean = groups.sum(spread) / n_negative.clamp(min=1)
        bad = shift + temperature * torch.where(n_negative > 0, mean, 1.0).log()
    else:
        bad = groups.sum(negative * score) / n_negative.clamp(min=1)
    both = (n_positive > 0) & (n_negative > 0)
    count = torch.tensor(len(groups.sizes), device=score.device)
    return torch.where(both, good - bad, 0.0).sum() / count.clamp(min=1), count
