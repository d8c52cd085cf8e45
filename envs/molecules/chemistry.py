"""What the environment knows about chemistry: classes of attachment sites and who may bond."""

from __future__ import annotations

import re
from typing import Any

from rdkit import Chem, rdBase

MAX_SITES = 6

SITE_CLASSES = ("aryl C", "sp3 C", "acyl C", "N", "O", "S(II)", "S(VI)", "F", "halogen", "other")
"""Class of an attachment atom; "acyl C" is any non-aromatic unsaturated carbon."""

_PARTNERS = {
    "aryl C": ("aryl C", "sp3 C", "acyl C", "N", "O", "S(II)", "S(VI)", "F", "halogen", "other"),
    "sp3 C": ("sp3 C", "acyl C", "N", "O", "S(II)", "S(VI)", "F", "halogen", "other"),
    "acyl C": ("N", "O", "S(II)"),
    "N": ("S(VI)",),
    "O": ("S(VI)",),
}
# Absent on purpose: N-N, N-O, O-O, S-S, N-S(II), O-S(II), anything but carbon on halogen, acyl
# halides, acyl-acyl and acyl-sulfonyl bonds: unstable or reactive.


def allowed_pairs() -> list[list[bool]]:
    """Symmetric table: may a single bond join sites of these two classes."""
    n = len(SITE_CLASSES)
    table = [[False] * n for _ in range(n)]
    for one, others in _PARTNERS.items():
        for other in others:
            i, j = SITE_CLASSES.index(one), SITE_CLASSES.index(other)
            table[i][j] = table[j][i] = True
    return table


def site_class(atom: Any) -> int:
    """Index into `SITE_CLASSES` of an RDKit atom."""
    symbol = atom.GetSymbol()
    if symbol == "C":
        if atom.GetIsAromatic():
            return SITE_CLASSES.index("aryl C")
        single = all(bond.GetBondType() == Chem.BondType.SINGLE for bond in atom.GetBonds())
        return SITE_CLASSES.index("sp3 C" if single else "acyl C")
    if symbol == "S":
        return SITE_CLASSES.index("S(VI)" if atom.GetTotalValence() > 2 else "S(II)")
    if symbol in ("Cl", "Br", "I"):
        return SITE_CLASSES.index("halogen")
    return SITE_CLASSES.index(symbol if symbol in ("N", "O", "F") else "other")


def parse_smiles(smiles: str) -> Any | None:
    """RDKit molecule, or None (without log lines) where RDKit cannot read the string."""
    with rdBase.BlockLogs():
        return Chem.MolFromSmiles(smiles)


def canonical_smiles(smiles: str) -> str:
    """RDKit's canonical SMILES of the same molecule.

    Raises:
        ValueError: RDKit cannot read it.
    """
    mol = parse_smiles(smiles) if smiles else None
    if mol is None:
        raise ValueError(f"RDKit cannot read {smiles!r}")
    return str(Chem.MolToSmiles(mol))


_TOKEN = re.compile(
    r"(?P<bracket>\[[^\]]+\])|(?P<organic>Br|Cl|[BCNOPSFI]|[bcnops])|(?P<rest>%\d\d|[^A-Za-z\[\]])"
)
_HYDROGENS = re.compile(r"(?<=[A-Za-z@*])H(\d*)")


def split_atoms(smiles: str) -> tuple[str, list[tuple[str, str]]]:
    """Cut a SMILES string into its start and a list of (atom, text up to the next atom).

    Raises:
        ValueError: the string holds something that is no SMILES token.
    """
    start, atoms, position = "", list[tuple[str, str]](), 0
    while position < len(smiles):
        match = _TOKEN.match(smiles, position)
        if match is None:
            raise ValueError(f"cannot read SMILES {smiles!r} at {smiles[position:]!r}")
        position = match.end()
        if match["rest"] is None:
            atoms.append((match[0], ""))
        elif atoms:
            atoms[-1] = (atoms[-1][0], atoms[-1][1] + match[0])
        else:
            start += match[0]
    return start, atoms


def with_fewer_hydrogens(atom: str, bonds: int) -> str:
    """The SMILES atom after `bonds` of its hydrogens were replaced by bonds."""
    if not atom.startswith("["):
        return atom
    match = _HYDROGENS.search(atom)
    if match is None:
        return atom
    left = int(match[1] or 1) - bonds
    count = {0: "", 1: "H"}.get(left, f"H{left}")
    return atom[: match.start()] + count + atom[match.end() :]


def automorphisms(mol: Any) -> list[tuple[int, ...]]:
    """Permutations of the atoms that keep elements, charges, hydrogens and bonds.

    Stereo marks are ignored.

    Raises:
        ValueError: more than 10,000 of them.
    """
    limit = 10_000
    found = mol.GetSubstructMatches(mol, uniquify=False, maxMatches=limit + 1)
    if len(found) > limit:
        raise ValueError(f"{Chem.MolToSmiles(mol)} has more than {limit} symmetries")
    kinds = [
        (a.GetTotalNumHs(), a.GetFormalCharge(), a.GetIsotope(), a.GetNumRadicalElectrons())
        for a in mol.GetAtoms()
    ]
    bonds = {
        frozenset((b.GetBeginAtomIdx(), b.GetEndAtomIdx())): b.GetBondType() for b in mol.GetBonds()
    }
    return [
        image
        for image in sorted(found)
        if all(kinds[atom] == kinds[to] for atom, to in enumerate(image))
        and all(bonds.get(frozenset(image[a] for a in pair)) == b for pair, b in bonds.items())
    ]
