"""A fixed number of slots filled in any order."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from gflow.envs.common import (
    MAX_ENUMERABLE,
    all_digits,
    finished,
    numbers,
    require_enumerable,
    tiled,
    undo_mask,
    undoable,
)
from gflow.envs.sequences.base import EMPTY, TokenRows
from gflow.mdp import States


class Slots(TokenRows):
    """Fill `length` empty slots with symbols, in any order; every trajectory has as many steps.

    Action `symbol * length + slot` fills a slot, backward action i empties slot i; with `stop` a
    last action of each kind ends the object and takes that back. (Non-autoregressive bit
    sequences: Generative Flow Networks as Entropy-Regularized RL, 2023, arXiv 2310.12934.)

    Args:
        vocabulary: the V distinct symbols; a string stands for its letters.
        length: number of slots.
        stop: finish by an explicit stop action, legal once all slots are filled.

    Raises:
        ValueError: bad vocabulary, or no slots.
    """

    fixed_length = True

    def __init__(self, vocabulary: Sequence[Hashable], length: int, stop: bool = False):
        super().__init__(vocabulary, length)
        self.has_stop = stop
        self.action_sizes = (length * self.n_symbols + stop,)
        self.n_backward_actions = length + stop
        self.max_steps = length + stop
        self.enumerable = (self.n_symbols + 1) ** length <= MAX_ENUMERABLE

    def step(self, states: States, actions: Tensor) -> States:
        """Fill a slot, or stop."""
        going = ~states.done
        step = states.step + going
        # A row at rest has no empty slot, so there is nothing to fill.
        here = numbers(0, self.length, 1, actions.device) == (actions % self.length)[:, None]
        token = torch.div(actions, self.length, rounding_mode="floor").unsqueeze(1)
        data = torch.where(here & (states.data == EMPTY), token, states.data)
        return States(data, step, step == self.max_steps)

    def backstep(self, states: States, actions: Tensor) -> States:
        """Empty a slot, or take back the stop."""
        slot = actions.where(undoable(states, self.has_stop), self.length).unsqueeze(1)
        here = numbers(0, self.length, 1, actions.device) == slot
        data = states.data.masked_fill(here, EMPTY)
        return States(data, (states.step - 1).clamp(min=0), torch.zeros_like(states.done))

    def forward_mask(self, states: States, *chosen: Tensor) -> Tensor:
        """Empty slots with every symbol; stop once all are filled."""
        moves = tiled(states.data == EMPTY, self.n_symbols)
        if not self.has_stop:
            # A finished row has no empty slot.
            moves[:, -1].logical_or_(states.done)
            return moves
        return torch.cat([moves, (states.step >= self.length).unsqueeze(1)], 1)

    def backward_mask(self, states: States) -> Tensor:
        """Filled slots; of a row with a stop only that."""
        return undo_mask(states.data != EMPTY, states, self.has_stop)

    def backward_action(self, states: States, actions: Tensor) -> Tensor:
        """Slot [n] that each action fills; `length` for stop."""
        return (actions % self.length).where(actions < self.length * self.n_symbols, self.length)

    def forward_action(self, states: States, actions: Tensor) -> Tensor:
        """Action [n] that puts back what backward actions take out of the children `states`."""
        slot = actions.clamp(max=self.length - 1)
        token = states.data.gather(1, slot.unsqueeze(1)).squeeze(1)
        return (token * self.length + slot).where(
            actions < self.length, self.length * self.n_symbols
        )

    def encode(self, objects: Sequence[Any]) -> States:
        """Finished rows.

        Raises:
            ValueError: an unknown symbol, or not one symbol for each slot.
        """
        rows = self.numbers(objects, self.length)
        return self._finished(torch.tensor(rows, dtype=torch.int64).view(-1, self.length))

    def log_n_paths(self, states: States) -> Tensor:
        """log of (number of filled slots)!, [n] float64."""
        return torch.lgamma((states.data != EMPTY).sum(-1).double() + 1)

    def all_terminal_states(self) -> States:
        """Every full row, the last slot fastest."""
        require_enumerable(self, f"{self.n_symbols} symbols in {self.length} slots")
        return self._finished(all_digits(self.n_symbols, self.length))

    def _finished(self, data: Tensor) -> States:
        return finished(data, torch.full_like(data[:, 0], self.max_steps))
