"""From terminal states to log-rewards: decode, ask the oracle, scalarise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gflow.mdp import Environment, Oracle, States, Trajectories
from gflow.oracles import OracleError, OracleRunner, Scores, checked, commonest, oracle_name
from gflow.scalarize import log_reward, weighted_sum

Scalarization = Callable[[Tensor, Tensor], Tensor]


class Scored(NamedTuple):
    """One scored batch, for listeners such as the candidate store.

    Attributes:
        batch: the trajectories as sampled, with rewards (NaN rows where the oracle failed).
        objects: the decoded objects, None for oracles that read states.
        scores: what the runner said about each object, None without a runner.
        reasons: why a row has no rewards, None where it has.
    """

    batch: Trajectories
    objects: list[object] | None
    scores: Scores | None
    reasons: list[str | None]


class Scorer:
    """Sets `rewards` and `log_reward` of a batch; rows whose oracle failed leave the batch.

    A reward outside its declared range is a failure of its object.

    Args:
        env: decodes terminal states.
        oracle: an oracle on states, or a runner around an oracle on objects. One on states whose
            attribute `conditional` is true is given the conditions too: rewards may depend on
            what was asked for. An oracle on objects without a runner is called once a batch, and
            what it raises ends the run.
        scalarization: reward vectors and weights to log S. None leaves log-rewards out, for
            objectives on reward vectors; rows then stay where some reward is not missing.
        listeners: called with every scored batch before failed rows are dropped.
        partial: also set `partial_log_reward`, for objectives that credit unfinished objects.

    Raises:
        ValueError: partial log-rewards of an oracle that does not read states, or without a
            scalarization.
    """

    def __init__(
        self,
        env: Environment,
        oracle: Oracle | OracleRunner,
        scalarization: Scalarization | None = weighted_sum,
        listeners: tuple[Callable[[Scored], None], ...] = (),
        partial: bool = False,
    ):
        if partial and isinstance(oracle, OracleRunner):
            raise ValueError(
                "log-rewards of unfinished objects need an oracle that reads states, "
                f"not {type(oracle.oracle).__name__}"
            )
        if partial and scalarization is None:
            raise ValueError("log-rewards of unfinished objects need a scalarization")
        self.env, self.oracle, self.partial = env, oracle, partial
        self.scalarization, self.listeners = scalarization, listeners

    def __call__(self, batch: Trajectories) -> Trajectories:
        """The batch with rewards and log-rewards, without rows that could not be scored.

        Raises:
            OracleError: too many of them, by the runner's settings, or all of several.
        """
        objects = scores = None
        if isinstance(self.oracle, OracleRunner):
            objects = self.env.decode(batch.terminal)
            try:
                scores = self.oracle.evaluate(objects)
            except OracleError as error:
                if error.scores is not None:
                    batch.rewards = error.scores.rewards
                    self._tell(Scored(batch, objects, error.scores, error.scores.reasons))
                raise
            rewards, reasons = scores.rewards.to(batch.valid.device), scores.reasons
        elif not self.oracle.on_states:
            objects = self.env.decode(batch.terminal)
            answer = self.oracle(objects).to(batch.valid.device)
            rewards, reasons = checked(answer, self.oracle.rewards)
        else:
            rewards, reasons = self.rewards(batch)
        batch.rewards = rewards
        self._tell(Scored(batch, objects, scores, reasons))
        # A sum is finite only where every term is: one look at one number.
        if not math.isfinite(rewards.sum()):
            finite = torch.isfinite(rewards)
            batch = batch.rows(finite.any(-1) if self.scalarization is None else finite.all(-1))
            if not batch.n and len(reasons) > 1:
                runner = self.oracle
                oracle = runner.oracle if isinstance(runner, OracleRunner) else runner
                why = commonest([reason or "infinite rewards" for reason in reasons])
                raise OracleError(
                    f"{oracle_name(oracle)} failed on all {len(reasons)} objects of a batch, most "
                    f"often: {why}"
                )
        if self.scalarization is None:
            return batch
        assert batch.rewards is not None
        batch.log_reward = log_reward(batch.rewards, batch.condition, self.scalarization)
        if self.partial:
            batch.partial_log_reward = self._partial_log_reward(batch)
        return batch

    def rewards(self, batch: Trajectories) -> tuple[Tensor, list[str | None]]:
        """What an oracle on states says of the terminal ones, [B, K], and why it fails on some.

        Raises:
            ValueError: it says something else than K rewards of each.
        """
        assert not isinstance(self.oracle, OracleRunner)
        if getattr(self.oracle, "conditional", False):
            rewards = self.oracle(batch.terminal, batch.condition)  # type: ignore[call-arg]
        else:
            rewards = self.oracle(batch.terminal)
        wanted = (batch.n, len(self.oracle.rewards))
        if tuple(rewards.shape) != wanted:
            raise ValueError(
                f"{type(self.oracle).__name__} returned rewards of shape {tuple(rewards.shape)}: "
                f"one row for each of {wanted[0]} objects and {wanted[1]} columns are needed"
            )
        return checked(rewards, self.oracle.rewards)

    def _partial_log_reward(self, batch: Trajectories) -> Tensor:
        """log R of every state, [B, T + 1]: what the oracle says of parts, or of finished ones."""
        n, columns = batch.states.shape[:2]
        step = torch.arange(columns, device=batch.states.device).repeat(n)
        states = States(batch.states.flatten(0, 1), step, torch.zeros_like(step, dtype=torch.bool))
        condition = batch.condition.rows(
            torch.arange(n, device=step.device).repeat_interleave(columns)
        )
        assert not isinstance(self.oracle, OracleRunner) and self.scalarization is not None
        of_parts = getattr(self.oracle, "partial_log_reward", None)
        if of_parts is None:
            values = log_reward(self.oracle(states), condition, self.scalarization)
        else:
            values = of_parts(states) * condition.inverse_temperature
        return values.view(n, columns)

    def _tell(self, scored: Scored) -> None:
        for listener in self.listeners:
            listener(scored)
