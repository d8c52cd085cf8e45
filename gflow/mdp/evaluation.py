"""Trajectories re-evaluated under a policy: one forward pass over the real steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gflow.kernels import Categorical, Repeated
from gflow.mdp.contracts import Heads, Policy
from gflow.mdp.environment import Environment
from gflow.mdp.states import Condition, States
from gflow.mdp.trajectories import Trajectories


class Evaluation(NamedTuple):
    """A batch re-evaluated under the current policy, with gradient.

    Attributes:
        log_pf: [B, T], 0 on padding.
        log_pb: [B, T], 0 on padding and on the stop step.
        log_flow: [B, T], log F of the state each transition leaves, 0 on padding.
        log_z: [B].
        construction: [B, T] bool, real transitions other than the stop step.
        log_stop: [B, T], log P_F(stop) in the state each transition leaves, 0 on padding.
        energy: [B, T], learned log-reward of each transition, 0 on padding and the stop step.
        backward_kl: [B, T], KL(uniform || P_B) over the parents of the state that each
            construction step enters, 0 elsewhere.
        log_inflow: [B, T], log of the total flow into the state that each construction step
            enters, 0 elsewhere.
        entropy: [B, T], entropy of P_F in the state each transition leaves, 0 on padding.
    """

    log_pf: Tensor
    log_pb: Tensor | None
    log_flow: Tensor | None
    log_z: Tensor | None
    construction: Tensor
    log_stop: Tensor | None = None
    energy: Tensor | None = None
    backward_kl: Tensor | None = None
    log_inflow: Tensor | None = None
    entropy: Tensor | None = None


def evaluate(policy: Policy, batch: Trajectories, needs: frozenset[str]) -> Evaluation:
    """Recompute what `needs` names in one forward pass over the real steps only.

    A policy that knows a better way (a language model scores all prefixes of a row at once) has a
    method `evaluate(batch, needs)` of its own, which is called instead.

    Args:
        policy: the policy to evaluate.
        batch: B trajectories.
        needs: subset of {"log_pb", "log_pb_total", "log_flow", "log_z", "log_stop", "energy",
            "backward_kl", "log_inflow", "entropy"}; log P_F always comes. "log_pb_total" promises
            that only the sum of log P_B over a trajectory will be used, which spares the path
            counts of intermediate states. "log_inflow" costs a second pass, over the parents.

    Returns:
        An `Evaluation`; entries that were not asked for are None.
    """
    own = getattr(policy, "evaluate", None)
    if own is not None:
        evaluation: Evaluation = own(batch, needs)
        return evaluation
    return evaluate_steps(policy, batch, needs)


def evaluate_steps(policy: Policy, batch: Trajectories, needs: frozenset[str]) -> Evaluation:
    """`evaluate` for any policy: every real step is a row of its own."""
    env, valid = policy.env, batch.valid
    env.check(batch)
    kind = "tree" if env.tree else policy.backward
    if "backward_kl" in needs and kind != "learned":
        raise ValueError(f"a {kind} backward policy has no parameters to pull towards uniform")
    want_pb = bool(needs & {"log_pb", "log_pb_total", "backward_kl"})
    lengths = valid.sum(1)
    visited = torch.nn.functional.pad(valid, (0, 1))
    at_ends = want_pb and kind in ("learned", "uniform") and not env.has_stop
    if at_ends:
        # The last transition is a construction step: its P_B is asked at the terminal state.
        visited[torch.arange(batch.n, device=valid.device), lengths] = True
    row, column = visited.nonzero(as_tuple=True)
    done = torch.zeros_like(row, dtype=torch.bool)
    if at_ends:
        done = column >= lengths[row]
        if batch.complete is not None:
            done &= batch.complete[row]
    full = not at_ends and 0 < len(row) == valid.numel()
    states = States(_at(batch.states, row, column, full), column, done)
    construction = torch.nn.functional.pad(valid[:, 1:], (0, 1)) if env.has_stop else valid

    asked = {"log_pf"} | (needs & {"log_flow", "energy"})
    if want_pb and kind == "learned":
        asked |= {"log_pb"}
    heads = _heads(policy, states, batch.condition, row, frozenset(asked))
    assert heads.forward is not None
    # Of a terminal state any action will do: what it leaves is not a transition.
    taken = column.clamp(max=valid.shape[1] - 1) if at_ends else column
    ahead = batch.states[:, 1:] if env.continuous else batch.actions
    actions = _at(ahead, row, taken, full)

    def leaving(values: Tensor) -> Tensor:
        """Values of the visited rows, at the transitions that leave them: [B, T]."""
        if not at_ends:
            return _spread(values, valid)
        return torch.where(valid, _spread(values, visited)[:, :-1], 0.0)

    def entering(values: Tensor) -> Tensor:
        """Values of the visited rows, at the transitions that enter them: [B, T]."""
        return _spread(values, visited)[:, 1:]

    log_pf = leaving(heads.forward.log_prob(actions))

    log_pb: Tensor | None = None
    backward_kl: Tensor | None = None
    if want_pb:
        if kind == "tree":
            log_pb = torch.zeros_like(log_pf)
        elif kind == "fixed":
            log_pb = _log_pb_by_kernel(policy, batch, construction).to(log_pf.dtype)
        elif kind == "paths":
            log_pb = _log_pb_by_paths(env, batch, total="log_pb" not in needs).to(log_pf.dtype)
        else:
            if kind == "learned":
                assert heads.backward is not None
                came = (column - 1).clamp(min=0)
                before = batch.states if env.continuous else batch.backward_actions
                undone = before[row, came]
                values = heads.backward.log_prob(undone)
                if "backward_kl" in needs:
                    legal = env.backward_mask(states)
                    even = Categorical(torch.zeros_like(legal, dtype=values.dtype), legal)
                    backward_kl = entering(even.kl(heads.backward))
            else:
                values = -env.backward_mask(states).sum(-1).to(log_pf.dtype).log()
            log_pb = entering(values)

    log_flow: Tensor | None = None
    if "log_flow" in needs:
        if heads.log_flow is None:
            raise ValueError("the objective needs log F(s): build the policy with flow=True")
        log_flow = leaving(heads.log_flow)
    log_stop: Tensor | None = None
    if "log_stop" in needs:
        stop = stop_action(env, row.device).expand(len(row), *actions.shape[1:])
        log_stop = leaving(heads.forward.log_prob(stop))
    energy: Tensor | None = None
    if "energy" in needs:
        if heads.energy is None:
            raise ValueError("the objective needs learned energies: give the policy such a head")
        values = heads.energy.gather(1, actions.unsqueeze(1)).squeeze(1)
        energy = torch.where(construction, leaving(values), 0.0)
    log_z = policy.log_z(batch.condition) if "log_z" in needs else None
    log_inflow = _log_inflow(policy, batch, construction) if "log_inflow" in needs else None
    entropy = leaving(heads.forward.entropy()) if "entropy" in needs else None
    return Evaluation(
        log_pf, log_pb, log_flow, log_z, construction, log_stop, energy, backward_kl, log_inflow,
        entropy,
    )  # fmt: skip


def _heads(
    policy: Policy, states: States, condition: Condition, row: Tensor, needs: frozenset[str]
) -> Heads:
    """Heads of states [N] under the conditions of trajectories `row` [N].

    Where the policy sees no condition, equal states have equal heads: one of each is evaluated.
    """
    numbers = None if condition.encoding.shape[1] else policy.env.identify(states)
    if numbers is None:
        return policy(states, condition.rows(row), needs)
    distinct, place = numbers.unique(return_inverse=True)
    # Any row of a state will do.
    first = torch.empty_like(distinct).scatter_(
        0, place, torch.arange(len(place), device=place.device)
    )
    heads = policy(states.rows(first), condition.rows(row[first]), needs)
    forward, backward, log_flow, energy = heads
    return Heads(
        None if forward is None else Repeated(forward, place),
        None if backward is None else Repeated(backward, place),
        None if log_flow is None else log_flow.index_select(0, place),
        None if energy is None else energy.index_select(0, place),
    )


def decisions(env: Environment, batch: Trajectories) -> Tensor:
    """Steps of a discrete environment that had a choice: more than one legal action, [B, T] bool.

    A forced step has log P_F = 0 whatever the policy; counting it would dilute means over steps.
    """
    row, column = batch.valid.nonzero(as_tuple=True)
    states = States(batch.states[row, column], column, torch.zeros_like(column, dtype=torch.bool))
    taken = batch.actions[row, column]
    free = env.forward_mask(states).sum(-1) > 1
    for factor in range(1, len(env.action_sizes)):
        legal = env.forward_mask(states, *taken[:, :factor].unbind(-1))
        free = free | (legal.sum(-1) > 1)
    return torch.zeros_like(batch.valid).masked_scatter(batch.valid, free)


def _log_inflow(policy: Policy, batch: Trajectories, construction: Tensor) -> Tensor:
    """log sum over parents s of F(s) P_F(s' | s), s' entered by each construction step, [B, T]."""
    env = policy.env
    row, column = construction.nonzero(as_tuple=True)
    done = column + 1 >= batch.lengths[row]
    if batch.complete is not None:
        done &= batch.complete[row]
    children = States(batch.states[row, column + 1], column + 1, done)
    legal = env.backward_mask(children)
    if not bool(legal.any(-1).all()):
        raise ValueError(f"{type(env).__name__}: a state that is not initial has no parent")
    child, undone = legal.nonzero(as_tuple=True)
    ends = children.rows(child)
    parents, redone = env.backstep(ends, undone), env.forward_action(ends, undone)
    needs = frozenset({"log_pf", "log_flow"})
    heads = _heads(policy, parents, batch.condition, row[child], needs)
    if heads.forward is None or heads.log_flow is None:
        raise ValueError("the objective needs log F(s): build the policy with flow=True")
    edge = heads.log_flow + heads.forward.log_prob(redone)
    edges = edge.new_full(legal.shape, -torch.inf).index_put((child, undone), edge)
    return _spread(edges.logsumexp(-1), construction)


def stop_action(env: Environment, device: torch.device | str = "cpu") -> Tensor:
    """The forward action that stops, [1] or [1, factors].

    Raises:
        ValueError: trajectories of this environment do not end by a stop action.
    """
    if not env.has_stop:
        raise ValueError(f"{type(env).__name__} has no stop action: every object has its own end")
    start = env.initial(1, device)
    finished = States(start.data, start.step + 1, torch.ones_like(start.done))
    return env.forward_action(finished, env.backward_mask(finished).int().argmax(-1))


def _at(values: Tensor, row: Tensor, column: Tensor, full: bool) -> Tensor:
    """values[row, column], [N, ...]; `full` says that these are all, in their order."""
    if full:
        columns = len(row) // len(values)
        return values[:, :columns].flatten(0, 1)
    return values[row, column]


def _spread(values: Tensor, places: Tensor) -> Tensor:
    """Values [N] at the N True entries of `places` in their order; everything else exactly 0."""
    if values.numel() == places.numel():
        return values.view(places.shape)
    return values.new_zeros(places.shape).masked_scatter(places, values)


def _log_pb_by_kernel(policy: Policy, batch: Trajectories, construction: Tensor) -> Tensor:
    """log P_B of construction steps by a kernel without parameters, [B, T]; 0 elsewhere."""
    row, column = construction.nonzero(as_tuple=True)
    full = len(row) == construction.numel()
    data = _at(batch.states[:, 1:], row, column, full)
    children = States(data, column + 1, column + 1 >= batch.lengths[row])
    heads = policy(children, batch.condition.rows(row), frozenset({"log_pb"}))
    assert heads.backward is not None
    before = batch.states if policy.env.continuous else batch.backward_actions
    undone = _at(before, row, column, full)
    return _spread(heads.backward.log_prob(undone), construction)


def _log_pb_by_paths(env: Environment, batch: Trajectories, total: bool) -> Tensor:
    """P_B uniform over all construction sequences: log n(s) - log n(s') (2312.14331)."""
    n, horizon = batch.valid.shape
    if total:
        log_pb = torch.zeros(n, horizon, dtype=torch.float64, device=batch.valid.device)
        log_pb[:, 0] = -env.log_n_paths(batch.terminal)
        return log_pb
    lengths = batch.lengths[:, None]
    column = torch.arange(horizon + 1, device=lengths.device).expand(n, -1)
    states = States(batch.states.flatten(0, 1), column.flatten(), (column >= lengths).flatten())
    counts = env.log_n_paths(states).view(n, horizon + 1)
    return torch.where(batch.valid, counts[:, :-1] - counts[:, 1:], 0.0)
