"""What a task is, the table of tasks, and what several of them share."""

from __future__ import annotations

import difflib
import hashlib
import os
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from gflow.conditions import PromptConditions
from gflow.config import ConfigError, PolicySettings
from gflow.mdp import Environment, Oracle, Trajectories


class MakePolicy(Protocol):
    """Builds a task's policy."""

    def __call__(
        self, settings: PolicySettings, condition_size: int, flow: bool, energy: bool, seed: int
    ) -> nn.Module:
        """A module satisfying `gflow.mdp.Policy`, with heads for log F and energies if asked."""


@dataclass(frozen=True)
class Task:
    """A problem ready to be trained on.

    Attributes:
        env: the environment.
        oracle: reward vectors of its objects (or states).
        make_policy: the default network.
        kind: how objects are drawn and exported: "molecule", "point", "image" (with its
            prompt) or "text".
        key: canonical key of an object of the environment.
        reference_point: where the hypervolume is measured from, one number per reward.
        inverse_temperature: what suits the task's rewards, unless the user says otherwise.
        partial_rewards: unfinished objects have rewards too.
        scalarization: what suits the task's rewards, unless the user says otherwise.
        record_every: every so many batches enter the store; above 1 where every object is new
            and costs nothing.
        conditions: what the sampler is asked for, where that is more than preferences: prompts.
        describe: how the objects of a batch of trajectories are shown, where that depends on
            what was asked for; `env.decode` by default.
    """

    env: Environment
    oracle: Oracle
    make_policy: MakePolicy
    kind: str = "text"
    key: Callable[[Any], str] = str
    reference_point: tuple[float, ...] = field(default=())
    inverse_temperature: str | None = None
    partial_rewards: bool = False
    scalarization: str = "weighted_sum"
    record_every: int = 1
    conditions: PromptConditions | None = None
    describe: Callable[[Trajectories], list[Any]] | None = None

    def __post_init__(self) -> None:
        if not self.reference_point:
            zeros = tuple(min(reward.low, 0.0) for reward in self.oracle.rewards)
            object.__setattr__(self, "reference_point", zeros)

    def objects(self, batch: Trajectories) -> list[Any]:
        """The objects that trajectories lead to."""
        return self.describe(batch) if self.describe else self.env.decode(batch.terminal)

    def keys(self, batch: Trajectories) -> list[str]:
        """Their canonical keys, whatever they are described as."""
        return [self.key(item) for item in self.env.decode(batch.terminal)]


TASKS: dict[str, Callable[..., Task]] = {}


def register(function: Callable[..., Task]) -> Callable[..., Task]:
    """Register a task under its function's name; the docstring is what `gflow tasks` prints."""
    TASKS[function.__name__] = function
    return function


def make_task(name: str, rewards: str | None = None, options: dict[str, Any] | None = None) -> Task:
    """Build the task called `name`.

    Raises:
        ConfigError: unknown task or option, the message lists the near names; or a value of
            another kind than the option's.
        ValueError: a value the task cannot use.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}: {near(name, TASKS)}")
    kinds = typing.get_type_hints(TASKS[name])
    del kinds["return"]
    given = dict(options or {})
    for option in given:
        if option not in kinds or option == "rewards":
            known = [kind for kind in kinds if kind != "rewards"]
            raise ConfigError(f"task {name!r} has no option {option!r}: {near(option, known)}")
    if rewards is not None:
        if "rewards" not in kinds:
            raise ConfigError(f"task {name!r} has no rewards to choose from: leave them out")
        given["rewards"] = rewards
    values = {key: _converted(name, key, value, kinds[key]) for key, value in given.items()}
    return TASKS[name](**values)


def _converted(task: str, option: str, value: Any, kind: Any) -> Any:
    """The value as the option's kind, whether it comes from YAML or from the command line."""
    kinds = typing.get_args(kind) or (kind,)
    if value is None and type(None) in kinds:
        return None
    words = {"true": True, "false": False}
    what = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    try:
        if kinds[0] is bool:
            return words[str(value).lower()]
        return kinds[0](str(value))
    except (KeyError, ValueError):
        raise ConfigError(
            f"task {task!r}: option {option!r} must be {what[kinds[0]]}, not {value!r}"
        ) from None


def near(name: str, known: Any) -> str:
    """A hint at the names close to `name`, or all of them."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"choose from {', '.join(known)}" if known else "it takes none"


def flat_policy(env: Environment, backward: str = "uniform") -> MakePolicy:
    """The multi-layer perceptron for environments with flat observations."""
    from gflow.policies import MLPPolicy

    def make_policy(
        settings: PolicySettings, condition_size: int, flow: bool, energy: bool, seed: int
    ) -> nn.Module:
        return MLPPolicy(
            env,
            (settings.hidden or 256,) * (settings.layers or 2),
            condition_size,
            backward=settings.backward or backward,  # type: ignore[arg-type]
            flow=flow,
            energy=energy,
            seed=seed,
        )

    return make_policy


def names(text: str) -> list[str]:
    """The names of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def point_key(point: Tensor) -> str:
    """The key of a point: another one for every vector."""
    return hashlib.blake2b(point.numpy().tobytes(), digest_size=16).hexdigest()


def data_file(path: str, name: str) -> Path:
    """The user's file, or the one called `name` in the folder that GFLOW_DATA names."""
    folder = os.environ.get("GFLOW_DATA")
    if not path and not folder:
        raise ConfigError(
            f"give --options.path, the file {name}, or set GFLOW_DATA to the folder that holds it"
        )
    return Path(path) if path else Path(folder or "") / name
