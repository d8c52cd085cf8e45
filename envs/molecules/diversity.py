"""How different the molecules of a set are: fingerprints, distances, scaffolds, novelty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Scaffolds import MurckoScaffold
from torch import Tensor

from gflow.envs.molecules.chemistry import parse_smiles

_CHUNK = 4096


def fingerprints(smiles: Sequence[str], radius: int = 2, n_bits: int = 2048) -> Tensor:
    """Morgan fingerprints [n, n_bits], bool (Rogers and Hahn 2010).

    Raises:
        ValueError: naming the first SMILES that cannot be read.
    """
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=n_bits)
    bits = np.zeros((len(smiles), n_bits), dtype=bool)
    for row, text in enumerate(smiles):
        bits[row] = generator.GetFingerprintAsNumPy(_parse(text))
    return torch.from_numpy(bits)


def tanimoto(one: Tensor, other: Tensor) -> Tensor:
    """Tanimoto similarities [n, m] of bool fingerprints [n, b] and [m, b], float32 in 0..1.

    Two empty fingerprints count as equal.
    """
    left, right = one.float(), other.float()
    common = left @ right.T
    either = left.sum(1, keepdim=True) + right.sum(1) - common
    return torch.where(either > 0, common / either.clamp(min=1), 1.0)


def mean_distance(smiles: Sequence[str]) -> float:
    """Mean Tanimoto distance over all pairs, in 0..1; NaN for fewer than two molecules."""
    bits, n = fingerprints(smiles), len(smiles)
    if n < 2:
        return float("nan")
    total = sum(float(tanimoto(part, bits).double().sum()) for part in bits.split(_CHUNK))
    return 1.0 - (total - n) / (n * (n - 1))


def n_scaffolds(smiles: Sequence[str]) -> int:
    """Number of different Bemis-Murcko scaffolds; molecules without rings share one."""
    return len({MurckoScaffold.MurckoScaffoldSmiles(mol=_parse(text)) for text in smiles})


def diverse_top_k(
    smiles: Sequence[str], scores: Sequence[float], k: int, threshold: float = 0.7
) -> list[int]:
    """Up to k positions, best score first, no two with a Tanimoto similarity above `threshold`.

    Greedy: a molecule is taken when it is not too close to any better one that was taken.

    Raises:
        ValueError: as many scores as molecules are needed.
    """
    values = torch.as_tensor(scores, dtype=torch.float64)
    if len(values) != len(smiles):
        raise ValueError(f"{len(smiles)} molecules need as many scores, not {len(values)}")
    bits = fingerprints(smiles)
    free = ~values.isnan()
    chosen: list[int] = []
    for row in values.argsort(descending=True, stable=True).tolist():
        if len(chosen) == k:
            break
        if free[row]:
            chosen.append(row)
            free &= tanimoto(bits[row : row + 1], bits)[0] <= threshold
    return chosen


def novelty(smiles: Sequence[str], reference: Sequence[str]) -> Tensor:
    """1 - largest Tanimoto similarity of each molecule to a reference, [n] in 0..1.

    Raises:
        ValueError: no reference molecules.
    """
    if not reference:
        raise ValueError("novelty needs at least one reference molecule")
    known = fingerprints(reference)
    parts = [tanimoto(part, known).amax(1) for part in fingerprints(smiles).split(_CHUNK)]
    return 1.0 - torch.cat(parts)


def _parse(smiles: str) -> object:
    mol = parse_smiles(smiles)
    if mol is None:
        raise ValueError(f"cannot read SMILES {smiles!r}")
    return mol
