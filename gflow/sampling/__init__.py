"""Rollouts, replay, and the strategies a Trainer draws its batches from."""

from gflow.sampling.replay import Replay
from gflow.sampling.rollout import Exploration, compile_block, rollout, step_block
from gflow.sampling.scoring import Scored, Scorer
from gflow.sampling.strategies import OnPolicy, Strategy, WithReplay

__all__ = [
    "Exploration",
    "OnPolicy",
    "Replay",
    "Scored",
    "Scorer",
    "Strategy",
    "WithReplay",
    "compile_block",
    "rollout",
    "step_block",
]
