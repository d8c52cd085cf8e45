"""The GFlowNet that proposes objects: trained anew each round on what is worth measuring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gflow.active.acquisition import tchebycheff_distance
from gflow.active.settings import SessionConfig
from gflow.conditions import Conditions, InverseTemperature
from gflow.estimators import log_z_bounds
from gflow.mdp import Trajectories
from gflow.objectives.catalog import get_method
from gflow.sampling import Exploration, OnPolicy, rollout
from gflow.scalarize import log_reward
from gflow.seeding import generator
from gflow.tasks import Task
from gflow.training import Trainer

Value = Callable[[Sequence[Any]], Tensor]
"""Objects to acquisition values [n, A]: A = 1 log-value, or A = K scaled rewards."""


class Proposer:
    """A sampler of objects with high acquisition; its weights go on from round to round.

    One log-value per object trains it by trajectory balance towards exp(beta * value), as MOGFN-AL
    does; K scaled rewards train one sampler for all preferences, by their distance to the utopia
    point (Multi-Objective GFlowNets, 2022, arXiv 2210.12765).

    Args:
        task: environment and network.
        n_rewards: K.
        config: the session's settings.
        key: canonical key of an object.
    """

    def __init__(
        self, task: Task, n_rewards: int, config: SessionConfig, key: Callable[[Any], str]
    ):
        self.task, self.config, self.key = task, config, key
        self.vector = config.acquisition == "ucb"
        usual = 48.0 if self.vector else 2.0
        self.conditions = Conditions(
            n_rewards if self.vector else 1,
            InverseTemperature(a=config.inverse_temperature or usual),
            1.0 if self.vector else None,
        )
        self.objective = get_method("mogfn_pc" if self.vector else "tb").objective
        self.policy: nn.Module = task.make_policy(
            config.policy, self.conditions.encoding_size, False, False, config.seed
        )

    def search(self, value: Value, number: int) -> dict[str, tuple[Any, Tensor]]:
        """Train on `value`, and return every object met, with its value [A], by key.

        Args:
            value: the acquisition function, called once for every distinct object.
            number: the round, which seeds the rollouts.

        Raises:
            KeyboardInterrupt: the user stopped the training.
        """
        met: dict[str, tuple[Any, Tensor]] = {}

        def score(batch: Trajectories) -> Trajectories:
            objects = self.task.env.decode(batch.terminal)
            keys = [self.key(item) for item in objects]
            fresh = {key: i for i, key in enumerate(keys) if key not in met}
            if fresh:
                new = [objects[i] for i in fresh.values()]
                met.update(zip(fresh, zip(new, value(new), strict=True), strict=True))
            values = torch.stack([met[key][1] for key in keys])
            batch.rewards = values.to(batch.condition.inverse_temperature.dtype)
            scalarized = tchebycheff_distance if self.vector else _only
            batch.log_reward = log_reward(batch.rewards, batch.condition, scalarized, _LOWEST)
            return batch

        config = self.config
        sampler = OnPolicy(
            self.policy,  # type: ignore[arg-type]
            self.conditions,
            score,
            config.batch_size,
            generator(config.seed, "round", number).initial_seed(),
            exploration=Exploration(config.epsilon),
        )
        trainer = Trainer(self.policy, self.objective, sampler, config.trainer)
        # The scale of the acquisition changes from round to round.
        bounds = log_z_bounds(self.policy, sampler())  # type: ignore[arg-type]
        nn.init.constant_(self.policy.log_z.bias, float(bounds.elbo))  # type: ignore[union-attr, arg-type]
        trainer.run(config.steps)
        if trainer.stop_requested:
            raise KeyboardInterrupt
        return met

    def random(self, n: int, number: int) -> list[Any]:
        """`n` objects of random construction."""
        stream = generator(self.config.seed, "random", number)
        batch = rollout(
            self.policy,  # type: ignore[arg-type]
            self.task.env.initial(n),
            self.conditions.sample(n, stream),
            stream,
            exploration=Exploration(epsilon=1.0),
        )
        return self.task.env.decode(batch.terminal)


_LOWEST = -100.0
"""Log-rewards below change nothing but make the first gradients huge."""


def _only(values: Tensor, weights: Tensor) -> Tensor:
    return values[:, 0]
