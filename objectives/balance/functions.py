"""The arithmetic of balance objectives, line by line as in the papers.

For one trajectory s_0 -> ... -> s_T (stop step included) let x_k = log P_F(k) - log P_B(k),
c_k = x_0 + ... + x_{k-1}, phi_k = log F(s_k) for k < T and phi_T = log R(x). With the potentials
u_k = phi_k - c_k every balance residual is a difference u_i - u_j: neighbours for detailed
balance, both ends for trajectory balance, all pairs for sub-trajectory balance.

Tensors are padded batches: [B, T] with `valid` [B, T] bool; padding contributes exactly 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gflow.objectives.balance.regression import Regression, squared


def trajectory_score(log_pf: Tensor, log_pb: Tensor, log_reward: Tensor) -> Tensor:
    """sum_k (log P_F - log P_B) - log R, [B]; minus the log Z a trajectory implies."""
    return (log_pf - log_pb).sum(1) - log_reward


def trajectory_balance(log_pf: Tensor, log_pb: Tensor, log_z: Tensor, log_reward: Tensor) -> Tensor:
    """Residual log Z + sum log P_F - sum log P_B - log R of each trajectory, [B] (2201.13259)."""
    return log_z + trajectory_score(log_pf, log_pb, log_reward)


def vargrad(score: Tensor, group: Tensor) -> Tensor:
    """Residual against the group's mean: log Z is estimated, not learned, [B] (2302.05446).

    Args:
        score: [B], from `trajectory_score`.
        group: [B] int64; trajectories of one group share a condition.

    Raises:
        ValueError: no group has two trajectories, so every residual would be 0.
    """
    member: Tensor
    count: Tensor
    _, member, count = group.unique(return_inverse=True, return_counts=True)
    if bool((count < 2).all()):
        raise ValueError("VarGrad needs groups of at least two trajectories per condition")
    mean = score.new_zeros(len(count)).index_add(0, member, score) / count
    return score - mean[member]


def potentials(
    log_flow: Tensor, log_pf: Tensor, log_pb: Tensor, log_reward: Tensor, valid: Tensor
) -> Tensor:
    """u_k = phi_k - c_k for k = 0..T, [B, T + 1]; entries past a trajectory's end are 0.

    `log_flow` [B, T] is log F of the state each transition leaves.
    """
    lengths = valid.sum(1, keepdim=True)
    column = torch.arange(valid.shape[1] + 1, device=valid.device)
    phi = torch.nn.functional.pad(log_flow, (0, 1))
    phi = torch.where(column == lengths, log_reward.unsqueeze(1), phi)
    walked = torch.nn.functional.pad((log_pf - log_pb).cumsum(1), (1, 0))
    return torch.where(column <= lengths, phi - walked, 0.0)


def detailed_balance(u: Tensor, valid: Tensor) -> Tensor:
    """Residual u_k - u_{k+1} of every transition, [B, T] (2111.09266)."""
    return torch.where(valid, u[:, :-1] - u[:, 1:], 0.0)


def subtrajectory_balance(
    u: Tensor, valid: Tensor, lam: float, regression: Regression = squared
) -> Tensor:
    """Weighted mean of g(u_i - u_j) over all i < j, weights lam^(j - i), [B] (2209.12782).

    lam -> 0 gives detailed balance averaged per trajectory, lam -> infinity trajectory balance.
    For lam = 1 and squares the double sum is a variance, computed in linear time.
    """
    lengths = valid.sum(1)
    if lam == 1 and regression is squared:
        count = lengths + 1
        mean = u.sum(1) / count
        inside = torch.arange(u.shape[1], device=u.device) < count.unsqueeze(1)
        deviations = torch.where(inside, u - mean.unsqueeze(1), 0.0)
        return 2 * deviations.square().sum(1) / lengths
    column = torch.arange(u.shape[1], device=u.device)
    distance = column - column.unsqueeze(1)
    pairs = (distance > 0) & (column <= lengths[:, None, None])
    # In logarithms: lam ** T leaves float32 for long trajectories.
    log_weight = torch.where(pairs, distance * math.log(lam), -torch.inf)
    weight = torch.softmax(log_weight.flatten(1), 1).view(pairs.shape).to(u.dtype)
    residual = torch.where(pairs, u.unsqueeze(2) - u.unsqueeze(1), 0.0)
    return (weight * regression(residual)).sum((1, 2))
