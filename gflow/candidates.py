"""A candidate as the store returns it, and how objects and rewards are written as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

COLUMNS = (
    "key, object, is_text, rewards, reason, oracle_call, preference, inverse_temperature, "
    "log_reward, log_pf, source, step, first_seen, last_seen, count"
)
"""Columns of the store's table, in the order in which `candidate_of` reads them."""


@dataclass(frozen=True)
class Candidate:
    """One unique object and what is known about it.

    Attributes:
        key: canonical key.
        object: the user's object; sequences come back as tuples.
        rewards: K rewards (maximised), None when it failed or was never scored.
        reason: why the oracle failed on it, else None.
        oracle_call: running number, from 1, of the oracle call that scored it.
        preference: K weights it was first sampled for.
        inverse_temperature: inverse temperature it was first sampled at.
        log_reward: log R(x given c) under that condition.
        log_pf: log-probability of the trajectory that first reached it.
        source: where it came from: "policy", "random", "imported", ...
        step: training step at which it was first seen.
        first_seen: seconds since 1970.
        last_seen: seconds since 1970.
        count: how often it was met.
    """

    key: str
    object: Any
    rewards: tuple[float, ...] | None
    reason: str | None
    oracle_call: int | None
    preference: tuple[float, ...] | None
    inverse_temperature: float | None
    log_reward: float | None
    log_pf: float | None
    source: str
    step: int
    first_seen: float
    last_seen: float
    count: int


def stack_rewards(candidates: Sequence[Candidate], n_rewards: int) -> Tensor:
    """[n, K] float64, NaN in the rows of candidates without rewards."""
    missing = (float("nan"),) * n_rewards
    rows = [candidate.rewards or missing for candidate in candidates]
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), n_rewards)


def candidate_of(row: tuple[Any, ...]) -> Candidate:
    """From a row of `COLUMNS`."""
    key, text, is_text, rewards, reason, call, preference, *rest = row
    item = text if is_text else _as_tuples(json.loads(text))
    return Candidate(
        key, item, read_numbers(rewards), reason, call, read_numbers(preference), *rest
    )


def read_numbers(text: str | None) -> tuple[float, ...] | None:
    """Numbers written as JSON."""
    return None if text is None else tuple(json.loads(text))


def as_text(item: Any) -> str:
    """A string as it is, anything else as JSON.

    Raises:
        TypeError: JSON cannot hold it.
    """
    return item if isinstance(item, str) else json.dumps(item, default=_as_list)


def _as_list(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be stored: JSON does not know it")


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value
