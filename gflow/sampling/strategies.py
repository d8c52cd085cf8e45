"""Sampler strategies: where the batches of a Trainer come from.

A strategy is called without arguments and returns scored trajectories; its `state_dict` holds
everything that a resumed run needs to go on exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from gflow.conditions import Conditions
from gflow.mdp import Policy, Trajectories, concat_trajectories
from gflow.sampling.replay import Replay
from gflow.sampling.rollout import Exploration, StepBlock, rollout, step_block
from gflow.seeding import generator


class Strategy(Protocol):
    """Source of scored batches."""

    def __call__(self) -> Trajectories:
        """The next batch."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""


class OnPolicy:
    """Fresh trajectories of the current policy, `group_size` for each condition.

    Args:
        policy: the policy to sample from.
        conditions: draws conditions.
        score: sets rewards and log-rewards, see `Scorer`.
        batch_size: trajectories per batch, a multiple of `group_size`.
        seed: seeds this strategy's own generators.
        exploration: behaviour policy.
        group_size: trajectories that share one condition.
        keep_log_pf: store the sampled log P_F in the batch.
        device: where to roll out.
        dtype: dtype of conditions and noise.
        block: `step_block`, or what `compile_block` returns.
    """

    def __init__(
        self,
        policy: Policy,
        conditions: Conditions,
        score: Callable[[Trajectories], Trajectories],
        batch_size: int,
        seed: int,
        *,
        exploration: Exploration = Exploration(),  # noqa: B008  (frozen)
        group_size: int = 1,
        keep_log_pf: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        block: StepBlock = step_block,
    ):
        if batch_size % group_size:
            raise ValueError(f"batch size {batch_size} is no multiple of group size {group_size}")
        self.policy, self.conditions, self.score = policy, conditions, score
        self.batch_size, self.group_size, self.exploration = batch_size, group_size, exploration
        self.keep_log_pf, self.device, self.dtype, self.block = keep_log_pf, device, dtype, block
        self.groups_drawn = 0
        self.condition_generator = generator(seed, "conditions")
        self.rollout_generator = generator(seed, "rollout", device=device)

    def __call__(self) -> Trajectories:
        """Sample conditions and trajectories, and score them."""
        n_groups = self.batch_size // self.group_size
        condition = self.conditions.sample(n_groups, self.condition_generator, self.dtype)
        group = torch.arange(n_groups).repeat_interleave(self.group_size)
        if self.group_size > 1:
            condition = condition.rows(group)
        if self.conditions.encoding_size:
            # Numbers go on across batches: replayed groups never meet fresh ones.
            group = group + self.groups_drawn
            self.groups_drawn += n_groups
        else:
            group = torch.zeros_like(group)
        condition = condition.to(self.device)
        batch = rollout(
            self.policy,
            self.policy.env.initial(self.batch_size, self.device),
            condition,
            self.rollout_generator,
            exploration=self.exploration,
            keep_log_pf=self.keep_log_pf,
            block=self.block,
        )
        batch.group = group.to(self.device)
        return self.score(batch)

    def state_dict(self) -> dict[str, Any]:
        """Both generators, and the count of groups."""
        return {
            "groups": self.groups_drawn,
            "conditions": self.condition_generator.get_state(),
            "rollout": self.rollout_generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue both random streams."""
        self.groups_drawn = state["groups"]
        self.condition_generator.set_state(state["conditions"])
        self.rollout_generator.set_state(state["rollout"])


class WithReplay:
    """Fresh batches joined by trajectories from a replay buffer.

    Log-probabilities are recomputed by the objective under the current policy, so balance
    objectives stay exact on replayed trajectories.

    Args:
        fresh: strategy of the new trajectories; all of them enter the buffer.
        replay: the buffer.
        size: replayed trajectories per batch, once the buffer holds `warm_up` of them.
        seed: seeds the choice of trajectories.
        warm_up: trajectories to collect before replaying any.
    """

    def __init__(self, fresh: Strategy, replay: Replay, size: int, seed: int, warm_up: int = 0):
        self.fresh, self.replay, self.size = fresh, replay, size
        self.warm_up = max(warm_up, 1)
        self.generator = generator(seed, "replay")

    def __call__(self) -> Trajectories:
        """A fresh batch and, after the warm-up, `size` replayed trajectories."""
        batch = self.fresh()
        old = None
        if len(self.replay) >= self.warm_up:
            old = self.replay.sample(self.size, self.generator).to(batch.valid.device)
        self.replay.add(batch)
        if old is None:
            return batch
        return concat_trajectories([batch, old])

    def state_dict(self) -> dict[str, Any]:
        """Fresh strategy, buffer and generator."""
        return {
            "fresh": self.fresh.state_dict(),
            "replay": self.replay.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.fresh.load_state_dict(state["fresh"])
        self.replay.load_state_dict(state["replay"])
        self.generator.set_state(state["generator"])
