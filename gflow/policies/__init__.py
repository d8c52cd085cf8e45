"""Policy networks: one trunk, several heads."""

from gflow.policies.common import BackwardKind, fixed_backward_kernel, seeded_weights
from gflow.policies.log_z import LogZ
from gflow.policies.mlp import MLPPolicy
from gflow.policies.reference import Anchored

__all__ = [
    "Anchored",
    "BackwardKind",
    "LogZ",
    "MLPPolicy",
    "fixed_backward_kernel",
    "seeded_weights",
]
