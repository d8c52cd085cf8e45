"""Whether a picture shows what its prompt asks for, decided by rules on detected objects."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gflow.envs.denoising.shapes.prompts import (
    COLOR,
    COLORS,
    COUNT,
    POSITION,
    QUADRANTS,
    RELATION,
    SHAPES,
    TWO,
)

APART = 3.0
"""Pixels between two centers from which one object is left of, or above, another."""


class Detections(NamedTuple):
    """Up to M objects found in each of n pictures; entries that are not `found` mean nothing.

    Attributes:
        found: [n, M] bool.
        color: [n, M] int64 in 0..3.
        shape: [n, M] int64 in 0..2.
        center: [n, M, 2] float, row and column in pixels of a 16 x 16 picture.
    """

    found: Tensor
    color: Tensor
    shape: Tensor
    center: Tensor

    @property
    def quadrant(self) -> Tensor:
        """[n, M] in 0..3, as in `prompts.QUADRANTS`."""
        low = (self.center >= 8).long()
        return 2 * low[..., 0] + low[..., 1]


class Alignment(NamedTuple):
    """How far n pictures follow their prompts.

    Attributes:
        soft: [n], the share of the prompt's conditions that hold.
        strict: [n], 1 where all hold (and, for a color prompt, one object has both attributes).
        uncounted: [n], `soft` without the condition on the number of objects: a proxy that
            invites clutter.
    """

    soft: Tensor
    strict: Tensor
    uncounted: Tensor


def alignment(seen: Detections, prompts: Tensor, dtype: torch.dtype = torch.float32) -> Alignment:
    """Check detections against prompts [n, 8].

    Every prompt is a list of three conditions (two for counts), the number of objects first.
    """
    family, c1, s1, c2, s2, count, relation, quadrant = (prompts - 1).unsqueeze(2).unbind(1)
    found, (n_found, kinds) = seen.found, (seen.found.sum(1), family.squeeze(1) + 1)

    def exists(condition: Tensor) -> Tensor:
        return (found & condition).any(1)

    def has(color: Tensor, shape: Tensor) -> Tensor:
        return exists((seen.color == color) & (seen.shape == shape))

    shape1, shape2 = seen.shape == s1, seen.shape == s2
    there = exists(shape1)
    # Differences second - first of all ordered pairs, along the axis the relation speaks of.
    along = seen.center[..., 1].where(relation < 2, seen.center[..., 0])
    ahead = (along.unsqueeze(1) - along.unsqueeze(2)) * torch.where(relation % 2 == 0, 1, -1)[
        ..., None
    ]
    pair = (found & shape1).unsqueeze(2) & (found & shape2).unsqueeze(1)
    related = (pair & (ahead > APART)).flatten(1).any(1)
    wanted = torch.where(kinds == COUNT, count.squeeze(1) + 1, 1)
    wanted = torch.where((kinds == TWO) | (kinds == RELATION), 2, wanted)
    whole = (shape1 | ~found).all(1)
    by_family = {
        COLOR: (exists(seen.color == c1), there),
        COUNT: (whole, whole),
        POSITION: (there, exists(shape1 & (seen.quadrant == quadrant))),
        TWO: (has(c1, s1), has(c2, s2)),
        RELATION: (there & exists(shape2), related),
    }
    one, two = torch.zeros_like(there), torch.zeros_like(there)
    for name, (first, second) in by_family.items():
        one, two = first.where(kinds == name, one), second.where(kinds == name, two)
    counted, one, two = (condition.to(dtype) for condition in (n_found == wanted, one, two))
    uncounted = (one + two) / 2
    soft = torch.where(kinds == COUNT, (counted + one) / 2, (counted + one + two) / 3)
    both = has(c1, s1) | (kinds != COLOR)
    return Alignment(soft, ((soft == 1) & both).to(dtype), uncounted)


def share(seen: Detections, condition: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The share of found objects for which `condition` [n, M] holds, 0 where none is found; [n]."""
    total = seen.found.sum(1)
    return (seen.found & condition).sum(1).to(dtype) / total.clamp(min=1)


def scene_text(seen: Detections) -> list[str]:
    """The objects of each picture in words, by quadrants."""
    texts = []
    columns = (seen.found, seen.quadrant, seen.color, seen.shape)
    for rows in zip(*(column.tolist() for column in columns), strict=True):
        things = sorted((q, c, s) for there, q, c, s in zip(*rows, strict=True) if there)
        words = [f"{COLORS[c]} {SHAPES[s]} {QUADRANTS[q]}" for q, c, s in things]
        texts.append(", ".join(words) or "nothing")
    return texts
