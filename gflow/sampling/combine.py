"""Strategies made of other strategies: joined, replayed, relabelled, sampled by an average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gflow.conditions import Conditions
from gflow.mdp import Policy, Trajectories, concat_trajectories
from gflow.sampling.replay import Replay
from gflow.sampling.rollout import rollout
from gflow.sampling.scoring import Scalarization
from gflow.sampling.strategies import Resumable, Strategy
from gflow.scalarize import focus, log_reward
from gflow.seeding import generator


def join(parts: Sequence[Trajectories]) -> Trajectories:
    """One batch of several; `log_pf_old` is kept only where every part was sampled by P_F."""
    if any(part.log_pf_old is None for part in parts):
        parts = [replace(part, log_pf_old=None) for part in parts]
    return concat_trajectories(parts)


def retrace(policy: Policy, batch: Trajectories, random: torch.Generator | None) -> Trajectories:
    """The batch's objects, with their rewards, on new trajectories sampled backward by P_B."""
    new = rollout(policy, batch.terminal, batch.condition, random, backward=True)
    return replace(new, rewards=batch.rewards, log_reward=batch.log_reward, group=batch.group)


class Joined:
    """The batches of several strategies as one.

    Args:
        parts: the strategies; those that draw at random need seeds of their own.

    Raises:
        ValueError: no strategies.
    """

    def __init__(self, *parts: Strategy):
        if not parts:
            raise ValueError("there are no strategies to join")
        self.parts = parts

    def __call__(self) -> Trajectories:
        """One batch of each."""
        return join([part() for part in self.parts])

    def state_dict(self) -> dict[str, Any]:
        """All parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue all parts."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


class WithReplay(Resumable):
    """Fresh batches joined by trajectories from a replay buffer.

    Log-probabilities are recomputed by the objective under the current policy, so balance
    objectives stay exact on replayed trajectories.

    Args:
        fresh: strategy of the new trajectories; all of them enter the buffer.
        replay: the buffer.
        size: replayed trajectories per batch, once the buffer holds `warm_up` of them.
        seed: seeds the choice of trajectories.
        warm_up: trajectories to collect before replaying any.
        retrace_by: replay only the objects, on new trajectories by this policy's P_B; with a
            prioritised buffer this is prioritised replay training (2023, arXiv 2305.07170).
        device: where trajectories are retraced.
    """

    saved = ("fresh", "replay", "generator", "rollout_generator")

    def __init__(
        self,
        fresh: Strategy,
        replay: Replay,
        size: int,
        seed: int,
        warm_up: int = 0,
        retrace_by: Policy | None = None,
        device: torch.device | str = "cpu",
    ):
        self.fresh, self.replay, self.size = fresh, replay, size
        self.warm_up, self.retrace_by = max(warm_up, 1), retrace_by
        self.generator = generator(seed, "replay")
        self.rollout_generator = generator(seed, "retrace", device=device)

    def __call__(self) -> Trajectories:
        """A fresh batch and, after the warm-up, `size` replayed trajectories."""
        batch = self.fresh()
        old = None
        if len(self.replay) >= self.warm_up:
            old = self.replay.sample(self.size, self.generator).to(batch.valid.device)
        self.replay.add(batch)
        if old is None:
            return batch
        if self.retrace_by is not None:
            old = retrace(self.retrace_by, old, self.rollout_generator)
        return join([batch, old])


class Informative(Resumable):
    """Batches whose groups all teach something: others are drawn again (DAPO, 2503.14476).

    Args:
        fresh: strategy that draws the batches.
        teaches: [B] bool of a batch: the trajectories of groups whose rewards differ.
        rounds: batches drawn at most; what they hold is returned, however little. Where nothing
            teaches, it is the last batch.

    Raises:
        ValueError: no rounds.
    """

    saved = ("fresh",)

    def __init__(self, fresh: Strategy, teaches: Callable[[Trajectories], Tensor], rounds: int = 4):
        if rounds < 1:
            raise ValueError(f"groups are drawn in at least one round, not {rounds}")
        self.fresh, self.teaches, self.rounds = fresh, teaches, rounds

    def __call__(self) -> Trajectories:
        """At most as many groups as one fresh batch has."""
        parts: list[Trajectories] = []
        wanted = found = 0
        for _ in range(self.rounds):
            batch = self.fresh()
            if batch.group is None:
                raise ValueError("groups are only drawn again where trajectories have groups")
            wanted = wanted or len(batch.group.unique())
            parts.append(batch.rows(self.teaches(batch)))
            found += len(parts[-1].group.unique())  # type: ignore[union-attr]
            if found >= wanted:
                break
        if not found:
            return batch
        whole = concat_trajectories([part for part in parts if part.n])
        assert whole.group is not None
        # Numbers of groups grow from batch to batch: the first ones are kept.
        kept = whole.group.unique()[:wanted]
        return whole.rows(torch.isin(whole.group, kept))


class Hindsight(Resumable):
    """Trajectories that missed their goal, relabelled to the goal they reached.

    A goal is a direction of reward space, see `gflow.scalarize.focus`. Of the trajectories outside
    their cone, a fraction gets its own reward vector as the goal, and the log-reward that goes with
    it. (Goal-conditioned GFlowNets, 2023, arXiv 2306.04620.)

    Args:
        fresh: strategy whose batches are relabelled.
        conditions: what `fresh` draws its conditions from, with preferences.
        seed: seeds the choice.
        fraction: share of the missed trajectories that is relabelled.
        scalarization: `focus`, or one like it that is -inf away from the goal.

    Raises:
        ValueError: conditions without preferences, or a fraction outside [0, 1].
    """

    saved = ("fresh", "generator")

    def __init__(
        self,
        fresh: Strategy,
        conditions: Conditions,
        seed: int,
        fraction: float = 0.3,
        scalarization: Scalarization = focus,
    ):
        if not conditions.with_preference:
            raise ValueError("hindsight needs conditions with goals: set a concentration")
        if not 0 <= fraction <= 1:
            raise ValueError(f"hindsight relabels a fraction in [0, 1], not {fraction}")
        self.fresh, self.conditions, self.fraction = fresh, conditions, fraction
        self.scalarization = scalarization
        self.generator = generator(seed, "hindsight")

    def __call__(self) -> Trajectories:
        """The fresh batch with some of its conditions replaced."""
        batch = self.fresh()
        rewards, goals = batch.rewards, batch.condition.preference
        assert rewards is not None and goals is not None and batch.log_reward is not None
        chosen = torch.rand(batch.n, generator=self.generator).to(goals.device) < self.fraction
        missed = torch.isneginf(self.scalarization(rewards, goals.to(rewards.dtype)))
        # An object without any reward lies in no direction.
        changed = chosen & missed & (rewards.sum(-1) > 0)
        reached = rewards / rewards.sum(-1, keepdim=True).where(changed.unsqueeze(-1), 1.0)
        condition = self.conditions.make(
            torch.where(changed.unsqueeze(-1), reached.to(goals.dtype), goals),
            batch.condition.inverse_temperature,
        )
        log_r = log_reward(rewards, condition, self.scalarization).to(batch.log_reward.dtype)
        log_r = torch.where(changed, log_r, batch.log_reward)
        group = batch.group
        if group is not None:
            # Drawn numbers below 0, since a new goal is shared with no other trajectory.
            own = -torch.randint(1, 2**62, (batch.n,), generator=self.generator).to(group.device)
            group = torch.where(changed, own, group)
        return replace(batch, condition=condition, log_reward=log_r, group=group)


class Averaged(Resumable):
    """Sample with an exponential moving average of the parameters: a <- decay a + (1 - decay) p.

    Args:
        fresh: strategy that samples from `average`.
        average: a copy (`copy.deepcopy`) of the policy; it is moved before every batch.
        policy: the policy being trained.
        decay: share of the average that stays, usually 0.9 to 0.99.

    Raises:
        ValueError: decay outside [0, 1).
    """

    saved = ("fresh", "average")

    def __init__(self, fresh: Strategy, average: nn.Module, policy: nn.Module, decay: float = 0.99):
        if not 0 <= decay < 1:
            raise ValueError(f"a moving average needs a decay in [0, 1), not {decay}")
        self.fresh, self.average, self.policy, self.decay = fresh, average, policy, decay
        average.requires_grad_(False)

    @torch.no_grad()
    def __call__(self) -> Trajectories:
        """Move the average, then draw a batch from it."""
        pairs = zip(self.average.parameters(), self.policy.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, 1 - self.decay)
        return self.fresh()
