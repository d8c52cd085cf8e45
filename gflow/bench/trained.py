"""Samplers trained by gflow as contestants."""

from __future__ import annotations

from dataclasses import replace

from gflow.assemble import make_sampler, start_log_z, trainer_settings
from gflow.bench.ledger import Ledger
from gflow.config import ConfigError
from gflow.sampling import Scorer
from gflow.scalarize import SCALARIZATIONS
from gflow.setup import Setup
from gflow.training import Trainer
from gflow.training.trainer import Events

FOR_EVER = 2**62


def train(setup: Setup, ledger: Ledger) -> None:
    """Train a method of the catalog until the ledger ends it, noting its metrics at every step.

    Beside what the objective says, a note has the batch's mean rewards and its entropy, that is,
    the mean of -log p of its trajectories as sampled.

    Raises:
        ConfigError: the method wants rewards of unfinished objects, which no budget counts.
    """
    if setup.method.needs_partial_rewards:
        raise ConfigError(
            f"method {setup.method.name!r} is scored on unfinished objects, "
            "which the budget of oracle calls does not count"
        )
    scorer = Scorer(setup.task.env, ledger, SCALARIZATIONS[setup.scalarization])
    sampler = make_sampler(setup, scorer, setup.config.seed)
    settings = replace(trainer_settings(setup), log_every=1, eval_every=0, checkpoint_every=0)
    start_log_z(setup, sampler)

    def note(trainer: Trainer, info: dict[str, float]) -> None:
        batch = trainer.batch
        if batch is not None and batch.rewards is not None and batch.n:
            names = (f"mean {reward.name}" for reward in ledger.rewards)
            info |= dict(zip(names, batch.rewards.mean(0).tolist(), strict=True))
            if batch.log_pf_old is not None:
                info["entropy"] = -float(batch.log_pf_old.sum(1).mean())
        ledger.note({name: float(f"{value:.5g}") for name, value in info.items()})

    trainer = Trainer(
        setup.policy, setup.objective, sampler, settings, events=Events(on_log=[note])
    )
    trainer.run(FOR_EVER)
