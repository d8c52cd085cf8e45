"""Pareto metrics on tensors: batched, differentiable where it makes sense, on any device.

Everything takes points [..., n, m] in float32 or float64, an optional mask [..., n], and
maximises unless `maximize` says otherwise. A point with a NaN counts as dominated, that is, as if
it were outside the mask.
"""

from gflow.pareto.archive import ParetoArchive
from gflow.pareto.distances import (
    averaged_hausdorff,
    epsilon_additive,
    epsilon_multiplicative,
    gd,
    gd_plus,
    igd,
    igd_plus,
)
from gflow.pareto.dominance import crowding_distance, non_dominated, non_dominated_rank
from gflow.pareto.hypervolume import (
    hypervolume,
    hypervolume_contributions,
    hypervolume_improvement,
    hypervolume_improvement_alone,
)
from gflow.pareto.polar import Estimate, polar_hypervolume
from gflow.pareto.reference import (
    cube_faces,
    infer_reference_point,
    pareto_front_of,
    reference_directions,
)
from gflow.pareto.scalar import focus_accuracy, hsr, pc_entropy, r2, spacing
from gflow.pareto.topk import modes, top_k_diversity, top_k_reward

__all__ = [
    "Estimate",
    "ParetoArchive",
    "averaged_hausdorff",
    "crowding_distance",
    "cube_faces",
    "epsilon_additive",
    "epsilon_multiplicative",
    "focus_accuracy",
    "gd",
    "gd_plus",
    "hsr",
    "hypervolume",
    "hypervolume_contributions",
    "hypervolume_improvement",
    "hypervolume_improvement_alone",
    "igd",
    "igd_plus",
    "infer_reference_point",
    "modes",
    "non_dominated",
    "non_dominated_rank",
    "pareto_front_of",
    "pc_entropy",
    "polar_hypervolume",
    "r2",
    "reference_directions",
    "spacing",
    "top_k_diversity",
    "top_k_reward",
]
