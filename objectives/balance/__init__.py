"""Balance objectives: trajectory, sub-trajectory and detailed balance, and VarGrad."""

from gflow.objectives.balance.functions import (
    detailed_balance,
    potentials,
    subtrajectory_balance,
    trajectory_balance,
    trajectory_score,
    vargrad,
)
from gflow.objectives.balance.objectives import (
    BalanceObjective,
    DetailedBalance,
    SubTrajectoryBalance,
    TrajectoryBalance,
    VarGrad,
)
from gflow.objectives.balance.regression import REGRESSIONS

__all__ = [
    "REGRESSIONS",
    "BalanceObjective",
    "DetailedBalance",
    "SubTrajectoryBalance",
    "TrajectoryBalance",
    "VarGrad",
    "detailed_balance",
    "potentials",
    "subtrajectory_balance",
    "trajectory_balance",
    "trajectory_score",
    "vargrad",
]
