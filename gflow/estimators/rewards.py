"""How good are the objects a sampler finds: correlation with the reward, modes, reward tests.

The mean reward and the diversity of the best k are `gflow.pareto.top_k_reward` and
`gflow.pareto.top_k_diversity`; give them distinct objects, `states.rows(distinct(states)[0])`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gflow.estimators.exact import distinct
from gflow.mdp import States


class Correlation(NamedTuple):
    """Correlation coefficients in [-1, 1], NaN where one side is constant.

    Attributes:
        linear: Pearson's.
        rank: Spearman's, equal values sharing their mean rank.
    """

    linear: Tensor
    rank: Tensor


def correlation(log_p: Tensor, log_reward: Tensor) -> Correlation:
    """Correlation of log p(x) and log R(x) over n fixed objects, both [n].

    Both are 1 for a perfect sampler. (Flow Network based Generative Models, 2021, arXiv
    2106.04399, Spearman; 2305.07170, Pearson.)

    Raises:
        ValueError: not two vectors of the same length, at least 2.
    """
    if log_p.ndim != 1 or log_p.shape != log_reward.shape or len(log_p) < 2:
        raise ValueError(
            "correlation needs two vectors of the same length, at least 2, not "
            f"{list(log_p.shape)} and {list(log_reward.shape)}"
        )
    a, b = log_p.double(), log_reward.double()
    return Correlation(_pearson(a, b), _pearson(_ranks(a), _ranks(b)))


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    coefficients: Tensor = torch.corrcoef(torch.stack([a, b]))
    return coefficients[0, 1]


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1; equal values get the mean of theirs."""
    _, member, count = values.unique(return_inverse=True, return_counts=True)
    ranks: Tensor = count.cumsum(0) - 0.5 * (count - 1).double()
    return ranks[member]


def modes_found(states: States, rewards: Tensor, threshold: float) -> int:
    """Number of distinct objects with a reward of at least `threshold`.

    Args:
        states: n terminal states, repetitions allowed.
        rewards: [n].
        threshold: what counts as a mode; each environment has its own.
    """
    good = states.rows(rewards >= threshold)
    return len(distinct(good)[0]) if good.n else 0


class RewardTest(NamedTuple):
    """Rewards of sampled objects against those of the target p* = R / Z.

    Attributes:
        mean: mean reward of the samples.
        target_mean: mean reward under p*, sum R^2 / sum R.
        anderson_darling: two-sample statistic over its 5 % critical value; above 1 the samples
            are unlikely to come from p*.
    """

    mean: Tensor
    target_mean: Tensor
    anderson_darling: Tensor


def reward_test(sampled: Tensor, rewards: Tensor, generator: torch.Generator | None) -> RewardTest:
    """Do sampled rewards look like those of the target? (2023, arXiv 2305.07170.)

    Args:
        sampled: [n], rewards R of the sampled objects.
        rewards: [N], R of every object once, not negative.
        generator: draws n objects of p* to compare with.

    Raises:
        ValueError: fewer than 2 samples, or all rewards are the same number.
    """
    rewards = rewards.double()
    row = torch.multinomial(rewards, len(sampled), replacement=True, generator=generator)
    return RewardTest(
        sampled.double().mean(),
        rewards.square().sum() / rewards.sum(),
        anderson_darling(sampled, rewards[row]) / CRITICAL,
    )


CRITICAL = 1.961
"""5 % critical value of `anderson_darling`: 1.645 + 0.678 - 0.362 for two samples."""


def anderson_darling(a: Tensor, b: Tensor) -> Tensor:
    """Normalised two-sample Anderson-Darling statistic of samples [n] and [m], ties by midranks.

    Scholz and Stephens, K-sample Anderson-Darling tests, 1987 (equation 7, and 4 for its variance).

    Raises:
        ValueError: fewer than 2 values in a sample, or all values are the same number.
    """
    both = torch.cat([a.double(), b.double()])
    values, member, count = both.unique(return_inverse=True, return_counts=True)
    if min(len(a), len(b)) < 2 or len(values) < 2:
        raise ValueError("an Anderson-Darling test needs samples of 2 values, not all the same")
    total, ties = len(both), count.double()
    below = ties.cumsum(0) - ties / 2
    weight = ties / total / (below * (total - below) - total * ties / 4)
    statistic = both.new_zeros(())
    for part in (member[: len(a)], member[len(a) :]):
        own = torch.zeros_like(ties).index_add(0, part, torch.ones_like(both[: len(part)]))
        gap = total * (own.cumsum(0) - own / 2) - len(part) * below
        statistic = statistic + (weight * gap.square()).sum() / len(part)
    statistic = statistic * (total - 1) / total
    return (statistic - 1) / _deviation(len(a), len(b))


def _deviation(n: int, m: int) -> float:
    """Standard deviation of the statistic of two samples under the null hypothesis."""
    total = n + m
    inverse = 1 / torch.arange(1, total, dtype=torch.float64)
    both, h = 1 / n + 1 / m, float(inverse.sum())
    # sum over i < j < total of 1 / ((total - i) j)
    later = inverse.flip(0).cumsum(0).flip(0)[1:]
    g = float((inverse.flip(0)[:-1] * later).sum())
    a = 4 * g - 6 + (10 - 6 * g) * both
    b = 4 * (2 * g - 4) + 16 * h + (2 * g - 14 * h - 4) * both - 8 * h + 4 * g - 6
    c = 4 * (6 * h + 2 * g - 2) + 2 * (4 * h - 4 * g + 6) + (2 * h - 6) * both + 4 * h
    d = 4 * (2 * h + 6) - 8 * h
    scale = (total - 1) * (total - 2) * (total - 3)
    variance = (((a * total + b) * total + c) * total + d) / scale
    return math.sqrt(variance)
