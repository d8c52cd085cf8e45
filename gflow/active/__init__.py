"""Active learning: which objects to measure next, in rounds, with results in any order.

A `Session` lives in a folder: `ask(n)` proposes a batch, `tell` takes results. Surrogates and
acquisition functions work on features and reward vectors alone.
"""

from gflow.active.acquisition import NoisyImprovement, UpperConfidence, choose_batch
from gflow.active.ensemble import DeepEnsemble
from gflow.active.rounds import Round, fit_surrogate
from gflow.active.session import Session, SessionError, Told
from gflow.active.settings import SessionConfig
from gflow.active.surrogates import GaussianProcess, Surrogate

__all__ = [
    "DeepEnsemble",
    "GaussianProcess",
    "NoisyImprovement",
    "Round",
    "Session",
    "SessionConfig",
    "SessionError",
    "Surrogate",
    "Told",
    "UpperConfidence",
    "choose_batch",
    "fit_surrogate",
]
