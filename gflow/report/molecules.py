"""What the report knows about molecules: drawings, diverse picks, novelty."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_SIZE = (300, 210)
_SIMILAR = 0.6
"""Two picks of one table are less similar than this (Tanimoto, Morgan radius 2)."""

_NOISE = re.compile(
    r"<\?xml.*?\?>|<!--.*?-->|\s+(?:class|xmlns(?::\w+)?|xml:space|baseProfile|version)='[^']*'",
    re.DOTALL,
)


def draw_molecule(smiles: object) -> str:
    """Structure formula as a small SVG on a transparent ground; "" if it is no molecule."""
    from rdkit.Chem.Draw import rdMolDraw2D

    molecule = _parse(smiles)
    if molecule is None:
        return ""
    drawer = rdMolDraw2D.MolDraw2DSVG(*_SIZE)
    options: Any = drawer.drawOptions()
    options.clearBackground = False
    options.bondLineWidth = 1.6
    options.maxFontSize = 16
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, molecule)
    drawer.FinishDrawing()
    svg = _NOISE.sub("", drawer.GetDrawingText())
    # Without a fixed size the page decides how large a drawing is.
    svg = re.sub(r"\s(?:width|height)='\d+px'", "", svg, count=2)
    return " ".join(svg.split()).replace("> <", "><")


def pick_diverse(ranked: Sequence[Any], n: int) -> list[int]:
    """Indices of the first `n` of `ranked` that are not similar to one picked before."""
    from rdkit import DataStructs

    prints: list[Any] = []
    picked: list[int] = []
    for index, smiles in enumerate(ranked):
        if len(picked) == n:
            break
        found = fingerprints([smiles])[0]
        if found is None:
            continue
        if not prints or max(DataStructs.BulkTanimotoSimilarity(found, prints)) < _SIMILAR:
            prints.append(found)
            picked.append(index)
    return picked


def novelty(front: Sequence[Any], known: Sequence[str]) -> tuple[float, float]:
    """Share of `front` that is not among `known`, and mean similarity to the nearest known."""
    from rdkit import Chem, DataStructs

    def canonical(smiles: Any) -> str | None:
        molecule = _parse(smiles)
        return None if molecule is None else Chem.MolToSmiles(molecule)

    names = {canonical(line.split()[0]) for line in known if line.strip()}
    references = [found for found in fingerprints(sorted(n for n in names if n)) if found]
    new = sum(canonical(smiles) not in names for smiles in front) / len(front)
    nearest = [
        max(DataStructs.BulkTanimotoSimilarity(found, references))
        for found in fingerprints(front)
        if found is not None
    ]
    return new, sum(nearest) / max(len(nearest), 1)


def fingerprints(objects: Sequence[Any]) -> list[Any]:
    """Morgan fingerprints of radius 2, None where an object is no molecule."""
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    found = [_parse(item) for item in objects]
    return [None if one is None else generator.GetFingerprint(one) for one in found]


def _parse(smiles: object) -> Any:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        return Chem.MolFromSmiles(smiles) if isinstance(smiles, str) else None
