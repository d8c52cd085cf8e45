"""Networks of denoisers on request: velocity from a noisy point, its time and a prompt.

All are called as `network(x, t, encoding)` with points [n, *state_shape], times [n] in [0, 1]
(1 is noise) and encodings [n, F + E]: F categorical fields as whole numbers, 0 for an absent one,
and E further numbers, such as a preference. Zeros alone ask for nothing in particular.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gflow.policies.common import seeded_weights


def time_features(t: Tensor, width: int = 32) -> Tensor:
    """Sines and cosines of times [n] at frequencies from 1 to 200, [n, width]."""
    angle = t.unsqueeze(-1) * _frequencies(width // 2, t.dtype, t.device)
    return torch.cat([angle.sin(), angle.cos()], -1)


@functools.cache
def _frequencies(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Made once: a step has few operations to spare."""
    return torch.linspace(0, math.log(200.0), n, dtype=dtype, device=device).exp()


class PromptTime(nn.Module):
    """One vector for a time and what is asked for.

    Args:
        fields: numbers of values of the categorical fields, 0 included.
        numbers: further numbers E; their weights start at 0, so that a network trained without
            them is the starting point.
        width: width of the result.
    """

    first: Tensor

    def __init__(self, fields: Sequence[int], numbers: int = 0, width: int = 128):
        super().__init__()
        self.fields = len(fields)
        first = torch.tensor([0, *fields[:-1]]).cumsum(0)
        self.register_buffer("first", first, persistent=False)
        self.table = nn.Embedding(sum(fields), width)
        if numbers:
            self.numbers = nn.Linear(numbers, width, bias=False)
            nn.init.zeros_(self.numbers.weight)
        self.mix = nn.Sequential(
            nn.Linear(width + 32, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, t: Tensor, encoding: Tensor) -> Tensor:
        """[n, width]."""
        rows = encoding[:, : self.fields].long() + self.first
        asked = functional.embedding_bag(rows, self.table.weight, mode="sum")
        if encoding.shape[1] > self.fields:
            asked = asked + self.numbers(encoding[:, self.fields :])
        mixed: Tensor = self.mix(torch.cat([asked, time_features(t)], -1))
        return mixed


class PromptMLP(nn.Module):
    """Residual perceptron on flat points, conditioned by scale and shift in every block.

    Args:
        size: numbers in a point.
        fields: numbers of values of the prompt's fields.
        numbers: further numbers of the encoding.
        width: width of the blocks.
        depth: number of blocks.
        seed: seeds the initial weights.
    """

    def __init__(
        self,
        size: int,
        fields: Sequence[int],
        numbers: int = 0,
        width: int = 192,
        depth: int = 3,
        seed: int = 0,
    ):
        super().__init__()
        with seeded_weights(seed):
            self.condition = PromptTime(fields, numbers)
            self.first = nn.Linear(size, width)
            self.blocks = nn.ModuleList(_Block(width, 128) for _ in range(depth))
            self.last = nn.Linear(width, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor, encoding: Tensor) -> Tensor:
        """Velocities [n, size]."""
        condition = self.condition(t, encoding)
        h = self.first(x)
        for block in self.blocks:
            h = block(h, condition)
        velocity: Tensor = self.last(h)
        return velocity


class _Block(nn.Module):
    def __init__(self, width: int, condition: int):
        super().__init__()
        self.modulate = nn.Linear(condition, 2 * width)
        self.branch = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(condition).chunk(2, -1)
        normal = functional.layer_norm(h, h.shape[-1:])
        moved: Tensor = h + self.branch(torch.addcmul(normal + shift, normal, scale))
        return moved


class PromptUNet(nn.Module):
    """U-Net on pixel-unshuffled pictures, conditioned by scale and shift in every block.

    Squares of 2 x 2 pixels become channels, which makes it several times cheaper than one at full
    size; the lowest level attends.

    Args:
        channels: channels of a picture.
        fields: numbers of values of the prompt's fields.
        numbers: further numbers of the encoding.
        widths: channels of the three levels, multiples of 8.
        seed: seeds the initial weights.
    """

    def __init__(
        self,
        channels: int,
        fields: Sequence[int],
        numbers: int = 0,
        widths: tuple[int, int, int] = (32, 64, 64),
        seed: int = 0,
    ):
        super().__init__()
        a, b, c = widths
        with seeded_weights(seed):
            self.condition = PromptTime(fields, numbers)
            self.first = nn.Conv2d(4 * channels, a, 3, padding=1)
            self.down_a = _Residual(a, a)
            self.down_b = _Residual(a, b)
            self.down_c = _Residual(b, c)
            self.attend = _Attention(c)
            self.middle = _Residual(c, c)
            self.up_b = _Residual(c + b, b)
            self.up_a = _Residual(b + a, a)
            last = nn.Conv2d(a, 4 * channels, 3, padding=1)
            self.last = nn.Sequential(nn.GroupNorm(8, a), nn.SiLU(), last)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, t: Tensor, encoding: Tensor) -> Tensor:
        """Velocities [n, channels, height, width]; both sides must be multiples of 8."""
        condition = self.condition(t, encoding)
        h = self.first(functional.pixel_unshuffle(x, 2))
        one = self.down_a(h, condition)
        two = self.down_b(functional.avg_pool2d(one, 2), condition)
        h = self.down_c(functional.avg_pool2d(two, 2), condition)
        h = self.middle(self.attend(h), condition)
        h = self.up_b(torch.cat([_double(h), two], 1), condition)
        h = self.up_a(torch.cat([_double(h), one], 1), condition)
        return functional.pixel_shuffle(self.last(h), 2)


def _double(h: Tensor) -> Tensor:
    return functional.interpolate(h, scale_factor=2, mode="nearest")


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition: int = 128):
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.two = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.modulate = nn.Linear(condition, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(condition)[..., None, None].chunk(2, 1)
        inner = functional.group_norm(self.one(functional.silu(functional.group_norm(h, 8))), 8)
        inner = functional.silu(torch.addcmul(inner + shift, inner, scale))
        summed: Tensor = self.skip(h) + self.two(inner)
        return summed


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        n, width, rows, columns = h.shape
        tokens = functional.group_norm(h, 8).flatten(2).transpose(1, 2)
        split = self.project(tokens).view(n, rows * columns, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed = self.out(mixed.transpose(1, 2).reshape(n, rows * columns, width))
        summed: Tensor = h + mixed.transpose(1, 2).view_as(h)
        return summed
