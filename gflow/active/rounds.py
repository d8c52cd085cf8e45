"""One round: from what is known to the batch of objects to measure next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gflow.active.acquisition import (
    LOG_FLOOR,
    NoisyImprovement,
    UpperConfidence,
    choose_batch,
    promising,
)
from gflow.active.computed import WithComputed
from gflow.active.ensemble import DeepEnsemble
from gflow.active.surrogates import GaussianProcess, Surrogate
from gflow.pareto import non_dominated_rank

Search = Callable[[Callable[[Sequence[Any]], Tensor]], dict[str, tuple[Any, Tensor]]]

FRONT_DRAWS = 64
"""Joint draws by which measured objects are kept for the fronts."""
VALUE_DRAWS = 8
"""Fronts over which the improvement of a single object is averaged."""
BATCH_DRAWS = 32
"""Joint draws by which a batch is chosen."""
EXCLUDED = 2 * LOG_FLOOR
"""log-improvement of what cannot be proposed, below that of what promises nothing."""
ACTIVE = 16
"""Objects to edit at least (Multi-Objective GFlowNets, 2022, arXiv 2210.12765)."""
POOL = 6
"""A batch is chosen from so many times its size, the best objects that the sampler met."""


def fit_surrogate(
    kind: str, features: Tensor, rewards: Tensor, n_computed: int = 0, seed: int = 0
) -> Surrogate:
    """Fit what `SessionConfig.surrogate` names.

    Args:
        kind: gp, multitask or ensemble.
        features: [n, d] float64; with computed rewards, these are its last columns.
        rewards: [n, K] float64.
        n_computed: the last so many rewards need no model.
        seed: seeds an ensemble.

    Raises:
        ValueError: fewer than two objects, or values that are not finite.
    """
    seen = features[:, : features.shape[1] - n_computed]
    measured = rewards[:, : rewards.shape[1] - n_computed]
    fitted: Surrogate
    if kind == "ensemble":
        fitted = DeepEnsemble(seen, measured, seed=seed)
    else:
        fitted = GaussianProcess(seen, measured, multitask=kind == "multitask")
    return WithComputed(fitted, n_computed) if n_computed else fitted


def active_set(rewards: Tensor) -> list[int]:
    """Places of the objects to edit: the front, topped up to 16 by the next ranks.

    Args:
        rewards: [n, K].
    """
    rank = non_dominated_rank(rewards)
    n = max(int((rank == rank.amin()).sum()), ACTIVE)
    return rank.argsort(stable=True)[:n].tolist()


class Round:
    """What a surrogate says is worth measuring.

    Args:
        surrogate: fitted to the measured objects.
        features: objects to features [n, d]; NaN where an object cannot be measured.
        measured: [n, d], features of the measured objects.
        pending: [p, d], features of the objects whose results are awaited; they count as if each
            draw had measured them, so that nothing like them is asked for again.
        rewards: [n, K], the measured rewards.
        reference: [K], where hypervolume is measured from.
        taken: keys of measured, failed and pending objects, which are never proposed.
        key: canonical key of an object.
        generator: source of randomness.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        features: Callable[[Sequence[Any]], Tensor],
        measured: Tensor,
        pending: Tensor,
        rewards: Tensor,
        reference: Tensor,
        taken: set[str],
        key: Callable[[Any], str],
        generator: torch.Generator,
    ):
        self.surrogate, self.features, self.key = surrogate, features, key
        self.rewards, self.reference = rewards, reference
        self.taken, self.generator = taken, generator
        known = torch.cat([measured, pending])
        self.baseline = known[promising(surrogate, known, FRONT_DRAWS, generator)]
        self.improvement = NoisyImprovement(
            surrogate, self.baseline, reference, VALUE_DRAWS, generator
        )
        # Anything real for the highest upper bound; the best values seen are a fair 1.
        highest = rewards.amax(0)
        high = torch.where(highest > reference, highest, reference + 1)
        self.bounds = UpperConfidence(surrogate, reference, high)

    def log_improvement(self, objects: Sequence[Any]) -> Tensor:
        """log of the noisy expected hypervolume improvement, [n, 1]; `EXCLUDED` of taken ones."""
        values = self.improvement(self.features(objects)).nan_to_num(nan=EXCLUDED)
        free = torch.tensor([self.key(item) not in self.taken for item in objects])
        return values.where(free, EXCLUDED).unsqueeze(1)

    def upper_bounds(self, objects: Sequence[Any]) -> Tensor:
        """Scaled upper confidence bounds [n, K]; far below 0 where there are none."""
        return self.bounds(self.features(objects)).nan_to_num(nan=-10.0)

    def choose(self, objects: Sequence[Any], values: Tensor, n: int) -> list[Any]:
        """The batch: of the objects with the largest `values` [m], those that are best together.

        Args:
            objects: m objects.
            values: [m], their log-improvements.
            n: how many; fewer come back when fewer are new.
        """
        order = values.argsort(descending=True, stable=True)[: POOL * n]
        order = order[values[order] > EXCLUDED]
        if not len(order):
            return []
        pool = [objects[i] for i in order.tolist()]
        joint = torch.cat([self.baseline, self.features(pool)])
        drawn = self.surrogate.sample(joint, BATCH_DRAWS, self.generator)
        m = len(self.baseline)
        places = choose_batch(drawn[:, m:], drawn[:, :m], self.reference, min(n, len(pool)))
        return [pool[place] for place in places]
