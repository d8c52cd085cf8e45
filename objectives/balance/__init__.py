"""Balance objectives: flow matching, detailed, trajectory and sub-trajectory balance, VarGrad."""

from gflow.objectives.balance.functions import (
    detailed_balance,
    dropout_variance,
    energy_decomposition,
    flow_matching,
    potentials,
    spread_energy,
    subtrajectory_balance,
    trajectory_balance,
    trajectory_score,
    vargrad,
)
from gflow.objectives.balance.gradient import GradientBalance
from gflow.objectives.balance.objectives import (
    BalanceObjective,
    DetailedBalance,
    FlowMatching,
    SubTrajectoryBalance,
    TrajectoryBalance,
    VarGrad,
)
from gflow.objectives.balance.potential import POTENTIALS, Potential
from gflow.objectives.balance.regression import REGRESSIONS
from gflow.objectives.balance.soft_q import SoftQLearning, move_towards, soft_bellman_target
from gflow.objectives.balance.terms import (
    BackwardLikelihood,
    BackwardUniformity,
    EnergyDecomposition,
)
from gflow.objectives.term import Sum, Term

__all__ = [
    "POTENTIALS",
    "REGRESSIONS",
    "BackwardLikelihood",
    "BackwardUniformity",
    "BalanceObjective",
    "DetailedBalance",
    "EnergyDecomposition",
    "FlowMatching",
    "GradientBalance",
    "Potential",
    "SoftQLearning",
    "SubTrajectoryBalance",
    "Sum",
    "Term",
    "TrajectoryBalance",
    "VarGrad",
    "detailed_balance",
    "dropout_variance",
    "energy_decomposition",
    "flow_matching",
    "move_towards",
    "potentials",
    "soft_bellman_target",
    "spread_energy",
    "subtrajectory_balance",
    "trajectory_balance",
    "trajectory_score",
    "vargrad",
]
