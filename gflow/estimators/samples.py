"""How far samples are from those of the target: distances between two clouds, and modes."""

from __future__ import annotations

import torch
from torch import Tensor


def wasserstein(x: Tensor, y: Tensor, order: int = 2) -> Tensor:
    """Exact Wasserstein distance of two equally large samples, by optimal assignment.

    Args:
        x: [n, d].
        y: [n, d].
        order: 1 for the mean distance, 2 for the root of the mean squared distance.

    Raises:
        ValueError: clouds of different sizes, or another order.
    """
    from scipy.optimize import linear_sum_assignment

    if x.shape != y.shape or x.ndim != 2 or order not in (1, 2):
        raise ValueError(
            f"the Wasserstein distance of order 1 or 2 needs clouds of one size [n, d], not "
            f"{list(x.shape)} and {list(y.shape)} with order {order}"
        )
    cost = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    cost = cost.pow(order).cpu()
    row, column = linear_sum_assignment(cost.numpy())
    return cost[row, column].mean().pow(1 / order)


def squared_mmd(
    x: Tensor, y: Tensor, widths: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
) -> Tensor:
    """Squared maximum mean discrepancy with a sum of Gaussian kernels, the biased estimate.

    Args:
        x: [n, d].
        y: [m, d].
        widths: standard deviations of the kernels.
    """

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
        return torch.stack([(-distance / (2 * w**2)).exp().mean() for w in widths]).sum()

    x, y = x.double(), y.double()
    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


def mode_shares(x: Tensor, modes: Tensor, radius: float) -> Tensor:
    """Share of the samples [n, d] nearest to each mode [M, d] and within `radius`, [M]."""
    distance = torch.cdist(x.double(), modes.to(x.device, torch.float64))
    near, which = distance.min(1)
    counts = torch.bincount(which[near <= radius], minlength=len(modes))
    return counts / len(x)
