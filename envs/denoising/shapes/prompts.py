"""The 126 prompts: what a picture of colored shapes can be asked to show.

A prompt is a row of categorical fields, 0 where a field does not apply; networks embed it field by
field. Some prompts are held out: nothing is trained on them, so that following them is a matter of
composition.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

FAMILIES = ("color", "count", "position", "two", "relation")
COLORS = ("red", "green", "blue", "yellow")
SHAPES = ("square", "triangle", "plus")
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
RELATIONS = ("left of", "right of", "above", "below")
FIELDS = ("family", "color1", "shape1", "color2", "shape2", "count", "relation", "quadrant")
FIELD_SIZES = (6, 5, 4, 5, 4, 5, 5, 5)
"""Values of each field, the 0 of an absent one included."""

COLOR, COUNT, POSITION, TWO, RELATION = range(1, 6)
"""Values of the field `family`."""


def _row(family: int, **values: int) -> list[int]:
    return [family, *(values.get(field, -1) + 1 for field in FIELDS[1:])]


@cache
def _rows() -> tuple[list[list[int]], list[bool]]:
    """All prompts, and which of them are held out."""
    things = list(itertools.product(range(len(COLORS)), range(len(SHAPES))))
    rows = [_row(COLOR, color1=c, shape1=s) for c, s in things]
    rows += [_row(COUNT, shape1=s, count=n) for s in range(3) for n in range(4)]
    rows += [_row(POSITION, shape1=s, quadrant=q) for s in range(3) for q in range(4)]
    held = [False] * len(rows)
    for i, ((c1, s1), (c2, s2)) in enumerate(itertools.combinations(things, 2)):
        rows.append(_row(TWO, color1=c1, shape1=s1, color2=c2, shape2=s2))
        held.append(i % 5 == 0)
    # "a left of b" and "b right of a" show the same scenes: held out both or neither.
    mirrors = itertools.product(((0, 1), (2, 3)), itertools.permutations(range(3), 2))
    for i, ((one, other), (a, b)) in enumerate(mirrors):
        rows += [
            _row(RELATION, shape1=a, shape2=b, relation=one),
            _row(RELATION, shape1=b, shape2=a, relation=other),
        ]
        held += [i % 4 == 0] * 2
    return rows, held


def all_prompts() -> Tensor:
    """Every prompt, [126, 8] int64, columns as in `FIELDS`."""
    return torch.tensor(_rows()[0])


def held_out() -> Tensor:
    """Which of `all_prompts` are kept for tests, [126] bool (20 of them)."""
    return torch.tensor(_rows()[1])


def train_prompts() -> Tensor:
    """The 106 prompts to train on, [106, 8]."""
    return all_prompts()[~held_out()]


def novel_prompts() -> Tensor:
    """The 20 held-out prompts, [20, 8]."""
    return all_prompts()[held_out()]


def prompt_text(row: Sequence[int]) -> str:
    """A prompt in words, for example "a red square and a blue plus"."""
    family, c1, s1, c2, s2, count, relation, quadrant = (int(value) - 1 for value in row)
    if family + 1 == COLOR:
        return f"a {COLORS[c1]} {SHAPES[s1]}"
    if family + 1 == COUNT:
        plural = SHAPES[s1] + ("" if count == 0 else "es" if SHAPES[s1][-1] == "s" else "s")
        return f"{count + 1} {plural}"
    if family + 1 == POSITION:
        return f"a {SHAPES[s1]} in the {QUADRANTS[quadrant]}"
    if family + 1 == TWO:
        return f"a {COLORS[c1]} {SHAPES[s1]} and a {COLORS[c2]} {SHAPES[s2]}"
    if family + 1 == RELATION:
        return f"a {SHAPES[s1]} {RELATIONS[relation]} a {SHAPES[s2]}"
    return ""


def prompt_texts(encoding: Tensor) -> list[str]:
    """The prompts that encodings [n, 8 + ...] begin with, in words."""
    return [prompt_text(row) for row in encoding[:, : len(FIELDS)].long().tolist()]


def find_prompts(texts: Sequence[str]) -> Tensor:
    """The rows of prompts given in words, [n, 8].

    Raises:
        ValueError: there is no such prompt.
    """
    known = {prompt_text(row): row for row in _rows()[0]}
    unknown = [text for text in texts if text not in known]
    if unknown:
        raise ValueError(f"no prompt reads {unknown[0]!r}; one of them is {next(iter(known))!r}")
    return torch.tensor([known[text] for text in texts])
