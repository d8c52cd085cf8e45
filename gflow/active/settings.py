"""Settings of an active-learning session, as they stand in `session.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gflow.config import ConfigError, PolicySettings, require
from gflow.mdp import Reward
from gflow.training.trainer import TrainerSettings

SURROGATES = ("gp", "multitask", "ensemble")
ACQUISITIONS = ("nehvi", "ucb")


class SessionError(RuntimeError):
    """A session that cannot go on; the message says what to do."""


def _trainer() -> TrainerSettings:
    return TrainerSettings(clip_norm=10.0)


@dataclass
class SessionConfig:
    """Everything that decides a session.

    Attributes:
        task: name of the problem, see `gflow tasks`.
        rewards: the task's rewards; computed ones where `measure` names others.
        options: further settings of the task.
        measure: what the laboratory measures, as NAME:WORST..BEST with commas between, such as
            pIC50:4..11 or clearance:200..5; hypervolume counts from the worst. Left out, the
            task's rewards are what is measured.
        start: objects measured before: a CSV file with the measured columns, or a folder made by
            `gflow import`.
        surrogate: gp (independent Gaussian processes), multitask (correlated ones) or ensemble.
        acquisition: nehvi, or ucb (upper confidence bounds, scalarised for random preferences).
        inverse_temperature: exponent of what the sampler is trained on; none takes 2 for nehvi and
            48 for ucb.
        steps: training steps of the sampler per round.
        batch_size: objects per training step.
        epsilon: probability of an even choice among legal actions, at each step.
        seed: seeds everything.
        threads: threads of tensor operations.
        policy: the sampler's network.
        trainer: the sampler's learning rates.
    """

    task: str = "molecules"
    rewards: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    measure: str = ""
    start: str | None = None
    surrogate: str = "gp"
    acquisition: str = "nehvi"
    inverse_temperature: float | None = None
    steps: int = 150
    batch_size: int = 64
    epsilon: float = 0.05
    seed: int = 0
    threads: int = 1
    policy: PolicySettings = field(default_factory=PolicySettings)
    trainer: TrainerSettings = field(default_factory=_trainer)

    def __post_init__(self) -> None:
        require(
            self,
            surrogate=(self.surrogate in SURROGATES, f"one of {', '.join(SURROGATES)}"),
            acquisition=(self.acquisition in ACQUISITIONS, f"one of {', '.join(ACQUISITIONS)}"),
            inverse_temperature=(
                self.inverse_temperature is None or self.inverse_temperature > 0,
                "positive",
            ),
            steps=(self.steps >= 1, "at least 1"),
            batch_size=(self.batch_size >= 1, "at least 1"),
            epsilon=(0 <= self.epsilon <= 1, "in [0, 1]"),
            threads=(self.threads >= 1, "at least 1"),
        )
        self.measured()

    def measured(self) -> tuple[Reward, ...]:
        """The measured rewards that `measure` names.

        Raises:
            ConfigError: an entry of another form, or a name twice.
        """
        rewards = tuple(_measured(entry) for entry in self.measure.split(",") if entry.strip())
        names = [reward.name for reward in rewards]
        if len(set(names)) < len(names):
            raise ConfigError(f"measure {self.measure!r}: every name must be there once")
        return rewards


def _measured(entry: str) -> Reward:
    name, colon, ends = (part.strip() for part in entry.partition(":"))
    try:
        worst, best = (float(end) for end in ends.split(".."))
    except ValueError:
        worst = best = 0.0
    if not (name and colon) or worst == best:
        raise ConfigError(f"measure: {entry.strip()!r} is not of the form NAME:WORST..BEST")
    if worst < best:
        return Reward(name, "", worst, best, description="measured")
    return Reward(name, "", -worst, -best, True, "measured, less is better")
