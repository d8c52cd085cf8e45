"""Rewards of RNA and DNA strands from their predicted secondary structure.

Structures of minimum free energy come from ViennaRNA (Lorenz et al., 2011, doi
10.1186/1748-7188-6-26). The aptamer task of the literature (Multi-Objective GFlowNets, 2022, arXiv
2210.12765) folds DNA by NUPACK; the same quantities of ViennaRNA, with its DNA parameters of
Mathews 2004, stand in for it here, so energies differ somewhat from published ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflow.mdp import Reward

ALPHABETS = {"rna": "ACGU", "dna": "ACGT"}
"""Letters of each material."""

NAMES = ("energy", "pairs", "stems", "length", "target")
"""Rewards of a strand; "target" takes a structure, as in target:((((....))))."""

# A little more than the best strand has for each nucleotide of its length, in kcal/mol.
_STRONGEST = {"rna": 1.6, "dna": 1.0}
_LOOP = 3  # no hairpin loop has fewer unpaired nucleotides


class Fold(NamedTuple):
    """The structure of minimum free energy in dot-bracket form, and that energy in kcal/mol."""

    structure: str
    energy: float


def fold(sequences: Sequence[str], material: str = "rna") -> list[Fold]:
    """Fold strands at 37 °C and 1 M sodium.

    Args:
        sequences: n strands over the letters of the material.
        material: "rna" (Turner 2004) or "dna" (Mathews 2004).

    Raises:
        ImportError: ViennaRNA is not installed.
        ValueError: naming the first letter that the material does not have.
    """
    letters = ALPHABETS[material]
    for sequence in sequences:
        for place, letter in enumerate(sequence):
            if letter not in letters:
                raise ValueError(
                    f"{sequence!r}: letter {letter!r} at position {place} is not one of "
                    f"{letters}, those of {material.upper()}"
                )
    with _parameters(material) as rna:
        found = []
        for sequence in sequences:
            if not sequence:
                found.append(Fold("", 0.0))
                continue
            structure, energy = rna.fold_compound(sequence).mfe()
            # energies are whole hundredths, handed over in single precision
            found.append(Fold(str(structure), round(float(energy), 2)))
    return found


@contextmanager
def _parameters(material: str) -> Iterator[Any]:
    """ViennaRNA with the energies of the material, which it keeps in global variables."""
    rna = vienna()
    rna.params_load_DNA_Mathews2004() if material == "dna" else rna.params_load_RNA_Turner2004()
    try:
        yield rna
    finally:
        if material != "rna":
            rna.params_load_RNA_Turner2004()


def vienna() -> Any:
    """The module `RNA`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import RNA
    except ImportError as error:
        raise ImportError(
            "folding needs ViennaRNA: install it with `pip install gflow[bio]`"
        ) from error
    return RNA


def base_pairs(structure: str) -> set[tuple[int, int]]:
    """Paired positions, each pair in order, of a structure in dot-bracket form.

    Raises:
        ValueError: another sign than ( . ), or brackets that do not match.
    """
    opened, pairs = list[int](), set[tuple[int, int]]()
    for place, sign in enumerate(structure):
        if sign == "(":
            opened.append(place)
        elif sign == ")" and opened:
            pairs.add((opened.pop(), place))
        elif sign != ".":
            what = "closes nothing" if sign == ")" else "is not one of ( . )"
            raise ValueError(f"structure {structure!r}: {sign!r} at position {place} {what}")
    if opened:
        raise ValueError(
            f"structure {structure!r}: '(' at position {opened[-1]} is not closed again"
        )
    return pairs


def n_stems(structure: str) -> int:
    """Stems that leave the exterior loop: closing brackets that bring the depth back to zero."""
    depth = stems = 0
    for sign in structure:
        depth += (sign == "(") - (sign == ")")
        stems += sign == ")" and depth == 0
    return stems


class _Component(NamedTuple):
    reward: Reward
    of: Callable[[str, Fold], float]


class RNAOracle:
    """Reward vectors [n, K] of strands, from their structure of minimum free energy.

    All lie in 0..1. `energy` is minus the free energy, in units of 1.6 (DNA: 1.0) kcal/mol for each
    nucleotide of the longest strand; `pairs` and `stems` count base pairs and stems of the exterior
    loop, in units of the most that fit; `length` is the shortest length over the strand's;
    `target:STRUCTURE` is 1 - (base pairs of one structure but not of the other) / (most there can
    be). Published aptamer tasks divide energy by 60 kcal/mol (as here for DNA of up to 60
    nucleotides), pairs by 16 and stems by 8.

    Args:
        rewards: names out of `NAMES`.
        min_length: shortest length.
        max_length: longest length.
        material: "rna" or "dna".

    Attributes:
        rewards: what the K columns mean.
        version: the specification and ViennaRNA's version.
        seconds: rough cost of one strand, which grows with the cube of its length.

    Raises:
        ImportError: ViennaRNA is not installed.
        ValueError: an unknown or repeated reward, a bad structure, material, or length.
    """

    on_states = False

    def __init__(
        self,
        rewards: Sequence[str],
        min_length: int = 30,
        max_length: int = 60,
        material: str = "rna",
    ):
        if material not in ALPHABETS:
            raise ValueError(f"material must be rna or dna, not {material!r}")
        if not 1 <= min_length <= max_length:
            raise ValueError(
                f"the shortest length, {min_length}, must lie between 1 and the longest, "
                f"{max_length}"
            )
        if not rewards or len(set(rewards)) < len(rewards):
            raise ValueError(f"name at least one reward, and each once, not {list(rewards)}")
        self.material, self.min_length, self.max_length = material, min_length, max_length
        self._names = tuple(rewards)
        self._components = [_component(text, min_length, max_length, material) for text in rewards]
        self.rewards = tuple(part.reward for part in self._components)
        self.version = (
            f"{','.join(rewards)}; {material} {min_length}..{max_length}; "
            f"ViennaRNA {vienna().__version__}"
        )
        self.seconds = 1e-5 + 5e-9 * max_length**3

    def __call__(self, objects: Sequence[str]) -> Tensor:
        """Rewards [n, K] float64 of n strands.

        Raises:
            ValueError: naming the first letter that the material does not have.
        """
        folds = fold(objects, self.material)
        rows = [
            [part.of(sequence, found) for part in self._components]
            for sequence, found in zip(objects, folds, strict=True)
        ]
        values = torch.tensor(rows, dtype=torch.float64).view(len(rows), len(self.rewards))
        return values.clamp(0.0, 1.0)

    def __reduce__(self) -> tuple[Any, ...]:
        return RNAOracle, (self._names, self.min_length, self.max_length, self.material)


def _component(text: str, shortest: int, longest: int, material: str) -> _Component:
    name, colon, argument = text.partition(":")
    most_pairs = max((longest - _LOOP) // 2, 1)
    if name == "target":
        if not argument:
            raise ValueError("reward 'target' needs a structure such as target:((((....))))")
        return _target(argument, shortest, longest, most_pairs)
    scale, most_stems = _STRONGEST[material] * longest, max(longest // (_LOOP + 2), 1)
    plain = {
        "energy": _Component(
            Reward("energy", f"{scale:g} kcal/mol", flipped=True, description="-(free energy)"),
            lambda _, found: -found.energy / scale,
        ),
        "pairs": _Component(
            Reward("pairs", f"{most_pairs} pairs", description="base pairs"),
            lambda _, found: found.structure.count("(") / most_pairs,
        ),
        "stems": _Component(
            Reward("stems", f"{most_stems} stems", description="stems of the exterior loop"),
            lambda _, found: n_stems(found.structure) / most_stems,
        ),
        "length": _Component(
            Reward("length", flipped=True, description=f"{shortest} nucleotides / length"),
            lambda strand, _: shortest / max(len(strand), 1),
        ),
    }
    if name not in plain:
        near = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.4) or NAMES
        raise ValueError(f"unknown reward {text!r}; did you mean {' or '.join(near)}?")
    if colon:
        raise ValueError(f"reward {name!r} takes no argument, but got {argument!r}")
    return plain[name]


def _target(structure: str, shortest: int, longest: int, most_pairs: int) -> _Component:
    wanted = base_pairs(structure)
    if not shortest <= len(structure) <= longest:
        raise ValueError(
            f"structure {structure!r} has {len(structure)} positions, and strands have "
            f"{shortest} to {longest}"
        )
    most = len(wanted) + most_pairs
    what = f"1 - distance to {structure} / {most} base pairs"
    return _Component(
        Reward("target", flipped=True, description=what),
        lambda _, found: 1.0 - len(wanted ^ base_pairs(found.structure)) / most,
    )
