"""Parameters and multiply-adds of a NAS-Bench-201 network, counted from its cell.

The CIFAR-10 network: a 3x3 stem to 16 channels, three stages of five cells at 16, 32 and 64
channels and 32, 16 and 8 pixels, a residual reduction block between stages, a linear layer to 10
classes (arXiv 2001.00326, section 2). FLOPs are the multiply-adds of the convolutions and the
linear layer with its bias; convolutions on dead edges count, everything else is free.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from gflow.envs.nas.cell import OPERATIONS

_STAGES = ((16, 32), (32, 16), (64, 8))
_CELLS_PER_STAGE = 5
_CLASSES = 10


def _convolution(inputs: int, outputs: int, kernel: int, side: int, norm: bool = True) -> Tensor:
    """Parameters (with the batch normalisation behind it) and multiply-adds, [2] int64."""
    weights = inputs * outputs * kernel**2
    return torch.tensor([weights + 2 * outputs * norm, weights * side**2])


def _skeleton() -> Tensor:
    channels, side = _STAGES[0]
    cost = _convolution(3, channels, 3, side)
    for (before, _), (after, side) in pairwise(_STAGES):
        cost += _convolution(before, after, 3, side) + _convolution(after, after, 3, side)
        cost += _convolution(before, after, 1, side, norm=False)
    channels = _STAGES[-1][0]
    linear = channels * _CLASSES + _CLASSES
    return cost + torch.tensor([linear + 2 * channels, linear])


def _operation(kernel: int) -> Tensor:
    """Cost [2] of a convolution on one edge, over all cells of the network."""
    stages = [_convolution(channels, channels, kernel, side) for channels, side in _STAGES]
    return _CELLS_PER_STAGE * torch.stack(stages).sum(0)


def _costs(data: Tensor) -> Tensor:
    kernels = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
    free = torch.zeros(2, dtype=torch.int64)
    table = torch.stack(
        [_operation(kernels[name]) if name in kernels else free for name in OPERATIONS]
    )
    return _skeleton().to(data.device) + table.to(data.device)[data].sum(1)


def parameters(data: Tensor) -> Tensor:
    """Number of parameters [n] int64 of full cells [n, 6]."""
    return _costs(data)[:, 0]


def flops(data: Tensor) -> Tensor:
    """Multiply-adds [n] int64 of one image in full cells [n, 6]."""
    return _costs(data)[:, 1]
