"""The truth on small spaces: exact distributions and flows, and how far a policy is from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gflow.mdp import Condition, Environment, Policy, States, concat_states


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
        ValueError: the environment is not enumerable, or has trajectories longer than its
            `max_steps`.
    """
    env = policy.env
    _check_enumerable(env, "distribution")
    states = env.initial(1, condition.inverse_temperature.device)
    mass = torch.ones(1, dtype=torch.float64, device=states.data.device)
    found: list[States] = []
    masses: list[Tensor] = []
    for _ in range(env.max_steps):
        if not states.n:
            break
        kernel = policy(states, _repeat(condition, states.n), frozenset({"log_pf"})).forward
        assert kernel is not None
        log_p = kernel.log_probs().double()
        row, action = (log_p > -torch.inf).nonzero(as_tuple=True)
        children = env.step(states.rows(row), unflatten(env, action))
        flow = mass[row] * log_p[row, action].exp()
        if bool(children.done.any()):
            found.append(children.rows(children.done))
            masses.append(flow[children.done])
        states, mass = _merge(children.rows(~children.done), flow[~children.done])
    if states.n:
        raise ValueError(_endless(env))
    return Distribution(*_merge(concat_states(found), torch.cat(masses)))


def unflatten(env: Environment, action: Tensor) -> Tensor:
    """Actions [n] or [n, factors] from the flat numbers of `Kernel.log_probs`."""
    if len(env.action_sizes) == 1:
        return action
    return torch.stack(torch.unravel_index(action, env.action_sizes), -1)


def _check_enumerable(env: Environment, what: str) -> None:
    if not env.enumerable:
        raise ValueError(
            f"{type(env).__name__} is too large for an exact {what}: estimate bounds instead"
        )


def _endless(env: Environment) -> str:
    return f"{type(env).__name__} has unfinished states after its {env.max_steps} steps"


def _repeat(condition: Condition, n: int) -> Condition:
    """A single condition for n rows."""
    device = condition.inverse_temperature.device
    return condition.rows(torch.zeros(n, dtype=torch.int64, device=device))


def _merge(states: States, mass: Tensor) -> tuple[States, Tensor]:
    """Join equal states, adding up their mass."""
    if not states.n:
        return states, mass
    first, member = distinct(states)
    return states.rows(first), mass.new_zeros(len(first)).index_add(0, member, mass)


def distinct(states: States) -> tuple[Tensor, Tensor]:
    """Where each of u distinct states first occurs [u], and which of them each row is [n]."""
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
def exact_flows(
    env: Environment,
    log_reward: Callable[[States], Tensor],
    log_pb: Callable[[States, Tensor], Tensor] | None = None,
) -> Flows:
    """The flow of a given P_B with F(x) = R(x), by dynamic programming backward from the rewards.

    F(s) = sum over children s' of F(s') P_B(s | s') (GFlowNet Foundations, 2111.09266). Meant for
    tests: it holds every transition.

    Args:
        env: an environment with few states.
        log_reward: log R [k] of finished states.
        log_pb: log P_B [k] of backward actions [k] in states, see `policy_log_pb`; uniform over
            parents by default.

    Raises:
        ValueError: the environment is not enumerable, or has trajectories longer than its
            `max_steps`.
    """
    _check_enumerable(env, "flow")
    frontier, total = env.initial(1), 1
    known = [frontier]
    levels: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    while bool((~frontier.done).any()):
        if len(levels) == env.max_steps:
            raise ValueError(_endless(env))
        going = (~frontier.done).nonzero().squeeze(1)
        row, action = legal_actions(env, frontier.rows(going))
        children = env.step(frontier.rows(going[row]), action)
        first, member = distinct(children)
        if log_pb is None:
            undoing = -env.backward_mask(children).sum(1).double().log()
        else:
            parents = frontier.rows(going[row])
            undoing = log_pb(children, env.backward_action(parents, action)).double()
        levels.append((total - frontier.n + going[row], action, total + member, undoing))
        frontier = children.rows(first)
        known.append(frontier)
        total += frontier.n
    states = concat_states(known)
    log_flow = torch.full((total,), -torch.inf, dtype=torch.float64)
    log_flow[states.done] = log_reward(states.rows(states.done)).double()
    for parent, _, child, undoing in reversed(levels):
        # Children are finished, or belong to the level just done.
        share = log_flow[child] + undoing
        top = torch.full_like(log_flow, -torch.inf).scatter_reduce(0, parent, share, "amax")
        mass = torch.zeros_like(log_flow).index_add(0, parent, (share - top[parent]).exp())
        log_flow[parent] = (top + mass.log())[parent]
    parent, action, child, undoing = (torch.cat(column) for column in zip(*levels, strict=True))
    log_pf = log_flow[child] + undoing - log_flow[parent]
    return Flows(states, log_flow, parent, action, child, log_pf, undoing)


def policy_log_pb(policy: Policy, condition: Condition) -> Callable[[States, Tensor], Tensor]:
    """log P_B of a policy under a single condition (n = 1), as `exact_flows` wants it."""

    def log_pb(states: States, undone: Tensor) -> Tensor:
        kernel = policy(states, _repeat(condition, states.n), frozenset({"log_pb"})).backward
        assert kernel is not None
        return kernel.log_prob(undone)

    return log_pb


@torch.no_grad()
def flow_residuals(
    policy: Policy, condition: Condition, log_reward: Callable[[States], Tensor]
) -> Tensor:
    """Flow consistency: log F(s) P_F(s' | s) - log F(s') P_B(s | s') of every transition, [m].

    All are 0 exactly where P_F, P_B and log F are one flow towards R (2111.09266). F(s') of a
    finished state is its reward.

    Args:
        policy: policy with a flow head, of an environment with few states.
        condition: a single condition (n = 1).
        log_reward: log R [k] of finished states.

    Raises:
        ValueError: the policy has no flow head, or what `exact_flows` refuses.
    """
    states, flow, parent, action, child, _, log_pb = exact_flows(
        policy.env, log_reward, policy_log_pb(policy, condition)
    )
    going = (~states.done).nonzero().squeeze(1)
    needs = frozenset({"log_pf", "log_flow"})
    heads = policy(states.rows(going), _repeat(condition, len(going)), needs)
    if heads.log_flow is None:
        raise ValueError("flow consistency needs log F(s): build the policy with flow=True")
    flow[going] = heads.log_flow.to(flow)
    here = _repeat(condition, len(parent))
    kernel = policy(states.rows(parent), here, frozenset({"log_pf"})).forward
    assert kernel is not None
    return flow[parent] + kernel.log_prob(action).double() - flow[child] - log_pb


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the L1 distance of two distributions [n] over the same states, in [0, 1].

    The field also reports sum |p - q|, which is twice this, and its mean over the n states.
    """
    return 0.5 * (p - q).abs().sum()


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = sum p log(p / q) in nats, of distributions [n] over the same states.

    Infinite where q is 0 and p is not.
    """
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum()


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Mean KL of p and q from their average in nats, in [0, log 2]; symmetric."""
    middle = 0.5 * (p + q)
    return 0.5 * (kl_divergence(p, middle) + kl_divergence(q, middle))
