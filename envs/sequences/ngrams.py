"""How often short words occur in a sequence: the n-gram tasks, with their exact fronts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gflow.mdp import Reward, States

PROTEIN = "ARNDCEQGHILKMFPSTWYV"
"""The twenty amino acids."""


class NGrams:
    """r_k = number of (overlapping) occurrences of gram k, divided by `max_score`.

    (Stanton et al., 2022, arXiv 2203.12742; Multi-Objective GFlowNets, 2022, arXiv 2210.12765.)

    Args:
        vocabulary: the symbols, as in the environment.
        grams: words to count, each over the vocabulary.
        max_length: largest length of a sequence.
        max_score: what the counts are divided by; 18 for bigrams in sequences of 36.

    Raises:
        ValueError: no gram, a gram longer than `max_length`, or one with an unknown symbol.
    """

    version = "1"
    on_states = True
    seconds = 0.0

    def __init__(
        self,
        vocabulary: Sequence[str] = PROTEIN,
        grams: Sequence[str] = ("AV", "VC"),
        max_length: int = 36,
        max_score: float = 18.0,
    ):
        number = {symbol: i for i, symbol in enumerate(vocabulary)}
        if not grams or max_score <= 0:
            raise ValueError("NGrams needs at least one gram and a positive max_score")
        for gram in grams:
            if not 1 <= len(gram) <= max_length:
                raise ValueError(f"gram {gram!r} must have 1 to {max_length} symbols")
            for symbol in gram:
                if symbol not in number:
                    raise ValueError(
                        f"gram {gram!r} can never occur: {symbol!r} is not in the vocabulary"
                    )
        self.vocabulary, self.grams = tuple(vocabulary), tuple(grams)
        self.max_length, self.max_score = max_length, max_score
        self._tokens = [torch.tensor([number[symbol] for symbol in gram]) for gram in grams]
        self.rewards = tuple(
            Reward(
                gram,
                high=_most(gram, max_length) / max_score,
                description=f"occurrences of {gram} / {max_score:g}",
            )
            for gram in grams
        )

    def __call__(self, objects: States) -> Tensor:
        """Rewards [n, K] float64 of token rows [n, L]."""
        return self.counts(objects.data).double() / self.max_score

    def counts(self, data: Tensor) -> Tensor:
        """Occurrences [n, K] int64 in token rows [n, L]."""
        columns = []
        for tokens in self._tokens:
            windows = data.unfold(1, len(tokens), 1)
            columns.append((windows == tokens.to(data.device)).all(-1).sum(1))
        return torch.stack(columns, 1)

    def attainable(self, min_length: int) -> Tensor:
        """Every reward vector that sequences of `min_length` to `max_length` symbols can have.

        By dynamic programming over the automaton that remembers how much of a gram has just been
        read; the non-dominated rows are the exact Pareto front. Memory and time grow with the
        product of the largest counts.

        Returns:
            [m, K] float64, distinct rows.
        """
        most = [_most(gram, self.max_length) for gram in self.grams]
        shape = [count + 1 for count in most]
        # Letters outside the grams are alike: one stands for them all.
        used = sorted(set("".join(self.grams)))
        letters = [*used, "\0"] if len(used) < len(self.vocabulary) else used
        prefixes = sorted({gram[:i] for gram in self.grams for i in range(len(gram) + 1)})
        here = {prefix: torch.zeros(shape, dtype=torch.bool) for prefix in prefixes}
        here[""].view(-1)[0] = True
        found = here[""] if min_length == 0 else torch.zeros(shape, dtype=torch.bool)
        for length in range(1, self.max_length + 1):
            new = {prefix: torch.zeros(shape, dtype=torch.bool) for prefix in prefixes}
            for prefix, reached in here.items():
                for letter in letters:
                    text = prefix + letter
                    gained = [int(text.endswith(gram)) for gram in self.grams]
                    source = tuple(slice(0, s - g) for s, g in zip(shape, gained, strict=True))
                    target = tuple(slice(g, None) for g in gained)
                    state = next(text[i:] for i in range(len(text) + 1) if text[i:] in new)
                    new[state][target] |= reached[source]
            here = new
            if length >= min_length:
                found = found | torch.stack(list(here.values())).any(0)
        return found.nonzero().double() / self.max_score


def _most(gram: str, length: int) -> int:
    """Largest number of occurrences in `length` symbols: one more for every period of the gram."""
    period = next(p for p in range(1, len(gram) + 1) if gram[p:] == gram[: len(gram) - p])
    return 1 + (length - len(gram)) // period
