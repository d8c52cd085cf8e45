"""What the report knows about molecules: drawings, diverse picks, diversity and novelty."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_SIZE = (300, 210)
_NOISE = re.compile(
    r"<\?xml.*?\?>|<!--.*?-->|\s+(?:class|xmlns(?::\w+)?|xml:space|baseProfile|version)='[^']*'",
    re.DOTALL,
)
# The page's style sheet gives each element a colour for light and one for dark.
_COLORS = {
    "#000000": "currentColor", "#0000FF": "var(--n)", "#FF0000": "var(--o)",
    "#33CCCC": "var(--f)", "#CCCC00": "var(--s)", "#00CC00": "var(--cl)",
    "#7F4C19": "var(--br)", "#A01EEF": "var(--i)", "#FF7F00": "var(--p)",
}  # fmt: skip


def draw_molecule(smiles: object) -> str:
    """Structure formula as a small SVG on a transparent ground; "" if it is no molecule."""
    from rdkit.Chem.Draw import rdMolDraw2D

    from gflow.envs.molecules.chemistry import parse_smiles

    molecule = parse_smiles(smiles) if isinstance(smiles, str) else None
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
    svg = re.sub(r"\sfill='(#\w{6})'", r" style='fill:\1'", svg)
    svg = re.sub(r"#[0-9A-F]{6}", lambda color: _COLORS.get(color[0], color[0]), svg)
    return " ".join(svg.split()).replace("> <", "><").replace("<svg", "<svg class='themed'", 1)


_ALIKE = 0.5
"""Two molecules of one table are no more similar than this (Tanimoto, Morgan radius 2)."""


def pick_diverse(ranked: Sequence[str], n: int) -> list[int]:
    """Positions of up to `n` of `ranked`, from the first on, no two alike."""
    from gflow.envs.molecules.diversity import diverse_top_k

    return diverse_top_k(ranked, [-float(place) for place in range(len(ranked))], n, _ALIKE)


def diversity_facts(front: Sequence[str], sample: Sequence[str]) -> list[dict[str, str]]:
    """How different the molecules of the front, and of a sample of all, are."""
    from gflow.envs.molecules.diversity import mean_distance, n_scaffolds

    facts = []
    if len(front) > 1:
        note = f"from 0, all alike, to 1; {mean_distance(sample):.2f} among all candidates"
        label = "mean Tanimoto distance on the front"
        facts.append({"value": f"{mean_distance(front):.2f}", "label": label, "note": note})
    label = f"scaffolds among the {len(front):,} molecules of the front"
    note = f"{n_scaffolds(sample):,} among {len(sample):,} of all candidates"
    facts.append({"value": f"{n_scaffolds(front):,}", "label": label, "note": note})
    return facts


def novelty_fact(front: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """How far the molecules of the front are from `known` ones (SMILES)."""
    from gflow.envs.molecules.diversity import novelty

    distance = novelty(front, known)
    new = float((distance > 0).double().mean())
    return {
        "value": f"{new:.0%}",
        "label": "of the front is not among the known molecules",
        "note": f"compared with {len(known):,} known ones; the nearest has a Tanimoto "
        f"similarity of {1 - float(distance.mean()):.2f} on average",
    }


def readable(lines: Sequence[str]) -> list[str]:
    """The SMILES that start the lines, without those that cannot be read."""
    from gflow.envs.molecules.chemistry import parse_smiles

    first = (line.split()[0] for line in lines if line.strip())
    return [smiles for smiles in first if parse_smiles(smiles) is not None]
