"""States, trajectories and the environment contract: what every part of gflow shares.

An environment is a batched, stateless MDP over a pointed DAG (GFlowNet Foundations, 2021,
arXiv 2111.09266): construction starts at `initial`, each `step` takes one action per row, and a
row is finished when its `done` flag is set. Backward moves undo forward ones one at a time.
"""

from gflow.mdp.contracts import Deferred, Heads, Loss, Objective, Oracle, Policy, Reward
from gflow.mdp.environment import Environment
from gflow.mdp.evaluation import Evaluation, decisions, evaluate, evaluate_steps, stop_action
from gflow.mdp.states import Condition, States, concat_states, shared
from gflow.mdp.trajectories import (
    Trajectories,
    concat_trajectories,
    pad_trajectories,
    trim_trajectories,
)

__all__ = [
    "Condition",
    "Deferred",
    "Environment",
    "Evaluation",
    "Heads",
    "Loss",
    "Objective",
    "Oracle",
    "Policy",
    "Reward",
    "States",
    "Trajectories",
    "concat_states",
    "concat_trajectories",
    "decisions",
    "evaluate",
    "evaluate_steps",
    "pad_trajectories",
    "shared",
    "stop_action",
    "trim_trajectories",
]
