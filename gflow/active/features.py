"""Numbers for surrogates: fingerprints of molecules, n-gram counts of sequences, other states."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from gflow.mdp import Environment

MAX_NGRAMS = 512
"""n-grams grow as long as the longest ones have at most so many kinds."""


def ngram_counts(tokens: Tensor, n_symbols: int, longest: int) -> Tensor:
    """How often each word of 1 to `longest` neighbouring symbols occurs, [n, sum V^k] float32.

    The inner product of two such rows is the spectrum kernel (Leslie, Eskin, Noble, 2002). Where
    a word stands does not matter.

    Args:
        tokens: [n, length] int64, symbols 0..V-1, negative where a place is empty.
        n_symbols: V.
        longest: largest word.
    """
    n, length = tokens.shape
    parts = []
    for k in range(1, longest + 1):
        counts = torch.zeros(n, n_symbols**k + 1)
        if k <= length:
            windows = tokens.unfold(1, k, 1)
            place = n_symbols ** torch.arange(k - 1, -1, -1)
            words = (windows * place).sum(-1).where((windows >= 0).all(-1), n_symbols**k)
            counts.scatter_add_(1, words, torch.ones(words.shape))
        parts.append(counts[:, :-1])
    return torch.cat(parts, 1)


def longest_ngram(n_symbols: int) -> int:
    """Largest k with at most `MAX_NGRAMS` words of k symbols."""
    k = 1
    while n_symbols > 1 and n_symbols ** (k + 1) <= MAX_NGRAMS:
        k += 1
    return k


def featurizer(env: Environment, kind: str) -> Callable[[Sequence[Any]], Tensor]:
    """The function from n objects to features [n, d] that suits their kind.

    Morgan fingerprints for molecules, n-gram counts for rows of tokens, and what a policy network
    sees of the finished object elsewhere. All are non-negative, as `TanimotoKernel` wants them.

    Args:
        env: the environment that builds the objects.
        kind: "molecule" or "text", see `Task.kind`.
    """
    if kind == "molecule":
        from gflow.envs.molecules.diversity import fingerprints

        return lambda objects: fingerprints(objects).float()
    from gflow.envs.sequences.base import TokenRows

    if isinstance(env, TokenRows):
        longest = longest_ngram(env.n_symbols)
        return lambda objects: ngram_counts(env.encode(objects).data, env.n_symbols, longest)
    return lambda objects: env.observe(env.encode(objects)).float()


class Features:
    """Feature rows of objects, each computed once.

    Args:
        compute: n objects to [n, d].
        key: identity of an object.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Any]], Tensor],
        key: Callable[[Any], Hashable] = lambda item: item,
    ):
        self.compute, self.key = compute, key
        self._place: dict[Hashable, int] = {}
        self._rows = torch.empty(0, 0)

    def __call__(self, objects: Sequence[Any]) -> Tensor:
        """Features [n, d] float64."""
        keys = [self.key(item) for item in objects]
        fresh = {key: i for i, key in enumerate(keys) if key not in self._place}
        if fresh:
            self._append(list(fresh), self.compute([objects[i] for i in fresh.values()]))
        return self._rows[[self._place[key] for key in keys]].double()

    def _append(self, keys: list[Hashable], rows: Tensor) -> None:
        used, needed = len(self._place), len(self._place) + len(keys)
        if needed > len(self._rows):
            # Doubling the room keeps the cost of many small batches linear.
            room = torch.empty(2 * needed, rows.shape[1])
            if used:
                room[:used] = self._rows[:used]
            self._rows = room
        self._rows[used:needed] = rows
        self._place |= zip(keys, range(used, needed), strict=True)
