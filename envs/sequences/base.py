"""Rows of tokens: what sequences and filled slots have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from gflow.envs.common import (
    MAX_ENUMERABLE,
    all_digits,
    as_numbers,
    finished,
    numbers,
    one_hot,
    require_enumerable,
    undo_mask,
    undoable,
    uniform_states,
    with_last,
)
from gflow.mdp import Environment, States

EMPTY = -1
"""What a place without a token holds."""


class TokenRows(Environment):
    """States are `length` places, each empty (-1) or holding the number of one of V symbols.

    Objects are strings when all symbols are strings of one width (letters, or words of k bits),
    and tuples of symbols otherwise.

    Args:
        vocabulary: the V distinct symbols; a string stands for its letters.
        length: number of places.

    Raises:
        ValueError: no symbols, repeated symbols, or no places.
    """

    def __init__(self, vocabulary: Sequence[Hashable], length: int):
        self.vocabulary, self.length = tuple(vocabulary), length
        self.n_symbols = len(self.vocabulary)
        self._number = {symbol: number for number, symbol in enumerate(self.vocabulary)}
        if not self.n_symbols or len(self._number) < self.n_symbols:
            raise ValueError(f"the vocabulary needs distinct symbols, not {list(vocabulary)}")
        if length < 1:
            raise ValueError(f"the largest length must be at least 1, not {length}")
        widths = {len(symbol) if isinstance(symbol, str) else 0 for symbol in self.vocabulary}
        self._width = widths.pop() if len(widths) == 1 else 0
        self.state_shape = (length,)
        self.observation_size = length * (self.n_symbols + 1)

    def initial(self, n: int, device: torch.device | str = "cpu") -> States:
        """`n` empty rows."""
        return uniform_states(n, self.length, EMPTY, device)

    def indices(self, states: States) -> Tensor:
        """Where `observe` has its ones, [n, length]; a place's first feature marks it empty."""
        width = self.n_symbols + 1
        return states.data + numbers(1, self.length * width, width, states.data.device)

    def observe(self, states: States) -> Tensor:
        """One-hot places, [n, length * (V + 1)]."""
        return one_hot(states.data + 1, self.n_symbols + 1)

    def identify(self, states: States) -> Tensor | None:
        """The rows as numbers, [n]."""
        return as_numbers(states.data, self.n_symbols + 1, states.done)

    def decode(self, states: States) -> list[Any]:
        """Strings, or tuples of symbols."""
        rows = [
            tuple(self.vocabulary[token] for token in row if token != EMPTY)
            for row in states.data.tolist()
        ]
        return ["".join(map(str, row)) for row in rows] if self._width else list(rows)

    def numbers(self, objects: Sequence[Any], shortest: int) -> list[list[int]]:
        """Tokens of each object.

        Raises:
            ValueError: an unknown symbol, or fewer than `shortest` or more than `length` symbols.
        """
        rows = []
        for i, item in enumerate(objects):
            symbols = self._split(item)
            for j, symbol in enumerate(symbols):
                if symbol not in self._number:
                    raise ValueError(
                        f"object {i}, {item!r}: unknown symbol {symbol!r} at position {j}"
                    )
            if not shortest <= len(symbols) <= self.length:
                raise ValueError(
                    f"object {i}, {item!r}, has {len(symbols)} symbols: "
                    f"at least {shortest} and at most {self.length} are allowed"
                )
            rows.append([self._number[symbol] for symbol in symbols])
        return rows

    def _split(self, item: Any) -> Sequence[Any]:
        if not isinstance(item, str) or not self._width:
            return list(item)
        return [item[j : j + self._width] for j in range(0, len(item), self._width)]


class Sequences(TokenRows):
    """Sequences that grow by one token a step, left-aligned in their row; the base of the orders.

    The action `place * V + token` of an order inserts a token; with lengths to choose from, the
    action behind these stops. Backward actions remove a token, and the last takes back the stop.

    No two legal actions lead to the same child: an order that has several ways to make a child
    allows one of them, and one backward action for each distinct parent. The probability of a
    child is thereby that of its one action, and no flow is lost or counted twice.

    Args:
        vocabulary: the V distinct symbols; a string stands for its letters.
        max_length: largest number of symbols.
        min_length: smallest number of symbols a sequence may stop with; `max_length` by default,
            and then there is no stop action.
        n_places: places a token can be inserted at by an action; also the number of removals.

    Raises:
        ValueError: bad vocabulary, or not 0 <= min_length <= max_length.
    """

    def __init__(
        self,
        vocabulary: Sequence[Hashable],
        max_length: int,
        min_length: int | None = None,
        *,
        n_places: int,
    ):
        super().__init__(vocabulary, max_length)
        self.min_length = max_length if min_length is None else min_length
        if not 0 <= self.min_length <= max_length:
            raise ValueError(f"min_length must lie in 0..{max_length}, not {min_length}")
        self.n_places = n_places
        self.has_stop = self.min_length < max_length
        self.fixed_length = not self.has_stop
        self.action_sizes = (n_places * self.n_symbols + self.has_stop,)
        self.n_backward_actions = n_places + self.has_stop
        self.max_steps = max_length + self.has_stop
        lengths = range(self.min_length, max_length + 1)
        self.enumerable = sum(self.n_symbols**length for length in lengths) <= MAX_ENUMERABLE

    def step(self, states: States, actions: Tensor) -> States:
        """Insert a token, or stop."""
        going = ~states.done
        step = states.step + going
        if not self.has_stop:
            return States(self._insert(states, actions, going), step, step == self.length)
        going = going & (actions < self.n_places * self.n_symbols)
        return States(self._insert(states, actions, going), step, ~going)

    def backstep(self, states: States, actions: Tensor) -> States:
        """Remove a token, or take back the stop."""
        step = (states.step - 1).clamp(min=0)
        data = self._remove(states, actions, undoable(states, self.has_stop))
        return States(data, step, torch.zeros_like(states.done))

    def forward_mask(self, states: States, *chosen: Tensor) -> Tensor:
        """Insertions while there is room, one for each distinct child; stop from `min_length`."""
        moves = self._insertions(states)
        if not self.has_stop:
            return with_last(moves, states.done)
        growing = ~states.done & (states.step < self.length)
        stop = states.step >= self.min_length
        return torch.cat([moves & growing.unsqueeze(1), stop.unsqueeze(1)], 1)

    def backward_mask(self, states: States) -> Tensor:
        """Removals, one for each distinct parent; of a row with a stop only that."""
        return undo_mask(self._removals(states), states, self.has_stop)

    def backward_action(self, states: States, actions: Tensor) -> Tensor:
        """Removal [n] of the token that each action inserts."""
        return torch.div(actions, self.n_symbols, rounding_mode="floor")

    def forward_action(self, states: States, actions: Tensor) -> Tensor:
        """Insertion [n] of the token that each removal takes from the children `states`."""
        place = self._removed_place(states, actions).clamp(0, self.length - 1)
        token = states.data.gather(1, place.unsqueeze(1)).squeeze(1)
        return actions * self.n_symbols + token.where(actions < self.n_places, 0)

    def lengths(self, states: States) -> Tensor:
        """Number of symbols, [n] int64."""
        return states.step - states.done.long() if self.has_stop else states.step

    def encode(self, objects: Sequence[Any]) -> States:
        """Finished sequences.

        Raises:
            ValueError: an unknown symbol, or a sequence that is too short or too long.
        """
        rows = self.numbers(objects, self.min_length)
        padded = [row + [EMPTY] * (self.length - len(row)) for row in rows]
        return self._finished(torch.tensor(padded, dtype=torch.int64).view(-1, self.length))

    def all_terminal_states(self) -> States:
        """Every sequence of an allowed length, shorter ones first."""
        require_enumerable(self, f"{self.n_symbols} symbols at up to {self.length} places")
        parts = [
            torch.nn.functional.pad(
                all_digits(self.n_symbols, length), (0, self.length - length), value=EMPTY
            )
            for length in range(self.min_length, self.length + 1)
        ]
        return self._finished(torch.cat(parts))

    def _finished(self, data: Tensor) -> States:
        length = (data != EMPTY).sum(1)
        return finished(data, length + self.has_stop)

    def _insert(self, states: States, actions: Tensor, going: Tensor) -> Tensor:
        """The rows after inserting; those not `going` [n] as they are."""
        place = self._inserted_place(states, actions).where(going, self.length).unsqueeze(1)
        token = (actions % self.n_symbols).unsqueeze(1)
        data = states.data
        column = numbers(0, self.length, 1, data.device)
        moved = torch.cat([token, data[:, :-1]], 1)
        return torch.where(column < place, data, torch.where(column == place, token, moved))

    def _remove(self, states: States, actions: Tensor, going: Tensor) -> Tensor:
        """The rows after removing; those not `going` [n] as they are."""
        place = self._removed_place(states, actions).where(going, self.length).unsqueeze(1)
        column = numbers(0, self.length, 1, place.device)
        moved = torch.nn.functional.pad(states.data[:, 1:], (0, 1), value=EMPTY)
        return torch.where(column < place, states.data, moved)

    @abstractmethod
    def _inserted_place(self, states: States, actions: Tensor) -> Tensor:
        """Place [n] at which an action inserts its token."""

    @abstractmethod
    def _removed_place(self, states: States, actions: Tensor) -> Tensor:
        """Place [n] from which a backward action removes the token."""

    @abstractmethod
    def _insertions(self, states: States) -> Tensor:
        """Insertions that lead to distinct children, [n, n_places * V] (or broadcast to it)."""

    @abstractmethod
    def _removals(self, states: States) -> Tensor:
        """Removals that lead to distinct parents, [n, n_places] (or broadcast to it)."""
