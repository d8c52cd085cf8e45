"""`scenevec`: scenes as 32 numbers, for experiments of seconds."""

from __future__ import annotations

import torch
from torch import Tensor

from gflow.envs.denoising.shapes.checks import Detections
from gflow.envs.denoising.shapes.scenes import SLOTS, Scenes

STATE_SHAPE = (32,)
SPREAD = 0.05
"""Standard deviation of the noise in the data."""


def draw(scenes: Scenes, generator: torch.Generator | None = None) -> Tensor:
    """Vectors [n, 32]: for each slot its presence, four colors and three shapes.

    Present slots hold +1 and two one-hot codes of +1 and -1, empty ones -1 and zeros. Each number
    has Gaussian noise of `SPREAD`.
    """
    clean = _code(*scenes).flatten(1)
    return clean + SPREAD * torch.randn(clean.shape, generator=generator)


def detect(x: Tensor) -> Detections:
    """The objects nearest to vectors [n, 32]: a slot is filled if its presence is positive."""
    slots = x.view(len(x), SLOTS, 8)
    number = torch.arange(SLOTS, device=x.device)
    center = torch.stack([number // 2, number % 2], -1).to(x.dtype) * 8 + 3.5
    return Detections(
        slots[..., 0] > 0,
        slots[..., 1:5].argmax(-1),
        slots[..., 5:].argmax(-1),
        center.expand(len(x), -1, -1),
    )


def crispness(x: Tensor) -> Tensor:
    """1 minus the mean distance of the numbers to those of the nearest scene, at least 0; [n]."""
    seen = detect(x)
    clean = _code(seen.found, seen.color, seen.shape).to(x)
    return 1 - (x.view_as(clean) - clean).abs().mean((1, 2)).clamp(0, 1)


def _code(present: Tensor, color: Tensor, shape: Tensor) -> Tensor:
    """Noiseless vectors, [n, 4, 8]."""
    one_hot = torch.nn.functional.one_hot
    codes = torch.cat([one_hot(color, 4), one_hot(shape, 3)], -1) * 2.0 - 1
    there = present.unsqueeze(-1)
    return torch.cat([torch.where(there, 1.0, -1.0), torch.where(there, codes, 0.0)], -1)
