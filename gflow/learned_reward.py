"""A reward vector learned from labelled objects: one network, one regression head a reward."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gflow.mdp import Environment, Reward, States
from gflow.policies.common import seeded_weights


class LearnedReward:
    """An oracle on states that imitates labels (Multi-Objective GRPO, 2025, arXiv 2503.21819).

    Predictions are clipped to the range of each reward's labels: away from them a regression says
    anything, and an optimiser looks for where it says much.

    Args:
        env: environment whose `observe` returns [n, observation_size].
        rewards: what the K labels mean.
        states: n labelled terminal states.
        labels: [n, K].
        hidden: widths of the hidden layers.
        steps: full-batch steps of Adam on the mean squared error.
        learning_rate: its rate.
        seed: seeds the weights.

    Raises:
        ValueError: no flat observations, or labels that do not fit states and rewards, or are not
            finite.
    """

    on_states = True
    seconds = 0.0

    def __init__(
        self,
        env: Environment,
        rewards: tuple[Reward, ...],
        states: States,
        labels: Tensor,
        hidden: Sequence[int] = (64, 64),
        steps: int = 500,
        learning_rate: float = 3e-3,
        seed: int = 0,
    ):
        if not env.observation_size:
            raise ValueError(f"{type(env).__name__} has no flat observations to learn rewards from")
        if labels.shape != (states.n, len(rewards)) or not states.n:
            raise ValueError(
                f"labels of {states.n} states and {len(rewards)} rewards must be "
                f"[{states.n}, {len(rewards)}], not {list(labels.shape)}"
            )
        if not bool(labels.isfinite().all()):
            row = int((~labels.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"the labels of object {row} are not finite")
        self.env, self.version = env, f"learned from {states.n} labels, seed {seed}"
        low, high = labels.amin(0), labels.amax(0)
        self.rewards = tuple(
            reward._replace(low=float(a), high=float(b))
            for reward, a, b in zip(rewards, low, high, strict=True)
        )
        self.low, self.high = low, high
        self.center, self.scale = labels.mean(0), labels.std(0, correction=0).clamp(min=1e-6)
        with seeded_weights(seed):
            widths = (env.observation_size, *hidden, len(rewards))
            layers: list[nn.Module] = []
            for before, after in itertools.pairwise(widths):
                layers += [nn.Linear(before, after), nn.ReLU()]
            self.network = nn.Sequential(*layers[:-1]).to(labels)
        self._fit((labels - self.center) / self.scale, states, steps, learning_rate)

    def _fit(self, targets: Tensor, states: States, steps: int, learning_rate: float) -> None:
        seen = self.env.observe(states).to(targets)
        optimizer = torch.optim.Adam(self.network.parameters(), learning_rate)
        for _ in range(steps):
            optimizer.zero_grad()
            (self.network(seen) - targets).square().mean().backward()
            optimizer.step()
        self.network.requires_grad_(False)

    def __call__(self, states: States) -> Tensor:
        """Predicted rewards [n, K]."""
        found: Tensor = self.network(self.env.observe(states).to(self.center))
        return (found * self.scale + self.center).clamp(self.low, self.high)
