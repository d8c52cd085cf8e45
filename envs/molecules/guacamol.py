"""The 20 goal-directed tasks of GuacaMol (Brown et al., 2019, arXiv 1811.09621), version 2.

Each task is a vector of components in 0..1 and a mean that makes one score of them, so that a task
with several components is a multi-objective problem of its own.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from rdkit import Chem
from rdkit.Chem import GraphDescriptors, rdMolDescriptors

from gflow.envs.molecules.chemistry import parse_smiles
from gflow.envs.molecules.properties import fingerprint, logp, n_fluorines, similarity

Shape = Callable[[float], float]


class Part(NamedTuple):
    """One component of a task.

    Attributes:
        name: short name.
        description: what it asks for.
        of_mol: its value in 0..1 of an RDKit molecule.
        seconds: rough cost of one molecule.
    """

    name: str
    description: str
    of_mol: Callable[[Any], float]
    seconds: float


class GuacaMolTask(NamedTuple):
    """A task: its components, and whether their mean is geometric or else arithmetic."""

    parts: tuple[Part, ...]
    geometric: bool = True

    def score(self, mol: Any) -> float:
        """The published score of an RDKit molecule, in 0..1."""
        return _mean([part.of_mol(mol) for part in self.parts], self.geometric)


def _mean(values: list[float], geometric: bool) -> float:
    if geometric:
        return math.prod(values) ** (1.0 / len(values))
    return sum(values) / len(values)


def gauss(center: float, width: float, x: float) -> float:
    """exp(-((x - center) / width)^2 / 2)."""
    return math.exp(-0.5 * ((x - center) / width) ** 2)


def at_most(limit: float, width: float, x: float) -> float:
    """1 below the limit, a Gaussian fall-off above it."""
    return gauss(limit, width, max(x, limit))


def at_least(limit: float, width: float, x: float) -> float:
    """1 above the limit, a Gaussian fall-off below it."""
    return gauss(limit, width, min(x, limit))


def clipped(top: float, x: float) -> float:
    """Rises to 1 at `top` and stays there."""
    return min(x / top, 1.0)


MOLECULES = {
    "albuterol": "CC(C)(C)NCC(O)c1ccc(O)c(CO)c1",
    "amlodipine": "CCOC(=O)C1=C(COCCN)NC(C)=C(C(=O)OC)C1c1ccccc1Cl",
    "aripiprazole": "O=C1CCc2ccc(OCCCCN3CCN(c4cccc(Cl)c4Cl)CC3)cc2N1",
    "camphor": "CC1(C)C2CCC1(C)C(=O)C2",
    "celecoxib": "Cc1ccc(-c2cc(C(F)(F)F)nn2-c2ccc(S(N)(=O)=O)cc2)cc1",
    "fexofenadine": "CC(C)(C(=O)O)c1ccc(C(O)CCCN2CCC(C(O)(c3ccccc3)c3ccccc3)CC2)cc1",
    "menthol": "CC1CCC(C(C)C)C(O)C1",
    "mestranol": "C#C[C@]1(O)CC[C@H]2[C@@H]3CCc4cc(OC)ccc4[C@H]3CC[C@@]21C",
    "osimertinib": "C=CC(=O)Nc1cc(Nc2nccc(-c3cn(C)c4ccccc34)n2)c(OC)cc1N(C)CCN(C)C",
    "perindopril": "CCCC(NC(C)C(=O)N1C(C(=O)O)CC2CCCCC21)C(=O)OCC",
    "quinazoline": "CCCOc1cc2ncnc(Nc3ccc4ncsc4c3)c2cc1S(=O)(=O)C(C)(C)C",
    "ranolazine": "COc1ccccc1OCC(O)CN1CCN(CC(=O)Nc2c(C)cccc2C)CC1",
    "sildenafil": "CCCc1nn(C)c2c(=O)[nH]c(-c3cc(S(=O)(=O)N4CCN(C)CC4)ccc3OCC)nc12",
    "sitagliptin": "NC(CC(=O)N1CCn2c(nnc2C(F)(F)F)C1)Cc1cc(F)c(F)cc1F",
    "tadalafil": "CN1CC(=O)N2C(Cc3c([nH]c4ccccc34)C2c2ccc3c(c2)OCO3)C1=O",
    "thiothixene": "CN1CCN(CCC=C2c3ccccc3Sc3ccc(S(=O)(=O)N(C)C)cc32)CC1",
    "troglitazone": "Cc1c(C)c2c(c(C)c1O)CCC(C)(COc1ccc(CC3SC(=O)NC3=O)cc1)O2",
    "zaleplon": "CCN(C(C)=O)c1cccc(-c2ccnc3c(C#N)cnn23)c1",
}
"""The molecules that the tasks start from: drugs, and the quinazoline of the hops."""


_SECONDS = {"ECFP4": 1e-4, "ECFP6": 1.5e-4, "FCFP4": 2e-4, "AP": 1e-4, "PHCO": 3e-2}


def _similar(target: str, kind: str, shape: Shape | None = None, what: str = "like") -> Part:
    reference = fingerprint(kind, parse_smiles(MOLECULES[target]))

    def value(mol: Any) -> float:
        near = similarity(kind, reference, mol)
        return near if shape is None else shape(near)

    return Part(f"{what}_{target}", f"{kind} similarity to {target}", value, _SECONDS[kind])


class _Property(NamedTuple):
    value: Callable[[Any], float]
    seconds: float


_PROPERTIES = {
    "logp": _Property(logp, 2.5e-4),
    "tpsa": _Property(rdMolDescriptors.CalcTPSA, 1e-5),
    "rings": _Property(rdMolDescriptors.CalcNumRings, 1e-5),
    "aromatic_rings": _Property(rdMolDescriptors.CalcNumAromaticRings, 1e-5),
    "fluorines": _Property(n_fluorines, 1e-5),
    "bertz": _Property(GraphDescriptors.BertzCT, 4e-4),
}


def _property(name: str, shape: Callable[..., float], goal: float | str, width: float) -> Part:
    """A property near, above or below a number, or that of a molecule named instead."""
    of, seconds = _PROPERTIES[name]
    number = of(parse_smiles(MOLECULES[goal])) if isinstance(goal, str) else goal
    what = f"{name} {shape.__name__.replace('_', ' ')} {number:g}, width {width:g}"
    return Part(name, what, lambda mol: float(shape(number, width, of(mol))), seconds)


def _formula(formula: str) -> Part:
    """Geometric mean of Gaussians of each element's count (width 1) and of their sum (width 2)."""
    wanted = {
        Chem.GetPeriodicTable().GetAtomicNumber(symbol): int(count or 1)
        for symbol, count in re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    }

    def value(mol: Any) -> float:
        counts: dict[int, int] = {1: 0}
        for atom in mol.GetAtoms():
            counts[atom.GetAtomicNum()] = counts.get(atom.GetAtomicNum(), 0) + 1
            counts[1] += atom.GetTotalNumHs()
        near = [gauss(number, 1.0, counts.get(element, 0)) for element, number in wanted.items()]
        near.append(gauss(sum(wanted.values()), 2.0, sum(counts.values())))
        return _mean(near, geometric=True)

    return Part("formula", f"near to {formula}", value, 3e-5)


def _pattern(name: str, smarts: str, wanted: bool = True) -> Part:
    query = Chem.MolFromSmarts(smarts)
    what = f"{'has' if wanted else 'has not'} {smarts}"
    return Part(name, what, lambda mol: float(mol.HasSubstructMatch(query) == wanted), 2e-5)


_SCAFFOLD = "[#7]-c1n[c;h1]nc2[c;h1]c(-[#8])[c;h0][c;h1]c12"
_ARM = "[#7]-c1ccc2ncsc2c1"
_CHAIN = "[#6]-[#6]-[#6]-[#8]-[#6]~[#6]~[#6]~[#6]~[#6]"


def _parts(name: str) -> tuple[Part, ...]:
    """The components of a task."""
    match name:
        case "celecoxib" | "troglitazone" | "thiothixene":
            return (_similar(name, "ECFP4"),)
        case "aripiprazole" | "albuterol" | "mestranol":
            kind = {"aripiprazole": "ECFP4", "albuterol": "FCFP4", "mestranol": "AP"}[name]
            return (_similar(name, kind, partial(clipped, 0.75)),)
        case "c11h24":
            return (_formula("C11H24"),)
        case "c9h10n2o2pf2cl":
            return (_formula("C9H10N2O2PF2Cl"),)
        case "median1":
            return _similar("camphor", "ECFP4"), _similar("menthol", "ECFP4")
        case "median2":
            return _similar("tadalafil", "ECFP6"), _similar("sildenafil", "ECFP6")
        case "osimertinib":
            return (
                _similar(name, "FCFP4", partial(clipped, 0.8)),
                _similar(name, "ECFP6", partial(at_most, 0.85, 0.1), "not_quite"),
                _property("tpsa", at_least, 100, 10),
                _property("logp", at_most, 1, 1),
            )
        case "fexofenadine":
            return (
                _similar(name, "AP", partial(clipped, 0.8)),
                _property("tpsa", at_least, 90, 10),
                _property("logp", at_most, 4, 1),
            )
        case "ranolazine":
            return (
                _similar(name, "AP", partial(clipped, 0.7)),
                _property("logp", at_least, 7, 1),
                _property("tpsa", at_least, 95, 20),
                _property("fluorines", gauss, 1, 1),
            )
        case "perindopril":
            return _similar(name, "ECFP4"), _property("aromatic_rings", gauss, 2, 0.5)
        case "amlodipine":
            return _similar(name, "ECFP4"), _property("rings", gauss, 3, 0.5)
        case "sitagliptin":
            return (
                _similar(name, "ECFP4", partial(gauss, 0.0, 0.1), "unlike"),
                _property("logp", gauss, name, 0.2),
                _property("tpsa", gauss, name, 5),
                _formula("C16H15F6N5O"),
            )
        case "zaleplon":
            return _similar(name, "ECFP4"), _formula("C19H17N3O2")
        case "valsartan":
            return (
                _pattern("pattern", "CN(C=O)Cc1ccc(c2ccccc2)cc1"),
                _property("logp", gauss, "sitagliptin", 0.2),
                _property("tpsa", gauss, "sitagliptin", 5),
                _property("bertz", gauss, "sitagliptin", 30),
            )
        case "deco_hop":
            return (
                _similar("quinazoline", "PHCO", partial(clipped, 0.85)),
                _pattern("no_sulfone", "CS([#6])(=O)=O", wanted=False),
                _pattern("no_arm", _ARM, wanted=False),
                _pattern("scaffold", _SCAFFOLD),
            )
        case "scaffold_hop":
            return (
                _similar("quinazoline", "PHCO", partial(clipped, 0.75)),
                _pattern("decoration", f"{_CHAIN}{_ARM}"),
                _pattern("no_scaffold", _SCAFFOLD, wanted=False),
            )
    near = difflib.get_close_matches(name.lower(), TASKS, n=3, cutoff=0.4) or TASKS
    raise ValueError(f"there is no GuacaMol task {name!r}: {', '.join(near)}")


TASKS = (
    "celecoxib", "troglitazone", "thiothixene", "aripiprazole", "albuterol", "mestranol",
    "c11h24", "c9h10n2o2pf2cl", "median1", "median2", "osimertinib", "fexofenadine", "ranolazine",
    "perindopril", "amlodipine", "sitagliptin", "zaleplon", "valsartan", "deco_hop", "scaffold_hop",
)  # fmt: skip
"""Names of the tasks."""


def guacamol_task(name: str) -> GuacaMolTask:
    """The task called `name`, one of `TASKS`.

    Raises:
        ValueError: there is none; the message lists the near names.
    """
    return GuacaMolTask(_parts(name), geometric=not name.endswith("_hop"))
