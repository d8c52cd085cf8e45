"""From fragment trees to SMILES: one string per tree, with ring-closure numbers as joints."""

from __future__ import annotations

from collections.abc import Sequence

from rdkit import Chem

from gflow.envs.molecules.chemistry import parse_smiles, split_atoms, with_fewer_hydrogens
from gflow.envs.molecules.vocabulary import Vocabulary

_FIRST_JOINT = 100  # three-digit ring closures never meet those inside a fragment


class Speller:
    """Spells fragment trees of one vocabulary as canonical SMILES.

    Every fragment is one component of a dotted SMILES, and every bond between two fragments a
    ring closure between their attachment atoms, so that RDKit builds and checks the molecule in a
    single parse.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self._templates: dict[tuple[int, int], tuple[str, list[int]]] = {}

    def __call__(self, nodes: Sequence[Sequence[int]], n_sites: int) -> str:
        """Canonical SMILES of one tree, given its (fragment, slot, own site, used) rows.

        Raises:
            ValueError: RDKit cannot read the assembled molecule.
        """
        joints = {slot: node for node, (_, slot, _, _) in enumerate(nodes)}
        parts = []
        for node, (fragment, _, own_site, used) in enumerate(nodes):
            template, order = self._template(fragment, used)
            at = [
                _FIRST_JOINT + (node if site == own_site else joints[node * n_sites + site])
                for site in order
            ]
            parts.append(template.format(*at))
        text = ".".join(parts)
        mol = parse_smiles(text)
        if mol is None:
            raise ValueError(f"RDKit cannot read the assembled molecule {text!r}")
        return str(Chem.MolToSmiles(mol))

    def _template(self, fragment: int, used: int) -> tuple[str, list[int]]:
        """The fragment's SMILES with a gap at each used site, and the sites in gap order."""
        if (fragment, used) not in self._templates:
            start, atoms = split_atoms(self.vocabulary.smiles[fragment])
            text, order = start, list[int]()
            for index, (atom, rest) in enumerate(atoms):
                here = [
                    site
                    for site, at in enumerate(self.vocabulary.sites[fragment])
                    if at == index and used >> site & 1
                ]
                text += with_fewer_hydrogens(atom, len(here)) + "-%({})" * len(here) + rest
                order += here
            self._templates[fragment, used] = text, order
        return self._templates[fragment, used]
