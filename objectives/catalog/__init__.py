"""Every published method as a setting of a few switches, with its citation; one file a family."""

from __future__ import annotations

import difflib

from gflow.objectives.catalog import denoising, gflownets, language, policy_gradient, samplers
from gflow.objectives.catalog.method import Method, Paper

_FAMILIES = (gflownets, policy_gradient, denoising, language, samplers)

METHODS: dict[str, Method] = {row.name: row for family in _FAMILIES for row in family.ROWS}


def get_method(name: str) -> Method:
    """The row called `name`.

    Raises:
        ValueError: there is none; the message lists the nearest names.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(METHODS)}"
        raise ValueError(f"there is no method {name!r}: {hint}")
    return METHODS[name]


__all__ = ["METHODS", "Method", "Paper", "get_method"]
