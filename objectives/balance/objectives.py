"""Balance objectives as settings: which pairs of potentials, which regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gflow.mdp import Evaluation, Loss, Policy, Trajectories, evaluate
from gflow.objectives.balance import functions
from gflow.objectives.balance.regression import REGRESSIONS, Regression


def log_rewards(batch: Trajectories, like: Tensor) -> Tensor:
    """The batch's log-rewards in the dtype of the policy's outputs, checked."""
    if batch.log_reward is None:
        raise ValueError("the batch has no log_reward: score it before calling an objective")
    return batch.log_reward.to(like.dtype)


@dataclass(frozen=True)
class BalanceObjective:
    """Shared settings of the balance objectives.

    Attributes:
        regression: name of the loss on residuals, a key of `REGRESSIONS`.
    """

    regression: str = "squared"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.regression not in REGRESSIONS:
            raise ValueError(
                f"unknown regression {self.regression!r}: choose from {', '.join(REGRESSIONS)}"
            )

    @property
    def g(self) -> Regression:
        """The regression loss as a function."""
        return REGRESSIONS[self.regression]

    def __call__(self, policy: Policy, batch: Trajectories) -> Loss:
        """The loss of a batch of trajectories with log-rewards."""
        evaluation = evaluate(policy, batch, self.needs)
        return self.loss(evaluation, batch)

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """The loss from re-evaluated trajectories."""
        raise NotImplementedError


@dataclass(frozen=True)
class TrajectoryBalance(BalanceObjective):
    """One residual per complete trajectory (Trajectory Balance, 2022, arXiv 2201.13259)."""

    needs: ClassVar[frozenset[str]] = frozenset({"log_pb_total", "log_z"})

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """Mean over trajectories of g(residual)."""
        log_pf, log_pb, _, log_z = evaluation[:4]
        assert log_pb is not None and log_z is not None
        log_r = log_rewards(batch, log_pf)
        residual = functions.trajectory_balance(log_pf, log_pb, log_z, log_r)
        metrics = {"log_z": log_z.detach().mean(), "residual": residual.detach().abs().mean()}
        return Loss(self.g(residual).mean(), metrics, batch.n)


@dataclass(frozen=True)
class VarGrad(BalanceObjective):
    """Trajectory balance with log Z as the mean of each group (2023, arXiv 2302.05446)."""

    needs: ClassVar[frozenset[str]] = frozenset({"log_pb_total"})

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """Mean over trajectories of g(centred score); the whole batch is one group by default."""
        log_pf, log_pb, _, _ = evaluation[:4]
        assert log_pb is not None
        score = functions.trajectory_score(log_pf, log_pb, log_rewards(batch, log_pf))
        group = batch.group
        if group is None:
            group = torch.zeros(batch.n, dtype=torch.int64, device=score.device)
        residual = functions.vargrad(score, group)
        metrics = {"log_z": -score.detach().mean(), "residual": residual.detach().abs().mean()}
        return Loss(self.g(residual).mean(), metrics, batch.n)


@dataclass(frozen=True)
class DetailedBalance(BalanceObjective):
    """One residual per transition (GFlowNet Foundations, 2021, arXiv 2111.09266)."""

    needs: ClassVar[frozenset[str]] = frozenset({"log_pb", "log_flow"})

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """Mean over all real transitions of g(residual)."""
        u = _potentials(evaluation, batch)
        residual = functions.detailed_balance(u, batch.valid)
        count = batch.valid.sum()
        value = torch.where(batch.valid, self.g(residual), 0.0).sum() / count
        return Loss(value, _flow_metrics(evaluation, residual, count), count)


@dataclass(frozen=True)
class SubTrajectoryBalance(BalanceObjective):
    """All sub-trajectories, geometrically weighted (2022, arXiv 2209.12782).

    Attributes:
        lam: geometric factor; small is detailed balance, large is trajectory balance.
    """

    lam: float = 0.9
    needs: ClassVar[frozenset[str]] = frozenset({"log_pb", "log_flow"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lam > 0:
            raise ValueError(f"sub-trajectory balance needs lam > 0, not {self.lam}")

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """Mean over trajectories of the weighted mean over sub-trajectories."""
        u = _potentials(evaluation, batch)
        value = functions.subtrajectory_balance(u, batch.valid, self.lam, self.g).mean()
        ends = u[:, 0] - u.gather(1, batch.lengths.unsqueeze(1)).squeeze(1)
        return Loss(value, _flow_metrics(evaluation, ends, batch.n), batch.n)


def _potentials(evaluation: Evaluation, batch: Trajectories) -> Tensor:
    log_pf, log_pb, log_flow, _ = evaluation[:4]
    assert log_pb is not None and log_flow is not None
    log_r = log_rewards(batch, log_pf)
    return functions.potentials(log_flow, log_pf, log_pb, log_r, batch.valid)


def _flow_metrics(
    evaluation: Evaluation, residual: Tensor, count: Tensor | int
) -> dict[str, Tensor]:
    assert evaluation.log_flow is not None
    return {
        "log_z": evaluation.log_flow[:, 0].detach().mean(),
        "residual": residual.detach().abs().sum() / count,
    }
