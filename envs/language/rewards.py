"""Reward functions on completions, as plain Python callables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gflow.envs.language.completions import Completion
from gflow.mdp import Reward

RewardFunction = Callable[[list[Completion]], Sequence[float | None]]
"""One number for each completion; None where the reward does not apply."""


class RewardFunctionError(RuntimeError):
    """A reward function that raised, or returned something else than one number for each."""


@dataclass(frozen=True)
class TextReward:
    """A reward function with what the engine must know of it.

    Attributes:
        function: called once with all completions of a batch.
        name: short name, unique within an oracle.
        low: smallest reward.
        high: largest reward.
    """

    function: RewardFunction
    name: str
    low: float = 0.0
    high: float = 1.0


class TextRewards:
    """Several reward functions as one oracle on `Completion`s.

    Args:
        functions: the functions and their ranges.
        version: identifies the values.
        seconds: rough cost of one completion.

    Raises:
        ValueError: no functions, or two of one name.
    """

    on_states = False

    def __init__(self, functions: Sequence[TextReward], version: str = "1", seconds: float = 0.0):
        names = [each.name for each in functions]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"reward functions need distinct names, not {names}")
        self.functions, self.version, self.seconds = tuple(functions), version, seconds
        self.rewards = tuple(Reward(each.name, "", each.low, each.high) for each in functions)

    def __call__(self, objects: list[Completion]) -> Tensor:
        """Rewards [n, K] float64, NaN where a function returned None.

        Raises:
            RewardFunctionError: naming the function, and what it did.
        """
        columns = [_checked(each, list(objects)) for each in self.functions]
        return torch.tensor(columns, dtype=torch.float64).T.reshape(len(objects), -1)


def _checked(reward: TextReward, completions: list[Completion]) -> list[float]:
    name, n = reward.name, len(completions)
    try:
        values = list(reward.function(completions))
    except Exception as error:
        raise RewardFunctionError(
            f"reward function {name!r} raised {type(error).__name__} on a batch of {n} "
            f"completions: {error}"
        ) from error
    if len(values) != n:
        raise RewardFunctionError(
            f"reward function {name!r} returned {len(values)} values for {n} completions"
        )
    found = []
    for i, value in enumerate(values):
        number = math.nan if value is None else _number(value)
        if number is None or not (value is None or reward.low <= number <= reward.high):
            raise RewardFunctionError(
                f"reward function {name!r} returned {value!r} for completion {i}, "
                f"{completions[i].text!r}: it must be None or from {reward.low:g} to "
                f"{reward.high:g}"
            )
        found.append(number)
    return found


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
