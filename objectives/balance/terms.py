"""Terms that accompany a balance objective: what trains P_B or learned energies."""

from __future__ import annotations

from dataclasses import dataclass

from gflow.mdp import Evaluation, Loss, Trajectories
from gflow.objectives.balance import functions
from gflow.objectives.balance.potential import complete_log_rewards
from gflow.objectives.term import Term


@dataclass(frozen=True)
class BackwardUniformity(Term):
    """KL(uniform || P_B), which keeps a learned backward policy near the uniform one."""

    @property
    def needs(self) -> frozenset[str]:
        """The divergence itself."""
        return frozenset({"backward_kl"})

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """Mean over the states that construction steps enter."""
        assert evaluation.backward_kl is not None
        count = evaluation.construction.sum().clamp(min=1)
        value = evaluation.backward_kl.sum() / count
        return Loss(value, {"backward_kl": value.detach()}, count)


@dataclass(frozen=True)
class BackwardLikelihood(Term):
    """-log P_B(trajectory | x): the backward policy imitates the trajectories of the batch.

    On fresh trajectories it is trajectory likelihood maximisation (2024, arXiv 2410.15474), on
    replayed ones the pessimistic backward policy (2024, arXiv 2405.16012). Either goes with a
    balance objective that has `backward_gradient=False`.
    """

    @property
    def needs(self) -> frozenset[str]:
        """log P_B."""
        return frozenset({"log_pb"})

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """Mean over trajectories of -sum_k log P_B."""
        assert evaluation.log_pb is not None
        if not evaluation.log_pb.requires_grad:
            raise ValueError("the backward policy has no parameters: build one with 'learned'")
        value = -evaluation.log_pb.sum(1).mean()
        return Loss(value, {"log_pb": -value.detach()}, batch.n)


@dataclass(frozen=True)
class EnergyDecomposition(Term):
    """Learned edge energies that add up to log R (LED-GFN, 2023, arXiv 2310.03301).

    Edge dropout enters by its exact expectation instead of random masks: the square of the full
    residual plus the variance that dropping edges adds.

    Attributes:
        dropout: probability of leaving out an edge.
    """

    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"edge dropout must be in [0, 1), not {self.dropout}")

    @property
    def needs(self) -> frozenset[str]:
        """The energies."""
        return frozenset({"energy"})

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """Mean over trajectories of the expected squared residual."""
        energy, edges = evaluation.energy, evaluation.construction
        assert energy is not None
        log_r = complete_log_rewards(batch, energy, "a learned energy decomposition")
        has_edges = edges.any(1)
        residual = (energy.sum(1) - log_r).where(has_edges, 0.0)
        value = residual.square()
        if self.dropout > 0:
            value = value + functions.dropout_variance(energy, edges, self.dropout)
        metrics = {"energy_residual": residual.detach().abs().mean()}
        return Loss(value.mean(), metrics, batch.n)
