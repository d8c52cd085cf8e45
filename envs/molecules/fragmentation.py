"""Vocabularies from a user's molecules, cut at retrosynthetically sensible bonds."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rdkit import Chem
from rdkit.Chem import BRICS

from gflow.envs.molecules.chemistry import (
    MAX_SITES,
    allowed_pairs,
    automorphisms,
    parse_smiles,
    site_class,
)
from gflow.envs.molecules.vocabulary import Vocabulary


class UnusableRow(NamedTuple):
    """A row of the input that gave no fragment: its line (from 1), SMILES, and why."""

    line: int
    smiles: str
    reason: str


@dataclass(frozen=True)
class Fragmentation:
    """A vocabulary cut from molecules, and what became of the input.

    Attributes:
        vocabulary: the fragments with their counts, most frequent first.
        n_rows: rows read.
        n_molecules: different molecules that gave fragments.
        n_repeated: rows that repeat an earlier molecule.
        n_salts: rows of several molecules, of which the largest was taken.
        n_dropped: different fragments left out by the limits on count and number.
        unusable: rows that gave no fragment.
    """

    vocabulary: Vocabulary
    n_rows: int
    n_molecules: int
    n_repeated: int
    n_salts: int
    n_dropped: int
    unusable: tuple[UnusableRow, ...]

    def summary(self) -> str:
        """What was read, kept and left out, one line each; every unusable row has its own."""
        lines = [
            f"{self.n_rows} rows: {self.n_molecules} different molecules cut, "
            f"{self.n_repeated} repeats, {len(self.unusable)} unusable",
            f"{len(self.vocabulary)} fragments kept, {self.n_dropped} dropped",
        ]
        if self.n_salts:
            lines.append(f"{self.n_salts} rows hold several molecules: the largest was taken")
        return "\n".join(
            lines + [f"line {row.line}: {row.reason}: {row.smiles}" for row in self.unusable]
        )


def fragment_molecules(
    path: str | Path,
    column: str | None = None,
    max_atoms: int = 20,
    min_count: int = 1,
    max_fragments: int = 200,
) -> Fragmentation:
    """Cut the molecules of a file into a vocabulary, most frequent fragments first.

    Bonds are cut where BRICS (Degen et al. 2008, doi 10.1002/cmdc.200800178) would and the
    environment may bond again; pieces that are still too large are cut at all their other
    acyclic single bonds. Sites are the atoms that lost a bond: of a fragment seen several times,
    all of them, up to 6, the most frequent first. Stereochemistry is dropped.

    Args:
        path: a CSV file (comma, semicolon or tab) with a header, or a `.smi` file.
        column: the SMILES column; by default the one whose name is, or else contains, "smiles".
        max_atoms: most heavy atoms of a fragment.
        min_count: how often a fragment must occur.
        max_fragments: most fragments.

    Returns:
        The vocabulary with counts, and the rows that could not be used.

    Raises:
        ValueError: there is no SMILES column, or nothing usable.
    """
    if min(max_atoms, min_count, max_fragments) < 1:
        raise ValueError("max_atoms, min_count and max_fragments must be at least 1")
    unusable: list[UnusableRow] = []
    n_rows = n_molecules = n_repeated = n_salts = 0
    counts: Counter[str] = Counter()
    sites: dict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    seen: set[str] = set()
    for line, smiles in _read(Path(path), column):
        n_rows += 1
        mol = parse_smiles(smiles) if smiles else None
        if mol is None:
            reason = "RDKit cannot read it" if smiles else "no SMILES"
            unusable.append(UnusableRow(line, smiles, reason))
            continue
        parts = Chem.GetMolFrags(mol, asMols=True)
        if len(parts) > 1:
            n_salts += 1
            mol = max(parts, key=lambda part: int(part.GetNumHeavyAtoms()))
        Chem.RemoveStereochemistry(mol)
        key = Chem.MolToSmiles(mol)
        if key in seen:
            n_repeated += 1
            continue
        seen.add(key)
        try:
            pieces = [piece for piece in cut(mol, max_atoms) if piece.sites]
        except ValueError as error:
            unusable.append(UnusableRow(line, smiles, str(error)))
            continue
        small = [piece for piece in pieces if piece.n_atoms <= max_atoms]
        if not small:
            reason = f"every piece has more than {max_atoms} atoms" if pieces else "no bond to cut"
            unusable.append(UnusableRow(line, smiles, reason))
            continue
        n_molecules += 1
        for piece in small:
            counts[piece.smiles] += 1
            sites[piece.smiles].update(piece.sites)
    if not counts:
        raise ValueError(f"{path}: none of {n_rows} rows gave a fragment")
    ranked = sorted(counts, key=lambda text: (-counts[text], text))
    kept = [text for text in ranked if counts[text] >= min_count][:max_fragments]
    if not kept:
        raise ValueError(f"{path}: no fragment occurs {min_count} times")
    vocabulary = Vocabulary(
        tuple(kept),
        tuple(_most_frequent(sites[text]) for text in kept),
        tuple(counts[text] for text in kept),
    )
    return Fragmentation(
        vocabulary,
        n_rows,
        n_molecules,
        n_repeated,
        n_salts,
        len(counts) - len(kept),
        tuple(unusable),
    )


def _read(path: Path, column: str | None) -> Iterator[tuple[int, str]]:
    """Line numbers and SMILES of a CSV or .smi file."""
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        if path.suffix.lower() in (".smi", ".smiles"):
            for line, text in enumerate(file, 1):
                words = text.split()
                if words:
                    yield line, words[0]
            return
        header = file.readline()
        file.seek(0)
        delimiter = max(",;\t", key=header.count)
        reader = csv.DictReader(file, delimiter=delimiter)
        names = [name or "" for name in reader.fieldnames or ()]
        chosen = _column(path, names, column)
        for row in reader:
            yield reader.line_num, (row[chosen] or "").strip()


def _column(path: Path, names: list[str], column: str | None) -> str:
    wanted = (column or "smiles").strip().lower()
    exact = [name for name in names if name.strip().lower() == wanted]
    partly = [] if column else [name for name in names if wanted in name.lower()]
    if not exact + partly:
        raise ValueError(f"{path}: no column {column or 'smiles'!r} among {', '.join(names)}")
    return (exact + partly)[0]


class Piece(NamedTuple):
    """A piece of a molecule: canonical SMILES, size, and its (atom, how many-th bond) cuts."""

    smiles: str
    n_atoms: int
    sites: list[tuple[int, int]]


def cut(mol: Any, max_atoms: int) -> list[Piece]:
    """Pieces of an RDKit molecule, cut further where they have more than `max_atoms` atoms."""
    pairs = allowed_pairs()
    bonds = {
        frozenset((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
        for bond in mol.GetBonds()
        if bond.GetBondType() == Chem.BondType.SINGLE
        and not bond.IsInRing()
        and pairs[site_class(bond.GetBeginAtom())][site_class(bond.GetEndAtom())]
    }
    chosen = {frozenset(ends) for ends, _ in BRICS.FindBRICSBonds(mol)} & bonds
    groups = Chem.GetMolFrags(_without(mol, chosen))
    large = {atom for group in groups if len(group) > max_atoms for atom in group}
    chosen |= {bond for bond in bonds if bond <= large}
    return [_piece(part) for part in Chem.GetMolFrags(_without(mol, chosen), asMols=True)]


def _without(mol: Any, bonds: set[frozenset[int]]) -> Any:
    """The molecule with hydrogens in place of `bonds`; atoms carry how many they lost."""
    result = Chem.RWMol(mol)
    lost = Counter(atom for bond in bonds for atom in bond)
    for one, other in bonds:
        result.RemoveBond(one, other)
    for index, times in lost.items():
        atom = result.GetAtomWithIdx(index)
        # Explicit hydrogens: sulfur would otherwise take a lower valence.
        atom.SetNumExplicitHs(mol.GetAtomWithIdx(index).GetTotalNumHs() + times)
        atom.SetIntProp("lost", times)
    Chem.SanitizeMol(result)
    return result.GetMol()


def _piece(mol: Any) -> Piece:
    """Canonical SMILES and sites, the latter the same for equivalent cuts."""
    smiles = Chem.MolToSmiles(mol)
    order = list(mol.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])
    atoms = [mol.GetAtomWithIdx(index) for index in order]
    lost = [atom.GetIntProp("lost") if atom.HasProp("lost") else 0 for atom in atoms]
    again = Chem.MolFromSmiles(smiles)
    best = max(tuple(lost[to] for to in image) for image in automorphisms(again))
    sites = [(atom, nth) for atom, times in enumerate(best) for nth in range(times)]
    return Piece(smiles, len(lost), sites)


def _most_frequent(sites: Counter[tuple[int, int]]) -> tuple[int, ...]:
    ranked = sorted(sites, key=lambda site: (-sites[site], site))
    return tuple(sorted(atom for atom, _ in ranked[:MAX_SITES]))
