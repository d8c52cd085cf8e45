"""Sampler strategies: where the batches of a Trainer come from.

A strategy is called without arguments and returns scored trajectories; its `state_dict` holds
everything that a resumed run needs to go on exactly. Strategies that join or change the batches of
others are in `gflow.sampling.combine`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from gflow.conditions import Conditions, PooledConditions, PromptConditions
from gflow.mdp import Condition, Policy, States, Trajectories
from gflow.sampling.rollout import Exploration, StepBlock, rollout, step_block
from gflow.sampling.scoring import Scalarization
from gflow.scalarize import log_reward, weighted_sum
from gflow.seeding import derive_seed, generator


class Strategy(Protocol):
    """Source of scored batches."""

    def __call__(self) -> Trajectories:
        """The next batch."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""


class Resumable:
    """What `state_dict` and `load_state_dict` need to know: the attributes that hold state.

    Attributes:
        saved: their names; they are generators, or have such methods themselves.
    """

    saved: tuple[str, ...]

    def state_dict(self) -> dict[str, Any]:
        """The state of every part."""
        parts = {name: getattr(self, name) for name in self.saved}
        return {
            name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
            for name, part in parts.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name in self.saved:
            part = getattr(self, name)
            if isinstance(part, torch.Generator):
                part.set_state(state[name].cpu())
            else:
                part.load_state_dict(state[name])


class ConditionStream:
    """Conditions of one batch after the other, and the numbers of the groups that share them.

    Args:
        conditions: draws conditions.
        batch_size: rows per batch, a multiple of `group_size`.
        group_size: rows that share one condition.
        seed: seeds the draws.
        dtype: dtype of the conditions.
        first_group: number of the first group.

    Raises:
        ValueError: sizes below 1, or a batch that is no whole number of groups.
    """

    def __init__(
        self,
        conditions: Conditions | PromptConditions | PooledConditions,
        batch_size: int,
        group_size: int,
        seed: int,
        dtype: torch.dtype,
        first_group: int = 0,
    ):
        if batch_size < 1 or group_size < 1 or batch_size % group_size:
            raise ValueError(f"batch size {batch_size} is no multiple of group size {group_size}")
        self.conditions, self.dtype = conditions, dtype
        self.n_groups, self.group_size = batch_size // group_size, group_size
        self.next_group = first_group
        self.generator = generator(seed, "conditions")

    def __call__(self) -> tuple[Condition, Tensor]:
        """Conditions and group numbers of the next batch, on the CPU."""
        if not self.conditions.encoding_size:
            # All conditions are one, and so are all groups.
            n = self.n_groups * self.group_size
            condition = self.conditions.sample(n, self.generator, self.dtype)
            return condition, torch.zeros(n, dtype=torch.int64)
        condition = self.conditions.sample(self.n_groups, self.generator, self.dtype)
        group = torch.arange(self.n_groups).repeat_interleave(self.group_size)
        if self.group_size > 1:
            condition = condition.rows(group)
        # Numbers go on across batches: replayed groups never meet fresh ones.
        group = group + self.next_group
        self.next_group += self.n_groups
        return condition, group

    def state_dict(self) -> dict[str, Any]:
        """The generator, and the next group's number."""
        return {"next_group": self.next_group, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the stream."""
        self.next_group = state["next_group"]
        self.generator.set_state(state["generator"].cpu())


class Cooling:
    """Exploration that falls evenly to none over a number of batches.

    Args:
        exploration: behaviour policy of the first batch.
        batches: batches until there is none; 0 keeps it for ever.
    """

    def __init__(self, exploration: Exploration, batches: int = 0):
        if batches < 0:
            raise ValueError(f"exploration cannot cool down over {batches} batches")
        self.exploration, self.batches, self.drawn = exploration, batches, 0

    def __call__(self) -> Exploration:
        """The behaviour policy of the next batch."""
        if not self.batches:
            return self.exploration
        left = max(1 - self.drawn / self.batches, 0.0)
        self.drawn += 1
        full = self.exploration
        return Exploration(left * full.epsilon, 1 + left * (full.temperature - 1))

    def state_dict(self) -> dict[str, Any]:
        """Batches drawn so far."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.drawn = state["drawn"]


class OnPolicy(Resumable):
    """Fresh trajectories of the current policy, `group_size` for each condition.

    Args:
        policy: the policy to sample from.
        conditions: draws conditions.
        score: sets rewards and log-rewards, see `Scorer`.
        batch_size: trajectories per batch, a multiple of `group_size`.
        seed: seeds this strategy's own generators.
        exploration: behaviour policy.
        cooling: batches over which exploration falls to none; 0 keeps it.
        group_size: trajectories that share one condition.
        keep_log_pf: store the sampled actions' log-probabilities in the batch, exploration
            included.
        device: where to roll out.
        dtype: dtype of conditions and noise.
        block: `step_block`, or what `compile_block` returns.

    Raises:
        ValueError: a batch that is no whole number of groups.
    """

    saved = ("stream", "rollout_generator", "cooling")

    def __init__(
        self,
        policy: Policy,
        conditions: Conditions | PromptConditions | PooledConditions,
        score: Callable[[Trajectories], Trajectories],
        batch_size: int,
        seed: int,
        *,
        exploration: Exploration = Exploration(),  # noqa: B008  (frozen)
        cooling: int = 0,
        group_size: int = 1,
        keep_log_pf: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        block: StepBlock = step_block,
    ):
        self.stream = ConditionStream(conditions, batch_size, group_size, seed, dtype)
        self.policy, self.score, self.cooling = policy, score, Cooling(exploration, cooling)
        self.batch_size, self.keep_log_pf = batch_size, keep_log_pf
        self.device, self.block = device, block
        self.rollout_generator = generator(seed, "rollout", device=device)

    def __call__(self) -> Trajectories:
        """Sample conditions and trajectories, and score them."""
        condition, group = self.stream()
        batch = rollout(
            self.policy,
            self.policy.env.begin(condition, self.device),
            condition.to(self.device),
            self.rollout_generator,
            exploration=self.cooling(),
            keep_log_pf=self.keep_log_pf,
            block=self.block,
        )
        batch.group = group.to(self.device)
        return self.score(batch)


class FromData(Resumable):
    """Known objects, drawn evenly with replacement, on trajectories sampled backward by P_B.

    Nothing is scored: log R(x given c) comes from the known rewards, so that an oracle is not
    needed. Join it with fresh trajectories by `Joined`: objects alone teach nothing about states
    that lead elsewhere.

    Args:
        policy: the policy whose P_B is followed.
        conditions: draws conditions.
        states: n terminal states, for example `env.encode(objects)`.
        rewards: [n, K], their reward vectors.
        batch_size: trajectories per batch, a multiple of `group_size`.
        seed: seeds this strategy's own generators.
        scalarization: reward vectors and weights to log S.
        group_size: trajectories that share one condition.
        device: where to roll out.
        dtype: dtype of conditions and noise.

    Raises:
        ValueError: no objects, unfinished states, a reward that is missing or not finite, or a
            batch that is no whole number of groups.
    """

    saved = ("stream", "row_generator", "rollout_generator")

    def __init__(
        self,
        policy: Policy,
        conditions: Conditions,
        states: States,
        rewards: Tensor,
        batch_size: int,
        seed: int,
        *,
        scalarization: Scalarization = weighted_sum,
        group_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if not states.n or not bool(states.done.all()):
            raise ValueError("training from data needs finished objects, at least one")
        free = rewards.ndim == 2 and not conditions.with_preference
        n_rewards = rewards.shape[1] if free else conditions.n_rewards
        if rewards.shape != (states.n, n_rewards):
            raise ValueError(
                f"rewards of {states.n} objects must be [{states.n}, {n_rewards}], not "
                f"{list(rewards.shape)}"
            )
        bad = ~torch.isfinite(rewards).all(-1)
        if bool(bad.any()):
            raise ValueError(f"the reward of object {int(bad.nonzero()[0])} is not finite")
        # Every seed numbers its groups below 0 in a range of its own: none meets a fresh group.
        first_group = -(derive_seed(seed, "data") + 1) * 2**31
        self.stream = ConditionStream(conditions, batch_size, group_size, seed, dtype, first_group)
        self.policy, self.scalarization = policy, scalarization
        self.states, self.rewards = states.to("cpu"), rewards.to("cpu", dtype)
        self.batch_size, self.device = batch_size, device
        self.row_generator = generator(seed, "data")
        self.rollout_generator = generator(seed, "backward", device=device)

    def __call__(self) -> Trajectories:
        """Draw objects and conditions, and walk back to s0."""
        condition, group = self.stream()
        condition = condition.to(self.device)
        row = torch.randint(self.states.n, (self.batch_size,), generator=self.row_generator)
        ends = self.states.rows(row).to(self.device)
        batch = rollout(self.policy, ends, condition, self.rollout_generator, backward=True)
        batch.rewards = self.rewards[row].to(self.device)
        batch.log_reward = log_reward(batch.rewards, condition, self.scalarization)
        batch.group = group.to(self.device)
        return batch
