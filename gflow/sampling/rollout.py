"""Forward and backward rollouts: one function, in blocks of steps, without gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflow.kernels import Categorical, Factored, Kernel
from gflow.mdp import Condition, Environment, Policy, States, Trajectories

BLOCK = 8
"""Steps between two looks at the `done` flags; one look is one host synchronisation."""

COMPILED_BLOCK = 12
"""The same in compiled blocks, where to start one costs as much as a step."""

COMPACT_FROM = 64
"""Below this batch size dropping finished rows costs more than computing them."""

_FORWARD = frozenset({"log_pf"})
_BACKWARD = frozenset({"log_pb"})


@dataclass(frozen=True)
class Exploration:
    """How the behaviour policy differs from P_F; balance losses score P_F itself.

    Attributes:
        epsilon: probability, at each step of each row, of an even choice among legal actions.
        temperature: logits are divided by it.
    """

    epsilon: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1 or self.temperature <= 0:
            raise ValueError("exploration needs 0 <= epsilon <= 1 and temperature > 0")


class Block(NamedTuple):
    """Some consecutive steps of n rows: tensors [n, k, ...], and the states they lead to."""

    states: States
    data: Tensor
    actions: Tensor
    active: Tensor
    log_p: Tensor | None


StepBlock = Callable[..., Block]


def step_block(
    policy: Policy,
    states: States,
    condition: Condition,
    noise: Tensor,
    uniform: Tensor | None,
    epsilon: float,
    temperature: float,
    backward: bool,
    keep_log_p: bool,
    stop_early: bool,
) -> Block:
    """Take `noise.shape[0]` steps; with `stop_early`, fewer once all rows are finished."""
    env = policy.env
    data, actions, flags, log_p, logits = [], [], [], [], []
    for t in range(noise.shape[0]):
        heads = policy(states, condition, _BACKWARD if backward else _FORWARD)
        kernel = heads.backward if backward else heads.forward
        assert kernel is not None
        behaviour = kernel
        if uniform is not None or temperature != 1.0:
            behaviour = kernel.explore(None if uniform is None else uniform[t], temperature)
        action = behaviour.sample(noise[t])
        data.append(states.data)
        # A continuous action is the next state: no need to keep it twice.
        actions.append(action.flatten(1)[:, :0] if env.continuous else action)
        flags.append(states.step if backward else states.done)
        if keep_log_p and isinstance(kernel, Categorical):
            logits.append(kernel.logits)
        elif keep_log_p:
            log_p.append(behaviour_log_prob(kernel, action, epsilon, temperature))
        states = env.backstep(states, action) if backward else env.step(states, action)
        if stop_early and bool((states.step == 0).all() if backward else states.done.all()):
            break
    flag = torch.stack(flags, 1)
    active = flag > 0 if backward else ~flag
    chosen, kept = torch.stack(actions, 1), None
    if logits:
        # One call for the whole block: at small batches every call counts.
        joined = Categorical(torch.stack(logits, 1))
        kept = behaviour_log_prob(joined, chosen, epsilon, temperature)
    elif keep_log_p:
        kept = torch.stack(log_p, 1)
    return Block(states, torch.stack(data, 1), chosen, active, kept)


def behaviour_log_prob(
    kernel: Kernel, action: Tensor, epsilon: float, temperature: float
) -> Tensor:
    """log-probability of actions [n] (or [n, k]) under what `Exploration` makes of a kernel, alike.

    An even choice with probability epsilon makes the behaviour a mixture, whichever of its parts
    a row was drawn from.
    """
    if isinstance(kernel, Factored):
        kernel = kernel.given(action)
    tempered = kernel if temperature == 1.0 else kernel.explore(None, temperature)
    log_p = tempered.log_prob(action)
    if epsilon == 0:
        return log_p
    even = kernel.explore(torch.ones_like(log_p, dtype=torch.bool), temperature).log_prob(action)
    if epsilon == 1:
        return even
    return torch.logaddexp(log_p + math.log1p(-epsilon), even + math.log(epsilon))


def compile_block() -> StepBlock:
    """`step_block` as one compiled graph; worth it at small batches, costs seconds to build."""
    # Calls between kernels go through C++, and sums of few rows are unrolled: both are a tenth
    # of a small step.
    options: dict[str, Any] = {"cpp_wrapper": True, "unroll_reductions_threshold": 17}
    return torch.compile(step_block, fullgraph=True, dynamic=False, options=options)


@torch.no_grad()
def rollout(
    policy: Policy,
    start: States,
    condition: Condition,
    generator: torch.Generator | None,
    *,
    exploration: Exploration = Exploration(),
    backward: bool = False,
    keep_log_pf: bool = False,
    block: StepBlock = step_block,
    steps: int | None = None,
) -> Trajectories:
    """Sample trajectories from s0 forward by P_F, or from terminal states backward by P_B.

    A forward walk may also start from other states; its record then starts there. A policy that
    knows a better way (a language model keeps a cache) has a method `rollout(start, condition,
    generator, exploration, keep_log_pf)` of its own, which forward walks call instead; one that
    knows faster steps has a method `step_block`, with the arguments of the function.

    Args:
        policy: policy whose environment is walked.
        start: n initial states (forward) or n terminal states (backward).
        condition: n conditions.
        generator: source of randomness, on the states' device.
        exploration: behaviour policy.
        backward: walk from terminal states to s0; the record comes back in forward order.
        keep_log_pf: store the log-probabilities of the sampled actions under the distribution
            that drew them, exploration included (forward only).
        block: `step_block`, or what `compile_block` returns.
        steps: number of steps after which every row is known to be finished; by default the
            environment's `max_steps`.

    Returns:
        Trajectories padded to the longest one; rewards, log-rewards and groups are not set.
    """
    own = None if backward else getattr(policy, "rollout", None)
    if own is not None:
        batch: Trajectories = own(start, condition, generator, exploration, keep_log_pf)
        return batch
    env, device = policy.env, start.data.device
    eager = block is step_block
    if eager:
        block = getattr(type(policy), "step_block", step_block)
    known_length = env.fixed_length and not backward
    limit = env.max_steps if steps is None else min(steps, env.max_steps)
    longest = BLOCK if eager else COMPILED_BLOCK
    if eager and known_length and env.continuous and device.type == "cpu":
        # Nobody looks at the rows on the way, and the noise is no larger than the record.
        longest = limit
    states, walking, rows, final = start, condition, None, start
    pieces: list[tuple[Tensor | None, Block]] = []
    total = 0
    while total < limit:
        size = min(longest, limit - total)
        dtype = condition.inverse_temperature.dtype
        noise = env.noise(size, states.n, generator, dtype, device, backward)
        uniform = None
        if exploration.epsilon > 0:
            drawn = torch.empty(size, states.n, device=device).uniform_(generator=generator)
            uniform = drawn < exploration.epsilon
        look_often = eager and device.type == "cpu" and not known_length
        piece = block(
            policy, states, walking, noise, uniform, exploration.epsilon,
            exploration.temperature, backward, keep_log_pf, look_often,
        )  # fmt: skip
        pieces.append((rows, piece))
        total += piece.active.shape[1]
        states = piece.states
        final = states if rows is None else put_states(final, rows, states)
        if known_length:
            continue
        alive = _unfinished(states, backward)
        n_alive = int(alive.sum())
        if n_alive == 0:
            break
        if eager and states.n >= COMPACT_FROM and 2 * n_alive <= states.n:
            rows = alive.nonzero().squeeze(1) if rows is None else rows[alive]
            states, walking = states.rows(alive), walking.rows(alive)
    return _assemble(policy, start, final, pieces, total, condition, backward)


def _unfinished(states: States, backward: bool) -> Tensor:
    return states.step > 0 if backward else ~states.done


def put_states(states: States, rows: Tensor, new: States) -> States:
    """`states` with those at `rows` replaced."""
    return States(*(old.index_copy(0, rows, value) for old, value in zip(states, new, strict=True)))


def _lay_out(
    final: States, pieces: list[tuple[Tensor | None, Block]], total: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """States [n, T + 1, ...], actions, activity and log-probabilities [n, T, ...] of all blocks."""
    blocks = [piece for _, piece in pieces]
    if all(rows is None for rows, _ in pieces):
        data = torch.cat([*(block.data for block in blocks), final.data.unsqueeze(1)], 1)
        actions = torch.cat([block.actions for block in blocks], 1)
        active = torch.cat([block.active for block in blocks], 1)
        kept = [block.log_p for block in blocks if block.log_p is not None]
        return data, actions, active, torch.where(active, torch.cat(kept, 1), 0.0) if kept else None
    n, first = final.n, blocks[0]
    data = final.data.unsqueeze(1).expand(n, total + 1, *final.data.shape[1:]).clone()
    actions = first.actions.new_zeros(n, total, *first.actions.shape[2:])
    active = torch.zeros(n, total, dtype=torch.bool, device=actions.device)
    log_p = None if first.log_p is None else first.log_p.new_zeros(n, total)
    at = 0
    for rows, piece in pieces:
        span = slice(at, at + piece.active.shape[1])
        index = (slice(None), span) if rows is None else (rows, span)
        data[index], actions[index], active[index] = piece.data, piece.actions, piece.active
        if log_p is not None and piece.log_p is not None:
            log_p[index] = torch.where(piece.active, piece.log_p, 0.0)
        at = span.stop
    return data, actions, active, log_p


def _assemble(
    policy: Policy,
    start: States,
    final: States,
    pieces: list[tuple[Tensor | None, Block]],
    total: int,
    condition: Condition,
    backward: bool,
) -> Trajectories:
    """Lay the blocks out as [n, T, ...], and turn backward walks round."""
    env, n = policy.env, start.n
    data, actions, active, log_p = _lay_out(final, pieces, total)
    lengths = active.sum(1)
    horizon = int(lengths.max())
    if backward:
        # Step i of a backward walk of length L undid forward transition L - 1 - i.
        column = torch.arange(horizon + 1, device=lengths.device)
        source = lengths.unsqueeze(1) - column
        data = _take(data, source.clamp(min=0))
        undone = _take(actions, (source[:, :-1] - 1).clamp(min=0))
        active = column[:-1] < lengths.unsqueeze(1)
        children = _flat_states(data[:, 1:], torch.ones_like(lengths), lengths)
        redone = env.forward_action(children, undone.flatten(0, 1))
        actions = redone.view(n, horizon, *redone.shape[1:])
    else:
        data, actions, active = data[:, : horizon + 1], actions[:, :horizon], active[:, :horizon]
        undone = actions
        if env.n_backward_actions == 1 and actions.dim() == 2:
            undone = torch.zeros_like(actions)
        elif type(env).backward_action is not Environment.backward_action:
            parents = _flat_states(data[:, :-1], start.step, start.step + lengths)
            undone = env.backward_action(parents, actions.flatten(0, 1))
            undone = undone.view(n, horizon, *undone.shape[1:])
        log_p = None if log_p is None else log_p[:, :horizon]
    return env.record(Trajectories(data, actions, undone, active, condition, log_p))


def _take(values: Tensor, column: Tensor) -> Tensor:
    """values[b, column[b, t]] for all b and t."""
    return values[torch.arange(len(values), device=values.device).unsqueeze(1), column]


def _flat_states(data: Tensor, first: Tensor, last: Tensor) -> States:
    """States of columns [n, T, ...] as one batch of n * T, from step `first` [n] to `last` [n]."""
    column = torch.arange(data.shape[1], device=first.device)
    step, end = first.unsqueeze(1) + column, last.unsqueeze(1)
    return States(data.flatten(0, 1), step.minimum(end).flatten(), (step >= end).flatten())
