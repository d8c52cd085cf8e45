"""Deep ensembles: many small networks trained in one pass (2016, arXiv 1612.01474)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from gflow.active.surrogates import Functions, Moments, check_data


class DeepEnsemble:
    """M perceptrons of two hidden layers, each on a bootstrap sample of its own.

    The members' weights are stacked, so that one batched product does the layer of all of them. A
    drawn function is a member.

    Args:
        features: [n, d] float64.
        rewards: [n, K] float64.
        members: M.
        hidden: width of the hidden layers.
        steps: steps of Adam.
        batch_size: objects per step and member.
        learning_rate: Adam's.
        weight_decay: decoupled weight decay.
        seed: seeds weights and samples.

    Raises:
        ValueError: fewer than two objects, or values that are not finite.
    """

    def __init__(
        self,
        features: Tensor,
        rewards: Tensor,
        *,
        members: int = 16,
        hidden: int = 64,
        steps: int = 400,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-3,
        seed: int = 0,
    ):
        check_data(features, rewards)
        self.members = members
        self.location = rewards.mean(0)
        spread = rewards.std(0)
        self.scale = torch.where(spread > 0, spread, 1.0)
        # Features of very different sizes would train at very different rates.
        self.center, width = features.mean(0), features.std(0)
        self.width = torch.where(width > 0, width, 1.0)
        generator = torch.Generator().manual_seed(seed)
        sizes = [features.shape[1], hidden, hidden, rewards.shape[1]]
        self.weights = [
            torch.randn(members, a, b, generator=generator, dtype=features.dtype) * (2 / a) ** 0.5
            for a, b in itertools.pairwise(sizes)
        ]
        self.biases = [
            torch.zeros(members, 1, b, dtype=features.dtype) for b in sizes[1:]
        ]  # fmt: skip
        parameters = [p.requires_grad_() for p in (*self.weights, *self.biases)]
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        x, y = self._standard(features), (rewards - self.location) / self.scale
        n = len(x)
        own = torch.randint(n, (members, n), generator=generator)
        for _ in range(steps):
            drawn = torch.randint(n, (members, min(batch_size, n)), generator=generator)
            rows = own.gather(1, drawn)
            error = self._forward(x[rows]) - y[rows]
            loss = error.square().mean((1, 2)).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for p in parameters:
            p.requires_grad_(False)

    def moments(self, features: Tensor) -> Moments:
        """Mean and standard deviation over the members, [n, K]."""
        values = self._members(features)
        return Moments(values.mean(0), values.std(0))

    def sample(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """`n` members, without repetition while there are enough, [n, m, K]."""
        return self._members(features)[self._draw(n, generator)]

    def functions(self, features: Tensor, n: int, generator: torch.Generator) -> Functions:
        """`n` members: nothing is left open elsewhere."""
        chosen = self._draw(n, generator)

        def elsewhere(others: Tensor) -> Moments:
            values = self._members(others)[chosen]
            return Moments(values, torch.zeros_like(values[0]))

        return Functions(self._members(features)[chosen], elsewhere)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        rounds = -(-n // self.members)
        parts = [torch.randperm(self.members, generator=generator) for _ in range(rounds)]
        return torch.cat(parts)[:n]

    def _standard(self, features: Tensor) -> Tensor:
        return (features - self.center) / self.width

    def _members(self, features: Tensor) -> Tensor:
        """Rewards [M, n, K]."""
        shared = self._standard(features).expand(self.members, -1, -1)
        return self._forward(shared) * self.scale + self.location

    def _forward(self, x: Tensor) -> Tensor:
        """Standardised rewards [M, n, K] of features [M, n, d]."""
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = x if i == last else x.relu()
        return x
