"""Controllable greediness: P_F mixed with learned action values (QGFN, 2024, arXiv 2402.05234)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gflow.kernels import Categorical
from gflow.mdp import Condition, Heads, Loss, Objective, Policy, States, Trajectories


def p_greedy(log_p: Tensor, q: Tensor, p: float) -> Tensor:
    """log of (1 - p) P_F + p (one-hot of the best action), [n, A].

    The published code has p and 1 - p the other way round.
    """
    best = torch.zeros_like(log_p).scatter_(-1, q.argmax(-1, keepdim=True), p)
    return ((1 - p) * log_p.exp() + best).log()


def p_quantile(log_p: Tensor, q: Tensor, p: float) -> Tensor:
    """log P_F without actions whose value is below the p-quantile of the legal ones, [n, A]."""
    legal = q.masked_fill(log_p == -torch.inf, torch.nan)
    return log_p.where(q >= legal.nanquantile(p, -1, keepdim=True), -torch.inf)


def p_of_max(log_p: Tensor, q: Tensor, p: float) -> Tensor:
    """log P_F without actions whose value is below p times the largest one, [n, A].

    Values below 0 count as 0, as rewards are not negative; where all do, P_F is left alone.
    """
    value = q.clamp(min=0)
    return log_p.where(value >= p * value.amax(-1, keepdim=True), -torch.inf)


MIXES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "greedy": p_greedy,
    "quantile": p_quantile,
    "of_max": p_of_max,
}
"""Logits of the behaviour policy from log P_F, action values (-inf where illegal) and p."""


class ActionValues(nn.Module):
    """A policy, and Q(s, a) beside it; what a Trainer trains when its sampler is `Greedy`.

    Args:
        policy: the policy; it answers for P_F, P_B, log F and log Z.
        values: another one like it, whose logits are read as Q.

    Raises:
        ValueError: actions with factors.
    """

    def __init__(self, policy: nn.Module, values: nn.Module):
        super().__init__()
        env: Any = policy.env
        if len(env.action_sizes) != 1:
            raise ValueError(f"{type(env).__name__} has no plain actions to value")
        # Registered first, so that its parameters keep the name an optimiser knows them by.
        self.log_z = policy.log_z
        self.env, self.backward = env, policy.backward
        self.policy, self.values = policy, values

    def forward(self, states: States, condition: Condition, needs: frozenset[str]) -> Heads:
        """The policy's heads."""
        heads: Heads = self.policy(states, condition, needs)
        return heads

    def q(self, states: States, condition: Condition) -> Tensor:
        """Q(s, a), [n, A], -inf where illegal."""
        heads: Heads = self.values(states, condition, frozenset({"log_pf"}))
        assert isinstance(heads.forward, Categorical)
        return heads.forward.logits


class Greedy:
    """Behaviour policy between P_F (p = 0) and the best known action (p = 1).

    Sample with it by `OnPolicy(Greedy(...), ...)`; p can be chosen anew after training. Where
    "quantile" and "of_max" never try an action, an objective learns nothing of it: join such
    trajectories with some of P_F itself.

    Args:
        policy: P_F and Q.
        mix: a key of `MIXES`.
        p: greediness in [0, 1].

    Raises:
        ValueError: unknown mix, or p outside [0, 1].
    """

    def __init__(self, policy: ActionValues, mix: str, p: float):
        if mix not in MIXES:
            raise ValueError(f"unknown mix {mix!r}: choose from {', '.join(MIXES)}")
        if not 0 <= p <= 1:
            raise ValueError(f"greediness must be in [0, 1], not {p}")
        self.env, self.backward, self.log_z = policy.env, policy.backward, policy.log_z
        self.policy, self.mix, self.p = policy, MIXES[mix], p

    def __call__(self, states: States, condition: Condition, needs: frozenset[str]) -> Heads:
        """The policy's heads, P_F mixed."""
        heads: Heads = self.policy(states, condition, needs)
        if heads.forward is None:
            return heads
        q = self.policy.q(states, condition)
        return heads._replace(forward=Categorical(self.mix(heads.forward.log_probs(), q, self.p)))


@dataclass(frozen=True)
class QLearning:
    """An objective, plus the regression of Q(s, a) on the reward to come.

    The target is r(x) where the trajectory ends within `horizon` transitions, else the value
    max_a Q of the state it has reached by then. r = R^(1 / beta) is the reward without its
    exponent, whose greedy actions are the same and which stays within the range of a network.

    Attributes:
        objective: what trains the policy.
        horizon: transitions to look ahead; those of whole trajectories give E[r | s, a].
    """

    objective: Objective
    horizon: int = 8

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"action values look at least 1 transition ahead, not {self.horizon}")

    @property
    def needs(self) -> frozenset[str]:
        """What the objective needs."""
        return self.objective.needs

    def __call__(self, policy: Policy, batch: Trajectories) -> Loss:
        """The objective's loss plus the mean Huber loss of the action values."""
        if not isinstance(policy, ActionValues):
            raise TypeError(f"QLearning trains an ActionValues policy, not {type(policy).__name__}")
        loss = self.objective(policy, batch)
        error = self.values_loss(policy, batch)
        metrics = {**loss.metrics, "q_loss": error.detach()}
        return Loss(loss.value + error, metrics, loss.weight)

    def values_loss(self, policy: ActionValues, batch: Trajectories) -> Tensor:
        """Mean over transitions of the Huber loss between Q and its target, a scalar."""
        assert batch.log_reward is not None
        row, column = batch.valid.nonzero(as_tuple=True)
        states = States(batch.states[row, column], column, torch.zeros_like(row, dtype=torch.bool))
        q = policy.q(states, batch.condition.rows(row))
        reward = (batch.log_reward / batch.condition.inverse_temperature).exp().to(q.dtype)
        best = q.new_zeros(batch.valid.shape).index_put((row, column), q.detach().amax(-1))
        later = column + self.horizon
        ends = later >= batch.lengths[row]
        last = batch.valid.shape[1] - 1
        target = torch.where(ends, reward[row], best[row, later.clamp(max=last)])
        taken = q.gather(1, batch.actions[row, column].unsqueeze(1)).squeeze(1)
        return torch.nn.functional.huber_loss(taken, target)
