"""gflow as a contestant of `benchmarks/speed.py`: `python with_gflow.py SETTING [--compile]`."""

from __future__ import annotations

import sys

import torch
from turns import SETTINGS, Setting, serve

from gflow.conditions import Conditions
from gflow.envs.grids import CornerReward, HyperGrid
from gflow.envs.sequences import AppendSequences, Slots
from gflow.envs.sequences.bits import BitModes, bit_words
from gflow.mdp import Environment, Oracle, Reward, States
from gflow.objectives.balance import TrajectoryBalance
from gflow.policies import MLPPolicy
from gflow.sampling import OnPolicy, Scorer, compile_block, step_block
from gflow.training import Trainer, TrainerSettings


class RandomTable:
    """A reward between 0.001 and 1 for each sequence of 8 letters."""

    rewards = (Reward("reward"),)
    version = "1"
    on_states = True
    seconds = 0.0

    def __init__(self) -> None:
        source = torch.Generator().manual_seed(0)
        self.table = torch.rand(4**8, 1, generator=source).clamp(min=1e-3)
        self.place = 4 ** torch.arange(8)

    def __call__(self, objects: States) -> torch.Tensor:
        return self.table[(objects.data * self.place).sum(1)]


def problem(setting: Setting) -> tuple[Environment, Oracle, str]:
    """Environment, rewards and kind of backward policy."""
    if setting.problem == "tfbind8":
        return AppendSequences("ACGT", 8), RandomTable(), "tree"
    if setting.problem == "bits":
        return Slots(bit_words(8), 15), BitModes(8), "uniform"
    return HyperGrid(4, setting.side), CornerReward(setting.side), "learned"


def main(name: str, compiled: bool) -> None:
    torch.set_num_threads(1)
    setting = SETTINGS[name]
    env, oracle, backward = problem(setting)
    policy = MLPPolicy(env, (256, 256), backward=backward)  # type: ignore[arg-type]
    block = compile_block() if compiled else step_block
    score = Scorer(env, oracle)
    sampler = OnPolicy(policy, Conditions(), score, setting.batch_size, seed=0, block=block)
    trainer = Trainer(policy, TrajectoryBalance(), sampler, TrainerSettings(log_every=0))

    def mean_length() -> float:
        assert trainer.batch is not None
        return float(trainer.batch.lengths.double().mean())

    serve(setting, lambda n: trainer.run(trainer.step + n), mean_length)


if __name__ == "__main__":
    main(sys.argv[1], "--compile" in sys.argv)
