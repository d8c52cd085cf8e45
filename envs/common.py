"""Small tensor pieces that several discrete environments share."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from gflow.mdp import Environment, States

MAX_ENUMERABLE = 1_000_000
"""Spaces with more terminal states than this do not call themselves enumerable."""


def numbers(start: int, stop: int, step: int, device: torch.device) -> Tensor:
    """start, start + step, ... below stop; made once, since a step has few operations to spare."""
    if torch.compiler.is_compiling():
        return torch.arange(start, stop, step, device=device)
    return _kept_numbers(start, stop, step, device)


@functools.cache
def _kept_numbers(start: int, stop: int, step: int, device: torch.device) -> Tensor:
    return torch.arange(start, stop, step, device=device)


def uniform_states(n: int, width: int, value: int, device: torch.device | str) -> States:
    """`n` initial states, rows of `width` places that all hold `value`."""
    zeros = torch.zeros(n, dtype=torch.int64, device=device)
    data = torch.full((n, width), value, dtype=torch.int64, device=device)
    return States(data, zeros, zeros.bool())


def one_hot(numbers: Tensor, size: int) -> Tensor:
    """One-hot codes of `numbers` [n, F] below `size`, side by side: [n, F * size] float."""
    # A lookup of unit vectors costs less than `torch.nn.functional.one_hot` and its checks.
    return torch.nn.functional.embedding(numbers, torch.eye(size, device=numbers.device)).flatten(1)


def all_digits(base: int, length: int) -> Tensor:
    """Every row of `length` numbers 0..base-1, [base ** length, length], the last one fastest."""
    place = base ** torch.arange(length - 1, -1, -1)
    return torch.arange(base**length).unsqueeze(1) // place % base


def as_numbers(data: Tensor, base: int, done: Tensor) -> Tensor | None:
    """Rows [n, F] of `base` consecutive whole numbers, and their `done` flags, as one number each.

    Returns:
        [n] int64, different for different rows; None where int64 cannot tell them apart.
    """
    width = data.shape[1]
    if base**width > 2**61:
        return None
    place = torch.tensor([2 * base**i for i in range(width)], device=data.device)
    return (data * place).sum(-1) + done


def with_last(mask: Tensor, only_last: Tensor) -> Tensor:
    """`mask` [n, A], but exactly the last entry in the rows `only_last` [n] bool."""
    last = numbers(0, mask.shape[1], 1, mask.device) == mask.shape[1] - 1
    return torch.where(only_last.unsqueeze(1), last, mask)


def tiled(mask: Tensor, times: int) -> Tensor:
    """`mask` [n, k] beside itself, [n, times * k]; doubled, for short rows are slow to repeat."""
    width, row = mask.shape[1] * times, mask
    while row.shape[1] < width:
        row = torch.cat([row, row[:, : width - row.shape[1]]], 1)
    return row


def finished(data: Tensor, steps: Tensor) -> States:
    """Terminal states [n, ...] that took `steps` [n] transitions."""
    return States(data, steps, torch.ones_like(steps, dtype=torch.bool))


def undoable(states: States, has_stop: bool) -> Tensor:
    """Rows whose last transition was a construction step, not a stop; [n] bool."""
    started = states.step > 0
    return started & ~states.done if has_stop else started


def undo_mask(removals: Tensor, states: States, has_stop: bool) -> Tensor:
    """Backward mask [n, A_b] from the legal `removals`, with the stop's undoing behind them."""
    here = undoable(states, has_stop)
    if not has_stop:
        return with_last(removals, ~here)
    here = here.unsqueeze(1)
    return torch.cat([removals & here, ~here], 1)


def require_enumerable(env: Environment, what: str) -> None:
    """Refuse to list the terminal states of a space that is too large.

    Raises:
        NotImplementedError: the environment is not enumerable.
    """
    if not env.enumerable:
        raise NotImplementedError(f"{what} are too many to enumerate")
