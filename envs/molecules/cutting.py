"""From molecules back to fragment trees: cover the atoms with fragments of a vocabulary."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from rdkit import Chem

from gflow.envs.molecules.chemistry import SITE_CLASSES, parse_smiles, site_class
from gflow.envs.molecules.vocabulary import Vocabulary

Pairs = list[list[bool]]


class _Piece(NamedTuple):
    """A fragment laid over atoms of a molecule: `atoms[i]` is where its atom i lies."""

    fragment: int
    atoms: tuple[int, ...]
    mask: int


def cut_molecule(
    vocabulary: Vocabulary, smiles: str, n_sites: int, pairs: Pairs
) -> list[tuple[int, int, int, int]]:
    """Rows (fragment, slot, own site, used) of a molecule cut into the fewest fragments.

    Bonds are cut only where they are single, not in a ring, and allowed by `pairs`, a table over
    `SITE_CLASSES`. Stereochemistry is ignored.

    Raises:
        ValueError: the molecule cannot be read or cannot be written with this vocabulary.
    """
    mol = parse_smiles(smiles) if smiles else None
    if mol is None:
        raise ValueError(f"cannot read SMILES {smiles!r}")
    if len(Chem.GetMolFrags(mol)) > 1:
        raise ValueError(f"{smiles!r} is more than one molecule")
    bonds = _cuttable_bonds(mol, pairs)
    pieces = _all_pieces(vocabulary, mol, bonds, range(len(vocabulary)))
    cover = _fewest(pieces, mol.GetNumAtoms())
    if cover is None:
        lonely = set(range(mol.GetNumAtoms())) - {atom for p in pieces for atom in p.atoms}
        names = ", ".join(f"{i} ({mol.GetAtomWithIdx(i).GetSymbol()})" for i in sorted(lonely))
        why = f"no fragment fits at atom {names}" if lonely else "its fragments do not fit together"
        raise ValueError(f"cannot write {smiles!r} with this vocabulary: {why}")
    return _table(vocabulary, cover, bonds, n_sites)


def composites(vocabulary: Vocabulary) -> list[int]:
    """Fragments that fall into two or more others when acyclic single bonds are cut."""
    found = []
    any_pair = [[True] * len(SITE_CLASSES)] * len(SITE_CLASSES)
    for v, mol in enumerate(vocabulary.mols):
        others = [i for i in range(len(vocabulary)) if i != v]
        pieces = _all_pieces(vocabulary, mol, _cuttable_bonds(mol, any_pair), others)
        if _fewest(pieces, mol.GetNumAtoms()) is not None:
            found.append(v)
    return found


def _cuttable_bonds(mol: Any, pairs: Pairs) -> set[frozenset[int]]:
    return {
        frozenset((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
        for bond in mol.GetBonds()
        if bond.GetBondType() == Chem.BondType.SINGLE
        and not bond.IsInRing()
        and pairs[site_class(bond.GetBeginAtom())][site_class(bond.GetEndAtom())]
    }


def _all_pieces(
    vocabulary: Vocabulary, mol: Any, bonds: set[frozenset[int]], fragments: Any
) -> list[_Piece]:
    """Every way to lay a fragment over the molecule that leaves only cuttable bonds at sites."""
    found: dict[tuple[int, int], _Piece] = {}
    for v in fragments:
        pattern = vocabulary.mols[v]
        if pattern.GetNumAtoms() > mol.GetNumAtoms():
            continue
        for atoms in mol.GetSubstructMatches(pattern, uniquify=False, maxMatches=100_000):
            mask = sum(1 << atom for atom in atoms)
            if (v, mask) not in found and _fits(vocabulary, v, mol, atoms, bonds):
                found[v, mask] = _Piece(v, atoms, mask)
    return list(found.values())


def _fits(
    vocabulary: Vocabulary, v: int, mol: Any, atoms: tuple[int, ...], bonds: set[frozenset[int]]
) -> bool:
    pattern, inside = vocabulary.mols[v], set(atoms)
    n_inner = 0
    for index, at in enumerate(atoms):
        mine, theirs = pattern.GetAtomWithIdx(index), mol.GetAtomWithIdx(at)
        outer = 0
        for neighbor in theirs.GetNeighbors():
            if neighbor.GetIdx() in inside:
                n_inner += 1
            elif frozenset((at, neighbor.GetIdx())) in bonds:
                outer += 1
            else:
                return False
        if outer > vocabulary.sites[v].count(index) or _kind(mine, outer) != _kind(theirs, 0):
            return False
    return n_inner == 2 * len(pattern.GetBonds())


def _kind(atom: Any, bonds: int) -> tuple[Any, ...]:
    """What must agree between a fragment's atom, `bonds` hydrogens short, and a molecule's."""
    return (
        atom.GetTotalNumHs() - bonds,
        atom.GetFormalCharge(),
        atom.GetIsotope(),
        atom.GetNumRadicalElectrons(),
        atom.GetIsAromatic(),
    )


def _fewest(pieces: list[_Piece], n_atoms: int) -> list[_Piece] | None:
    """The smallest set of pieces that covers every atom once."""
    by_first: list[list[_Piece]] = [[] for _ in range(n_atoms)]
    for piece in pieces:
        for atom in piece.atoms:
            by_first[atom].append(piece)
    # From the full cover backwards: best[mask] covers exactly the atoms in `mask`.
    best: dict[int, list[_Piece]] = {0: []}
    layer = [0]
    full = (1 << n_atoms) - 1
    while layer and full not in best:
        following = []
        for mask in layer:
            lowest = (~mask & (mask + 1)).bit_length() - 1
            for piece in by_first[lowest]:
                if not piece.mask & mask and mask | piece.mask not in best:
                    best[mask | piece.mask] = [*best[mask], piece]
                    following.append(mask | piece.mask)
        layer = following
    return best.get(full)


def _table(
    vocabulary: Vocabulary, cover: list[_Piece], bonds: set[frozenset[int]], n_sites: int
) -> list[tuple[int, int, int, int]]:
    """Hang the pieces up at the one that holds atom 0, breadth first and sorted by slot."""
    owner = {atom: piece for piece in cover for atom in piece.atoms}
    rows: list[tuple[int, int, int, int]] = []
    queue = deque([(owner[0], -1, -1)])
    while queue:
        piece, slot, came_from = queue.popleft()
        own_site, used, children = -1, 0, list[tuple[int, int, int]]()
        for index, atom in enumerate(piece.atoms):
            free = [s for s, at in enumerate(vocabulary.sites[piece.fragment]) if at == index]
            ends = [next(iter(b - {atom})) for b in bonds if atom in b]
            outside = sorted(end for end in ends if owner[end] is not piece)
            for site, end in zip(free, outside, strict=False):
                used |= 1 << site
                if end == came_from:
                    own_site = site
                else:
                    children.append((site, end, atom))
        node = len(rows)
        rows.append((piece.fragment, slot, own_site, used))
        queue.extend((owner[end], node * n_sites + s, atom) for s, end, atom in sorted(children))
    return rows
