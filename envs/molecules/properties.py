"""Properties of RDKit molecules that several oracles use."""

from __future__ import annotations

from functools import cache
from typing import Any

from rdkit import DataStructs
from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors


def logp(mol: Any) -> float:
    """Crippen's octanol-water partition coefficient."""
    return float(rdMolDescriptors.CalcCrippenDescriptors(mol)[0])


def weight(mol: Any) -> float:
    """Molecular weight in Da."""
    return float(rdMolDescriptors._CalcMolWt(mol))


def n_fluorines(mol: Any) -> float:
    """Number of fluorine atoms."""
    return float(sum(atom.GetAtomicNum() == 9 for atom in mol.GetAtoms()))


def synthesizability(mol: Any) -> float:
    """(10 - SA score) / 9, in 0..1 (Ertl and Schuffenhauer, 2009, doi 10.1186/1758-2946-1-8)."""
    from rdkit.Contrib.SA_Score import sascorer  # loads 4 MB of fragment scores

    return (10.0 - float(sascorer.calculateScore(mol))) / 9.0


@cache
def _generator(kind: str) -> Any:
    if kind == "AP":
        return rdFingerprintGenerator.GetAtomPairGenerator(maxDistance=10)
    features = rdFingerprintGenerator.GetMorganFeatureAtomInvGen() if kind[0] == "F" else None
    radius = int(kind[-1]) // 2
    return rdFingerprintGenerator.GetMorganGenerator(
        radius=radius, atomInvariantsGenerator=features
    )


def fingerprint(kind: str, mol: Any) -> Any:
    """Unhashed counts: ECFP4, ECFP6, FCFP4 (Morgan) or AP (atom pairs); PHCO has bits."""
    if kind == "PHCO":
        from rdkit.Chem.Pharm2D import Generate, Gobbi_Pharm2D

        return Generate.Gen2DFingerprint(mol, Gobbi_Pharm2D.factory)
    return _generator(kind).GetSparseCountFingerprint(mol)


def similarity(kind: str, reference: Any, mol: Any) -> float:
    """Tanimoto similarity of a molecule to a fingerprint of the same kind."""
    return float(DataStructs.TanimotoSimilarity(reference, fingerprint(kind, mol)))
