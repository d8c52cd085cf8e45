"""Scenes of up to four colored shapes, one in each quadrant: those that a prompt asks for, and
those that miss it by one attribute.

A base model learns from both kinds. With misses at a rate of one half a perfect one follows half
of its prompts, every correct scene is in its support, and the best possible score is known.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gflow.envs.denoising.shapes.prompts import COLOR, COUNT, POSITION, RELATION, TWO

SLOTS = 4


class Scenes(NamedTuple):
    """n scenes; slots are the quadrants top left, top right, bottom left, bottom right.

    Attributes:
        present: [n, 4] bool.
        color: [n, 4] int64 in 0..3.
        shape: [n, 4] int64 in 0..2.
    """

    present: Tensor
    color: Tensor
    shape: Tensor


def sample_scenes(
    prompts: Tensor, generator: torch.Generator | None = None, corruption: float = 0.0
) -> Scenes:
    """A scene for each prompt; what the prompt leaves open is uniform.

    With probability `corruption` one attribute of the scene is drawn anew, evenly among the values
    that break the prompt: so its `strict` reward is 0 then, and 1 otherwise.

    Args:
        prompts: [n, 8], see `prompts.FIELDS`, on the CPU.
        generator: source of randomness.
        corruption: probability of a miss.
    """
    n, row = len(prompts), torch.arange(len(prompts))
    family, c1, s1, c2, s2, count, relation, quadrant = (prompts - 1).unbind(1)
    family = family + 1

    def uniform(*sizes: int) -> Tensor:
        return torch.rand(n, *sizes, generator=generator)

    def below(limit: Tensor | int) -> Tensor:
        return (uniform() * limit).long()

    two, related = family == TWO, family == RELATION
    # Objects are listed in the order in which they come; those that exist come first.
    color, shape = (uniform(SLOTS) * 4).long(), (uniform(SLOTS) * 3).long()
    color[:, 0] = c1.where((family == COLOR) | two, color[:, 0])
    color[:, 1] = c2.where(two, color[:, 1])
    shape[:, 0] = s1.where(family != COUNT, shape[:, 0])
    shape[:, 1] = s2.where(two | related, shape[:, 1])
    shape = s1.unsqueeze(1).where((family == COUNT).unsqueeze(1), shape)
    n_objects = torch.where(family == COUNT, count + 1, 1 + (two | related).long())

    # Slots in random order, the prescribed ones first.
    key = uniform(SLOTS)
    first = quadrant.where(family == POSITION, 0)
    line, horizontal = below(2), relation < 2
    left, right = torch.where(horizontal, 2 * line, line), torch.where(horizontal, 1, 2)
    backward = relation % 2 == 1
    first = torch.where(related, left + right * backward, first)
    second = left + right * ~backward
    placed = related | (family == POSITION)
    key[row[placed], first[placed]] = -2.0
    key[row[related], second[related]] = -1.0
    slot = key.argsort(1)

    miss = uniform() < corruption
    kind = below(torch.where(family == COUNT, 2, 3))
    which = below(n_objects)

    def misses(wanted: dict[int, int]) -> Tensor:
        """Rows whose family misses in the way numbered so."""
        hit = torch.zeros_like(miss)
        for name, number in wanted.items():
            hit |= (family == name) & (kind == number)
        return hit & miss

    recolor = misses({COLOR: 0, TWO: 0})
    reshape = misses({COLOR: 1, COUNT: 1, POSITION: 1, TWO: 1, RELATION: 1})
    add = misses({COLOR: 2, POSITION: 2})
    drop = misses({TWO: 2, RELATION: 2})
    move = misses({POSITION: 0, RELATION: 0})
    recount = misses({COUNT: 0})
    third = 3 - s1 - s2
    other = (shape[row, which] + 1 + below(2)) % 3
    color[row, which] = (
        torch.where(recolor, color[row, which] + 1 + below(3), color[row, which]) % 4
    )
    shape[row, which] = torch.where(reshape, third.where(related, other), shape[row, which])
    # A relation is broken by trading places, a position by any other place.
    partner = torch.where(related, 1, 1 + below(3))
    here, there = slot[:, 0].clone(), slot[row, partner]
    slot[:, 0] = there.where(move, here)
    slot[row, partner] = here.where(move, there)
    n_objects = torch.where(recount, (n_objects + below(3)) % 4 + 1, n_objects + add.long())

    exists = torch.arange(SLOTS) < n_objects.unsqueeze(1)
    exists[row, which] &= ~drop
    return Scenes(*(torch.empty_like(x).scatter_(1, slot, x) for x in (exists, color, shape)))
