"""How good is a sampler: exact distributions on small spaces, and bounds elsewhere."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gflow.mdp import Condition, Environment, Policy, States, Trajectories, concat_states, evaluate


class Distribution(NamedTuple):
    """A distribution over terminal states.

    Attributes:
        states: the n reachable terminal states, each once.
        probability: [n], sums to one.
    """

    states: States
    probability: Tensor


@torch.no_grad()
def terminating_distribution(policy: Policy, condition: Condition) -> Distribution:
    """Exact distribution over terminal states by dynamic programming, one level at a time.

    Every level is one batched policy call on its distinct states.

    Args:
        policy: policy of an enumerable environment.
        condition: a single condition (n = 1).

    Raises:
        ValueError: the environment is not enumerable.
    """
    env = policy.env
    if not env.enumerable:
        raise ValueError(
            f"{type(env).__name__} is too large for an exact distribution: estimate bounds instead"
        )
    states = env.initial(1, condition.inverse_temperature.device)
    mass = torch.ones(1, dtype=torch.float64, device=states.data.device)
    found: list[States] = []
    masses: list[Tensor] = []
    while states.n:
        here = condition.rows(torch.zeros(states.n, dtype=torch.int64, device=mass.device))
        kernel = policy(states, here, frozenset({"log_pf"})).forward
        assert kernel is not None
        log_p = kernel.log_probs().double()
        row, action = (log_p > -torch.inf).nonzero(as_tuple=True)
        children = env.step(states.rows(row), unflatten(env, action))
        flow = mass[row] * log_p[row, action].exp()
        if bool(children.done.any()):
            found.append(children.rows(children.done))
            masses.append(flow[children.done])
        states, mass = _merge(children.rows(~children.done), flow[~children.done])
    return Distribution(*_merge(concat_states(found), torch.cat(masses)))


def unflatten(env: Environment, action: Tensor) -> Tensor:
    """Actions [n] or [n, factors] from the flat numbers of `Kernel.log_probs`."""
    if len(env.action_sizes) == 1:
        return action
    return torch.stack(torch.unravel_index(action, env.action_sizes), -1)


def _merge(states: States, mass: Tensor) -> tuple[States, Tensor]:
    """Join equal states, adding up their mass."""
    if not states.n:
        return states, mass
    _, member = states.data.flatten(1).unique(dim=0, return_inverse=True)
    size = int(member.max()) + 1
    first = torch.full((size,), states.n, dtype=torch.int64, device=mass.device)
    index = torch.arange(states.n, device=mass.device)
    first = first.scatter_reduce(0, member, index, "amin")
    return states.rows(first), mass.new_zeros(size).index_add(0, member, mass)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the L1 distance of two distributions [n] over the same states."""
    return 0.5 * (p - q).abs().sum()


class Bounds(NamedTuple):
    """Estimates of log Z from sampled trajectories.

    Attributes:
        elbo: mean of log R + log P_B - log P_F, at most log Z in expectation.
        log_z: log of the mean importance weight; unbiased for Z, low for log Z.
        effective_sample_size: of the importance weights, in (0, B].
    """

    elbo: Tensor
    log_z: Tensor
    effective_sample_size: Tensor


@torch.no_grad()
def log_z_bounds(policy: Policy, batch: Trajectories) -> Bounds:
    """Lower bounds of log Z from trajectories sampled by P_F itself (no exploration)."""
    evaluation = evaluate(policy, batch, frozenset({"log_pb_total"}))
    assert evaluation.log_pb is not None and batch.log_reward is not None
    log_w = batch.log_reward + (evaluation.log_pb - evaluation.log_pf).double().sum(1)
    n = torch.tensor(float(batch.n))
    log_z = torch.logsumexp(log_w, 0) - n.log()
    ess = (2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0)).exp()
    return Bounds(log_w.mean(), log_z, ess)
