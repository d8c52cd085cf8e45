"""Rollouts, replay, and the strategies a Trainer draws its batches from."""

from gflow.sampling.combine import (
    Averaged,
    Hindsight,
    Informative,
    Joined,
    WithReplay,
    join,
    retrace,
)
from gflow.sampling.ensemble import Bootstrap, EnsembleConditions, EnsemblePolicy
from gflow.sampling.greedy import MIXES, ActionValues, Greedy, QLearning
from gflow.sampling.local_search import FILTERS, LocalSearch
from gflow.sampling.replay import Replay
from gflow.sampling.rollout import Exploration, compile_block, rollout, step_block
from gflow.sampling.scoring import Scored, Scorer
from gflow.sampling.strategies import FromData, OnPolicy, Strategy

__all__ = [
    "FILTERS",
    "MIXES",
    "ActionValues",
    "Averaged",
    "Bootstrap",
    "EnsembleConditions",
    "EnsemblePolicy",
    "Exploration",
    "FromData",
    "Greedy",
    "Hindsight",
    "Informative",
    "Joined",
    "LocalSearch",
    "OnPolicy",
    "QLearning",
    "Replay",
    "Scored",
    "Scorer",
    "Strategy",
    "WithReplay",
    "compile_block",
    "join",
    "retrace",
    "rollout",
    "step_block",
]
