"""Reward vectors of molecules from RDKit, and from a user's own Python functions."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rdkit import rdBase
from rdkit.Chem import QED, rdMolDescriptors
from torch import Tensor

from gflow.envs.molecules.chemistry import parse_smiles
from gflow.envs.molecules.properties import (
    fingerprint,
    logp,
    similarity,
    synthesizability,
    weight,
)
from gflow.mdp import Reward


class _Window(NamedTuple):
    """A property that is rewarded inside a range, with a Gaussian fall-off of scale `width`."""

    value: Callable[[Any], float]
    unit: str
    width: float
    seconds: float
    what: str
    example: str


_WINDOWS = {
    "logp": _Window(logp, "", 1.0, 2.5e-4, "Crippen logP", "1..4"),
    "tpsa": _Window(rdMolDescriptors.CalcTPSA, "Å²", 20.0, 1e-5, "polar surface", "40..90"),
    "mw": _Window(weight, "Da", 50.0, 1e-5, "molecular weight", "200..450"),
    "rings": _Window(rdMolDescriptors.CalcNumRings, "", 1.0, 1e-5, "number of rings", "2..4"),
}
_PLAIN = ("qed", "sa", "sp3")
NAMES = (*_PLAIN, *_WINDOWS, "similar", "guacamol", "seh", "vina")
"""Rewards that need no code; "similar" takes a SMILES, "logp" and the like a range."""


class _Component(NamedTuple):
    """One column: its meaning, and a function of a molecule, of several, or of their SMILES."""

    reward: Reward
    seconds: float
    of_mol: Callable[[Any], float] | None = None
    of_mols: Callable[[list[Any]], Sequence[float]] | None = None
    of_list: Callable[[list[str]], Any] | None = None
    version: str = ""


class MoleculeOracle:
    """Reward vectors [n, K] of SMILES; see `parse` for what the columns can be.

    Every molecule is parsed once. A SMILES that RDKit cannot read gets a row of NaN.

    Attributes:
        rewards: what the K columns mean.
        version: the specification, RDKit's version, and a hash of the source of user functions.
        seconds: rough cost of one molecule.
    """

    on_states = False

    def __init__(self, specification: str):
        self.specification = specification
        self._components = _components(specification)
        self.rewards: tuple[Reward, ...] = tuple(part.reward for part in self._components)
        self.seconds = 1.5e-4 + sum(part.seconds for part in self._components)
        sources = [part.version for part in self._components if part.version]
        self.version = "; ".join([specification, f"rdkit {rdBase.rdkitVersion}", *sources])

    @classmethod
    def parse(cls, text: str) -> MoleculeOracle:
        """An oracle from names with commas between them.

        `qed` (Bickerton 2012), `sa` ((10 - SA score) / 9, Ertl 2009), `sp3` (fraction of sp3
        carbons), all in 0..1; windows `logp:1..4`, `tpsa:40..90`, `mw:200..450`, `rings:2..4`: 1
        inside, exp(-(d / width)^2 / 2) at a distance d outside, with widths 1, 20 Å², 50 Da and 1;
        `similar:SMILES`, Tanimoto similarity of Morgan counts of radius 2; `guacamol:TASK`, the
        components of a GuacaMol task (see `gflow.envs.molecules.guacamol`), or
        `guacamol:TASK:score`, their published mean; `seh:FILE`, the sEH proxy with the weights of
        a file; `vina:FILE`, minus the docking energy in units of 12 kcal/mol, with a configuration
        file of AutoDock Vina; and
        `package.module:function`, your own function of a list of n SMILES that returns n numbers,
        larger being better, None where there is none. They must lie in 0..1 unless the function
        carries attributes `low` and `high`; `unit`, `description` and `seconds` are read likewise.

        Raises:
            ValueError: naming the entry that cannot be used, and why.
        """
        return cls(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return MoleculeOracle, (self.specification,)

    def __call__(self, objects: Sequence[str]) -> Tensor:
        """Rewards [n, K] float64 of n SMILES; NaN rows where a SMILES cannot be read."""
        smiles = list(objects)
        mols = [parse_smiles(text) if text else None for text in smiles]
        readable = [row for row, mol in enumerate(mols) if mol is not None]
        columns = []
        for part in self._components:
            column = torch.full((len(smiles),), math.nan, dtype=torch.float64)
            if part.of_mol is not None:
                values = [part.of_mol(mols[row]) for row in readable]
            elif part.of_mols is not None:
                values = list(part.of_mols([mols[row] for row in readable]))
            else:
                values = _call(part, [smiles[row] for row in readable])
            column[readable] = torch.tensor(values, dtype=torch.float64)
            columns.append(column)
        return torch.stack(columns, 1)


def _call(part: _Component, smiles: list[str]) -> list[float]:
    """A user's function on the readable molecules."""
    if part.of_list is None or not smiles:
        return []
    values = [math.nan if value is None else float(value) for value in part.of_list(smiles)]
    if len(values) != len(smiles):
        raise ValueError(
            f"{part.reward.name} returned {len(values)} numbers for {len(smiles)} molecules"
        )
    return values


def _components(specification: str) -> tuple[_Component, ...]:
    entries = [entry.strip() for entry in specification.split(",")]
    if not all(entries):
        raise ValueError(f"rewards must be names with commas between them, not {specification!r}")
    parts: list[_Component] = []
    for entry in entries:
        if entries.count(entry) > 1:
            raise ValueError(f"reward {entry!r} is asked for twice")
        for part in _parts(entry):
            name, taken = part.reward.name, {other.reward.name for other in parts}
            numbered = (f"{name}_{i}" for i in itertools.count(2))
            unique = next(x for x in itertools.chain((name,), numbered) if x not in taken)
            parts.append(part._replace(reward=part.reward._replace(name=unique)))
    return tuple(parts)


def _parts(entry: str) -> list[_Component]:
    """The columns of an entry."""
    name, _, argument = entry.partition(":")
    return _guacamol(argument) if name == "guacamol" else [_component(entry)]


def _component(entry: str) -> _Component:
    name, colon, argument = entry.partition(":")
    if name == "seh":
        return _seh(argument)
    if name == "vina":
        return _docking(argument)
    if name in _WINDOWS:
        return _window(name, argument)
    if name == "similar":
        return _similarity(argument)
    if name in _PLAIN:
        if colon:
            raise ValueError(f"reward {name!r} takes no argument, but got {argument!r}")
        return {"qed": _QED, "sa": _SA, "sp3": _SP3}[name]
    if colon and argument.isidentifier() and all(x.isidentifier() for x in name.split(".")):
        return _user_function(name, argument)
    raise ValueError(f"unknown reward {entry!r}{_near(name)}")


def _near(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), NAMES, n=3, cutoff=0.4)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are {', '.join(NAMES)} and your own package.module:function"


def _window(name: str, argument: str) -> _Component:
    window = _WINDOWS[name]
    try:
        low, high = (float(end) for end in argument.split(".."))
    except ValueError:
        raise ValueError(
            f"reward {name!r} needs a range such as {name}:{window.example}, not {argument!r}"
        ) from None
    if not low <= high or math.isinf(low) or math.isinf(high):
        raise ValueError(f"reward {name!r}: the range {argument!r} does not go from low to high")
    what = f"1 where {window.what} is in {low:g} to {high:g} {window.unit}".rstrip()
    reward = Reward(name, description=f"{what}, falling off over {window.width:g}")
    function = partial(_in_window, window.value, low, high, window.width)
    return _Component(reward, window.seconds, function)


def _in_window(
    value: Callable[[Any], float], low: float, high: float, width: float, mol: Any
) -> float:
    x = value(mol)
    return math.exp(-0.5 * (max(low - x, x - high, 0.0) / width) ** 2)


def _similarity(target: str) -> _Component:
    mol = parse_smiles(target) if target else None
    if mol is None:
        raise ValueError(f"reward 'similar' needs a target SMILES; RDKit cannot read {target!r}")
    reward = Reward("similar", description=f"Tanimoto similarity of Morgan counts to {target}")
    return _Component(reward, 1e-4, partial(similarity, "ECFP4", fingerprint("ECFP4", mol)))


_QED = _Component(Reward("qed", description="drug-likeness (QED)"), 1.5e-3, QED.qed)
_SA = _Component(
    Reward("sa", flipped=True, description="synthetic accessibility, (10 - SA score) / 9"),
    3e-4,
    synthesizability,
)
_SP3 = _Component(
    Reward("sp3", description="fraction of carbons that are sp3"),
    1e-5,
    rdMolDescriptors.CalcFractionCSP3,
)


def _guacamol(argument: str) -> list[_Component]:
    from gflow.envs.molecules.guacamol import guacamol_task

    name, colon, what = argument.partition(":")
    task = guacamol_task(name)
    if what not in ("", "score") or (colon and not what):
        raise ValueError(
            f"reward 'guacamol:{argument}': say guacamol:{name} or guacamol:{name}:score"
        )
    if what:
        reward = Reward(name, description=f"GuacaMol score of {name}")
        return [_Component(reward, sum(part.seconds for part in task.parts), task.score)]
    return [
        _Component(Reward(part.name, description=part.description), part.seconds, part.of_mol)
        for part in task.parts
    ]


def _seh(path: str) -> _Component:
    from gflow.envs.molecules.seh import HIGHEST, SEHProxy

    if not path:
        raise ValueError("reward 'seh' needs a file of weights, as in seh:weights.npz")
    proxy = SEHProxy.load(path)
    what = "sEH docking proxy / 8 (Bengio et al., 2021)"
    reward = Reward("seh", high=HIGHEST, description=what)
    return _Component(reward, 1.2e-3, of_mols=proxy.rewards, version=f"seh {_digest(path)}")


def _docking(path: str) -> _Component:
    from gflow.envs.molecules.docking import Docking, Pocket, vina

    if not path:
        raise ValueError("reward 'vina' needs a configuration file, as in vina:pocket.txt")
    pocket = Pocket.load(path)
    docking = Docking(pocket)
    files = [_digest(file) for file in (path, pocket.receptor)]
    reward = Reward("docking", "12 kcal/mol", flipped=True, description="-(Vina's binding energy)")
    version = f"vina {vina().__version__} {' '.join(files)}"
    return _Component(reward, docking.seconds, docking.reward, version=version)


def _digest(path: str | Path) -> str:
    """Twelve digits that identify the content of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


def _user_function(module: str, name: str) -> _Component:
    entry = f"{module}:{name}"
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"unknown reward {entry!r}: cannot import {module} ({error}){_near(module)}"
        ) from error
    function = getattr(found, name, None)
    if not callable(function):
        raise ValueError(f"reward {entry!r}: module {module} has no function {name}")
    reward = Reward(
        name,
        getattr(function, "unit", ""),
        float(getattr(function, "low", 0.0)),
        float(getattr(function, "high", 1.0)),
        description=getattr(function, "description", f"{entry} given by the user"),
    )
    version = entry
    if found.__file__ is not None:
        version = f"{entry} {_digest(found.__file__)}"
    seconds = float(getattr(function, "seconds", 1e-2))
    return _Component(reward, seconds, of_list=function, version=version)
