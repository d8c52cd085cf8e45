"""How good is a sampler: the truth on small spaces, bounds and estimates elsewhere."""

from gflow.estimators.exact import (
    Distribution,
    Flows,
    distinct,
    exact_flows,
    flow_residuals,
    jensen_shannon,
    kl_divergence,
    policy_log_pb,
    terminating_distribution,
    total_variation,
)
from gflow.estimators.rewards import (
    Correlation,
    RewardTest,
    anderson_darling,
    correlation,
    modes_found,
    reward_test,
)
from gflow.estimators.sampled import (
    Bounds,
    eubo,
    log_probability,
    log_weights,
    log_z_bounds,
    target_trajectories,
)
from gflow.estimators.samples import mode_shares, squared_mmd, wasserstein

__all__ = [
    "Bounds",
    "Correlation",
    "Distribution",
    "Flows",
    "RewardTest",
    "anderson_darling",
    "correlation",
    "distinct",
    "eubo",
    "exact_flows",
    "flow_residuals",
    "jensen_shannon",
    "kl_divergence",
    "log_probability",
    "log_weights",
    "log_z_bounds",
    "mode_shares",
    "modes_found",
    "policy_log_pb",
    "reward_test",
    "squared_mmd",
    "target_trajectories",
    "terminating_distribution",
    "total_variation",
    "wasserstein",
]
