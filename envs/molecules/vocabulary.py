"""Vocabularies of fragments: SMILES with the atoms at which other fragments may be attached."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from rdkit import Chem

from gflow.envs.molecules.chemistry import (
    MAX_SITES,
    automorphisms,
    parse_smiles,
    site_class,
    split_atoms,
)


@dataclass(frozen=True)
class Vocabulary:
    """Fragments and their attachment atoms.

    Attributes:
        smiles: one SMILES per fragment; hydrogens of unused sites stay.
        sites: for each fragment the atom index (order of the SMILES) of each of its 1 to 6
            sites; an atom listed twice offers two hydrogens.
        counts: how often each fragment was seen where it was cut from, or None.

    Raises:
        ValueError: a fragment cannot be used; the message lists every one that cannot.
    """

    smiles: tuple[str, ...]
    sites: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check every fragment."""
        if not self.smiles or len(self.smiles) != len(self.sites):
            raise ValueError("a vocabulary needs at least one fragment, and sites for each")
        _raise_problems("vocabulary", enumerate(zip(self.smiles, self.sites, strict=True)))

    def __len__(self) -> int:
        return len(self.smiles)

    def __getstate__(self) -> dict[str, Any]:
        return {"smiles": self.smiles, "sites": self.sites, "counts": self.counts}

    @cached_property
    def mols(self) -> tuple[Any, ...]:
        """RDKit molecules of the fragments."""
        return tuple(Chem.MolFromSmiles(smiles) for smiles in self.smiles)

    @cached_property
    def site_classes(self) -> tuple[tuple[int, ...], ...]:
        """Class of each site, an index into `SITE_CLASSES`."""
        return tuple(
            tuple(site_class(mol.GetAtomWithIdx(atom)) for atom in sites)
            for mol, sites in zip(self.mols, self.sites, strict=True)
        )

    @classmethod
    def default(cls) -> Vocabulary:
        """The 115 built-in fragments: common rings, linkers and groups of medicinal chemistry."""
        path = resources.files("gflow.envs.molecules").joinpath("data/fragments.csv")
        with resources.as_file(path) as file:
            return cls.load(file)

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a CSV with columns `smiles`, `sites` (indices with spaces), optionally `count`.

        Raises:
            ValueError: naming file, line and problem of every row that cannot be used.
        """
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            reader = csv.DictReader(file)
            missing = {"smiles", "sites"} - set(reader.fieldnames or ())
            if missing:
                raise ValueError(f"{path}: no column {' and '.join(sorted(missing))} in line 1")
            rows, texts, problems = [], [], []
            for row in reader:
                try:
                    sites = tuple(int(index) for index in (row["sites"] or "").split())
                    count = int(row.get("count") or 0)
                except ValueError:
                    problems.append(
                        f"line {reader.line_num}: sites must be atom indices with spaces between "
                        f"them, and count an integer, not {row['sites']!r} {row.get('count', '')!r}"
                    )
                    continue
                rows.append((f"line {reader.line_num}", ((row["smiles"] or "").strip(), sites)))
                texts.append(count)
        if not rows and not problems:
            raise ValueError(f"{path}: no fragments")
        _raise_problems(str(path), rows, problems)
        counts = tuple(texts) if "count" in (reader.fieldnames or ()) else None
        return cls(tuple(row[1][0] for row in rows), tuple(row[1][1] for row in rows), counts)

    def save(self, path: str | Path) -> None:
        """Write the CSV that `load` reads."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            names = ["smiles", "sites"] + ([] if self.counts is None else ["count"])
            writer.writerow(names)
            for i, (smiles, sites) in enumerate(zip(self.smiles, self.sites, strict=True)):
                row = [smiles, " ".join(map(str, sites))]
                writer.writerow(row if self.counts is None else [*row, str(self.counts[i])])

    @classmethod
    def irreducible(cls) -> Vocabulary:
        """The 95 built-in fragments that are not composed of others."""
        return cls.default().without_composites()

    def without_composites(self) -> Vocabulary:
        """The fragments that cannot be joined from two or more of the others."""
        from gflow.envs.molecules.cutting import composites

        drop = set(composites(self))
        return self.select([i for i in range(len(self)) if i not in drop])

    def select(self, keep: Sequence[int]) -> Vocabulary:
        """The fragments at these positions."""
        counts = None if self.counts is None else tuple(self.counts[i] for i in keep)
        return Vocabulary(
            tuple(self.smiles[i] for i in keep), tuple(self.sites[i] for i in keep), counts
        )


def fragment_problem(smiles: str, sites: Sequence[int]) -> str | None:
    """Why this fragment cannot be used, or None when it can."""
    if "*" in smiles:
        return f"{smiles!r}: attachment points are given as atom indices, not as *"
    mol = parse_smiles(smiles) if smiles else None
    if mol is None:
        return f"cannot read SMILES {smiles!r}"
    if len(Chem.GetMolFrags(mol)) > 1:
        return f"{smiles!r} is more than one molecule"
    if len(split_atoms(smiles)[1]) != mol.GetNumAtoms():
        return f"{smiles!r}: write hydrogens inside the atoms, not as atoms of their own"
    if not 1 <= len(sites) <= MAX_SITES:
        return f"{smiles!r} has {len(sites)} sites, not 1 to {MAX_SITES}"
    for atom, times in Counter(sites).items():
        if not 0 <= atom < mol.GetNumAtoms():
            return f"{smiles!r} has no atom {atom} (it has atoms 0 to {mol.GetNumAtoms() - 1})"
        free = mol.GetAtomWithIdx(atom).GetTotalNumHs()
        if times > free:
            return f"{smiles!r}: atom {atom} is a site {times} times but has {free} hydrogens"
    try:
        automorphisms(mol)
    except ValueError as error:
        return str(error)
    return None


def _raise_problems(where: str, rows: Any, problems: Sequence[str] = ()) -> None:
    """Raise one error that lists every bad or repeated (place, (smiles, sites)) of `rows`."""
    problems, seen = list(problems), dict[str, Any]()
    for place, (smiles, sites) in rows:
        place = place if isinstance(place, str) else f"fragment {place}"
        problem = fragment_problem(smiles, sites)
        if problem is None:
            first = seen.setdefault(Chem.CanonSmiles(smiles), place)
            if first != place:
                problem = f"{smiles!r} is the same fragment as in {first}"
        if problem is not None:
            problems.append(f"{place}: {problem}")
    if problems:
        count = f"{len(problems)} unusable fragment{'s' * (len(problems) > 1)}"
        raise ValueError(f"{where}: {count}\n  " + "\n  ".join(problems))
