"""Estimates from sampled trajectories: log Z from below and above, log p(x)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gflow.mdp import Condition, Policy, States, Trajectories, evaluate
from gflow.sampling.rollout import rollout


@torch.no_grad()
def log_weights(policy: Policy, batch: Trajectories) -> Tensor:
    """log R(x) + log P_B(trajectory | x) - log P_F(trajectory) of scored trajectories, [B] float64.

    All equal log Z at the optimum.
    """
    if batch.log_reward is None:
        raise ValueError("importance weights need scored trajectories: log_reward is not set")
    if policy.env.deterministic:
        raise ValueError(
            "importance weights need the density of every step, and some steps of this schedule "
            "are deterministic: choose a sampler with noise in all steps"
        )
    return batch.log_reward.double() - _log_pf_over_pb(policy, batch)


def _log_pf_over_pb(policy: Policy, batch: Trajectories) -> Tensor:
    evaluation = evaluate(policy, batch, frozenset({"log_pb_total"}))
    assert evaluation.log_pb is not None
    return (evaluation.log_pf - evaluation.log_pb).double().sum(1)


class Bounds(NamedTuple):
    """Estimates of log Z from B trajectories sampled by P_F.

    Attributes:
        elbo: mean of the log-weights, at most log Z in expectation; the gap is
            KL(P_F || p* P_B).
        log_z: log of the mean importance weight; unbiased for Z, low for log Z.
        effective_sample_size: of the importance weights, in (0, B].
    """

    elbo: Tensor
    log_z: Tensor
    effective_sample_size: Tensor


def log_z_bounds(policy: Policy, batch: Trajectories) -> Bounds:
    """Lower bounds of log Z from trajectories sampled by P_F itself (no exploration)."""
    log_w = log_weights(policy, batch)
    log_z = torch.logsumexp(log_w, 0) - math.log(batch.n)
    ess = (2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0)).exp()
    return Bounds(log_w.mean(), log_z, ess)


def eubo(policy: Policy, batch: Trajectories) -> Tensor:
    """Evidence upper bound of log Z: mean of the log-weights where x ~ p* (2024, arXiv 2406.07423).

    Args:
        policy: the policy.
        batch: what `target_trajectories` returns.
    """
    return log_weights(policy, batch).mean()


def target_trajectories(
    policy: Policy,
    states: States,
    log_reward: Tensor,
    condition: Condition,
    n: int,
    generator: torch.Generator | None,
) -> Trajectories:
    """Trajectories of the perfect sampler: x ~ R / Z exactly, then backward by P_B.

    Args:
        policy: its P_B is followed.
        states: every terminal state once, N of them.
        log_reward: [N], log R.
        condition: a single condition (n = 1).
        n: number of trajectories.
        generator: source of randomness, on the states' device.
    """
    row = torch.multinomial(log_reward.softmax(0), n, replacement=True, generator=generator)
    batch = rollout(
        policy, states.rows(row), condition.rows(torch.zeros_like(row)), generator, backward=True
    )
    batch.log_reward = log_reward[row]
    return batch


@torch.no_grad()
def log_probability(
    policy: Policy,
    states: States,
    condition: Condition,
    n_trajectories: int,
    generator: torch.Generator | None,
) -> Tensor:
    """log P_T(x) of given objects by backward sampling, [n] float64.

    P_T(x) = E[P_F(trajectory) / P_B(trajectory | x)] over trajectories from P_B, estimated by its
    mean: unbiased for P_T, low for log P_T, exact where every object has one trajectory. All
    n * n_trajectories walks are one batch. (Towards Understanding and Improving GFlowNet
    Training, 2023, arXiv 2305.07170.)

    Args:
        policy: the policy.
        states: n terminal states.
        condition: n conditions.
        n_trajectories: trajectories for each object.
        generator: source of randomness, on the states' device.
    """
    row = torch.arange(states.n, device=states.data.device).repeat_interleave(n_trajectories)
    batch = rollout(policy, states.rows(row), condition.rows(row), generator, backward=True)
    ratio = _log_pf_over_pb(policy, batch).view(states.n, n_trajectories)
    return ratio.logsumexp(1) - math.log(n_trajectories)
