"""The arithmetic of balance objectives, line by line as in the papers.

For one trajectory s_0 -> ... -> s_T (stop step included) let x_k = log P_F(k) - log P_B(k),
c_k = x_0 + ... + x_{k-1}, phi_k = log F(s_k) for k < T and phi_T = log R(x). With the potentials
u_k = phi_k - c_k every balance residual is a difference u_i - u_j: neighbours for detailed
balance, both ends for trajectory balance, all pairs for sub-trajectory balance.

Tensors are padded batches: [B, T] over transitions, [B, T + 1] over states, `lengths` [B] int64;
padding contributes exactly 0.
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
    """Residual log Z + sum log P_F - sum log P_B - log R of each trajectory, [B] (2201.13259).

    With a frozen prior's log P_F in place of log P_B it is relative trajectory balance, whose
    optimum is proportional to prior(x) R(x) (2405.20971).
    """
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


def potentials(phi: Tensor, log_pf: Tensor, log_pb: Tensor, lengths: Tensor) -> Tensor:
    """u_k = phi_k - c_k for k = 0..T, [B, T + 1]; entries past a trajectory's end are 0.

    `phi` [B, T + 1] is log F of each state, log R of the terminal one.
    """
    walked = torch.nn.functional.pad((log_pf - log_pb).cumsum(1), (1, 0))
    column = torch.arange(phi.shape[1], device=phi.device)
    return torch.where(column <= lengths.unsqueeze(1), phi - walked, 0.0)


def detailed_balance(u: Tensor, lengths: Tensor) -> Tensor:
    """Residual u_k - u_{k+1} of every transition, [B, T] (2111.09266)."""
    column = torch.arange(u.shape[1] - 1, device=u.device)
    return torch.where(column < lengths.unsqueeze(1), u[:, :-1] - u[:, 1:], 0.0)


def subtrajectory_balance(
    u: Tensor, lengths: Tensor, lam: float, regression: Regression = squared
) -> Tensor:
    """Weighted mean of g(u_i - u_j) over all i < j, weights lam^(j - i), [B] (2209.12782).

    lam -> 0 gives detailed balance averaged per trajectory, lam -> infinity trajectory balance.
    For lam = 1 and squares the double sum is a variance, computed in linear time:
    sum_{i<j} (u_i - u_j)^2 = (T + 1)^2 Var(u).
    """
    column = torch.arange(u.shape[1], device=u.device)
    if lam == 1 and regression is squared:
        count = lengths + 1
        mean = u.sum(1) / count
        deviations = torch.where(column < count.unsqueeze(1), u - mean.unsqueeze(1), 0.0)
        return 2 * deviations.square().sum(1) / lengths.clamp(min=1)
    distance = column - column.unsqueeze(1)
    pairs = (distance > 0) & (column <= lengths[:, None, None])
    # Relative to the heaviest pair: lam ** T leaves float32 for long trajectories.
    heaviest = (lengths if lam > 1 else torch.ones_like(lengths))[:, None, None]
    log_weight = (distance - heaviest).to(u.dtype) * math.log(lam)
    weight = torch.where(pairs, log_weight.exp(), 0.0)
    residual = torch.where(pairs, u.unsqueeze(2) - u.unsqueeze(1), 0.0)
    total = weight.sum((1, 2))
    return (weight * regression(residual)).sum((1, 2)) / total.where(total > 0, 1.0)


def flow_matching(log_inflow: Tensor, log_outflow: Tensor, epsilon: float = 0.0) -> Tensor:
    """Residual log(eps + inflow) - log(eps + outflow) of each state (2106.04399)."""
    if epsilon > 0:
        floor = log_inflow.new_tensor(math.log(epsilon))
        log_inflow, log_outflow = log_inflow.logaddexp(floor), log_outflow.logaddexp(floor)
    return log_inflow - log_outflow


def spread_energy(energy: Tensor, log_reward: Tensor, construction: Tensor) -> Tensor:
    """Edge energies psi_k + (log R - sum_l psi_l) / n, which add up to log R, [B, T] (2310.03301).

    Args:
        energy: [B, T], 0 outside `construction`.
        log_reward: [B].
        construction: [B, T] bool, the n transitions of each trajectory that share the reward.
    """
    count = construction.sum(1).clamp(min=1)
    missing = (log_reward - energy.sum(1)) / count
    return torch.where(construction, energy + missing.unsqueeze(1), 0.0)


def energy_decomposition(
    energy: Tensor, log_reward: Tensor, construction: Tensor, keep: Tensor
) -> Tensor:
    """Residual (n / sum m) sum_k m_k psi_k - log R under edge dropout, [B] (2310.03301).

    `keep` [B, T] bool is m; `dropout_variance` gives what this adds to the square on average.
    """
    keep = keep & construction
    share = construction.sum(1).to(energy.dtype) / keep.sum(1)
    return share * torch.where(keep, energy, 0.0).sum(1) - log_reward


def dropout_variance(energy: Tensor, construction: Tensor, dropout: float) -> Tensor:
    """Variance of sum_k psi_k under edge dropout, [B].

    With M of n edges kept at random the estimate (n / M) sum_k m_k psi_k has variance
    n^2 S^2 (1 / M - 1 / n), S^2 the unbiased variance of the psi_k (sampling without
    replacement); M is Binomial(n, 1 - dropout) given M >= 1.
    """
    n = construction.sum(1, keepdim=True).to(energy.dtype).clamp(min=1)
    mean = energy.sum(1, keepdim=True) / n
    deviations = torch.where(construction, energy - mean, 0.0)
    spread = deviations.square().sum(1) / (n[:, 0] - 1).clamp(min=1)
    kept = torch.arange(1, energy.shape[1] + 1, dtype=energy.dtype, device=energy.device)
    lost = (n - kept).clamp(min=0)
    log_p = -torch.lgamma(kept + 1) - torch.lgamma(lost + 1)
    log_p = log_p + kept * math.log1p(-dropout) + lost * math.log(dropout)
    chance = torch.where(kept <= n, log_p, -torch.inf).softmax(1)
    return n[:, 0].square() * spread * (chance * (1 / kept - 1 / n)).sum(1)
