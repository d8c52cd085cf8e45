"""Outcome-conditioned GFlowNets: pre-train without a reward, read off a sampler for any reward.

The condition of a trajectory is an outcome y, a terminal state the policy should reach; R(x | y)
is 1 where x = y and 0 elsewhere (Pre-Training and Fine-Tuning Generative Flow Networks, 2023,
arXiv 2310.03419). Pre-training is detailed balance, with the potential "teleport" to reach
outcomes soonest. Teleported failures contradict successes on shared edges, so flows that are to be
mixed want the reward on the last edge ("flow") and trajectories with outcomes they missed. What
follows turns the frozen policy into a sampler of a new reward r by
F^r(s) P^r(s' | s) = sum_y r(y) F(s | y) P_F(s' | s, y).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from gflow.kernels import Categorical
from gflow.mdp import (
    Condition,
    Environment,
    Heads,
    Loss,
    Policy,
    States,
    Trajectories,
    evaluate,
)
from gflow.objectives.balance.potential import complete_log_rewards
from gflow.objectives.balance.regression import REGRESSIONS
from gflow.objectives.term import check_choice


def outcome_condition(env: Environment, outcomes: States, dtype: torch.dtype) -> Condition:
    """The condition that asks for each of the terminal states `outcomes`."""
    seen = env.observe(outcomes)
    if not isinstance(seen, Tensor):
        raise ValueError(f"{type(env).__name__} has no flat observations to ask for outcomes by")
    return Condition(
        seen.flatten(1).to(dtype), None, torch.ones(outcomes.n, dtype=dtype, device=seen.device)
    )


def outcome_log_reward(env: Environment, batch: Trajectories, miss: float = 1e-3) -> Tensor:
    """log R(x | y), [B]: 0 where a trajectory ends in the outcome it was asked for, log miss else.

    `miss` stands for the reward 0 of a failure, whose logarithm the paper leaves undefined.
    """
    wanted = batch.condition.encoding
    reached = (outcome_condition(env, batch.terminal, wanted.dtype).encoding == wanted).all(-1)
    return torch.where(reached, 0.0, math.log(miss)).to(wanted.dtype)


class OutcomeMixture:
    """The sampler of a reward r by summing over all outcomes, without training (section 3).

    log F^r(s) = log sum_y r(y) F(s | y) is its flow, and its P_F is
    sum_y r(y) F(s | y) P_F(s' | s, y) / F^r(s).

    Args:
        policy: frozen outcome-conditioned policy with a flow head and plain actions.
        outcomes: the outcomes y, each once.
        log_reward: [Y], log r(y).
    """

    backward = "uniform"

    def __init__(self, policy: Policy, outcomes: States, log_reward: Tensor):
        self.env, self.policy = policy.env, policy
        self.log_reward = log_reward
        self.condition = outcome_condition(policy.env, outcomes, log_reward.dtype)

    @torch.no_grad()
    def __call__(self, states: States, condition: Condition, needs: frozenset[str]) -> Heads:
        """P_F and log F of the new reward; the condition is not used."""
        n, n_outcomes = states.n, len(self.log_reward)
        row = torch.arange(n, device=self.log_reward.device).repeat_interleave(n_outcomes)
        wanted = torch.arange(n_outcomes, device=row.device).repeat(n)
        heads = self.policy(
            states.rows(row), self.condition.rows(wanted), frozenset({"log_pf", "log_flow"})
        )
        assert heads.forward is not None and heads.log_flow is not None
        share = self.log_reward + heads.log_flow.view(n, n_outcomes)
        edges = share.unsqueeze(-1) + heads.forward.log_probs().view(n, n_outcomes, -1)
        flow = share.logsumexp(1)
        # An edge no outcome uses stays legal, with next to no probability.
        logits = (edges.logsumexp(1) - flow.unsqueeze(1)).clamp(min=-100.0)
        backward = None
        if "log_pb" in needs:
            legal = self.env.backward_mask(states)
            backward = Categorical(torch.zeros_like(legal, dtype=logits.dtype), legal)
        forward = Categorical(logits, self.env.forward_mask(states))
        return Heads(forward, backward, flow)

    def log_z(self, condition: Condition) -> Tensor:
        """log F^r(s0) for each row, [n]."""
        n = len(condition.inverse_temperature)
        start = self.env.initial(1, self.log_reward.device)
        flow = self(start, condition, frozenset({"log_flow"})).log_flow
        assert flow is not None
        return flow.expand(n)


class OutcomePredictor(Protocol):
    """What adaptation needs beside a policy: Q(y | s, s'), which outcome an edge leads to."""

    def outcome_log_prob(self, states: States, actions: Tensor, outcome: Condition) -> Tensor:
        """log Q(y | s, s') for the outcome each row's condition asks for, [n]."""


def amortized_adaptation(
    log_n: Tensor, log_q: Tensor, log_reward: Tensor, log_edge_flow: Tensor
) -> Tensor:
    """Residual log N(s' | s) + log Q(y | s', s) - log r(y) - log F(s | y) P_F(s' | s, y).

    At 0 for all y, N(s' | s) = sum_y r(y) F(s | y) P_F(s' | s, y), since Q sums to one
    (2310.03419). All arguments have the shape of the result.
    """
    return log_n + log_q - log_reward - log_edge_flow


@dataclass(frozen=True)
class AmortizedAdaptation:
    """Adapt a frozen outcome-conditioned policy to a reward by a network instead of the sum over y.

    The adapted policy is an ordinary one with a flow head: N(s' | s) = F^r(s) P^r(s' | s). Each
    trajectory of the batch carries one outcome y as its condition and log r(y) as its log-reward:
    where it ended, or any other one. Draw some outcomes evenly, or Q may keep mass on outcomes
    that an edge does not lead to.

    Attributes:
        regression: name of the loss on residuals, a key of `REGRESSIONS`.
        outcomes: the frozen outcome-conditioned policy, with a flow head.
        floor: log F(s | y) P_F(s' | s, y) is not taken below this: an edge that leads away from y
            has flow 0.
    """

    regression: str = "squared"
    outcomes: Policy | None = field(default=None, repr=False)
    floor: float = -20.0

    def __post_init__(self) -> None:
        check_choice("regression", self.regression, REGRESSIONS)

    @property
    def needs(self) -> frozenset[str]:
        """log F^r, beside P^r."""
        return frozenset({"log_flow"})

    def __call__(self, policy: Policy, batch: Trajectories) -> Loss:
        """Mean over transitions of g(residual)."""
        if self.outcomes is None:
            raise ValueError(
                "adaptation has no outcome-conditioned policy: use "
                "dataclasses.replace(objective, outcomes=policy)"
            )
        predict = getattr(policy, "outcome_log_prob", None)
        if predict is None:
            raise ValueError(
                f"adaptation needs a policy with outcome_log_prob, {type(policy).__name__} has none"
            )
        # The adapted policy must not see the outcome: it serves all of them at once.
        blind = replace(batch, condition=_without_encoding(batch.condition))
        evaluation = evaluate(policy, blind, self.needs)
        with torch.no_grad():
            fixed = evaluate(self.outcomes, batch, self.needs)
        assert evaluation.log_flow is not None and fixed.log_flow is not None
        real = batch.valid
        row, column = real.nonzero(as_tuple=True)
        states = States(batch.states[row, column], column, torch.zeros_like(row, dtype=torch.bool))
        log_q = predict(states, batch.actions[row, column], batch.condition.rows(row))
        log_r = complete_log_rewards(batch, log_q, "adaptation")[row]
        log_n = (evaluation.log_flow + evaluation.log_pf)[real]
        edge = (fixed.log_flow + fixed.log_pf)[real].clamp(min=self.floor)
        residual = amortized_adaptation(log_n, log_q, log_r, edge)
        metrics = {
            "log_z": evaluation.log_flow[:, 0].detach().mean(),
            "residual": residual.detach().abs().mean(),
        }
        return Loss(REGRESSIONS[self.regression](residual).mean(), metrics, len(residual))


def _without_encoding(condition: Condition) -> Condition:
    return Condition(condition.encoding[:, :0], None, condition.inverse_temperature)
