"""Linear layers whose large products run on oneDNN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LARGE = 4_000_000
"""Multiplications from which oneDNN is worth a call; on some processors it is twice as fast."""

_product = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


class Linear(nn.Linear):
    """`nn.Linear`, of which large float32 products on the CPU are computed by oneDNN.

    torch computes them by MKL, which uses half of what some processors can do. Its own compiler
    calls the same routine; where torch has been built without it, this is `nn.Linear`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """input [..., in_features] to [..., out_features]."""
        if input.numel() * self.out_features < LARGE or not _worth_it(input, self.weight):
            return torch.nn.functional.linear(input, self.weight, self.bias)
        rows = input.reshape(-1, self.in_features)
        output: Tensor = _Product.apply(rows, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return output.view(*input.shape[:-1], self.out_features)


def _worth_it(input: Tensor, weight: Tensor) -> bool:
    if _product is None or input.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if input.dtype is not torch.float32 or weight.dtype is not torch.float32:
        return False
    # Narrow outputs are all overhead.
    return min(weight.shape) >= 32


def _times(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left [n, k] times the transpose of right [m, k], plus bias [m]."""
    assert _product is not None
    result: Tensor = _product(left, right, bias, "none", [], "")
    return result


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.biased = bias is not None
        return _times(rows, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            _times(upstream, weight.t()) if wanted[0] else None,
            _times(upstream.t(), rows.t()) if wanted[1] else None,
            upstream.sum(0) if ctx.biased and wanted[2] else None,
        )
