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
from gflow.mdp import Environment, Policy, States, Trajectories, concat_states
from gflow.objectives.catalog import get_method
from gflow.sampling import Exploration, OnPolicy, join, rollout
from gflow.sampling.local_search import propose
from gflow.sampling.strategies import Resumable
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

    def search(
        self, value: Value, number: int, starts: Sequence[Any] = ()
    ) -> dict[str, tuple[Any, Tensor]]:
        """Train on `value`, and return every object met, with its value [A], by key.

        Args:
            value: the acquisition function, called once for every distinct object.
            number: the round, which seeds the rollouts.
            starts: the active set; half of each batch are edits of such objects, as far as the
                environment can build them.

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

        config, policy = self.config, self.policy
        known = _reachable(self.task.env, starts)
        seed = generator(config.seed, "round", number).initial_seed()
        fresh = OnPolicy(
            policy,  # type: ignore[arg-type]
            self.conditions,
            score,
            max(config.batch_size // 2, 1) if known else config.batch_size,
            seed,
            exploration=Exploration(config.epsilon),
        )
        sampler = WithEdits(fresh, policy, score, known, seed) if known else fresh  # type: ignore[arg-type]
        trainer = Trainer(policy, self.objective, sampler, config.trainer)
        # The scale of the acquisition changes from round to round.
        bounds = log_z_bounds(policy, fresh())  # type: ignore[arg-type]
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


class WithEdits(Resumable):
    """Fresh trajectories, and as many to edits of known objects, under the same conditions.

    An edit destroys part of an object by P_B, one transition up to half of the longest, and
    rebuilds it by P_F; the sampler learns from the whole trajectory. (MOGFN-AL edits the objects
    of the front by substitutions; this needs no other actions than the environment's.)

    Args:
        fresh: strategy of the fresh trajectories.
        policy: destroys and rebuilds.
        score: sets log-rewards.
        objects: terminal states to edit, drawn evenly.
        seed: seeds the edits.
    """

    saved = ("fresh", "generator")

    def __init__(
        self,
        fresh: OnPolicy,
        policy: Policy,
        score: Callable[[Trajectories], Trajectories],
        objects: States,
        seed: int,
    ):
        self.fresh, self.policy, self.score, self.objects = fresh, policy, score, objects
        self.generator = generator(seed, "edits")

    @torch.no_grad()
    def __call__(self) -> Trajectories:
        """Both, as one batch."""
        batch = self.fresh()
        row = torch.randint(self.objects.n, (batch.n,), generator=self.generator)
        most = max(self.policy.env.max_steps // 2, 1)
        steps = int(torch.randint(1, most + 1, (), generator=self.generator))
        objects = self.objects.rows(row)
        edited = propose(self.policy, objects, batch.condition, steps, self.generator).new
        edited.group = batch.group
        return join([batch, self.score(edited)])


def _reachable(env: Environment, objects: Sequence[Any]) -> States | None:
    """Terminal states of the objects that the environment can build, None where there are none."""
    rows = []
    for item in objects:
        try:
            rows.append(env.encode([item]))
        except ValueError:
            continue
    return concat_states(rows) if rows else None


_LOWEST = -100.0
"""Log-rewards below change nothing but make the first gradients huge."""


def _only(values: Tensor, weights: Tensor) -> Tensor:
    return values[:, 0]
