"""Rewards that need no laboratory: their exact values stand beside a surrogate's beliefs."""

from __future__ import annotations

import torch
from torch import Tensor

from gflow.active.surrogates import Functions, Moments, Surrogate


class WithComputed:
    """A surrogate of the measured rewards, followed by rewards that are known exactly.

    Args:
        surrogate: of the measured rewards.
        n_computed: the last so many columns of the features are the computed rewards.
    """

    def __init__(self, surrogate: Surrogate, n_computed: int):
        self.surrogate, self.n_computed = surrogate, n_computed

    def moments(self, features: Tensor) -> Moments:
        """Mean and standard deviation [n, K]; computed rewards have none."""
        seen, computed = self._split(features)
        return _beside(self.surrogate.moments(seen), computed)

    def sample(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Joint draws [n, m, K]."""
        seen, computed = self._split(features)
        return _joined(self.surrogate.sample(seen, n, generator), computed)

    def functions(self, features: Tensor, n: int, generator: torch.Generator) -> Functions:
        """Draws at m objects, and what each of them leaves open at others."""
        seen, computed = self._split(features)
        drawn = self.surrogate.functions(seen, n, generator)

        def elsewhere(others: Tensor) -> Moments:
            seen, computed = self._split(others)
            return _beside(drawn.elsewhere(seen), computed)

        return Functions(_joined(drawn.values, computed), elsewhere)

    def _split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        width = features.shape[1] - self.n_computed
        return features[:, :width], features[:, width:]


def _beside(moments: Moments, computed: Tensor) -> Moments:
    std = torch.cat([moments.std, torch.zeros_like(computed)], -1)
    return Moments(_joined(moments.mean, computed), std)


def _joined(values: Tensor, computed: Tensor) -> Tensor:
    """[..., n, K] of measured [..., n, k] and computed [n, K - k]."""
    return torch.cat([values, computed.expand(*values.shape[:-2], *computed.shape)], -1)
