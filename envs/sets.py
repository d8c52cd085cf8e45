"""Sets of items, built by adding one absent item at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gflow.envs.common import (
    MAX_ENUMERABLE,
    as_numbers,
    finished,
    numbers,
    require_enumerable,
    undo_mask,
    undoable,
    uniform_states,
    with_last,
)
from gflow.mdp import Environment, States


class Sets(Environment):
    """Subsets of n items, as 0/1 rows; the action is the item to add.

    Without `stop` every set ends with exactly `size` items (Better Training of GFlowNets with
    Local Credit, 2023, arXiv 2302.01687). With it, action n stops at any size up to `size`.
    Backward action i removes item i, action n takes back the stop.

    Args:
        n_items: number of items to choose from.
        size: number of items in a finished set, or the largest number with `stop`.
        stop: sets may stop anywhere, the empty one included.

    Raises:
        ValueError: not 1 <= size <= n_items.
    """

    def __init__(self, n_items: int, size: int, stop: bool = False):
        if not 1 <= size <= n_items:
            raise ValueError(f"Sets needs 1 <= size <= n_items, not size={size}, n_items={n_items}")
        self.n_items, self.size = n_items, size
        self.has_stop, self.fixed_length = stop, not stop
        self.state_shape = (n_items,)
        self.action_sizes = (n_items + stop,)
        self.n_backward_actions = n_items + stop
        self.max_steps = size + stop
        self.observation_size = n_items
        n_states = sum(math.comb(n_items, k) for k in range(size + 1))
        self.enumerable = n_states <= MAX_ENUMERABLE

    def initial(self, n: int, device: torch.device | str = "cpu") -> States:
        """`n` empty sets."""
        return uniform_states(n, self.n_items, 0, device)

    def step(self, states: States, actions: Tensor) -> States:
        """Add an item, or stop."""
        going = ~states.done
        actions = actions.where(going, self.n_items)
        added = actions.unsqueeze(-1) == numbers(0, self.n_items, 1, actions.device)
        step = states.step + going
        done = actions == self.n_items if self.has_stop else step == self.size
        return States(states.data + added, step, done)

    def backstep(self, states: States, actions: Tensor) -> States:
        """Remove an item, or take back the stop."""
        actions = actions.where(undoable(states, self.has_stop), self.n_items)
        removed = actions.unsqueeze(-1) == numbers(0, self.n_items, 1, actions.device)
        step = (states.step - 1).clamp(min=0)
        return States(states.data - removed.long(), step, torch.zeros_like(states.done))

    def forward_mask(self, states: States, *chosen: Tensor) -> Tensor:
        """Absent items while there is room, and stop."""
        absent = states.data == 0
        if not self.has_stop:
            return with_last(absent, states.done)
        growing = (states.step < self.size) & ~states.done
        return torch.nn.functional.pad(absent & growing.unsqueeze(-1), (0, 1), value=True)

    def backward_mask(self, states: States) -> Tensor:
        """Present items; of a finished row with a stop only that."""
        return undo_mask(states.data > 0, states, self.has_stop)

    def observe(self, states: States) -> Tensor:
        """The 0/1 rows, [n, n_items]."""
        return states.data.to(torch.get_default_dtype())

    def identify(self, states: States) -> Tensor | None:
        """The rows as numbers, [n]."""
        return as_numbers(states.data, 2, states.done)

    def decode(self, states: States) -> list[tuple[int, ...]]:
        """Items in increasing order, as tuples."""
        return [tuple(i for i, x in enumerate(row) if x) for row in states.data.tolist()]

    def encode(self, objects: Sequence[Sequence[int]]) -> States:
        """Finished sets of the given items.

        Raises:
            ValueError: an item is unknown or repeated, or a set has the wrong size.
        """
        rows = []
        for i, items in enumerate(objects):
            row = [0] * self.n_items
            for item in items:
                if not 0 <= item < self.n_items or row[item]:
                    raise ValueError(
                        f"set {i}: item {item} is repeated or not in 0..{self.n_items - 1}"
                    )
                row[item] = 1
            if len(items) > self.size or (not self.has_stop and len(items) < self.size):
                limit = "at most" if self.has_stop else "exactly"
                raise ValueError(f"set {i} has {len(items)} items, not {limit} {self.size}")
            rows.append(row)
        return self._finished(torch.tensor(rows, dtype=torch.int64).view(-1, self.n_items))

    def log_n_paths(self, states: States) -> Tensor:
        """log of (number of items)!, [n] float64."""
        return torch.lgamma(states.data.sum(-1).double() + 1)

    def all_terminal_states(self) -> States:
        """Every finished set once, smaller ones first."""
        require_enumerable(self, f"sets of up to {self.size} of {self.n_items} items")
        parts = []
        for size in range(0 if self.has_stop else self.size, self.size + 1):
            items = torch.tensor(list(itertools.combinations(range(self.n_items), size)))
            empty = torch.zeros(len(items), self.n_items, dtype=torch.int64)
            parts.append(empty.scatter(1, items.long(), 1))
        return self._finished(torch.cat(parts))

    def _finished(self, data: Tensor) -> States:
        return finished(data, data.sum(1) + self.has_stop)
