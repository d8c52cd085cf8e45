"""Baselines that remember: what was seen of a condition in earlier batches."""

from __future__ import annotations

import torch
from torch import Tensor

from gflow.objectives.policy_gradient.advantages import Moments
from gflow.objectives.policy_gradient.groups import Groups


def pool_moments(old: Moments, new: Moments) -> Moments:
    """Moments over all visits, of which there were `old.seen`, after one more (DCPO, 2509.02333).

    Every visit weighs the same, whatever its size. Exact for plain variances of equal visits;
    standard deviations are pooled as they are given.
    """
    visits = old.seen + 1
    mean = (old.seen * old.mean + new.mean) / visits
    between = old.seen / visits * (new.mean - old.mean).square()
    square = (old.seen * old.std.square() + new.std.square() + between) / visits
    return Moments(mean, square.sqrt(), visits)


def smooth_advantage(values: Tensor, groups: Groups, new: Moments, pooled: Moments) -> Tensor:
    """The more cautious of two mixtures of advantages within a visit and over all visits, [N].

    With i the number of visits: ((i-1)/i) A_new + (1/i) A_all and the reverse; the one of smaller
    size is taken. A visit of equal rewards still learns from its distance to earlier ones.
    (DCPO, 2025, arXiv 2509.02333.)

    Args:
        values: [N] rewards, NaN where unknown.
        groups: rows of one condition.
        new: moments of this visit, [n]; `seen` is not read.
        pooled: moments of all visits, and their number.
    """

    def standardized(by: Moments) -> Tensor:
        std, mean = groups.spread(by.std), groups.spread(by.mean)
        some = std > 8 * torch.finfo(values.dtype).eps * mean.abs()
        return torch.where(some, (values - mean) / std.where(some, 1.0), 0.0)

    here, always = standardized(new), standardized(pooled)
    share = groups.spread(1 / pooled.seen)
    of_new = (1 - share) * here + share * always
    of_all = share * here + (1 - share) * always
    return torch.where(of_new.abs() < of_all.abs(), of_new, of_all).nan_to_num(nan=0.0)


def retention(change: Tensor, half: float = 0.06, low: float = 0.875, high: float = 0.96) -> Tensor:
    """How much of the past a value tracker keeps: clip(2^(-D / half), low, high).

    Args:
        change: D, how far the policy has moved since a condition was last used.
        half: change at which half is kept.
        low: least that is kept.
        high: most that is kept.
    """
    return torch.exp2(-change / half).clamp(low, high)


def track(
    value: Tensor, weight: Tensor, rewards: Tensor, groups: Groups, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Value trackers [n] and their weights after the rewards [N], one after the other.

    Each reward moves v by (r - v) / (kept weight + 1) and makes the weight kept weight + 1, which
    for rewards 0 and 1 counts successes with forgetting. (Single-stream Policy Optimization, 2025,
    arXiv 2509.13232.)

    Args:
        value: v of each group.
        weight: N_eff of each group.
        rewards: [N]; NaN changes nothing.
        groups: rows of one condition, in the order of `groups.order`.
        kept: [n], from `retention`.
    """
    known = ~rewards.isnan()
    flag = known.to(value.dtype)[groups.order]
    first = groups.starts[groups.member[groups.order]]
    running = flag.cumsum(0)
    before = running - flag
    # A reward is forgotten once for each later one of its group.
    total = groups.sum(known.to(value.dtype))
    later = groups.spread(total)[groups.order] - (running - before[first])
    fade = groups.spread(kept)[groups.order].pow(later) * flag
    share = torch.zeros_like(fade).index_copy_(0, groups.order, fade)
    faded = kept.pow(total)
    new_weight = faded * weight + groups.sum(share)
    gained = groups.sum(share * rewards.nan_to_num(nan=0.0))
    return (faded * weight * value + gained) / new_weight, new_weight


def priority(value: Tensor, weight: Tensor, gamma: float = 0.0, least: float = 0.05) -> Tensor:
    """How often a condition should be drawn: sqrt(v (1 - v)) / N_eff^gamma + least, [n]."""
    inside = value.clamp(0, 1)
    return (inside * (1 - inside)).sqrt() / weight.pow(gamma) + least
