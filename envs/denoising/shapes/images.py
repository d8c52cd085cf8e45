"""`shapes16`: scenes as pictures of 3 x 16 x 16 numbers in [-1, 1], and a detector for them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gflow.envs.denoising.shapes.checks import Detections
from gflow.envs.denoising.shapes.scenes import SLOTS, Scenes

SIDE = 16
STATE_SHAPE = (3, SIDE, SIDE)
MIN_PIXELS = 6
MIN_OVERLAP = 0.6
MAX_DISTANCE = 1.0
"""Pixels further than this from every palette color are unknown to the detector."""


def palette(like: Tensor | None = None) -> Tensor:
    """Red, green, blue, yellow and the black background, [5, 3], as `like`."""
    made = torch.tensor(
        [[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [-1, -1, -1]],
    )
    return made if like is None else made.to(like)


def masks(like: Tensor | None = None) -> Tensor:
    """Square, triangle and plus, [3, 5, 5] of 0 and 1, as `like`."""
    triangle = [[0, 0, 1, 0, 0]] * 2 + [[0, 1, 1, 1, 0]] * 2 + [[1] * 5]
    plus = [[0, 0, 1, 0, 0]] * 2 + [[1] * 5] + [[0, 0, 1, 0, 0]] * 2
    made = torch.tensor([[[1] * 5] * 5, triangle, plus], dtype=torch.get_default_dtype())
    return made if like is None else made.to(like)


def draw(scenes: Scenes, generator: torch.Generator | None = None) -> Tensor:
    """Pictures [n, 3, 16, 16]; within its quadrant a shape sits 1 or 2 pixels from top and left."""
    n = len(scenes.present)
    offset = torch.randint(1, 3, (n, SLOTS, 2), generator=generator)
    # A quadrant is 8 x 8; the mask is placed in it by index arithmetic.
    pixel = torch.arange(8)
    y = pixel.view(1, 1, 8, 1) - offset[..., 0, None, None]
    x = pixel.view(1, 1, 1, 8) - offset[..., 1, None, None]
    inside = (y >= 0) & (y < 5) & (x >= 0) & (x < 5)
    shape = scenes.shape[..., None, None]
    filled = inside & (masks()[shape, y.clamp(0, 4), x.clamp(0, 4)] > 0)
    filled &= scenes.present[..., None, None]
    number = torch.where(filled, scenes.color[..., None, None], 4)
    whole = number.view(n, 2, 2, 8, 8).transpose(2, 3).reshape(n, SIDE, SIDE)
    return palette()[whole].permute(0, 3, 1, 2).contiguous()


def detect(x: Tensor) -> Detections:
    """The shapes in pictures [n, 3, 16, 16].

    Pixels take the nearest palette color, connected pixels of one color (by their four
    neighbors) make a component, and a component of at least `MIN_PIXELS` is the mask that it
    overlaps best, if intersection over union reaches `MIN_OVERLAP`.
    """
    distance, nearest = _nearest(x)
    nearest = nearest.where(distance < MAX_DISTANCE, 4)
    layer = nearest.unsqueeze(1) == torch.arange(4, device=x.device).view(4, 1, 1)
    label = _components(layer)
    n, pixels = len(x), SIDE * SIDE
    sizes = torch.zeros(n, 4, pixels + 1, dtype=torch.int64, device=x.device)
    sizes.scatter_add_(2, label.flatten(2), torch.ones_like(label).flatten(2))
    image, color, number = (sizes[..., 1:] >= MIN_PIXELS).nonzero(as_tuple=True)
    member = label[image, color] == (number + 1).view(-1, 1, 1)
    top = member.any(2).int().argmax(1)
    left = member.any(1).int().argmax(1)
    # Masks may start one pixel before or after the component's corner: 3 x 3 places.
    padded = functional.pad(member.to(x.dtype), (1, 6, 1, 6))
    step = torch.arange(7, device=x.device)
    rows, columns = (top[:, None] + step)[:, :, None], (left[:, None] + step)[:, None, :]
    window = padded[torch.arange(len(member), device=x.device)[:, None, None], rows, columns]
    mask = masks(x)
    both = functional.conv2d(window.unsqueeze(1), mask.unsqueeze(1)).flatten(2)
    size = sizes[image, color, number + 1].to(x.dtype).view(-1, 1, 1)
    overlap = both / (size + mask.sum((1, 2)).view(1, 3, 1) - both)
    best, place = overlap.flatten(1).max(1)
    shape, place = place // 9, place % 9
    center = torch.stack([top + place // 3 - 1, left + place % 3 - 1], -1).to(x.dtype) + 2

    good = best >= MIN_OVERLAP
    image, color, shape, center = (value[good] for value in (image, color, shape, center))
    counts = torch.bincount(image, minlength=n)
    column = torch.arange(len(image), device=x.device) - (counts.cumsum(0) - counts)[image]
    width = max(int(counts.max()) if n else 0, 1)
    empty = Detections(
        torch.zeros(n, width, dtype=torch.bool, device=x.device),
        torch.zeros(n, width, dtype=torch.int64, device=x.device),
        torch.zeros(n, width, dtype=torch.int64, device=x.device),
        torch.zeros(n, width, 2, dtype=x.dtype, device=x.device),
    )
    for table, values in zip(
        empty, (torch.ones_like(image, dtype=torch.bool), color, shape, center), strict=True
    ):
        table[image, column] = values
    return empty


def crispness(x: Tensor) -> Tensor:
    """1 minus half the mean distance of pixels to their nearest palette color, capped at 2; [n]."""
    return 1 - _nearest(x)[0].clamp(0, 2).mean((1, 2)) / 2


def _nearest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the nearest palette color, and its number, of each clipped pixel [n, 16, 16]."""
    colors = palette(x).view(1, 5, 3, 1, 1)
    distance = (x.clamp(-1, 1).unsqueeze(1) - colors).square().sum(2).sqrt()
    return distance.min(1)


def _components(layer: Tensor) -> Tensor:
    """Label of each true pixel's component, unique in its layer; 0 elsewhere. [n, 4, 16, 16]."""
    pixels = torch.arange(1, SIDE * SIDE + 1, device=layer.device).view(SIDE, SIDE)
    label = torch.where(layer, pixels, 0)
    while True:
        padded = functional.pad(label, (1, 1, 1, 1))
        up, down = padded[..., :-2, 1:-1], padded[..., 2:, 1:-1]
        left, right = padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]
        widest = label.maximum(up).maximum(down).maximum(left).maximum(right).where(layer, 0)
        if torch.equal(widest, label):
            return label
        label = widest
