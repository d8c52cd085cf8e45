"""From terminal states to log-rewards: decode, ask the oracle, scalarise."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gflow.mdp import Environment, Oracle, Trajectories
from gflow.oracles import OracleError, OracleRunner, Scores
from gflow.scalarize import log_reward, weighted_sum

Scalarization = Callable[[Tensor, Tensor], Tensor]


class Scored(NamedTuple):
    """One scored batch, for listeners such as the candidate store.

    Attributes:
        batch: the trajectories as sampled, with rewards (NaN rows where the oracle failed).
        objects: the decoded objects, None for oracles that read states.
        scores: what the runner said about each object, None for oracles that read states.
    """

    batch: Trajectories
    objects: list[object] | None
    scores: Scores | None


class Scorer:
    """Sets `rewards` and `log_reward` of a batch; rows whose oracle failed leave the batch.

    Args:
        env: decodes terminal states.
        oracle: an oracle on states, or a runner around an oracle on objects.
        scalarization: reward vectors and weights to log S.
        listeners: called with every scored batch before failed rows are dropped.
    """

    def __init__(
        self,
        env: Environment,
        oracle: Oracle | OracleRunner,
        scalarization: Scalarization = weighted_sum,
        listeners: tuple[Callable[[Scored], None], ...] = (),
    ):
        self.env, self.oracle = env, oracle
        self.scalarization, self.listeners = scalarization, listeners

    def __call__(self, batch: Trajectories) -> Trajectories:
        """The batch with rewards and log-rewards, without rows that could not be scored."""
        objects = scores = None
        if isinstance(self.oracle, OracleRunner):
            objects = self.env.decode(batch.terminal)
            try:
                scores = self.oracle.evaluate(objects)
            except OracleError as error:
                if error.scores is not None:
                    batch.rewards = error.scores.rewards
                    self._tell(Scored(batch, objects, error.scores))
                raise
            rewards = scores.rewards.to(batch.valid.device)
        else:
            rewards = self.oracle(batch.terminal)
        batch.rewards = rewards
        self._tell(Scored(batch, objects, scores))
        good = torch.isfinite(rewards).all(-1)
        if not bool(good.all()):
            batch = batch.rows(good)
        assert batch.rewards is not None
        batch.log_reward = log_reward(batch.rewards, batch.condition, self.scalarization)
        return batch

    def _tell(self, scored: Scored) -> None:
        for listener in self.listeners:
            listener(scored)
