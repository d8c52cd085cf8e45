"""Balance objectives as settings: which pairs, which potential, which regression, which P_B."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gflow.mdp import Deferred, Environment, Evaluation, Loss, Policy, Trajectories, evaluate
from gflow.objectives.balance import functions
from gflow.objectives.balance.potential import (
    POTENTIALS,
    complete_log_rewards,
    log_rewards,
    usable_lengths,
)
from gflow.objectives.balance.regression import REGRESSIONS, Regression
from gflow.objectives.term import Term, check_choice, require_densities


@dataclass(frozen=True)
class BalanceObjective(Term):
    """Shared switches of the balance objectives.

    Attributes:
        regression: name of the loss on residuals, a key of `REGRESSIONS`.
        backward_gradient: the residual trains a learned P_B too; off where P_B has a loss of its
            own.
        relative: P_F of a frozen prior sampler takes the place of P_B, so that the optimum is
            proportional to prior(x) R(x) (Relative Trajectory Balance, 2024, arXiv 2405.20971).
        prior: that sampler, on the same trajectory space; give it by `dataclasses.replace`.
    """

    regression: str = "squared"
    backward_gradient: bool = True
    relative: bool = False
    prior: Policy | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_choice("regression", self.regression, REGRESSIONS)
        if self.prior is not None and not self.relative:
            raise ValueError(f"{type(self).__name__} has a prior: set relative=True to use it")

    @property
    def g(self) -> Regression:
        """The regression loss as a function."""
        return REGRESSIONS[self.regression]

    def check(self, env: Environment) -> None:
        """Refuse what any term refuses; a prior's steps need densities as those of P_B do."""
        super().check(env)
        if self.relative:
            require_densities(env, type(self).__name__)

    def _needs(self, log_pb: str, *more: str) -> frozenset[str]:
        return frozenset(more) if self.relative else frozenset({log_pb, *more})

    def _log_pb(self, evaluation: Evaluation, batch: Trajectories) -> Tensor:
        """log P_B, or the prior's log P_F, [B, T]."""
        if not self.relative:
            assert evaluation.log_pb is not None
            log_pb = evaluation.log_pb
            return log_pb if self.backward_gradient else log_pb.detach()
        if self.prior is None:
            raise ValueError(
                f"relative {type(self).__name__} has no prior sampler: use "
                "dataclasses.replace(objective, prior=policy)"
            )
        with torch.no_grad():
            return evaluate(self.prior, batch, frozenset()).log_pf


def _loss(value: Tensor, log_z: Tensor, residual: Tensor, count: Tensor | int) -> Loss:
    """The loss with what every balance objective logs: its log Z and its mean residual."""
    # A learned log Z is its parameter, which the optimiser is about to change.
    level, off = log_z.detach().mean(), residual.detach()
    metrics = Deferred({"log_z": lambda: level, "residual": lambda: off.abs().sum() / count})
    return Loss(value, metrics, count)


@dataclass(frozen=True)
class VarGrad(BalanceObjective):
    """Trajectory balance with log Z as the mean of each group (2023, arXiv 2302.05446)."""

    @property
    def needs(self) -> frozenset[str]:
        """log P_F and the total log P_B."""
        return self._needs("log_pb_total")

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """Mean over trajectories of g(centred score); the whole batch is one group by default."""
        log_pf, log_pb = evaluation.log_pf, self._log_pb(evaluation, batch)
        log_r = complete_log_rewards(batch, log_pf, "VarGrad")
        score = functions.trajectory_score(log_pf, log_pb, log_r)
        group = batch.group
        if group is None:
            group = torch.zeros(batch.n, dtype=torch.int64, device=score.device)
        residual = functions.vargrad(score, group)
        return _loss(self.g(residual).mean(), -score, residual, batch.n)


@dataclass(frozen=True)
class TrajectoryBalance(BalanceObjective):
    """One residual per complete trajectory (Trajectory Balance, 2022, arXiv 2201.13259).

    Attributes:
        potential: key of `POTENTIALS` whose phi_0 is log Z; by default log Z(c) is learned beside
            the policy.
    """

    potential: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.potential is not None:
            check_choice("potential", self.potential, POTENTIALS)

    @property
    def needs(self) -> frozenset[str]:
        """The total log P_B and what gives log Z."""
        start = {"log_z"} if self.potential is None else POTENTIALS[self.potential].needs
        return self._needs("log_pb_total", *start)

    @property
    def batch_needs(self) -> frozenset[str]:
        """What the potential reads from the batch."""
        return frozenset() if self.potential is None else POTENTIALS[self.potential].batch_needs

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """Mean over trajectories of g(residual)."""
        log_pf, log_pb = evaluation.log_pf, self._log_pb(evaluation, batch)
        log_r = complete_log_rewards(batch, log_pf, "trajectory balance")
        if self.potential is None:
            assert evaluation.log_z is not None
            log_z = evaluation.log_z
        else:
            # phi_0 - phi_T takes the place of log Z - log R; only teleported rewards change phi_T.
            phi = POTENTIALS[self.potential].phi(evaluation, batch)
            log_z, log_r = phi[:, 0], phi.gather(1, batch.lengths.unsqueeze(1)).squeeze(1)
        residual = functions.trajectory_balance(log_pf, log_pb, log_z, log_r)
        return _loss(self.g(residual).mean(), log_z, residual, batch.n)


@dataclass(frozen=True)
class FlowObjective(BalanceObjective):
    """Objectives with residuals inside a trajectory.

    Attributes:
        potential: what stands for log F(s), a key of `POTENTIALS`.
        boundary: the last transition, which knows log R(x), takes part; off where the terminal
            values are ordered instead (`gflow.objectives.ordering`).
    """

    potential: str = "flow"
    boundary: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("potential", self.potential, POTENTIALS)

    @property
    def needs(self) -> frozenset[str]:
        """log P_B and what the potential needs."""
        return self._needs("log_pb", *POTENTIALS[self.potential].needs)

    @property
    def batch_needs(self) -> frozenset[str]:
        """What the potential reads from the batch."""
        return POTENTIALS[self.potential].batch_needs

    def potentials(self, evaluation: Evaluation, batch: Trajectories) -> Tensor:
        """u, [B, T + 1]; u_0 = phi_0 is the log Z it stands for."""
        phi = POTENTIALS[self.potential].phi(evaluation, batch)
        log_pb = self._log_pb(evaluation, batch)
        return functions.potentials(phi, evaluation.log_pf, log_pb, usable_lengths(batch))

    def _lengths(self, batch: Trajectories) -> Tensor:
        """[B], transitions that take part."""
        return usable_lengths(batch) if self.boundary else batch.lengths - 1


@dataclass(frozen=True)
class DetailedBalance(FlowObjective):
    """One residual per transition (GFlowNet Foundations, 2021, arXiv 2111.09266).

    With the potential "modified" the stop step's residual is exactly 0 and is not counted.
    """

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """Mean over all real transitions of g(residual)."""
        u = self.potentials(evaluation, batch)
        residual = functions.detailed_balance(u, self._lengths(batch))
        counted = usable_lengths(batch)
        if self.potential == "modified":
            counted = counted.minimum(evaluation.construction.sum(1))
        count = counted.sum().clamp(min=1)
        return _loss(self.g(residual).sum() / count, u[:, 0], residual, count)


@dataclass(frozen=True)
class SubTrajectoryBalance(FlowObjective):
    """All sub-trajectories, geometrically weighted (2022, arXiv 2209.12782).

    Attributes:
        lam: geometric factor; small is detailed balance, large is trajectory balance.
    """

    lam: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lam > 0:
            raise ValueError(f"sub-trajectory balance needs lam > 0, not {self.lam}")

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """Mean over trajectories of the weighted mean over sub-trajectories."""
        u = self.potentials(evaluation, batch)
        lengths = self._lengths(batch)
        value = functions.subtrajectory_balance(u, lengths, self.lam, self.g).mean()
        ends = u[:, 0] - u.gather(1, lengths.unsqueeze(1)).squeeze(1)
        return _loss(value, u[:, 0], ends, batch.n)


@dataclass(frozen=True)
class FlowMatching(BalanceObjective):
    """Inflow equals outflow in every visited state (2021, arXiv 2106.04399).

    Edge flows are F(s) P_F(s' | s), so that outflows are F(s) itself and P_B plays no part.

    Attributes:
        leaf_weight: weight of the terminal condition; 0 where terminal values are ordered instead.
        epsilon: added to both flows before the logarithm.
    """

    leaf_weight: float = 1.0
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relative:
            raise ValueError("flow matching has no backward policy for a prior to replace")

    @property
    def needs(self) -> frozenset[str]:
        """log F and the flow into each state."""
        return frozenset({"log_flow", "log_inflow"})

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """Mean over interior states, plus `leaf_weight` times the mean over terminal ones."""
        log_flow, inflow = evaluation.log_flow, evaluation.log_inflow
        assert log_flow is not None and inflow is not None
        # Column t of the inflow belongs to state t + 1.
        outflow = torch.nn.functional.pad(log_flow[:, 1:], (0, 1))
        interior = torch.nn.functional.pad(batch.valid[:, 1:], (0, 1))
        residual = functions.flow_matching(inflow, outflow, self.epsilon)
        residual = torch.where(interior, residual, 0.0)
        count = interior.sum()
        value = self.g(residual).sum() / count.clamp(min=1)
        if self.leaf_weight:
            value = value + self.leaf_weight * self._leaf(evaluation, batch)
        return _loss(value, log_flow[:, 0], residual, count.clamp(min=1))

    def _leaf(self, evaluation: Evaluation, batch: Trajectories) -> Tensor:
        """Mean of g(log F(x -> end) - log R(x)) over complete trajectories."""
        assert evaluation.log_flow is not None and evaluation.log_inflow is not None
        leaving = evaluation.log_flow + evaluation.log_pf
        # Without a stop step the terminal state's flow is what flows into it.
        flow = torch.where(evaluation.construction, evaluation.log_inflow, leaving)
        flow = flow.gather(1, batch.lengths.unsqueeze(1) - 1).squeeze(1)
        residual = functions.flow_matching(flow, log_rewards(batch, flow), self.epsilon)
        if batch.complete is not None:
            residual = residual[batch.complete]
        return self.g(residual).sum() / max(len(residual), 1)
