"""Matching objectives: regress a velocity on clean samples, weighed or not."""

from gflow.objectives.matching.functions import (
    exponential_weights,
    interpolate,
    log_likelihood_surrogate,
    logit_normal_times,
    matching_error,
    shifted_times,
    stratified_times,
)
from gflow.objectives.matching.objective import Draws, flow_matching

__all__ = [
    "Draws",
    "exponential_weights",
    "flow_matching",
    "interpolate",
    "log_likelihood_surrogate",
    "logit_normal_times",
    "matching_error",
    "shifted_times",
    "stratified_times",
]
