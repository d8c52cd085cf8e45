"""Step distributions: what a policy says about the next action of each row.

A kernel samples, scores, and compares; discrete kernels sample from noise drawn beforehand (one
call for a block of steps), so that a step holds no random-number call, can be compiled, and depends
on nothing but an explicit generator. Few actions are sampled by the Gumbel-max rule, many by their
cumulative distribution, which takes one random number instead of one for each action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

MANY = 128
"""A categorical factor with more values than this is sampled by its cumulative distribution."""


class Kernel(Protocol):
    """A distribution over actions for each of n rows."""

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [n] or [n, factors] from `noise` as drawn by `Environment.noise`."""

    def log_prob(self, action: Tensor) -> Tensor:
        """log-probability of each row's action, [n]."""

    def log_probs(self) -> Tensor:
        """log-probabilities of all actions, [n, A]; factors are flattened, last one fastest."""

    def entropy(self) -> Tensor:
        """Entropy in nats, [n]."""

    def kl(self, other: Kernel) -> Tensor:
        """KL(self || other) in nats, [n]."""

    def explore(self, uniform: Tensor | None, temperature: float) -> Kernel:
        """Behaviour kernel: rows where `uniform` [n] bool holds pick any legal action evenly.

        The others draw from the density to the power of 1 / temperature.
        """


def noise_widths(sizes: Sequence[int]) -> list[int]:
    """Random numbers that sampling each factor takes: one for each value, or one if they are many.

    Args:
        sizes: numbers of values of an action's factors.
    """
    return [1 if size > MANY else size for size in sizes]


def draw_noise(
    rows: tuple[int, ...],
    sizes: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    """What `Kernel.sample` consumes for one action of each row, [*rows, sum of `noise_widths`].

    Gumbel noise for each value of a factor, or one uniform number below 1 if they are many.
    """
    parts = [
        torch.empty(*rows, 1, dtype=dtype, device=device).uniform_(generator=generator)
        if size > MANY
        else gumbel_noise((*rows, size), generator, dtype, device)
        for size in sizes
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def gumbel_noise(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    """Standard Gumbel noise; never infinite, so that illegal actions stay at -inf.

    In float32 it ends at 16.6, so actions of probability below 1e-7 come out a little too rarely.
    """
    # -log(-log u), three times cheaper than through an exponential draw.
    uniform = torch.empty(shape, dtype=dtype, device=device).uniform_(generator=generator)
    return uniform.clamp_(min=1e-30).log_().neg_().log_().neg_()


class Categorical:
    """Masked categorical distribution over A actions.

    Args:
        logits: [n, A].
        mask: [n, A] bool, legal actions (at least one a row), or None when all are.
    """

    def __init__(self, logits: Tensor, mask: Tensor | None = None):
        self.logits = logits if mask is None else torch.where(mask, logits, -torch.inf)

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [n] from Gumbel noise [n, A], or by inverse CDF from uniform numbers [n, 1]."""
        if noise.shape[-1] == self.logits.shape[-1]:
            return (self.logits + noise).argmax(-1)
        # Running sums of integers are exact on every device, so weight 0 is never drawn.
        weight = (self.logits.softmax(-1) * 2.0**30).int()
        below = weight.cumsum(-1, dtype=torch.int32)
        total = below[:, -1:]
        point = (noise * total).int().minimum(total - 1)
        chosen = torch.searchsorted(below, point, right=True).squeeze(-1)
        # Logits that are not finite must not lead beyond the last action.
        return chosen.clamp(max=self.logits.shape[-1] - 1)

    def log_probs(self) -> Tensor:
        """Log-probabilities of all actions, [n, A], -inf where illegal."""
        return torch.log_softmax(self.logits, -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """log-probability of each row's action, [n]."""
        return self.log_probs().gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Entropy in nats, [n]."""
        log_p = self.log_probs()
        return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)

    def kl(self, other: Kernel) -> Tensor:
        """KL(self || other) in nats, [n]; both must have the same legal actions."""
        log_p, log_q = self.log_probs(), other.log_probs()
        return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0).sum(-1)

    def explore(self, uniform: Tensor | None, temperature: float) -> Categorical:
        """Behaviour kernel: tempered logits, and legal actions evenly where `uniform` holds."""
        logits = self.logits if temperature == 1.0 else self.logits / temperature
        if uniform is not None:
            # -inf marks illegal actions; everything else becomes equally likely.
            flat = torch.where(logits > -torch.inf, 0.0, -torch.inf)
            logits = torch.where(uniform.unsqueeze(-1), flat, logits)
        return Categorical(logits)


class Repeated:
    """Rows of a categorical kernel, each as often as asked for: one evaluation serves them all.

    Args:
        kernel: kernel of k rows.
        row: [n], the row of `kernel` that stands at each place.
    """

    def __init__(self, kernel: Kernel, row: Tensor):
        self.kernel, self.row = kernel, row

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [n] from noise [n, ...]."""
        return Categorical(self.log_probs()).sample(noise)

    def log_probs(self) -> Tensor:
        """Log-probabilities of all actions, [n, A]."""
        return self.kernel.log_probs()[self.row]

    def log_prob(self, action: Tensor) -> Tensor:
        """log-probability of each row's action, [n]."""
        log_probs = self.kernel.log_probs()
        return log_probs.flatten().index_select(0, self.row * log_probs.shape[1] + action)

    def entropy(self) -> Tensor:
        """Entropy in nats, [n]."""
        return self.kernel.entropy()[self.row]

    def kl(self, other: Kernel) -> Tensor:
        """KL(self || other) in nats, [n]."""
        return Categorical(self.log_probs()).kl(other)

    def explore(self, uniform: Tensor | None, temperature: float) -> Categorical:
        """Behaviour kernel of the n rows."""
        return Categorical(self.log_probs()).explore(uniform, temperature)


class Factored:
    """Autoregressive product of two kernels: an action's first factor, then the second given it.

    Args:
        first: kernel of the first factor.
        second: makes the kernel of the second factor from chosen first factors [n].
        sizes: numbers of values of both factors.
    """

    def __init__(
        self, first: Categorical, second: Callable[[Tensor], Categorical], sizes: tuple[int, int]
    ):
        self.first, self.second, self.sizes = first, second, sizes

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [n, 2]."""
        for_first, for_second = noise.split(noise_widths(self.sizes), -1)
        one = self.first.sample(for_first)
        two = self.second(one).sample(for_second)
        return torch.stack([one, two], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """log-probability of each row's action [n, 2], [n]."""
        one, two = action.unbind(-1)
        return self.first.log_prob(one) + self.second(one).log_prob(two)

    def given(self, action: Tensor) -> Factored:
        """The same for these first factors [n, 2] alone: their second kernel is made once."""
        second = self.second(action[..., 0])
        return Factored(self.first, lambda one: second, self.sizes)

    def log_probs(self) -> Tensor:
        """Log-probabilities of all pairs, [n, A1 * A2]; for small spaces only."""
        first = self.first.log_probs()
        return torch.cat(
            [
                first[:, i : i + 1]
                + self.second(torch.full_like(first[:, 0], i, dtype=torch.int64)).log_probs()
                for i in range(self.sizes[0])
            ],
            -1,
        )

    def entropy(self) -> Tensor:
        """Entropy in nats, [n]."""
        return Categorical(self.log_probs()).entropy()

    def kl(self, other: Kernel) -> Tensor:
        """KL(self || other) in nats, [n]."""
        return Categorical(self.log_probs()).kl(other)

    def explore(self, uniform: Tensor | None, temperature: float) -> Factored:
        """Behaviour kernel: both factors explore in the same rows."""
        return Factored(
            self.first.explore(uniform, temperature),
            lambda one: self.second(one).explore(uniform, temperature),
            self.sizes,
        )


class Independent:
    """Independent categorical distributions over A values at each of L places.

    Args:
        logits: [n, L, A], -inf where a value is illegal.
    """

    def __init__(self, logits: Tensor):
        self.shape = logits.shape
        self.each = Categorical(logits.flatten(0, 1))

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [n, L] from the noise of L factors."""
        n, places, _ = self.shape
        return self.each.sample(noise.reshape(n * places, -1)).view(n, places)

    def log_prob(self, action: Tensor) -> Tensor:
        """log-probability of each row's action [n, L], the sum over its places, [n]."""
        return self._summed(self.each.log_prob(action.flatten()))

    def log_probs(self) -> Tensor:
        """Refused: there are too many actions to list."""
        raise NotImplementedError("a step at many places at once has no list of actions")

    def entropy(self) -> Tensor:
        """Entropy in nats, [n]."""
        return self._summed(self.each.entropy())

    def kl(self, other: Kernel) -> Tensor:
        """KL(self || other) in nats, [n]; both must have the same legal values."""
        if not isinstance(other, Independent):
            raise TypeError(f"no divergence to a {type(other).__name__}")
        return self._summed(self.each.kl(other.each))

    def explore(self, uniform: Tensor | None, temperature: float) -> Independent:
        """Behaviour kernel: at every place of a row, see `Categorical.explore`."""
        rows = None if uniform is None else uniform.repeat_interleave(self.shape[1])
        return Independent(self.each.explore(rows, temperature).logits.view(self.shape))

    def _summed(self, values: Tensor) -> Tensor:
        return values.view(self.shape[:2]).sum(1)


class AffineGaussian:
    """Independent normal distributions around a mean; the action is the point drawn.

    Where the standard deviation is 0 a coordinate has no density: it is the mean, and adds 0 to
    log-probability, entropy and divergence. One that is no number, or below 0, gives no number.

    Args:
        mean: [n, *state_shape], float32 or float64.
        std: broadcasts against `mean`, at least 0: [n, 1, ...] for one number a row.
        reduction: "sum" of the log-densities over a point's coordinates, or their "mean", which
            is a temperature of the number of coordinates (ratios of policy gradients use it).
        rows: leading dimensions of `mean` that count rows; 2 for paths [B, T, *state_shape].

    Raises:
        ValueError: half precision, or an unknown reduction.
    """

    def __init__(self, mean: Tensor, std: Tensor, reduction: str = "sum", rows: int = 1):
        for value in (mean, std):
            if value.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"Gaussian steps need float32 or float64, not {value.dtype}")
        if reduction not in ("sum", "mean"):
            raise ValueError(f"unknown reduction {reduction!r}: choose sum or mean")
        self.mean, self.std, self.reduction, self.rows = mean, std, reduction, rows

    def sample(self, noise: Tensor) -> Tensor:
        """Points [n, *state_shape] from standard normal noise of that shape."""
        return torch.addcmul(self.mean, self.std.to(self.mean.dtype), noise.to(self.mean.dtype))

    def log_prob(self, action: Tensor) -> Tensor:
        """log-density of each row's point, [n]."""
        z = (action - self.mean) / self._safe_std
        width = self._safe_std.log() + 0.5 * math.log(2 * math.pi)
        return -self._reduced(torch.add(width, z.square(), alpha=0.5))

    def log_probs(self) -> Tensor:
        """Refused: there is no list of all points."""
        raise NotImplementedError("a Gaussian step has no list of actions")

    def entropy(self) -> Tensor:
        """Differential entropy in nats, [n]."""
        value = self._safe_std.log() + 0.5 * math.log(2 * math.pi * math.e)
        return self._reduced(value.expand(self.mean.shape))

    def kl(self, other: Kernel) -> Tensor:
        """KL(self || other) in nats, [n]; both must be deterministic in the same coordinates."""
        if not isinstance(other, AffineGaussian):
            raise TypeError(f"a Gaussian step has no divergence to a {type(other).__name__}")
        ratio = self._safe_std / other._safe_std
        shift = (self.mean - other.mean) / other._safe_std
        return self._reduced(0.5 * (ratio.square() + shift.square() - 1) - ratio.log())

    def explore(self, uniform: Tensor | None, temperature: float) -> AffineGaussian:
        """Behaviour kernel: the variance times `temperature`.

        Raises:
            ValueError: an even choice, which unbounded points do not have.
        """
        if uniform is not None:
            raise ValueError(
                "there is no even choice among all points: explore continuous steps by a "
                "temperature above 1, with epsilon=0"
            )
        std = self.std * math.sqrt(temperature)
        return AffineGaussian(self.mean, std, self.reduction, self.rows)

    @cached_property
    def _still(self) -> Tensor:
        return self.std == 0

    @cached_property
    def _safe_std(self) -> Tensor:
        return torch.where(self._still, 1.0, self.std)

    def _reduced(self, values: Tensor) -> Tensor:
        values = torch.where(self._still, 0.0, values).flatten(self.rows)
        return values.sum(-1) if self.reduction == "sum" else values.mean(-1)
