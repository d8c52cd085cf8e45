"""What it is worth to measure an object: expected hypervolume improvement, confidence bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from botorch.utils.multi_objective.box_decompositions import (
    FastNondominatedPartitioning,
    NondominatedPartitioning,
)
from torch import Tensor

from gflow.active.surrogates import Functions, Moments, Surrogate
from gflow.pareto import hypervolume_improvement_alone, non_dominated

LOG_FLOOR = -600.0
"""log of an expected improvement that is lost to underflow."""

_EXACT_UP_TO = 4
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Boxes:
    """The region that S fronts leave undominated, each as C disjoint boxes.

    Attributes:
        sides: [S, K, U], the coordinates that occur; upper ones may be infinite.
        lower: [S, K, C] int64, where among `sides` each box begins.
        upper: [S, K, C] int64, where it ends; boxes that only fill up end where they begin.
    """

    sides: Tensor
    lower: Tensor
    upper: Tensor


def undominated_boxes(fronts: Tensor, reference: Tensor) -> Boxes:
    """Box decompositions of the regions above `reference` [K] that fronts [S, m, K] do not cover.

    Exact up to 4 rewards; beyond that small boxes are merged as botorch does by default.
    """
    parts = [_boxes(front, reference) for front in fronts]
    most = max(part.shape[1] for part in parts)
    # An empty box has no volume under any belief.
    filled = [torch.cat([part, reference.expand(2, most - part.shape[1], -1)], 1) for part in parts]
    lower, upper = torch.stack(filled, 2).permute(0, 2, 3, 1)
    ends = torch.cat([lower, upper], 2)
    # Boxes share most of their coordinates, and each is to be looked at once.
    found = [torch.unique(row, return_inverse=True) for row in ends.flatten(0, 1)]
    sides = torch.nn.utils.rnn.pad_sequence([values for values, _ in found], batch_first=True)
    places = torch.stack([inverse for _, inverse in found]).view(ends.shape)
    return Boxes(sides.view(*ends.shape[:2], -1), *places.split(most, 2))


def _boxes(front: Tensor, reference: Tensor) -> Tensor:
    """[2, C, K]."""
    k = len(reference)
    if k == 1:
        best = front.amax().maximum(reference[0]) if len(front) else reference[0]
        return torch.stack([best, torch.full_like(best, math.inf)]).view(2, 1, 1)
    if k <= _EXACT_UP_TO:
        partition = FastNondominatedPartitioning(ref_point=reference, Y=front)
    else:
        partition = NondominatedPartitioning(ref_point=reference, Y=front, alpha=10.0 ** (k - 8))
    bounds: Tensor = partition.get_hypercell_bounds()
    return bounds


def expected_improvement(beliefs: Moments, boxes: Boxes) -> Tensor:
    """Expected gain of hypervolume of n objects over each of S fronts, [S, n].

    The sum over boxes of prod_k E[(min(f_k, upper_k) - lower_k)+], with f_k normal and independent
    of the other rewards (Yang, Emmerich, Deutz, Baeck, "Efficient computation of expected
    hypervolume improvement", 2019).

    Args:
        beliefs: mean [S, n, K] and std [n, K].
        boxes: of the S fronts.
    """
    size = max(1, _CHUNK // boxes.lower[:, 0].numel())
    parts = [
        _gain(Moments(mean, std), boxes)
        for mean, std in zip(beliefs.mean.split(size, 1), beliefs.std.split(size), strict=True)
    ]
    return torch.cat(parts, 1)


def _gain(beliefs: Moments, boxes: Boxes) -> Tensor:
    n, k = beliefs.std.shape
    volume = None
    for i in range(k):
        mean, std = beliefs.mean[..., i].unsqueeze(-1), beliefs.std[:, i].unsqueeze(-1)
        beyond = _excess(mean, std, boxes.sides[:, i].unsqueeze(1))
        lower, upper = (
            beyond.gather(2, place[:, i].unsqueeze(1).expand(-1, n, -1))
            for place in (boxes.lower, boxes.upper)
        )
        side = lower.sub_(upper)
        volume = side if volume is None else volume.mul_(side)
    assert volume is not None
    return volume.clamp_(min=0).sum(-1)


def _excess(mean: Tensor, std: Tensor, bound: Tensor) -> Tensor:
    """E[(f - bound)+] of normal f; 0 at an infinite bound."""
    gap = mean - bound
    z = gap / std.clamp(min=1e-12)
    density = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)
    values = std * density + gap * torch.special.ndtr(z)
    return torch.where(gap == -math.inf, 0.0, values.clamp(min=0))


class NoisyImprovement:
    """log of the noisy expected hypervolume improvement of single objects.

    The front is not known, since what was measured is noisy: S joint draws at the measured and
    pending objects give S fronts, and what each draw leaves open elsewhere is integrated exactly
    (Parallel Bayesian Optimization of Multiple Noisy Objectives with Expected Hypervolume
    Improvement, 2021, arXiv 2105.08195). Correlations between the rewards of one object, which a
    multi-task process has, are kept in the draws and left out of that integral.

    Args:
        surrogate: fitted.
        baseline: [m, d], features of measured and pending objects; see `promising`.
        reference: [K], where hypervolume is measured from.
        draws: S.
        generator: source of randomness.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        baseline: Tensor,
        reference: Tensor,
        draws: int,
        generator: torch.Generator,
    ):
        self.functions: Functions = surrogate.functions(baseline, draws, generator)
        self.boxes = undominated_boxes(self.functions.values, reference)

    def __call__(self, features: Tensor) -> Tensor:
        """log of the expected improvement of n objects [n, d], at least `LOG_FLOOR`, [n]."""
        gain = expected_improvement(self.functions.elsewhere(features), self.boxes).mean(0)
        return gain.log().clamp(min=LOG_FLOOR)


class UpperConfidence:
    """mean + kappa std of each reward, scaled so that `low` is 0 and `high` is 1.

    With the Tchebycheff scalarisation this is the proposer's reward for one preference
    (Multi-Objective Bayesian Optimization using Random Scalarizations, 2018, arXiv 1805.12168).

    Args:
        surrogate: fitted.
        low: [K].
        high: [K].
        kappa: weight of the standard deviation.
    """

    def __init__(self, surrogate: Surrogate, low: Tensor, high: Tensor, kappa: float = 1.0):
        self.surrogate, self.low, self.high, self.kappa = surrogate, low, high, kappa

    def __call__(self, features: Tensor) -> Tensor:
        """Scaled upper bounds of n objects [n, d], [n, K]."""
        mean, std = self.surrogate.moments(features)
        return (mean + self.kappa * std - self.low) / (self.high - self.low)


def tchebycheff_distance(values: Tensor, weights: Tensor) -> Tensor:
    """-max_k w_k (1 - v_k), [n]: minus the distance to the utopia point 1, of any real values.

    As a log-reward it stays finite and keeps its slope where bounds reach beyond the utopia point
    or below 0, which `gflow.scalarize.tchebycheff` cannot.
    """
    return -(weights * (1 - values)).amax(-1)


def promising(
    surrogate: Surrogate,
    features: Tensor,
    draws: int,
    generator: torch.Generator,
    most: int = 128,
) -> Tensor:
    """Positions of the objects that are on the front of at least one of `draws` joint draws.

    The others change no front, so an acquisition function may do without them; of more than `most`
    those that are on the front most often.
    """
    times = non_dominated(surrogate.sample(features, draws, generator)).sum(0)
    order = times.argsort(descending=True, stable=True)[:most]
    return order[times[order] > 0]


def choose_batch(
    samples: Tensor, fronts: Tensor, reference: Sequence[float] | Tensor, n: int
) -> list[int]:
    """A batch of `n` objects that jointly improve the fronts most, one greedy choice at a time.

    Each choice has the largest gain of hypervolume, averaged over S joint draws, after the
    earlier choices have joined each draw's front: what one object already promises, a similar one
    adds little to, so the batch spreads over the front. Gains only shrink as the batch grows, so
    that most of them need not be computed again. When nothing is left to gain, a new layer begins
    with empty fronts. (Sequential greedy selection: arXiv 2105.08195.)

    Args:
        samples: [S, P, K], draws at P objects.
        fronts: [S, m, K], the same draws at measured and pending objects.
        reference: [K].
        n: size of the batch, at most P.

    Returns:
        `n` positions, in the order of choice.
    """
    origin = torch.as_tensor(reference, dtype=samples.dtype)
    samples, fronts = (samples - origin).clamp(min=0), (fronts - origin).clamp(min=0)
    chosen: list[int] = []
    taken = torch.zeros(samples.shape[1], dtype=torch.bool)
    gains = _gains(samples, fronts)
    while len(chosen) < n:
        best = _best(samples, fronts, gains.masked_fill(taken, -1.0))
        if best is None:
            if not fronts.shape[1]:
                rest = (~taken).nonzero().squeeze(1)[: n - len(chosen)]
                return chosen + rest.tolist()
            fronts = fronts[:, :0]
            gains = _gains(samples, fronts)
            continue
        place, gains = best
        chosen.append(place)
        taken[place] = True
        fronts = torch.cat([fronts, samples[:, place : place + 1]], 1)
    return chosen


_TRIED = 32


def _best(samples: Tensor, fronts: Tensor, bounds: Tensor) -> tuple[int, Tensor] | None:
    """The object with the largest gain, given upper `bounds` [P] on gains, and better bounds."""
    bounds = bounds.clone()
    fresh = torch.zeros(len(bounds), dtype=torch.bool)
    while True:
        place = int(bounds.argmax())
        if bounds[place] <= 0:
            return None
        if fresh[place]:
            return place, bounds
        stale = torch.where(fresh, -1.0, bounds).topk(min(_TRIED, len(bounds))).indices
        stale = stale[~fresh[stale]]
        bounds[stale] = _gains(samples[:, stale], fronts).minimum(bounds[stale])
        fresh[stale] = True


def _gains(samples: Tensor, fronts: Tensor) -> Tensor:
    """Gain of hypervolume over the origin of each of P objects, averaged over draws, [P]."""
    if not bool((samples > 0).all(-1).any()):
        return samples.new_zeros(samples.shape[1])
    origin = samples.new_zeros(samples.shape[2])
    return hypervolume_improvement_alone(samples, fronts, origin).mean(0)
