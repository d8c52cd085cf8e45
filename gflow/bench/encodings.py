"""Objects as rows of integers, for methods that know nothing of construction; and how far apart
objects are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gflow.config import ConfigError
from gflow.mdp import Environment, States
from gflow.tasks import Task

CHOICES = 2**20
"""Values of a gene that picks one of the legal actions, however many there are."""


@dataclass(frozen=True)
class Genome:
    """Rows of `L` integers that stand for terminal states.

    Attributes:
        env: whose states.
        sizes: number of values of each gene, [L].
        ordinal: neighbouring values are alike; otherwise values are mere names.
        direct: the genes are the object's own entries; otherwise each picks an action of a
            construction (grammatical evolution: O'Neill, Ryan, 2001).
    """

    env: Environment
    sizes: tuple[int, ...]
    ordinal: bool
    direct: bool

    def random(self, n: int, generator: torch.Generator) -> Tensor:
        """Genes drawn evenly, [n, L] int64."""
        highest = torch.tensor(self.sizes)
        draw = torch.rand(n, len(self.sizes), generator=generator, dtype=torch.float64)
        return (draw * highest).long()

    def mutate(
        self, genes: Tensor, generator: torch.Generator, rate: float | None = None
    ) -> Tensor:
        """Each gene drawn anew with probability `rate` (1/L by default), one at least; [n, L]."""
        n, length = genes.shape
        chance = torch.rand(n, length, generator=generator)
        chosen = chance < (1 / length if rate is None else rate)
        chosen |= chance == chance.amin(1, keepdim=True)
        # Adding 1..size-1 modulo size never gives the same value again.
        shift = 1 + torch.rand(n, length, generator=generator)
        sizes = torch.tensor(self.sizes)
        shift = 1 + ((shift - 1) * (sizes - 1)).long().clamp(max=sizes - 2)
        return torch.where(chosen & (sizes > 1), (genes + shift) % sizes, genes)

    def states(self, genes: Tensor) -> States:
        """Terminal states of the genes [n, L]."""
        return self._encoded(genes) if self.direct else _constructed(self.env, genes)

    def features(self, genes: Tensor) -> Tensor:
        """What a Gaussian process sees, [n, D] float64: ordinals in [0, 1], names one-hot."""
        if self.ordinal:
            return genes.double() / (torch.tensor(self.sizes) - 1)
        columns = [
            torch.nn.functional.one_hot(genes[:, i], size) for i, size in enumerate(self.sizes)
        ]
        return torch.cat(columns, 1).double()

    def _encoded(self, genes: Tensor) -> States:
        from gflow.envs.common import finished
        from gflow.envs.grids import HyperGrid

        if isinstance(self.env, HyperGrid):
            if self.env.stop_at_border:
                genes = _inside(genes, self.env.side - 1)
            return finished(genes, genes.sum(1) + 1)
        return finished(genes, torch.full_like(genes[:, 0], self.env.max_steps))


def genome(env: Environment) -> Genome:
    """How this environment's objects are written as integers.

    Raises:
        ConfigError: its objects are points of a continuous space.
    """
    from gflow.envs.grids import HyperGrid
    from gflow.envs.sequences.base import TokenRows

    if env.initial(1).data.is_floating_point():
        raise ConfigError(f"objects of {type(env).__name__} are continuous, not rows of integers")
    if isinstance(env, HyperGrid):
        return Genome(env, (env.side,) * env.dim, ordinal=True, direct=True)
    if isinstance(env, TokenRows) and env.fixed_length:
        return Genome(env, (env.n_symbols,) * env.length, ordinal=False, direct=True)
    factors = len(env.action_sizes)
    return Genome(env, (CHOICES,) * (env.max_steps * factors), ordinal=False, direct=False)


def _inside(genes: Tensor, border: int) -> Tensor:
    """Only the first coordinate on the border stays there: the grid has no corners."""
    at_border = genes == border
    first = at_border & (at_border.cumsum(1) == 1)
    return torch.where(at_border & ~first, border - 1, genes)


def _constructed(env: Environment, genes: Tensor) -> States:
    """Each gene u of C values takes the legal action number floor(u / C * legal actions)."""
    states = env.initial(len(genes))
    factors = len(env.action_sizes)
    for step in genes.view(len(genes), -1, factors).unbind(1):
        chosen: list[Tensor] = []
        for factor in range(factors):
            mask = env.forward_mask(states, *chosen)
            number = step[:, factor] * mask.sum(1) // CHOICES
            chosen.append((mask.cumsum(1) > number.unsqueeze(1)).long().argmax(1))
        states = env.step(states, chosen[0] if factors == 1 else torch.stack(chosen, 1))
    return states


def distances(task: Task, objects: Sequence[Any]) -> Tensor:
    """How different n objects are, [n, n] float64 in [0, 1].

    Molecules by Tanimoto distance of Morgan fingerprints, sequences by edit distance over the
    longer length, everything else by the mean difference of the entries of their states, scaled
    to the entry's range (a mismatch counts 1 where entries are names).
    """
    from gflow.envs.sequences.base import Sequences, TokenRows

    if task.kind == "molecule":
        from gflow.envs.molecules.diversity import fingerprints, tanimoto

        bits = fingerprints(objects)
        return 1 - tanimoto(bits, bits).double()
    data = task.env.encode(objects).data
    if isinstance(task.env, Sequences):
        lengths = (data >= 0).sum(1).double()
        longest = torch.maximum(lengths.unsqueeze(1), lengths).clamp(min=1)
        return edit_distances(data) / longest
    if isinstance(task.env, TokenRows):
        return (data.unsqueeze(1) != data).double().mean(-1)
    span = task.env.all_terminal_states().data if task.env.enumerable else data
    span = (span.amax(0) - span.amin(0)).clamp(min=1)
    return ((data.unsqueeze(1) - data).abs() / span).double().mean(-1)


def edit_distances(rows: Tensor) -> Tensor:
    """Levenshtein distances of rows [n, L] of tokens, left-aligned, -1 behind the end; [n, n]."""
    n, width = rows.shape
    lengths = (rows >= 0).sum(1)
    places = torch.arange(width + 1)
    left, right = rows.unsqueeze(1).expand(n, n, -1), rows.unsqueeze(0).expand(n, n, -1)
    table = places.expand(n, n, -1)
    kept = [table]
    for i in range(width):
        swap = table[..., :-1] + (left[..., i : i + 1] != right)
        best = torch.minimum(swap, table[..., 1:] + 1)
        best = torch.cat([torch.full((n, n, 1), i + 1), best], -1)
        # Insertions: the smallest of best[k] + (j - k) over k <= j.
        table = (best - places).cummin(-1).values + places
        kept.append(table)
    whole = torch.stack(kept)
    one, other = torch.broadcast_tensors(lengths.unsqueeze(1), lengths.unsqueeze(0))
    return whole[one, torch.arange(n).unsqueeze(1), torch.arange(n), other].double()
