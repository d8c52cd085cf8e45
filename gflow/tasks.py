"""Named problems: an environment, its oracle, and a policy that suits it.

A task is a function from its options to a `Task`; `register` gives it a name. This is the only
place of the engine that knows concrete environments, and it imports them on demand.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from gflow.config import ConfigError, PolicySettings
from gflow.mdp import Environment, Oracle


class MakePolicy(Protocol):
    """Builds a task's policy."""

    def __call__(
        self, settings: PolicySettings, condition_size: int, flow: bool, seed: int
    ) -> nn.Module:
        """A module satisfying `gflow.mdp.Policy`."""


@dataclass(frozen=True)
class Task:
    """A problem ready to be trained on.

    Attributes:
        env: the environment.
        oracle: reward vectors of its objects (or states).
        make_policy: the default network.
        kind: how objects are drawn and exported: "molecule" or "text".
        key: canonical key of an object.
        reference_point: where the hypervolume is measured from, one number per reward.
        inverse_temperature: what suits the task's rewards, unless the user or the method says
            otherwise.
    """

    env: Environment
    oracle: Oracle
    make_policy: MakePolicy
    kind: str = "text"
    key: Callable[[Any], str] = str
    reference_point: tuple[float, ...] = field(default=())
    inverse_temperature: str | None = None

    def __post_init__(self) -> None:
        if not self.reference_point:
            zeros = tuple(min(reward.low, 0.0) for reward in self.oracle.rewards)
            object.__setattr__(self, "reference_point", zeros)


TASKS: dict[str, Callable[..., Task]] = {}


def register(function: Callable[..., Task]) -> Callable[..., Task]:
    """Register a task under its function's name; the docstring is what `gflow tasks` prints."""
    TASKS[function.__name__] = function
    return function


def make_task(name: str, rewards: str | None = None, options: dict[str, Any] | None = None) -> Task:
    """Build the task called `name`.

    Raises:
        ConfigError: unknown task or option; the message lists the near names.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}: {near(name, TASKS)}")
    function = TASKS[name]
    known = inspect.signature(function).parameters
    given = dict(options or {})
    if rewards is not None:
        given["rewards"] = rewards
    for option in given:
        if option not in known:
            what = "rewards to choose from" if option == "rewards" else f"option {option!r}"
            raise ConfigError(f"task {name!r} has no {what}: {near(option, known)}")
    return function(**given)


def near(name: str, known: Any) -> str:
    """A hint at the names close to `name`, or all of them."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"choose from {', '.join(known)}" if known else "it takes none"


@register
def molecules(
    rewards: str = "qed,sa",
    vocabulary: str | None = None,
    preset: str = "irreducible",
    max_fragments: int = 5,
    min_fragments: int = 2,
) -> Task:
    """Drug-like molecules assembled from fragments.

    Args:
        rewards: qed, sa, logp:1..4, tpsa:40..90, mw:200..450, rings:2..4, sp3, similar:SMILES or
            package.module:function, separated by commas.
        vocabulary: file of fragments, see `gflow fragments`; the built-in ones by default.
        preset: full or irreducible (no fragment is a composite of others).
        max_fragments: largest number of fragments.
        min_fragments: smallest number of fragments.
    """
    from gflow.envs.molecules import FragmentMolecules, Vocabulary
    from gflow.envs.molecules.oracles import MoleculeOracle
    from gflow.policies.tree import TreePolicy

    fragments = Vocabulary.load(vocabulary) if vocabulary is not None else None
    env = FragmentMolecules(fragments, preset, int(max_fragments), int(min_fragments))

    def make_policy(
        settings: PolicySettings, condition_size: int, flow: bool, seed: int
    ) -> nn.Module:
        return TreePolicy(
            env,
            condition_size,
            hidden=settings.hidden or 128,
            layers=settings.layers or 3,
            backward=settings.backward or "paths",  # type: ignore[arg-type]
            flow=flow,
            seed=seed,
        )

    return Task(
        env,
        MoleculeOracle.parse(rewards),
        make_policy,
        kind="molecule",
        inverse_temperature="uniform:32..256",
    )


@register
def hypergrid(dim: int = 4, side: int = 8, r0: float = 0.1) -> Task:
    """The standard HyperGrid with 2 ** dim modes near the corners.

    Args:
        dim: number of coordinates.
        side: values of each coordinate.
        r0: reward between the modes; smaller is harder.
    """
    from gflow.envs.grids import CornerReward, HyperGrid

    env = HyperGrid(int(dim), int(side))
    return Task(env, CornerReward(int(side), float(r0)), flat_policy(env))


def flat_policy(env: Environment, backward: str = "uniform") -> MakePolicy:
    """The multi-layer perceptron for environments with flat observations."""
    from gflow.policies import MLPPolicy

    def make_policy(
        settings: PolicySettings, condition_size: int, flow: bool, seed: int
    ) -> nn.Module:
        hidden = (settings.hidden or 256,) * (settings.layers or 2)
        kind = settings.backward or backward
        return MLPPolicy(env, hidden, condition_size, backward=kind, flow=flow, seed=seed)  # type: ignore[arg-type]

    return make_policy
