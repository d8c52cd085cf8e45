"""Soft Q-learning in entropy-regularised terms: detailed balance with a target network."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gflow.mdp import Evaluation, Loss, Policy, Trajectories, evaluate
from gflow.objectives.balance.objectives import BalanceObjective
from gflow.objectives.balance.potential import complete_log_rewards, with_end


def soft_bellman_target(
    log_pb: Tensor,
    next_value: Tensor,
    log_policy: Tensor,
    munchausen: float = 0.0,
    clip: float = -100.0,
) -> Tensor:
    """y_k = log P_B + V(s_{k+1}) + alpha clip(lambda log pi, l0, 0), [B, T] (2310.12934).

    With rewards log P_B on construction steps and log R(x) as the value behind the stop step,
    entropy coefficient lambda = 1 / (1 - alpha) and no discount, the soft-optimal policy is the
    GFlowNet's P_F and V(s) = log F(s).
    """
    bonus = (log_policy / (1 - munchausen)).clamp(min=clip, max=0)
    return log_pb + next_value + munchausen * bonus


@dataclass(frozen=True)
class SoftQLearning(BalanceObjective):
    """Soft (alpha = 0) or Munchausen DQN (GFlowNets as Entropy-Regularized RL, 2023, 2310.12934).

    Q is read off the policy and flow heads, Q(s, a) = V(s) + lambda log P_F(a | s) with
    V = log F, which is any function of (s, a) and has softmax(Q / lambda) = P_F.

    Attributes:
        munchausen: alpha in [0, 1), weight of the policy's own log-probability in the target.
        clip: lower bound l0 of lambda log pi in the target.
        target: policy that evaluates the target; the current one, without gradient, by default.
            Move it by `move_towards` after each step.
    """

    regression: str = "huber"
    munchausen: float = 0.0
    clip: float = -100.0
    target: Policy | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.munchausen < 1 or self.clip >= 0:
            raise ValueError(
                f"soft Q-learning needs 0 <= munchausen < 1 and clip < 0, not "
                f"munchausen={self.munchausen}, clip={self.clip}"
            )
        if self.relative:
            raise ValueError("soft Q-learning takes its rewards from log P_B, not from a prior")

    @property
    def needs(self) -> frozenset[str]:
        """log P_B and the value head."""
        return frozenset({"log_pb", "log_flow"})

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """Mean over transitions of g(Q(s_k, a_k) - y_k)."""
        log_flow, log_pb = evaluation.log_flow, evaluation.log_pb
        assert log_flow is not None and log_pb is not None
        log_r = complete_log_rewards(batch, log_flow, "soft Q-learning")
        with torch.no_grad():
            old = evaluation
            if self.target is not None:
                old = evaluate(self.target, batch, frozenset({"log_flow"}))
            assert old.log_flow is not None
            value = with_end(old.log_flow, log_r, batch)[:, 1:]
            wanted = soft_bellman_target(log_pb, value, old.log_pf, self.munchausen, self.clip)
        q = log_flow + evaluation.log_pf / (1 - self.munchausen)
        error = torch.where(batch.valid, q - wanted, 0.0)
        count = batch.valid.sum()
        metrics = {
            "log_z": log_flow[:, 0].detach().mean(),
            "residual": error.detach().abs().sum() / count,
        }
        return Loss(self.g(error).sum() / count, metrics, count)


@torch.no_grad()
def move_towards(target: torch.nn.Module, source: torch.nn.Module, rate: float) -> None:
    """Move the target's parameters to (1 - rate) target + rate source, in place."""
    for old, new in zip(target.parameters(), source.parameters(), strict=True):
        old.lerp_(new, rate)
