"""What all balance-like objectives share: one evaluation of the batch, and sums of terms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gflow.mdp import (
    Environment,
    Evaluation,
    Loss,
    Policy,
    Trajectories,
    evaluate,
    stop_action,
)


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a setting that is not among `choices`."""
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose from {', '.join(choices)}")


def check_range(settings: object, low: float, high: float, *names: str) -> None:
    """Refuse settings that are no numbers from `low` to `high`."""
    for name in names:
        value = getattr(settings, name)
        if not low <= value <= high:
            limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise ValueError(f"{name} must be {limits}, not {value}")


def require_densities(env: Environment, what: str) -> None:
    """Refuse an environment with deterministic steps."""
    if env.deterministic:
        raise ValueError(
            f"{what} needs the density of every step, and some steps of this "
            f"{type(env).__name__} schedule are deterministic: choose a sampler with noise in all "
            "steps"
        )


class Term(ABC):
    """An objective on re-evaluated trajectories; terms add up in a `Sum`."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """What `evaluate` must deliver."""

    @property
    def batch_needs(self) -> frozenset[str]:
        """Optional fields of `Trajectories` that must be set, beside log_reward."""
        return frozenset()

    @abstractmethod
    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """The loss from re-evaluated trajectories."""

    def check(self, env: Environment) -> None:
        """Refuse an environment that this objective cannot serve, by a ValueError that says why."""
        if {"log_pb", "log_pb_total"} & self.needs:
            require_densities(env, type(self).__name__)
        if "log_stop" in self.needs:
            what = f"{type(self).__name__} needs a stop action in every state"
            if not env.has_stop:
                raise ValueError(f"{what}, and {type(env).__name__} has none")
            stop = stop_action(env).flatten()[0]
            if not bool(env.forward_mask(env.initial(1))[0, stop]):
                raise ValueError(f"{what}, and {type(env).__name__} cannot stop at its start")

    def __call__(self, policy: Policy, batch: Trajectories) -> Loss:
        """The loss of a batch of scored trajectories."""
        self.check(policy.env)
        return self.loss(evaluate(policy, batch, self.needs), batch)


@dataclass(frozen=True)
class Sum(Term):
    """A weighted sum of terms on one evaluation of the batch.

    Attributes:
        terms: pairs (weight, term); metrics of later terms win where names collide.
    """

    terms: tuple[tuple[float, Term], ...]

    @property
    def needs(self) -> frozenset[str]:
        """What any of the terms needs."""
        return frozenset().union(*(term.needs for _, term in self.terms))

    @property
    def batch_needs(self) -> frozenset[str]:
        """What any of the terms needs in the batch."""
        return frozenset().union(*(term.batch_needs for _, term in self.terms))

    def check(self, env: Environment) -> None:
        """Refuse what any of the terms refuses."""
        for _, term in self.terms:
            term.check(env)

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """The weighted sum; its weight is that of the first term."""
        parts = [(weight, term.loss(evaluation, batch)) for weight, term in self.terms]
        value = torch.stack([weight * part.value for weight, part in parts]).sum()
        metrics: dict[str, Tensor] = {}
        for _, part in parts:
            metrics |= part.metrics
        return Loss(value, metrics, parts[0][1].weight)
