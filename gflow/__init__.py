"""gflow: many different good candidates under conflicting goals.

Everything below is imported on first use, so `import gflow` costs little more than torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch as torch

__version__ = "0.1.0"

_WHERE = {
    "Conditions": "gflow.conditions",
    "InverseTemperature": "gflow.conditions",
    "Environment": "gflow.mdp",
    "States": "gflow.mdp",
    "Trajectories": "gflow.mdp",
    "Reward": "gflow.mdp",
    "evaluate": "gflow.mdp",
    "MLPPolicy": "gflow.policies",
    "OnPolicy": "gflow.sampling",
    "Replay": "gflow.sampling",
    "Scorer": "gflow.sampling",
    "WithReplay": "gflow.sampling",
    "rollout": "gflow.sampling",
    "OracleRunner": "gflow.oracles",
    "CandidateStore": "gflow.store",
    "Events": "gflow.training",
    "Trainer": "gflow.training",
    "TrainerSettings": "gflow.training",
    "make_task": "gflow.tasks",
}
__all__ = [*_WHERE, "__version__"]

if TYPE_CHECKING:
    from gflow.conditions import Conditions as Conditions
    from gflow.conditions import InverseTemperature as InverseTemperature
    from gflow.mdp import Environment as Environment
    from gflow.mdp import Reward as Reward
    from gflow.mdp import States as States
    from gflow.mdp import Trajectories as Trajectories
    from gflow.mdp import evaluate as evaluate
    from gflow.oracles import OracleRunner as OracleRunner
    from gflow.policies import MLPPolicy as MLPPolicy
    from gflow.sampling import OnPolicy as OnPolicy
    from gflow.sampling import Replay as Replay
    from gflow.sampling import Scorer as Scorer
    from gflow.sampling import WithReplay as WithReplay
    from gflow.sampling import rollout as rollout
    from gflow.store import CandidateStore as CandidateStore
    from gflow.tasks import make_task as make_task
    from gflow.training import Events as Events
    from gflow.training import Trainer as Trainer
    from gflow.training import TrainerSettings as TrainerSettings


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'gflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
