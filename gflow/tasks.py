"""Named problems: an environment, its oracle, and a policy that suits it.

A task is a function from its options to a `Task`; `register` gives it a name. This is the only
place of the engine that knows concrete environments, and it imports them on demand.
"""

from __future__ import annotations

import difflib
import os
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from gflow.config import ConfigError, PolicySettings
from gflow.mdp import Environment, Oracle

if TYPE_CHECKING:
    from gflow.envs.sequences.base import TokenRows


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
        kind: how objects are drawn and exported: "molecule" or "text".
        key: canonical key of an object.
        reference_point: where the hypervolume is measured from, one number per reward.
        inverse_temperature: what suits the task's rewards, unless the user says otherwise.
        partial_rewards: unfinished objects have rewards too.
    """

    env: Environment
    oracle: Oracle
    make_policy: MakePolicy
    kind: str = "text"
    key: Callable[[Any], str] = str
    reference_point: tuple[float, ...] = field(default=())
    inverse_temperature: str | None = None
    partial_rewards: bool = False

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
    env = FragmentMolecules(fragments, preset, max_fragments, min_fragments)

    def make_policy(
        settings: PolicySettings, condition_size: int, flow: bool, energy: bool, seed: int
    ) -> nn.Module:
        if energy:
            raise ValueError("molecules have no network for learned energies")
        return TreePolicy(
            env,
            condition_size,
            hidden=settings.hidden or 128,
            layers=settings.layers or 3,
            backward=settings.backward or "paths",  # type: ignore[arg-type]
            flow=flow,
            seed=seed,
        )

    oracle = MoleculeOracle.parse(rewards)
    # A weighted mean of K rewards moves K times less than each of them.
    beta = f"uniform:{16 * len(oracle.rewards)}..{80 * len(oracle.rewards)}"
    return Task(env, oracle, make_policy, kind="molecule", inverse_temperature=beta)


@register
def hypergrid(dim: int = 4, side: int = 8, r0: float = 0.1) -> Task:
    """The standard HyperGrid with 2 ** dim modes near the corners.

    Args:
        dim: number of coordinates.
        side: values of each coordinate.
        r0: reward between the modes; smaller is harder.
    """
    from gflow.envs.grids import CornerReward, HyperGrid

    env, oracle = HyperGrid(dim, side), CornerReward(side, r0)
    # Every point may be the end, so that every point has a reward.
    return Task(env, oracle, flat_policy(env), partial_rewards=True)


@register
def grid_objectives(rewards: str = "branin,currin", side: int = 32, border: bool = True) -> Task:
    """Several objectives on a plane of grid points, small enough to know the true front.

    Args:
        rewards: branin, currin, shubert, beale, sphere, separated by commas.
        side: values of each of the two coordinates.
        border: at the upper border a walker can only stop, as in the published grids.
    """
    from gflow.envs.grids import GridObjectives, HyperGrid

    env = HyperGrid(2, side, stop_at_border=border)
    oracle = GridObjectives(_names(rewards), side)
    return Task(env, oracle, flat_policy(env), partial_rewards=True)


@register
def sets(problem: str = "small") -> Task:
    """Sets of items with an energy each; partial sets have a reward too.

    Args:
        problem: small (20 of 30 items), medium (60 of 80) or large (80 of 100).
    """
    from gflow.envs.set_rewards import SetEnergy
    from gflow.envs.sets import Sets

    oracle = SetEnergy.setting(problem)
    env = Sets(len(oracle.energies), oracle.size)
    return Task(env, oracle, flat_policy(env), partial_rewards=True)


@register
def bit_sequences(bits: int = 120, word: int = 8, modes: int = 60, order: str = "slots") -> Task:
    """Strings of bits near hidden modes: exp(-(flips to the nearest one) / 10).

    The published reward exp(-flips) squared is an inverse temperature of 20, the default.

    Args:
        bits: length of a string, a multiple of 8 and of the word.
        word: bits added by one action; a string has bits / word places.
        modes: number of hidden modes.
        order: slots (any place first), append, prepend_append or insert.
    """
    from gflow.envs.sequences.bits import BitModes, bit_modes, bit_words

    env = _token_rows(order, bit_words(word), bits // word)
    oracle = BitModes(word, bit_modes(bits, modes), temperature=10.0)
    return Task(env, oracle, flat_policy(env), inverse_temperature="20")


@register
def ngrams(
    rewards: str = "AV,VC", max_length: int = 36, min_length: int = 32, max_score: float = 18.0
) -> Task:
    """Protein sequences that contain given short words often; the words compete for room.

    Args:
        rewards: words over the 20 amino acids, separated by commas.
        max_length: longest sequence.
        min_length: shortest sequence.
        max_score: occurrences that count as a reward of 1.
    """
    from gflow.envs.sequences import AppendSequences
    from gflow.envs.sequences.ngrams import PROTEIN, NGrams

    env = AppendSequences(PROTEIN, max_length, min_length)
    oracle = NGrams(PROTEIN, _names(rewards), max_length, max_score)
    return Task(env, oracle, flat_policy(env))


@register
def tf_binding(
    path: str = "", bind: str = "SIX6", avoid: str = "", order: str = "prepend_append"
) -> Task:
    """DNA 8-mers that bind some human transcription factors and not others, as measured.

    Args:
        path: tf_binding.parquet; by default that in the folder GFLOW_DATA.
        bind: factors to bind, separated by commas; SIX6 alone is TFBind8.
        avoid: factors not to bind.
        order: prepend_append, append, insert or slots.
    """
    from gflow.envs.sequences import measured

    env = _token_rows(order, measured.DNA, 8)
    oracle = measured.tf_binding(_data(path, "tf_binding.parquet"), _names(bind), _names(avoid))
    # The published exponent of the single reward.
    beta = "3" if len(oracle.rewards) == 1 else None
    return Task(env, oracle, flat_policy(env), inverse_temperature=beta)


@register
def qm9_blocks(path: str = "", order: str = "prepend_append") -> Task:
    """Molecules of five building blocks with a large HOMO-LUMO gap, as tabulated.

    Args:
        path: qm9str.parquet; by default that in the folder GFLOW_DATA.
        order: prepend_append, append, insert or slots.
    """
    from gflow.envs.sequences import measured

    env = _token_rows(order, measured.QM9_SYMBOLS, 5)
    oracle = measured.qm9_blocks(_data(path, "qm9str.parquet"))
    return Task(env, oracle, flat_policy(env), inverse_temperature="5")


@register
def nas_bench_201(path: str = "", dataset: str = "cifar10", split: str = "test") -> Task:
    """Network cells: accuracy after 12 epochs against FLOPs and parameters.

    Args:
        path: nas_bench_201.parquet; by default that in the folder GFLOW_DATA.
        dataset: cifar10, cifar100 or imagenet16.
        split: test or val.
    """
    from gflow.envs.nas import NASCell
    from gflow.envs.nas.oracle import nas_bench_201

    env = NASCell()
    oracle = nas_bench_201(_data(path, "nas_bench_201.parquet"), dataset, split)
    return Task(env, oracle, flat_policy(env))


def _names(text: str) -> list[str]:
    """The names of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _data(path: str, name: str) -> Path:
    """The user's file, or the one called `name` in the folder that GFLOW_DATA names."""
    folder = os.environ.get("GFLOW_DATA")
    if not path and not folder:
        raise ConfigError(
            f"give --options.path, the file {name}, or set GFLOW_DATA to the folder that holds it"
        )
    return Path(path) if path else Path(folder or "") / name


def _token_rows(order: str, vocabulary: Sequence[str], length: int) -> TokenRows:
    """The environment that builds rows of `length` tokens in the given order."""
    from gflow.envs import sequences

    orders: dict[str, Callable[[Sequence[str], int], TokenRows]] = {
        "slots": sequences.Slots,
        "append": sequences.AppendSequences,
        "prepend_append": sequences.PrependAppendSequences,
        "insert": sequences.InsertSequences,
    }
    if order not in orders:
        raise ConfigError(f"there is no order {order!r}: {near(order, orders)}")
    return orders[order](vocabulary, length)


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
