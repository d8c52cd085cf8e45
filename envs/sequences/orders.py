"""The orders in which sequences are built: append, prepend or append, insert anywhere."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from gflow.envs.common import numbers
from gflow.envs.sequences.base import EMPTY, Sequences
from gflow.mdp import States


class AppendSequences(Sequences):
    """Left to right: action a appends symbol a; a tree.

    (Biological Sequence Design with GFlowNets, 2022, arXiv 2203.04115.) Arguments and errors as
    in `Sequences`.
    """

    tree = True

    def __init__(
        self, vocabulary: Sequence[Hashable], max_length: int, min_length: int | None = None
    ):
        super().__init__(vocabulary, max_length, min_length, n_places=1)

    def log_n_paths(self, states: States) -> Tensor:
        """Zero: one path leads to each sequence; [n] float64."""
        return torch.zeros(states.n, dtype=torch.float64, device=states.data.device)

    def _insert(self, states: States, actions: Tensor, going: Tensor) -> Tensor:
        # A row at rest writes "empty" where it is empty, or nowhere.
        token = actions.where(going, EMPTY).unsqueeze(1)
        here = numbers(0, self.length, 1, token.device) == states.step.unsqueeze(1)
        return torch.where(here, token, states.data)

    def _inserted_place(self, states: States, actions: Tensor) -> Tensor:
        return states.step

    def _removed_place(self, states: States, actions: Tensor) -> Tensor:
        return self.lengths(states) - 1

    def _insertions(self, states: States) -> Tensor:
        return torch.ones(1, self.n_symbols, dtype=torch.bool, device=states.data.device)

    def _removals(self, states: States) -> Tensor:
        return torch.ones(1, 1, dtype=torch.bool, device=states.data.device)


class PrependAppendSequences(Sequences):
    """Action a appends symbol a, action V + a prepends it; backward 0 drops the last, 1 the first.

    (Towards Understanding and Improving GFlowNet Training, 2023, arXiv 2305.07170.) Prepending
    and appending make the same child only where that child is one symbol repeated; there only
    appending, and dropping the last, is legal. Arguments and errors as in `Sequences`.
    """

    def __init__(
        self, vocabulary: Sequence[Hashable], max_length: int, min_length: int | None = None
    ):
        super().__init__(vocabulary, max_length, min_length, n_places=2)

    def log_n_paths(self, states: States) -> Tensor:
        """By dynamic programming over substrings, [n] float64, O(length^2) tensor operations.

        n = 1 for one symbol repeated, else n(without the first) + n(without the last).
        """
        data, length = states.data, self.lengths(states)
        # paths[:, i] and constant[:, i] belong to the substring of `width` symbols from i on.
        paths = torch.ones(data.shape, dtype=torch.float64, device=data.device)
        constant = torch.ones_like(data, dtype=torch.bool)
        alike = data[:, 1:] == data[:, :-1]
        total = torch.zeros_like(length, dtype=torch.float64)
        for width in range(2, self.length + 1):
            constant = constant[:, 1:] & alike[:, : self.length + 1 - width]
            paths = torch.where(constant, 1.0, paths[:, 1:] + paths[:, :-1])
            total = torch.where(length == width, paths[:, 0].log(), total)
        return total

    def _inserted_place(self, states: States, actions: Tensor) -> Tensor:
        return states.step.where(actions < self.n_symbols, 0)

    def _removed_place(self, states: States, actions: Tensor) -> Tensor:
        return (self.lengths(states) - 1).where(actions == 0, 0)

    def _insertions(self, states: States) -> Tensor:
        first = states.data[:, :1]
        symbols = numbers(0, self.n_symbols, 1, first.device)
        distinct = (symbols != first) & (first != EMPTY) | ~_constant(states.data)
        return torch.cat([torch.ones_like(distinct), distinct], 1)

    def _removals(self, states: States) -> Tensor:
        return torch.nn.functional.pad(~_constant(states.data), (1, 0), value=True)


def _constant(data: Tensor) -> Tensor:
    """The row is empty or one symbol repeated, [n, 1]."""
    return ((data == data[:, :1]) | (data == EMPTY)).all(1, keepdim=True)


class InsertSequences(Sequences):
    """Action `place * V + a` puts symbol a before the symbol at `place`; backward i removes it.

    Inserting next to a run of the same symbol makes the same child wherever in the run; only the
    insertion behind the run, and the removal of its last symbol, is legal. A sequence of l symbols
    thereby has l (V - 1) + V children, and as many parents as runs. Arguments and errors as in
    `Sequences`.
    """

    def __init__(
        self, vocabulary: Sequence[Hashable], max_length: int, min_length: int | None = None
    ):
        super().__init__(vocabulary, max_length, min_length, n_places=max_length)

    def log_n_paths(self, states: States) -> Tensor:
        """By dynamic programming over substrings, [n] float64, O(length^2) tensor operations.

        An order of inserting is legal if each symbol differs from the next one present. Share of
        the legal orders between two present places i < j, with w symbols between them:
        g(i, j) = 1/w sum_k 1[x_k != x_j] g(i, k) g(k, j); then n = length! g over the whole.
        """
        length, data = self.lengths(states), states.data
        symbol = torch.nn.functional.pad(data, (1, 1), value=EMPTY)
        # shares[w][:, i] is g(i, i + w + 1).
        shares = [torch.ones(len(data), self.length + 1, dtype=torch.float64, device=data.device)]
        for between in range(1, self.length + 1):
            n = self.length - between + 1
            total = torch.zeros_like(shares[0][:, :n])
            for k in range(between):
                legal = symbol[:, k + 1 : k + 1 + n] != symbol[:, between + 1 :]
                total += legal * shares[k][:, :n] * shares[between - 1 - k][:, k + 1 : k + 1 + n]
            shares.append(total / between)
        whole = torch.stack([share[:, 0] for share in shares], 1)
        return whole.gather(1, length.unsqueeze(1)).squeeze(1).log() + torch.lgamma(
            length.double() + 1
        )

    def _inserted_place(self, states: States, actions: Tensor) -> Tensor:
        return torch.div(actions, self.n_symbols, rounding_mode="floor")

    def _removed_place(self, states: States, actions: Tensor) -> Tensor:
        return actions

    def _insertions(self, states: States) -> Tensor:
        symbols = numbers(0, self.n_symbols, 1, states.data.device)
        places = numbers(0, self.length, 1, states.data.device)
        reached = places <= states.step.unsqueeze(1)
        return ((symbols != states.data.unsqueeze(-1)) & reached.unsqueeze(-1)).flatten(1)

    def _removals(self, states: States) -> Tensor:
        following = torch.nn.functional.pad(states.data[:, 1:], (0, 1), value=EMPTY)
        return (states.data != EMPTY) & (states.data != following)
