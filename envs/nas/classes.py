"""Which cells are the same network: exact classes of the 15,625 cells.

A node's value is a linear combination, with whole coefficients, of atoms: the cell's input or the
output of one convolution, average-pooled k times. Skips and average pools are linear, so they act
on the coefficients; a convolution makes a new atom of its input's combination, or nothing of the
empty one (its input is zero and it has no bias). Two cells whose outputs have the same form up to
the names of the convolutions are the same function of the same independent weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

import torch
from torch import Tensor

from gflow.envs.nas.cell import EDGES, OPERATIONS

INPUT = -1
"""The atom that is the cell's input; convolutions are named by their edge, 0..5."""

KERNELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}

Sum = Mapping[tuple[int, int], int]
"""Coefficient of each (atom, number of average pools)."""


@dataclass(frozen=True)
class Form:
    """What a cell computes.

    Attributes:
        output: the last node.
        convolutions: kernel size and input of every live convolution, by edge.
    """

    output: Sum
    convolutions: Mapping[int, tuple[int, Sum]]


def prune(cell: Sequence[int]) -> tuple[int, ...]:
    """The cell with "none" on every dead edge: its source is zero or its target has no use."""
    used = [True, False, False, False]
    for (source, target), operation in zip(EDGES, cell, strict=True):
        used[target] |= used[source] and operation != 0
    useful = [False, False, False, True]
    for (source, target), operation in reversed(list(zip(EDGES, cell, strict=True))):
        useful[source] |= useful[target] and operation != 0
    return tuple(
        operation if used[source] and useful[target] else 0
        for (source, target), operation in zip(EDGES, cell, strict=True)
    )


def form(cell: Sequence[int]) -> Form:
    """The form of a full cell, six operations 0..4."""
    nodes: list[dict[tuple[int, int], int]] = [{(INPUT, 0): 1}, {}, {}, {}]
    convolutions: dict[int, tuple[int, Sum]] = {}
    for edge, operation in enumerate(prune(cell)):
        source, target = EDGES[edge]
        name, value = OPERATIONS[operation], nodes[source]
        if name == "none":
            continue
        if name in KERNELS:
            convolutions[edge] = (KERNELS[name], value)
            value = {(edge, 0): 1}
        pools = int(name == "avg_pool_3x3")
        for (atom, k), times in value.items():
            key = (atom, k + pools)
            nodes[target][key] = nodes[target].get(key, 0) + times
    return Form(nodes[3], convolutions)


def _renamed(value: Sum, names: Mapping[int, int]) -> tuple[tuple[int, int, int], ...]:
    return tuple(sorted((names[atom], k, times) for (atom, k), times in value.items()))


def _canonical(network: Form) -> tuple[object, ...]:
    """The smallest spelling of a form over all names of its convolutions."""
    edges = sorted(network.convolutions)
    spellings = []
    for order in permutations(range(len(edges))):
        names = {INPUT: INPUT, **dict(zip(edges, order, strict=True))}
        rows = sorted(
            (names[edge], kernel, _renamed(value, names))
            for edge, (kernel, value) in network.convolutions.items()
        )
        spellings.append((tuple(rows), _renamed(network.output, names)))
    return min(spellings)


def depth(network: Form) -> int:
    """Largest number of convolutions one after another, 0..3."""

    def of(value: Sum) -> int:
        below = [network.convolutions[atom][1] for atom, _ in value if atom != INPUT]
        return max((1 + of(before) for before in below), default=0)

    return of(network.output)


@cache
def classes() -> Tensor:
    """Class [15625] int64 of every cell, the last edge fastest; classes are numbered from 0 in
    the order in which their first cells come.
    """
    known: dict[tuple[object, ...], int] = {}
    found = [
        known.setdefault(_canonical(form(cell)), len(known))
        for cell in product(range(len(OPERATIONS)), repeat=len(EDGES))
    ]
    return torch.tensor(found)
