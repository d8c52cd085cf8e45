"""Pieces every policy shares: backward policies without parameters, reproducible weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from gflow.kernels import Categorical
from gflow.mdp import Environment, States

BackwardKind = Literal["learned", "uniform", "paths", "tree"]


def fixed_backward_kernel(
    env: Environment, states: States, kind: str, dtype: torch.dtype
) -> Categorical:
    """P_B without parameters, over the legal backward actions [n, A_b].

    "uniform" (and "tree") weighs parents evenly; "paths" by the number of ways to build them,
    which makes every construction sequence of an object equally likely (2312.14331).
    """
    mask = env.backward_mask(states)
    n, width = mask.shape
    if kind != "paths":
        return Categorical(torch.zeros(n, width, dtype=dtype, device=mask.device), mask)
    row = torch.arange(n, device=mask.device).repeat_interleave(width)
    action = torch.arange(width, device=mask.device).repeat(n)
    legal = mask.flatten()
    parents = env.backstep(states.rows(row[legal]), action[legal])
    logits = torch.zeros(n * width, dtype=dtype, device=mask.device)
    logits[legal] = env.log_n_paths(parents).to(dtype)
    return Categorical(logits.view(n, width), mask)


def row_starts(n: int, width: int, device: torch.device) -> Tensor:
    """Where each of `n` rows of `width` entries starts in a flat list, [n]; kept for later."""
    if torch.compiler.is_compiling():
        return torch.arange(0, n * width, width, device=device)
    return _kept_starts(n, width, device)


@functools.lru_cache(maxsize=256)
def _kept_starts(n: int, width: int, device: torch.device) -> Tensor:
    return torch.arange(0, n * width, width, device=device)


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Initialise weights from `seed` and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
