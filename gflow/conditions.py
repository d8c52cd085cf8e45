"""What a sampler is asked for: preferences and inverse temperatures, drawn and encoded."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gflow.mdp import Condition

PREFERENCE_BINS = 16
TEMPERATURE_BINS = 32


def thermometer(values: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Thermometer encoding, [..., bins]: entry i is clamp(v - b_i, 0, g) / g.

    b is `bins` points evenly from `low` to `high` and g their gap, so values in [low, high]
    get distinct codes; the last entry stays 0 up to `high` (2210.12765).
    """
    gap = (high - low) / (bins - 1)
    edges = torch.linspace(low, high, bins, dtype=values.dtype, device=values.device)
    return (values.unsqueeze(-1) - edges).clamp(0, gap) / gap


@dataclass(frozen=True)
class InverseTemperature:
    """Distribution of the inverse temperature beta.

    Attributes:
        kind: "constant", "uniform", "loguniform" or "gamma".
        a: the constant, the lower end, or the shape.
        b: the upper end, or the scale; unused by "constant".
    """

    kind: str = "constant"
    a: float = 1.0
    b: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "uniform", "loguniform", "gamma"):
            raise ValueError(
                f"inverse temperature {self.kind!r}: choose constant, uniform, loguniform or gamma"
            )
        if self.a <= 0 or self.b <= 0 or ("uniform" in self.kind and self.a >= self.b):
            raise ValueError(f"inverse temperature {self}: needs 0 < a, and a < b for a range")

    @classmethod
    def parse(cls, text: str) -> InverseTemperature:
        """Read "16", "uniform:1..32", "loguniform:1..64" or "gamma:16..1"."""
        match = re.fullmatch(r"\s*(?:(\w+):)?([\d.e+-]+?)(?:\.\.([\d.e+-]+))?\s*", text)
        if match is None or (match[1] is None) != (match[3] is None):
            raise ValueError(
                f"inverse temperature {text!r}: write a number, uniform:1..32, loguniform:1..32 "
                "or gamma:16..1"
            )
        try:
            numbers = [float(part) for part in match.groups()[1:] if part is not None]
        except ValueError as error:
            raise ValueError(f"inverse temperature {text!r}: {error}") from None
        return cls(match[1] or "constant", *numbers)

    def __str__(self) -> str:
        return f"{self.a:g}" if self.kind == "constant" else f"{self.kind}:{self.a:g}..{self.b:g}"

    @property
    def high(self) -> float:
        """Upper end of the encoding: the largest value, or a gamma's 95 % quantile."""
        if self.kind == "gamma":
            from scipy.stats import gamma

            return float(gamma.ppf(0.95, self.a, scale=self.b))
        return self.a if self.kind == "constant" else self.b

    def sample(self, n: int, generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
        """n draws, [n]."""
        if self.kind == "constant":
            return torch.full((n,), self.a, dtype=dtype)
        if self.kind == "gamma":
            shape = torch.full((n,), self.a, dtype=dtype)
            return torch._standard_gamma(shape, generator=generator) * self.b
        u = torch.rand(n, generator=generator, dtype=dtype)
        if self.kind == "uniform":
            return self.a + u * (self.b - self.a)
        return self.a * (self.b / self.a) ** u


@dataclass(frozen=True)
class Conditions:
    """Draws and encodes conditions.

    Attributes:
        n_rewards: length K of the reward vector.
        inverse_temperature: distribution of beta; encoded only where it varies.
        concentration: parameter of the symmetric Dirichlet over preferences; None asks for no
            preference, and the reward vector is weighed evenly.
    """

    n_rewards: int = 1
    inverse_temperature: InverseTemperature = InverseTemperature()
    concentration: float | None = None

    @property
    def with_preference(self) -> bool:
        """Preferences are part of the condition."""
        return self.concentration is not None and self.n_rewards > 1

    @property
    def encoding_size(self) -> int:
        """Width C of the encoding."""
        varies = self.inverse_temperature.kind != "constant"
        return self.n_rewards * PREFERENCE_BINS * self.with_preference + TEMPERATURE_BINS * varies

    def make(self, preference: Tensor | None, inverse_temperature: Tensor) -> Condition:
        """Encode given preferences [n, K] and inverse temperatures [n].

        Raises:
            ValueError: a preference is negative or does not sum to one, or shapes disagree.
        """
        parts = []
        if self.with_preference:
            if preference is None:
                raise ValueError(f"this sampler needs a preference over {self.n_rewards} rewards")
            check_preference(preference, self.n_rewards)
            parts.append(thermometer(preference, 0.0, 1.0, PREFERENCE_BINS).flatten(1))
        if self.inverse_temperature.kind != "constant":
            high = self.inverse_temperature.high
            parts.append(thermometer(inverse_temperature, 0.0, high, TEMPERATURE_BINS))
        empty = inverse_temperature.new_zeros(len(inverse_temperature), 0)
        encoding = torch.cat(parts, 1) if parts else empty
        return Condition(
            encoding, preference if self.with_preference else None, inverse_temperature
        )

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Condition:
        """n independent conditions, drawn on the CPU."""
        preference = None
        if self.with_preference and self.concentration is not None:
            alpha = torch.full((n, self.n_rewards), self.concentration, dtype=dtype)
            draw = torch._standard_gamma(alpha, generator=generator).clamp(min=1e-20)
            preference = draw / draw.sum(-1, keepdim=True)
        return self.make(preference, self.inverse_temperature.sample(n, generator, dtype))


@dataclass(frozen=True)
class PromptConditions:
    """Conditions that are prompts, perhaps with preferences: the encoding starts with the prompt.

    Attributes:
        n_prompts: how many there are.
        n_rewards: length K of the reward vector.
        rows: [n_prompts, F], what networks see of each prompt; its number by default.
        preferences: further conditions, drawn independently and encoded behind the prompt.
    """

    n_prompts: int
    n_rewards: int = 1
    rows: Tensor | None = None
    preferences: Conditions | None = None

    @property
    def with_preference(self) -> bool:
        """Preferences are part of the condition."""
        return self.preferences is not None and self.preferences.with_preference

    @property
    def inverse_temperature(self) -> InverseTemperature:
        """Distribution of beta."""
        one = InverseTemperature()
        return one if self.preferences is None else self.preferences.inverse_temperature

    @property
    def encoding_size(self) -> int:
        """Width C of the encoding."""
        more = 0 if self.preferences is None else self.preferences.encoding_size
        return more + (1 if self.rows is None else self.rows.shape[1])

    def make(
        self, prompt: Tensor, dtype: torch.dtype, further: Condition | None = None
    ) -> Condition:
        """The conditions of the prompts numbered `prompt` [n], with as many further ones."""
        seen = prompt.unsqueeze(1) if self.rows is None else self.rows[prompt]
        if further is None:
            return Condition(seen.to(dtype), None, torch.ones(len(prompt), dtype=dtype))
        encoding = torch.cat([seen.to(dtype), further.encoding], 1)
        return further._replace(encoding=encoding)

    def prefer(
        self, condition: Condition, preference: Tensor | None, inverse_temperature: Tensor
    ) -> Condition:
        """The same prompts with other preferences [n, K] and inverse temperatures [n]."""
        if self.preferences is None:
            return condition._replace(inverse_temperature=inverse_temperature)
        further = self.preferences.make(preference, inverse_temperature)
        width = condition.encoding.shape[1] - further.encoding.shape[1]
        prompts = condition.encoding[:, :width]
        return further._replace(encoding=torch.cat([prompts, further.encoding], 1))

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Condition:
        """n prompts, none of them twice while there are enough."""
        rounds = -(-n // self.n_prompts)
        drawn = [torch.randperm(self.n_prompts, generator=generator) for _ in range(rounds)]
        further = None
        if self.preferences is not None:
            further = self.preferences.sample(n, generator, dtype)
        return self.make(torch.cat(drawn)[:n], dtype, further)


@dataclass(frozen=True)
class PooledConditions:
    """Conditions drawn once, and asked for again and again.

    Statistics that are kept of every condition need conditions that come back.

    Attributes:
        conditions: what the pool was drawn from.
        pool: the n conditions.
        priority: weights [n] by which they are drawn, from the pool; evenly where it is None.
    """

    conditions: Conditions | PromptConditions
    pool: Condition
    priority: Callable[[Condition], Tensor] | None = None

    @property
    def encoding_size(self) -> int:
        """Width C of the encoding."""
        return self.conditions.encoding_size

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Condition:
        """n conditions of the pool, none of them twice while there are enough."""
        size = len(self.pool.inverse_temperature)
        weights = torch.ones(size) if self.priority is None else self.priority(self.pool).cpu()
        rounds = -(-n // size)
        drawn = [torch.multinomial(weights, size, generator=generator) for _ in range(rounds)]
        return self.pool.rows(torch.cat(drawn)[:n])


def check_preference(preference: Tensor, n_rewards: int) -> None:
    """Refuse preferences [n, K] that are negative, not finite, or do not sum to one."""
    if preference.ndim != 2 or preference.shape[1] != n_rewards:
        raise ValueError(f"preferences must be [n, {n_rewards}], not {tuple(preference.shape)}")
    bad = ~((preference >= 0).all(-1) & ((preference.sum(-1) - 1).abs() < 1e-4))
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"preference {preference[row].tolist()} (row {row}) must be non-negative and sum to 1"
        )


def simplex_lattice(n_rewards: int, points: int) -> Tensor:
    """All preferences whose entries are multiples of 1 / (points - 1), [n, K] float64."""
    levels = points - 1
    rows = [
        combination
        for combination in itertools.product(range(levels + 1), repeat=n_rewards)
        if sum(combination) == levels
    ]
    return torch.tensor(rows, dtype=torch.float64) / levels
