"""Active learning: which objects to measure next, in rounds, with results in any order.

A `Session` lives in a folder: `ask(n)` proposes a batch, `tell` takes results. Surrogates and
acquisition functions work on features and reward vectors alone. Names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    "DeepEnsemble": "ensemble",
    "GaussianProcess": "surrogates",
    "NoisyImprovement": "acquisition",
    "Round": "rounds",
    "Session": "session",
    "SessionConfig": "settings",
    "SessionError": "settings",
    "UpperConfidence": "acquisition",
    "choose_batch": "acquisition",
    "fit_surrogate": "rounds",
}
__all__ = [*_WHERE]

if TYPE_CHECKING:
    from gflow.active.acquisition import NoisyImprovement as NoisyImprovement
    from gflow.active.acquisition import UpperConfidence as UpperConfidence
    from gflow.active.acquisition import choose_batch as choose_batch
    from gflow.active.ensemble import DeepEnsemble as DeepEnsemble
    from gflow.active.rounds import Round as Round
    from gflow.active.rounds import fit_surrogate as fit_surrogate
    from gflow.active.session import Session as Session
    from gflow.active.settings import SessionConfig as SessionConfig
    from gflow.active.settings import SessionError as SessionError
    from gflow.active.surrogates import GaussianProcess as GaussianProcess


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"gflow.active.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'gflow.active' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
