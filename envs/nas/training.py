"""Training of a cell's network on 8x8 digits, several seeds side by side.

The network: a 3x3 convolution to 8 channels, a cell, 2x2 average pooling, a second cell, the mean
over pixels, a linear layer. Convolutions in cells are ReLU, convolution, normalization of each
channel without scale or shift (arXiv 2001.00326 has both), so that a convolution of nothing is
nothing. Activations are [seeds, channels, height, width, images]: a convolution is one product of
matrices for all seeds, its rows long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gflow.envs.nas.cell import EDGES, OPERATIONS
from gflow.envs.nas.classes import KERNELS, prune

CHANNELS = 8
CLASSES = 10
EPOCHS = 10
BATCH = 128
_EPS = 1e-5


@dataclass(frozen=True)
class Images:
    """Images [n, 8, 8] with labels [n] int64, the first `n_train` of them to learn from."""

    pixels: Tensor
    labels: Tensor
    n_train: int


def digits(n_train: int = 1024) -> Images:
    """scikit-learn's 1,797 digits in a fixed random order, pixels standardized.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "training on digits needs scikit-learn: install it with `pip install gflow[digits]`"
        ) from error
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(data.images, dtype=torch.float32)[order]
    seen = pixels[:n_train]
    labels = torch.tensor(data.target, dtype=torch.int64)[order]
    return Images((pixels - seen.mean()) / seen.std(), labels, n_train)


def _patches(x: Tensor, kernel: int) -> Tensor:
    """[S, C * kernel ** 2, H * W * N] neighborhoods of [S, C, H, W, N], zeros outside."""
    seeds, channels, height, width, n = x.shape
    if kernel == 1:
        return x.reshape(seeds, channels, -1)
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    out = x.new_empty(seeds, channels, kernel**2, height, width, n)
    for i in range(kernel):
        for j in range(kernel):
            out[:, :, i * kernel + j] = padded[:, :, i : i + height, j : j + width]
    return out.view(seeds, channels * kernel**2, -1)


class _Convolution(torch.autograd.Function):
    """ReLU (optional), convolution and normalization by the statistics of the first images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kernel: int, relu: bool, seen: int) -> Tensor:
        """x [S, C, H, W, N] and weight [S, C', C, kernel ** 2] -> [S, C', H, W, N]."""
        seeds, outputs = weight.shape[:2]
        patches = _patches(x.relu() if relu else x, kernel)
        y = torch.bmm(weight.flatten(2), patches)
        known = y if seen == x.shape[-1] else y.view(*y.shape[:2], -1, x.shape[-1])[..., :seen]
        known = known.reshape(seeds * outputs, -1)
        mean = known.mean(1)
        square = torch.linalg.vecdot(known, known) / known.shape[1]
        scale = (square - mean.square() + _EPS).rsqrt().view(seeds, outputs, 1)
        y = torch.addcmul(-mean.view(seeds, outputs, 1) * scale, y, scale)
        ctx.kernel, ctx.relu = kernel, relu
        ctx.save_for_backward(x, weight, patches, y, scale)
        return y.view(seeds, outputs, *x.shape[2:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and weight; the statistics must be those of all images."""
        x, weight, patches, y, scale = ctx.saved_tensors
        seeds, outputs, inputs, _ = weight.shape
        g = gradients[0].reshape(y.shape)
        size = y.shape[2]
        along = (torch.linalg.vecdot(g, y) / -size).unsqueeze(2)
        g = torch.addcmul(g, y, along).sub_(g.mean(2, keepdim=True)).mul_(scale)
        d_weight = torch.bmm(g, patches.mT).view_as(weight)
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None, None, None
        turned = weight.flip(3).transpose(1, 2).reshape(seeds, inputs, -1)
        dx = torch.bmm(turned, _patches(g.view(seeds, outputs, *x.shape[2:]), ctx.kernel))
        dx = dx.view_as(x)
        if ctx.relu:
            dx.mul_(x > 0)
        return dx, d_weight, None, None, None


def _box(x: Tensor) -> Tensor:
    """Sums over the 3x3 neighborhood of each pixel of [S, C, H, W, N]."""
    rows = x.clone()
    rows[:, :, 1:] += x[:, :, :-1]
    rows[:, :, :-1] += x[:, :, 1:]
    out = rows.clone()
    out[:, :, :, 1:] += rows[:, :, :, :-1]
    out[:, :, :, :-1] += rows[:, :, :, 1:]
    return out


class _AveragePool(torch.autograd.Function):
    """Mean over the pixels of the 3x3 neighborhood that exist."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """[S, C, H, W, N] -> the same."""
        ctx.share = _box(torch.ones_like(x[:1, :1, :, :, :1])).reciprocal()
        return _box(x).mul_(ctx.share)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The box is symmetric."""
        return _box(gradients[0] * ctx.share)


class CellNetwork:
    """The network of one cell with the weights of several seeds; dead edges are left out.

    Args:
        cell: operations 0..4 of the six edges.
        seeds: one network each; a network depends on its own seed only.

    Attributes:
        weights: [S, P] all weights, a leaf that wants a gradient.
    """

    def __init__(self, cell: Sequence[int], seeds: Sequence[int]):
        self.operations = [OPERATIONS[operation] for operation in prune(cell)]
        own = [(CHANNELS, CHANNELS, KERNELS[o] ** 2) for o in self.operations if o in KERNELS]
        self._shapes = [(CHANNELS, 1, 9), *own, *own, (CLASSES, CHANNELS, 1), (CLASSES, 1, 1)]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        rows = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            parts = [
                torch.randn(math.prod(shape), generator=generator) / math.sqrt(shape[1] * shape[2])
                for shape in self._shapes[:-1]
            ]
            rows.append(torch.cat([*parts, torch.zeros(CLASSES)]))
        self.weights = torch.stack(rows).requires_grad_()

    def __call__(self, images: Tensor, seen: int | None = None) -> Tensor:
        """Logits [S, 10, N] of images [S or 1, 8, 8, N].

        Args:
            images: pixels.
            seen: channels are normalized by the statistics of so many first images; all of them
                by default, which training needs.
        """
        seen = images.shape[-1] if seen is None else seen
        seeds = len(self.weights)
        parts = self.weights.split(self._sizes, 1)
        weights = iter(
            part.view(seeds, *shape) for part, shape in zip(parts, self._shapes, strict=True)
        )
        x = images.expand(seeds, -1, -1, -1).unsqueeze(1)
        first = self._cell(_convolve(x, next(weights), 3, False, seen), weights, seen)
        if first is None:
            bias = self.weights[:, -CLASSES:].unsqueeze(2)
            return bias.expand(-1, -1, images.shape[-1])
        pooled = F.avg_pool3d(first.flatten(0, 1), (2, 2, 1)).unflatten(0, (seeds, CHANNELS))
        last = self._cell(pooled, weights, seen)
        assert last is not None  # both cells are the same
        linear, bias = weights
        return torch.baddbmm(bias.squeeze(3), linear.squeeze(3), last.mean((2, 3)))

    def _cell(self, x: Tensor, weights: Any, seen: int) -> Tensor | None:
        """One cell; nothing where its output is always zero."""
        nodes: list[Tensor | None] = [x, None, None, None]
        for (source, target), name in zip(EDGES, self.operations, strict=True):
            value = nodes[source]
            if value is None or name == "none":
                continue
            if name in KERNELS:
                value = _convolve(value, next(weights), KERNELS[name], True, seen)
            elif name == "avg_pool_3x3":
                value = _pool(value)
            so_far = nodes[target]
            nodes[target] = value if so_far is None else so_far + value
        return nodes[3]


def _convolve(x: Tensor, weight: Tensor, kernel: int, relu: bool, seen: int) -> Tensor:
    out: Tensor = _Convolution.apply(x, weight, kernel, relu, seen)  # type: ignore[no-untyped-call]
    return out


def _pool(x: Tensor) -> Tensor:
    out: Tensor = _AveragePool.apply(x)  # type: ignore[no-untyped-call]
    return out


def batches(n_train: int, seed: int, epochs: int = EPOCHS) -> Tensor:
    """Rows [steps, BATCH] of the training images, drawn anew each epoch; a last part is left."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(n_train, generator=generator) for _ in range(epochs)]
    return torch.stack(orders)[:, : n_train // BATCH * BATCH].reshape(-1, BATCH)


def train_cell(
    cell: Sequence[int], images: Images, seeds: Sequence[int] = (0,), epochs: int = EPOCHS
) -> Tensor:
    """Test accuracy [S] float64, as a share of one, of a cell trained with each seed.

    SGD with Nesterov momentum 0.9, weight decay 5e-4 and a learning rate that falls from 0.1 to 0
    along a cosine. For the test, channels are normalized by the statistics of all training images.
    """
    network = CellNetwork(cell, seeds)
    pixels = images.pixels.permute(1, 2, 0).contiguous()
    order = torch.stack([batches(images.n_train, seed, epochs) for seed in seeds], 1)
    optimizer = torch.optim.SGD(
        [network.weights], 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    for step, rows in enumerate(order):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / len(order)))
        logits = network(pixels[:, :, rows].movedim(2, 0))
        loss = F.cross_entropy(logits, images.labels[rows], reduction="none").mean(1).sum()
        (network.weights.grad,) = torch.autograd.grad(loss, [network.weights])
        optimizer.step()
    with torch.no_grad():
        logits = network(pixels.unsqueeze(0), images.n_train)[..., images.n_train :]
    return (logits.argmax(1) == images.labels[images.n_train :]).double().mean(1)
