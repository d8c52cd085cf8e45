"""From reward vectors to advantages: how much better than expected each trajectory was.

Everything is a product of switches, A = whiten(scale(combine(R) - baseline)). Missing rewards are
NaN: they are left out of every statistic, and what cannot be compared gets the advantage 0.
Standard deviations are unbiased by default; one that is zero up to rounding gives 0, never noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from gflow.objectives.policy_gradient.groups import Groups

EPSILON = 1e-6
"""Added to standard deviations before dividing."""


class Gate(NamedTuple):
    """A reward that counts only where another one is high enough.

    Attributes:
        reward: column that is gated.
        on: column that decides.
        threshold: smallest value of that column for which the gate is open.
    """

    reward: int
    on: int
    threshold: float


class Moments(NamedTuple):
    """Statistics of the known values of each group, [n] or [n, K].

    Attributes:
        mean: 0 where nothing is known.
        std: 0 where there are too few for a spread, or where it is 0 up to rounding.
        seen: numbers of known values, or of visits.
    """

    mean: Tensor
    std: Tensor
    seen: Tensor


def apply_gates(rewards: Tensor, gates: Iterable[Gate]) -> Tensor:
    """Rewards [N, K] with those behind closed gates set to 0 (GDPO, 2026, arXiv 2601.05242)."""
    gated = rewards.clone()
    for gate in gates:
        open_ = rewards[:, gate.on] >= gate.threshold
        gated[:, gate.reward] = torch.where(open_, rewards[:, gate.reward], 0.0)
    return gated


def weighted_total(rewards: Tensor, weights: Tensor) -> Tensor:
    """sum_k w_k R_k over the known rewards, [N]; NaN where none is known.

    Args:
        rewards: [N, K], NaN where unknown.
        weights: [K] or [N, K].
    """
    known = known_values(rewards)
    filled = rewards if known is None else rewards.nan_to_num(nan=0.0)
    total = filled @ weights if weights.ndim == 1 else (filled * weights).sum(-1)
    return total if known is None else total.masked_fill(known.amax(-1) == 0, torch.nan)


def known_values(values: Tensor) -> Tensor | None:
    """1 where a value is known and 0 where it is NaN, or None where all are known."""
    return (~values.isnan()).to(values.dtype) if bool(values.sum().isnan()) else None


def moments(values: Tensor, groups: Groups, ddof: int = 1) -> tuple[Moments, Tensor]:
    """Statistics of each group's known values [N] or [N, K], and every row's known deviation.

    Args:
        values: NaN where unknown.
        groups: which rows belong together.
        ddof: 1 for unbiased variances, 0 for plain ones.

    Returns:
        The statistics, and value - mean of each row, 0 where it is unknown.
    """
    known = known_values(values)
    if known is None:
        count, filled = groups.sizes.to(values.dtype), values
        count = terms = count.view(-1, *[1] * (values.ndim - 1))
    else:
        count, filled = groups.sum(known), values.nan_to_num(nan=0.0)
        terms = count.clamp(min=1)
    mean = groups.sum(filled) / terms
    deviation = groups.spread(mean)
    torch.sub(filled, deviation, out=deviation)
    if known is not None:
        deviation *= known
    # The sum of the deviations is what rounding left of the mean: equal values have no spread.
    left = groups.sum(deviation).square() / terms
    square = (groups.sum(deviation.square()) - left).clamp(min=0)
    std = (square / (count - ddof).clamp(min=1)).sqrt()
    some = (count > ddof) & (std > 8 * torch.finfo(values.dtype).eps * mean.abs())
    return Moments(mean, torch.where(some, std, 0.0), count), deviation


def group_relative(
    values: Tensor,
    groups: Groups,
    baseline: str = "group_mean",
    scale: str = "group_std",
    eps: float = EPSILON,
    ddof: int = 1,
    min_std: float = 0.0,
) -> Tensor:
    """(r - baseline) / scale of each row, 0 where it is unknown or alone; [N] or [N, K].

    Args:
        values: rewards [N], or [N, K] to treat each on its own; NaN where unknown.
        groups: rows that are compared with each other.
        baseline: "none"; "group_mean" (GRPO, 2024, arXiv 2402.03300); or "leave_one_out", the
            mean of the others (RLOO, 2024, arXiv 2402.14740).
        scale: "none"; "group_std"; or "batch_std", the standard deviation of all known values.
        eps: added to the standard deviation.
        ddof: 1 for unbiased variances, 0 for plain ones.
        min_std: standard deviations up to this one count as 0.
    """
    if baseline == "none" and scale == "none":
        return values.nan_to_num(nan=0.0)
    found, deviation = moments(values, groups, ddof)
    if scale == "group_std":
        factor = _inverse(found.std, eps, min_std)
    elif scale == "batch_std":
        everyone = Groups.of(torch.zeros_like(groups.member))
        whole, _ = moments(values, everyone, ddof)
        factor = _inverse(whole.std, eps, min_std).expand_as(found.mean)
    else:
        factor = torch.ones_like(found.mean)
    if baseline == "none":
        return values.nan_to_num(nan=0.0) * groups.spread(factor)
    if baseline == "leave_one_out":
        factor = factor * found.seen / (found.seen - 1).clamp(min=1)
    # A single value has nothing to be compared with; its deviation is 0.
    return deviation.mul_(groups.spread(factor))


def _inverse(std: Tensor, eps: float, min_std: float = 0.0) -> Tensor:
    return torch.where(std > min_std, 1 / (std + eps), 0.0)


def whiten(
    advantage: Tensor,
    weight: Tensor,
    eps: float = EPSILON,
    ddof: int = 1,
    size: Tensor | float = 0.0,
) -> Tensor:
    """(A - mean) / (std + eps) over everything of weight above 0, which the rest is not part of.

    Args:
        advantage: any shape.
        weight: like `advantage`: 1 and 0 for rows that count and those that do not, or numbers of
            steps, which makes it a statistic over steps.
        eps: added to the standard deviation.
        ddof: 1 for unbiased variances.
        size: of the numbers that `advantage` was summed from; what their rounding leaves where they
            cancel is no signal.
    """
    total = weight.sum()
    mean = (weight * advantage).sum() / total.clamp(min=1)
    centred = torch.where(weight > 0, advantage - mean, 0.0)
    std = ((weight * centred.square()).sum() / (total - ddof).clamp(min=1)).sqrt()
    size = torch.as_tensor(size, dtype=mean.dtype, device=mean.device)
    least = 8 * torch.finfo(advantage.dtype).eps * mean.abs().maximum(size)
    return centred * _inverse(torch.where(std > least, std, 0.0), eps)


def advantage(
    rewards: Tensor,
    group: Tensor | Groups,
    lengths: Tensor,
    *,
    combine: str = "sum_then_norm",
    baseline: str = "group_mean",
    scale: str = "group_std",
    whitening: str = "none",
    weights: Tensor | None = None,
    gates: Iterable[Gate] = (),
    eps: float = EPSILON,
    ddof: int = 1,
    min_std: float = 0.0,
) -> Tensor:
    """Advantages of whole trajectories from their reward vectors, [N].

    Args:
        rewards: [N, K], NaN where a reward is not known.
        group: [N] int64, any numbers, or `Groups`; the trajectories of one are compared.
        lengths: [N], steps of each trajectory, which token statistics weigh by.
        combine: "sum_then_norm", the weighted sum is one reward; or "norm_then_sum", every reward
            gets an advantage of its own and those are summed (GDPO, 2026, arXiv 2601.05242).
        baseline: see `group_relative`.
        scale: see `group_relative`.
        whitening: "none"; "sequence", over trajectories; or "token", over their steps.
        weights: [K] or [N, K]; ones by default.
        gates: rewards that count only where others are high.
        eps: added to standard deviations.
        ddof: 1 for unbiased variances.
        min_std: smaller standard deviations of a group count as 0.
    """
    gated = apply_gates(rewards, gates) if gates else rewards
    if weights is None:
        weights = gated.new_ones(gated.shape[1])
    groups = Groups.of(group)
    settings = (groups, baseline, scale, eps, ddof, min_std)
    size: Tensor | float = 0.0
    if combine == "sum_then_norm":
        result = group_relative(weighted_total(gated, weights), *settings)
    else:
        each = group_relative(gated, *settings)
        result = each @ weights if weights.ndim == 1 else (each * weights).sum(-1)
        low, high = each.aminmax()
        size = torch.maximum(-low, high) * weights.abs().sum(-1).amax()
    if whitening == "none":
        return result
    weight = torch.ones_like(result) if whitening == "sequence" else lengths.to(result.dtype)
    known = known_values(rewards)
    if known is not None:
        weight = weight * known.amax(-1)
    return whiten(result, weight, eps, ddof, size)


def generalized_advantage(
    rewards: Tensor, values: Tensor, mask: Tensor, discount: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, both [N, T] (2015, arXiv 1506.02438).

    delta_t = r_t + g V_{t+1} - V_t and A_t = delta_t + g lam A_{t+1}; returns are A + V. Steps
    outside `mask` are passed over as if they were not there.

    Args:
        rewards: [N, T], of single steps.
        values: [N, T], V of the state that each step leaves; the value after the end is 0.
        mask: [N, T] bool.
        discount: g.
        lam: trade-off of bias (0) and variance (1).
    """
    following = values.new_zeros(len(values))
    running = values.new_zeros(len(values))
    steps = []
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + discount * following - values[:, t]
        running = torch.where(mask[:, t], delta + discount * lam * running, running)
        following = torch.where(mask[:, t], values[:, t], following)
        steps.append(running)
    result = torch.where(mask, torch.stack(steps[::-1], 1), 0.0)
    return result, torch.where(mask, result + values, 0.0)


def overlong_penalty(lengths: Tensor, longest: int, soft: int) -> Tensor:
    """0 up to longest - soft steps, falling to -1 at `longest`, -1 beyond (DAPO, 2503.14476)."""
    return ((longest - soft - lengths) / soft).clamp(-1.0, 0.0)
