"""How good is a sampler: exact distributions on small spaces, and bounds elsewhere."""

from __future__ import annotations

from collections.abc import Callable
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
    first, member = _distinct(states)
    return states.rows(first), mass.new_zeros(len(first)).index_add(0, member, mass)


def _distinct(states: States) -> tuple[Tensor, Tensor]:
    """Where each distinct state first occurs, and the number of the distinct state of each row."""
    key = torch.cat([states.data.flatten(1), states.done.unsqueeze(1)], 1)
    distinct, member = key.unique(dim=0, return_inverse=True)
    index = torch.arange(states.n, device=member.device)
    first = torch.full_like(index[: len(distinct)], states.n)
    return first.scatter_reduce(0, member, index, "amin"), member


class Flows(NamedTuple):
    """The balanced flow of a small environment: n states and the m transitions between them.

    Attributes:
        states: every reachable state once, s0 first, then by number of steps.
        log_flow: [n] float64, log F(s); of s0 it is log Z, of a finished state log R.
        parent: [m], number of the state a transition leaves.
        action: [m] or [m, factors], the action it takes.
        child: [m], number of the state it leads to.
        log_pf: [m], log P_F of the action.
        log_pb: [m], log P_B of its undoing.
    """

    states: States
    log_flow: Tensor
    parent: Tensor
    action: Tensor
    child: Tensor
    log_pf: Tensor
    log_pb: Tensor


def legal_actions(env: Environment, states: States) -> tuple[Tensor, Tensor]:
    """Every legal action of every row: row numbers [m] and actions [m] or [m, factors]."""
    row = torch.arange(states.n, device=states.data.device)
    chosen: tuple[Tensor, ...] = ()
    for _ in env.action_sizes:
        at, factor = env.forward_mask(states.rows(row), *chosen).nonzero(as_tuple=True)
        row, chosen = row[at], (*(value[at] for value in chosen), factor)
    return row, chosen[0] if len(chosen) == 1 else torch.stack(chosen, -1)


@torch.no_grad()
def exact_flows(env: Environment, log_reward: Callable[[States], Tensor]) -> Flows:
    """The flow with uniform P_B and F(x) = R(x), by dynamic programming backward from the rewards.

    F(s) = sum over children s' of F(s') P_B(s | s') (GFlowNet Foundations, 2111.09266). Meant for
    tests: it holds every transition.

    Args:
        env: an environment with few states.
        log_reward: log R [k] of finished states.

    Raises:
        ValueError: the environment has trajectories longer than its `max_steps`.
    """
    frontier, total = env.initial(1), 1
    known = [frontier]
    levels: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    while bool((~frontier.done).any()):
        if len(levels) == env.max_steps:
            raise ValueError(
                f"{type(env).__name__} has unfinished states after its {env.max_steps} steps"
            )
        going = (~frontier.done).nonzero().squeeze(1)
        row, action = legal_actions(env, frontier.rows(going))
        children = env.step(frontier.rows(going[row]), action)
        first, member = _distinct(children)
        log_pb = -env.backward_mask(children).sum(1).double().log()
        levels.append((total - frontier.n + going[row], action, total + member, log_pb))
        frontier = children.rows(first)
        known.append(frontier)
        total += frontier.n
    states = concat_states(known)
    log_flow = torch.full((total,), -torch.inf, dtype=torch.float64)
    log_flow[states.done] = log_reward(states.rows(states.done)).double()
    for parent, _, child, log_pb in reversed(levels):
        # Children are finished, or belong to the level just done.
        share = log_flow[child] + log_pb
        top = torch.full_like(log_flow, -torch.inf).scatter_reduce(0, parent, share, "amax")
        mass = torch.zeros_like(log_flow).index_add(0, parent, (share - top[parent]).exp())
        log_flow[parent] = (top + mass.log())[parent]
    parent, action, child, log_pb = (torch.cat(column) for column in zip(*levels, strict=True))
    log_pf = log_flow[child] + log_pb - log_flow[parent]
    return Flows(states, log_flow, parent, action, child, log_pf, log_pb)


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
