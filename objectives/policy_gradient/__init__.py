"""Policy optimisation with reward vectors: GRPO, GDPO and their family as one formula."""

from gflow.objectives.policy_gradient.advantage import Advantage
from gflow.objectives.policy_gradient.advantages import (
    Gate,
    Moments,
    advantage,
    generalized_advantage,
    group_relative,
    moments,
    overlong_penalty,
    whiten,
)
from gflow.objectives.policy_gradient.aggregation import AGGREGATIONS, aggregate, step_weights
from gflow.objectives.policy_gradient.groups import Groups
from gflow.objectives.policy_gradient.memory import Memory
from gflow.objectives.policy_gradient.objective import PolicyGradient
from gflow.objectives.policy_gradient.path_objective import PathGradient
from gflow.objectives.policy_gradient.ratios import RATIOS
from gflow.objectives.policy_gradient.regularizers import KL_ESTIMATES
from gflow.objectives.policy_gradient.surrogates import (
    clipped_weight,
    dynamic_bounds,
    ppo_clip,
    reinforce,
    score_difference,
)

__all__ = [
    "AGGREGATIONS",
    "KL_ESTIMATES",
    "RATIOS",
    "Advantage",
    "Gate",
    "Groups",
    "Memory",
    "Moments",
    "PathGradient",
    "PolicyGradient",
    "advantage",
    "aggregate",
    "clipped_weight",
    "dynamic_bounds",
    "generalized_advantage",
    "group_relative",
    "moments",
    "overlong_penalty",
    "ppo_clip",
    "reinforce",
    "score_difference",
    "step_weights",
    "whiten",
]
