"""Langevin local search: points improved by the target's gradient, then walked back by P_B."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflow.mdp import Policy, States, Trajectories
from gflow.sampling.combine import join
from gflow.sampling.local_search import metropolis
from gflow.sampling.rollout import rollout
from gflow.sampling.strategies import Resumable, Strategy
from gflow.seeding import generator

LogReward = Callable[[Tensor], Tensor]


class Chains(NamedTuple):
    """Where n Markov chains are.

    Attributes:
        points: [n, *shape].
        log_reward: [n], log R there.
        gradient: [n, *shape], its gradient.
    """

    points: Tensor
    log_reward: Tensor
    gradient: Tensor


def chains_at(points: Tensor, log_reward: LogReward) -> Chains:
    """Chains at `points` [n, *shape]; `log_reward` must be differentiable, row by row."""
    with torch.enable_grad():
        x = points.detach().requires_grad_(True)
        value = log_reward(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return Chains(points.detach(), value.detach(), gradient)


def langevin_step(
    chains: Chains, log_reward: LogReward, step_size: float, random: torch.Generator | None
) -> tuple[Chains, Tensor]:
    """One Metropolis-adjusted Langevin step, which leaves R / Z invariant (MALA, 1996).

    The proposal is x + step_size grad log R + sqrt(2 step_size) noise.

    Args:
        chains: n chains.
        log_reward: differentiable log R of points, [n].
        step_size: of the proposal.
        random: source of randomness, on the points' device.

    Returns:
        The chains after it, and who moved, [n] bool.
    """
    x, gradient = chains.points, chains.gradient
    noise = torch.empty_like(x).normal_(generator=random)
    drift = x + step_size * gradient
    proposed = chains_at(drift + math.sqrt(2 * step_size) * noise, log_reward)
    way_back = x - proposed.points - step_size * proposed.gradient
    squares = way_back.square().flatten(1).sum(1) / (4 * step_size)
    delta = proposed.log_reward - chains.log_reward - squares
    delta = delta + 0.5 * noise.square().flatten(1).sum(1)
    moved = metropolis(delta, torch.empty_like(delta).uniform_(generator=random))
    wide = moved.view(-1, *[1] * (x.ndim - 1))
    after = Chains(
        torch.where(wide, proposed.points, x),
        torch.where(moved, proposed.log_reward, chains.log_reward),
        torch.where(wide, proposed.gradient, gradient),
    )
    return after, moved


class LangevinSearch(Resumable):
    """Fresh trajectories, joined by noised ones to points that Langevin chains have found.

    Every so many batches chains start from the best points seen, and what they visit after a
    burn-in is kept. Each batch draws some of the kept points, better ones more often, with weights
    1 / (n / 100 + rank), on new trajectories by P_B. (Improved off-policy training of diffusion
    samplers, 2024, arXiv 2402.05098.)

    Args:
        fresh: strategy of the new trajectories; their ends are where chains may start.
        policy: its P_B is followed.
        score: sets rewards and log-rewards, see `Scorer`.
        log_reward: differentiable log R of points under the one condition of `fresh`, [n].
        seed: seeds chains, choices and walks.
        size: trajectories added to each batch.
        every: batches between two searches; the first batch is followed by one.
        chains: number of chains.
        steps: steps of a chain.
        burn_in: steps before its points are kept; one of ten is kept after them.
        step_size: of the first steps; it then moves by 1 % a step towards the acceptance.
        acceptance: share of moves that should be accepted.
        capacity: points kept; the oldest leave first.
        device: where to walk.

    Raises:
        ValueError: an environment whose states are no points, or sizes that leave no point.
    """

    saved = ("fresh", "generator", "found")

    def __init__(
        self,
        fresh: Strategy,
        policy: Policy,
        score: Callable[[Trajectories], Trajectories],
        log_reward: LogReward,
        seed: int,
        size: int,
        *,
        every: int = 100,
        chains: int = 300,
        steps: int = 200,
        burn_in: int = 100,
        step_size: float = 0.1,
        acceptance: float = 0.574,
        capacity: int = 100_000,
        device: torch.device | str = "cpu",
    ):
        if not policy.env.continuous:
            name = type(policy.env).__name__
            raise ValueError(f"Langevin search moves points, and states of {name} are none")
        if min(size, every, chains, capacity) < 1 or not 0 <= burn_in < steps or step_size <= 0:
            raise ValueError(
                "Langevin search needs size, every, chains and capacity of at least 1, "
                "0 <= burn_in < steps and a positive step_size"
            )
        self.fresh, self.policy, self.score, self.log_reward = fresh, policy, score, log_reward
        self.size, self.every, self.chains = size, every, chains
        self.steps, self.burn_in, self.acceptance = steps, burn_in, acceptance
        self.generator = generator(seed, "langevin", device=device)
        self.found = _Found(capacity, step_size)

    @torch.no_grad()
    def __call__(self) -> Trajectories:
        """The fresh batch and `size` noised trajectories to found points."""
        batch = self.fresh()
        if self.found.batches % self.every == 0:
            self._search(batch)
        self.found.batches += 1
        points = self.found.draw(self.size, self.generator)
        row = torch.arange(self.size, device=points.device) % batch.n
        step = torch.full_like(row, self.policy.env.max_steps)
        ends = States(points, step, torch.ones_like(step, dtype=torch.bool))
        back = rollout(self.policy, ends, batch.condition.rows(row), self.generator, backward=True)
        back.group = None if batch.group is None else batch.group[row]
        return join([batch, self.score(back)])

    def _search(self, batch: Trajectories) -> None:
        """Run the chains from the best known points and keep where they went."""
        assert batch.log_reward is not None
        self.found.add(batch.terminal.data, batch.log_reward)
        chains = chains_at(self.found.draw(self.chains, self.generator), self.log_reward)
        size = self.found.step_size
        for step in range(self.steps):
            chains, moved = langevin_step(chains, self.log_reward, size, self.generator)
            size *= 1.01 if float(moved.double().mean()) > self.acceptance else 1 / 1.01
            if step >= self.burn_in and (step - self.burn_in) % 10 == 0:
                self.found.add(chains.points, chains.log_reward)
        self.found.step_size = size


class _Found:
    """Points and their log-rewards, the newest `capacity` of them."""

    def __init__(self, capacity: int, step_size: float):
        self.capacity, self.step_size, self.batches = capacity, step_size, 0
        self.points: Tensor | None = None
        self.log_reward: Tensor | None = None
        self.weights: Tensor | None = None

    def add(self, points: Tensor, log_reward: Tensor) -> None:
        if self.points is not None and self.log_reward is not None:
            points = torch.cat([self.points, points])
            log_reward = torch.cat([self.log_reward, log_reward])
        self.points, self.log_reward = points[-self.capacity :], log_reward[-self.capacity :]
        self.weights = None

    def draw(self, n: int, random: torch.Generator) -> Tensor:
        assert self.points is not None and self.log_reward is not None
        if self.weights is None:
            rank = self.log_reward.argsort(descending=True).argsort()
            self.weights = 1 / (len(rank) / 100 + rank.double())
        row = torch.multinomial(self.weights, n, replacement=True, generator=random)
        return self.points[row]

    def state_dict(self) -> dict[str, Any]:
        return {
            "points": self.points, "log_reward": self.log_reward, "batches": self.batches,
            "step_size": self.step_size,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points, self.log_reward = state["points"], state["log_reward"]
        self.batches, self.step_size, self.weights = state["batches"], state["step_size"], None
