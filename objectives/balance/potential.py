"""What stands for log F(s_k) in a balance residual: the switch between the flow-based methods.

Each potential gives phi [B, T + 1] for every state of the batch, the boundary phi_T = log R(x)
included. Any of them works with detailed, sub-trajectory and trajectory balance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gflow.mdp import Evaluation, Trajectories
from gflow.objectives.balance.functions import spread_energy


class Potential(NamedTuple):
    """One way to get phi.

    Attributes:
        needs: what `evaluate` must deliver for it, beside log P_B.
        phi: (evaluation, batch) -> [B, T + 1].
        batch_needs: optional fields of the batch that it reads.
    """

    needs: frozenset[str]
    phi: Callable[[Evaluation, Trajectories], Tensor]
    batch_needs: frozenset[str] = frozenset()


def usable_lengths(batch: Trajectories) -> Tensor:
    """[B], transitions whose two ends are known: the last one of a cut-short trajectory is not."""
    return batch.lengths if batch.complete is None else batch.lengths - (~batch.complete).long()


def log_rewards(batch: Trajectories, like: Tensor) -> Tensor:
    """The batch's log-rewards [B] in the dtype of the policy's outputs, checked."""
    if batch.log_reward is None:
        raise ValueError("the batch has no log_reward: score it before calling an objective")
    return batch.log_reward.to(like.dtype)


def complete_log_rewards(batch: Trajectories, like: Tensor, what: str) -> Tensor:
    """`log_rewards`, for objectives that cannot learn from cut-short trajectories."""
    if batch.complete is not None and not bool(batch.complete.all()):
        raise ValueError(f"{what} needs complete trajectories, and some of the batch are cut short")
    return log_rewards(batch, like)


def partial_log_rewards(batch: Trajectories, like: Tensor, what: str) -> Tensor:
    """Log-rewards of all states but the last [B, T], checked."""
    if batch.partial_log_reward is None:
        raise ValueError(
            f"{what} needs the log-reward of unfinished objects: set partial_log_reward [B, T + 1]"
        )
    return batch.partial_log_reward[:, :-1].to(like.dtype)


def with_end(phi: Tensor, end: Tensor, batch: Trajectories) -> Tensor:
    """phi [B, T] of the states transitions leave, and `end` [B] where they end.

    The end of a cut-short trajectory lies behind its usable transitions and does not matter.
    """
    column = torch.arange(phi.shape[1] + 1, device=phi.device)
    at_end = column == batch.lengths.unsqueeze(1)
    return torch.where(at_end, end.unsqueeze(1), torch.nn.functional.pad(phi, (0, 1)))


def _flow(evaluation: Evaluation, batch: Trajectories) -> Tensor:
    """phi_k = log F(s_k) (2111.09266)."""
    assert evaluation.log_flow is not None
    return with_end(evaluation.log_flow, log_rewards(batch, evaluation.log_flow), batch)


def _forward_looking(evaluation: Evaluation, batch: Trajectories) -> Tensor:
    """phi_k = log F~(s_k) + l(s_k), l the partial log-reward; log F~(x) = 0 (2302.01687)."""
    assert evaluation.log_flow is not None
    partial = partial_log_rewards(batch, evaluation.log_flow, "a forward-looking objective")
    end = log_rewards(batch, evaluation.log_flow)
    return with_end(evaluation.log_flow + partial, end, batch)


def _energy(evaluation: Evaluation, batch: Trajectories) -> Tensor:
    """phi_k = log F~(s_k) + sum_{l<k} e_l, learned e that add up to log R (2310.03301).

    The energies are constants here: their own loss is `EnergyDecomposition`.
    """
    assert evaluation.log_flow is not None and evaluation.energy is not None
    log_r = complete_log_rewards(batch, evaluation.log_flow, "a learned energy decomposition")
    energy = spread_energy(evaluation.energy.detach(), log_r, evaluation.construction)
    earned = torch.nn.functional.pad(energy.cumsum(1)[:, :-1], (1, 0))
    return with_end(evaluation.log_flow + earned, log_r, batch)


def _modified(evaluation: Evaluation, batch: Trajectories) -> Tensor:
    """phi_k = log R(s_k) - log P_F(stop | s_k), where every state may stop (2202.13903)."""
    assert evaluation.log_stop is not None
    if not bool(torch.isfinite(evaluation.log_stop).all()):
        raise ValueError("modified balance needs a stop action in every state; one state has none")
    partial = partial_log_rewards(batch, evaluation.log_stop, "modified balance")
    end = log_rewards(batch, evaluation.log_stop)
    return with_end(partial - evaluation.log_stop, end, batch)


def _teleport(evaluation: Evaluation, batch: Trajectories) -> Tensor:
    """log R(x | y) on every edge: phi_k = log F(s_k | y) + k log R, log F(x | y) = 0 (2310.03419).

    With log R = 0 where the outcome x = y was reached and log eps where it was missed.
    """
    assert evaluation.log_flow is not None
    log_r = complete_log_rewards(batch, evaluation.log_flow, "outcome teleportation")
    column = torch.arange(batch.valid.shape[1], device=log_r.device)
    phi = evaluation.log_flow + column * log_r.unsqueeze(1)
    return with_end(phi, batch.lengths * log_r, batch)


_PARTIAL = frozenset({"partial_log_reward"})

POTENTIALS: dict[str, Potential] = {
    "flow": Potential(frozenset({"log_flow"}), _flow),
    "forward_looking": Potential(frozenset({"log_flow"}), _forward_looking, _PARTIAL),
    "energy": Potential(frozenset({"log_flow", "energy"}), _energy),
    "modified": Potential(frozenset({"log_stop"}), _modified, _PARTIAL),
    "teleport": Potential(frozenset({"log_flow"}), _teleport),
}
