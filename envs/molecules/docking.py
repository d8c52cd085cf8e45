"""Docking by AutoDock Vina: ligand and receptor files, and a slow oracle (extra gflow[docking]).

(Eberhardt et al., 2021, doi 10.1021/acs.jcim.1c00203.) Atoms get the types of AutoDock; hydrogens
on carbon are dropped, and partial charges are zero, since the scoring function does not use them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

_PLAIN = {"F": "F", "Cl": "Cl", "Br": "Br", "I": "I", "P": "P", "O": "OA"}
_METALS = {"Mg": "Mg", "Mn": "Mn", "Zn": "Zn", "Ca": "Ca", "Fe": "Fe"}
_AMIDE = Chem.MolFromSmarts("[#6X3](=[O,S,N])-[#7X3]")
_STRONGEST = 12.0  # kcal/mol; few drugs bind more strongly


@dataclass(frozen=True)
class Pocket:
    """Where to dock.

    Attributes:
        receptor: rigid receptor, a PDBQT file.
        center: middle of the search box, in Å.
        size: its edges, in Å.
        exhaustiveness: effort of the search; time grows in proportion.
        seed: seed of the search.

    Raises:
        ValueError: an edge or the exhaustiveness is not positive, or the receptor has no atoms.
    """

    receptor: Path
    center: tuple[float, float, float]
    size: tuple[float, float, float] = (20.0, 20.0, 20.0)
    exhaustiveness: int = 8
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.size) <= 0 or self.exhaustiveness < 1:
            raise ValueError(
                f"the box edges {self.size} and the exhaustiveness {self.exhaustiveness} must be "
                "positive"
            )
        if not self.receptor.is_file():
            raise ValueError(f"there is no receptor {self.receptor}")
        if not any(line.startswith(("ATOM", "HETATM")) for line in self.receptor.open()):
            raise ValueError(f"receptor {self.receptor} has no atoms: it must be a PDBQT file")

    @classmethod
    def load(cls, path: str | Path) -> Pocket:
        """Read a configuration file of AutoDock Vina.

        Lines `name = value` for receptor (relative to the file), center_x, center_y, center_z,
        size_x, size_y, size_z, exhaustiveness and seed; what follows # is a comment.

        Raises:
            ValueError: the file or its receptor is missing, or naming the line that is wrong.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"there is no docking configuration {path}")
        kinds = {"receptor": str, "exhaustiveness": int, "seed": int}
        kinds |= {f"{what}_{axis}": float for what in ("center", "size") for axis in "xyz"}
        found: dict[str, Any] = {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            name, _, value = (part.strip() for part in line.partition("#")[0].partition("="))
            if not name:
                continue
            if name not in kinds:
                raise ValueError(f"{path}:{number}: unknown {name!r}, known are {', '.join(kinds)}")
            try:
                found[name] = kinds[name](value)
            except ValueError:
                raise ValueError(f"{path}:{number}: {name} cannot be {value!r}") from None
        missing = [
            name for name in ("receptor", *(f"center_{a}" for a in "xyz")) if name not in found
        ]
        if missing:
            raise ValueError(f"{path}: {', '.join(missing)} missing")
        receptor = path.parent / found.pop("receptor")
        x, y, z = (found.pop(f"center_{axis}") for axis in "xyz")
        a, b, c = (found.pop(f"size_{axis}", 20.0) for axis in "xyz")
        try:
            return cls(receptor, (x, y, z), (a, b, c), **found)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


class Docking:
    """Docks molecules; the grids of the pocket are computed at the first one of each process.

    Args:
        pocket: where to dock.

    Attributes:
        seconds: rough cost of one molecule.

    Raises:
        ImportError: vina is not installed.
    """

    def __init__(self, pocket: Pocket):
        self.pocket = pocket
        self.seconds = 0.5 * pocket.exhaustiveness
        self._engine: Any = None
        vina()

    def energy(self, mol: Any) -> float:
        """Estimated free energy of binding of the best pose, in kcal/mol.

        What does not fit into the box has a large positive one.

        Raises:
            ValueError: no conformation or no atom types can be found for the molecule.
        """
        ligand = ligand_pdbqt(mol)
        try:
            if self._engine is None:
                engine = vina().Vina(cpu=1, seed=self.pocket.seed, verbosity=0)
                engine.set_receptor(str(self.pocket.receptor))
                engine.compute_vina_maps(list(self.pocket.center), list(self.pocket.size))
                self._engine = engine
            self._engine.set_ligand_from_string(ligand)
            self._engine.dock(exhaustiveness=self.pocket.exhaustiveness, n_poses=1)
            return float(self._engine.energies(n_poses=1)[0][0])
        except (RuntimeError, TypeError, IndexError) as error:
            raise ValueError(f"docking failed: {error}") from error

    def reward(self, mol: Any) -> float:
        """Minus the energy in units of 12 kcal/mol, within 0..1."""
        return min(max(-self.energy(mol) / _STRONGEST, 0.0), 1.0)


def vina() -> Any:
    """The module `vina`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import vina as module
    except ImportError as error:
        raise ImportError(
            "docking needs vina: install it with `pip install gflow[docking]`"
        ) from error
    return module


def ligand_pdbqt(mol: Any, seed: int = 1) -> str:
    """A flexible ligand in one conformation, with its tree of rotatable bonds.

    Args:
        mol: an RDKit molecule of one piece, without coordinates.
        seed: of the embedding.

    Raises:
        ValueError: several pieces, no conformation, or an element without parameters.
    """
    if len(Chem.GetMolFrags(mol)) != 1:
        raise ValueError(f"{Chem.MolToSmiles(mol)} has several pieces")
    mol = embedded(mol, seed)
    kept = _kept(mol)
    loose = _rotatable(mol, kept)
    piece = _pieces(mol, kept, loose)
    sizes = [list(piece.values()).count(number) for number in set(piece.values())]
    root = sizes.index(max(sizes))
    serial: dict[int, int] = {}
    lines: list[str] = []

    def write(number: int, first: int) -> None:
        """The atoms of a piece, `first` in front, then the branches that hang on it."""
        members = sorted((atom for atom in kept if piece[atom] == number), key=lambda a: a != first)
        for atom in members:
            serial[atom] = len(serial) + 1
            lines.append(_line(mol, atom, serial[atom], kept[atom]))
        if number == root:
            lines.append("ENDROOT")
        for inner, outer in loose:
            for here, there in ((inner, outer), (outer, inner)):
                if piece[here] == number and there not in serial:
                    start = len(lines)
                    lines.append("")
                    write(piece[there], there)
                    branch = f"BRANCH {serial[here]:3d} {serial[there]:3d}"
                    lines[start] = branch
                    lines.append(f"END{branch}")

    lines.append("ROOT")
    write(root, next(atom for atom in kept if piece[atom] == root))
    return "\n".join([*lines, f"TORSDOF {len(loose)}", ""])


def receptor_pdbqt(mol: Any) -> str:
    """A rigid receptor from an RDKit molecule with hydrogens and coordinates.

    Raises:
        ValueError: no coordinates, or an element without parameters.
    """
    if not mol.GetNumConformers():
        raise ValueError("a receptor needs coordinates")
    kept = _kept(mol)
    lines = [_line(mol, atom, i, kind) for i, (atom, kind) in enumerate(kept.items(), 1)]
    return "\n".join([*lines, "TER", ""])


def embedded(mol: Any, seed: int = 1) -> Any:
    """The molecule with hydrogens and one conformation of low energy.

    Raises:
        ValueError: no conformation can be found.
    """
    with rdBase.BlockLogs():
        mol = Chem.AddHs(mol)
        settings: Any = rdDistGeom.ETKDGv3()
        settings.randomSeed = seed
        if rdDistGeom.EmbedMolecule(mol, settings) != 0:
            settings.useRandomCoords = True
            if rdDistGeom.EmbedMolecule(mol, settings) != 0:
                raise ValueError(f"no conformation of {Chem.MolToSmiles(Chem.RemoveHs(mol))}")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=200)
    return mol


def _kept(mol: Any) -> dict[int, str]:
    """AutoDock type of every atom but the hydrogens on carbon."""
    kinds: dict[int, str] = {}
    amides = {match[2] for match in mol.GetSubstructMatches(_AMIDE)}
    for atom in mol.GetAtoms():
        symbol, index = atom.GetSymbol(), atom.GetIdx()
        if symbol == "H":
            if all(neighbor.GetSymbol() == "C" for neighbor in atom.GetNeighbors()):
                continue
            kinds[index] = "HD"
        elif symbol == "C":
            kinds[index] = "A" if atom.GetIsAromatic() else "C"
        elif symbol == "N":
            kinds[index] = "NA" if _has_lone_pair(atom, amides) else "N"
        elif symbol == "S":
            kinds[index] = "SA" if atom.GetTotalDegree() <= 2 else "S"
        elif symbol in _PLAIN or symbol in _METALS:
            kinds[index] = {**_PLAIN, **_METALS}[symbol]
        else:
            raise ValueError(f"element {symbol} has no docking parameters")
    return kinds


def _has_lone_pair(atom: Any, amides: set[int]) -> bool:
    """A nitrogen that accepts hydrogen bonds: no ammonium, amide, aniline or pyrrole."""
    if atom.GetFormalCharge() > 0 or atom.GetIdx() in amides or atom.GetTotalDegree() > 3:
        return False
    beside_ring = any(neighbor.GetIsAromatic() for neighbor in atom.GetNeighbors())
    return not (atom.GetTotalDegree() == 3 and beside_ring)


def _rotatable(mol: Any, kept: dict[int, str]) -> list[tuple[int, int]]:
    """Single bonds outside rings that turn something, amides excepted."""
    stiff = {frozenset((match[0], match[2])) for match in mol.GetSubstructMatches(_AMIDE)}

    def turns(atom: Any, other: Any) -> bool:
        further = [n.GetIdx() for n in atom.GetNeighbors() if n.GetIdx() != other.GetIdx()]
        linear = atom.GetHybridization() == Chem.HybridizationType.SP
        return not linear and any(index in kept for index in further)

    return [
        (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
        for bond in mol.GetBonds()
        if bond.GetBondType() == Chem.BondType.SINGLE
        and not bond.IsInRing()
        and frozenset((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())) not in stiff
        and turns(bond.GetBeginAtom(), bond.GetEndAtom())
        and turns(bond.GetEndAtom(), bond.GetBeginAtom())
    ]


def _pieces(mol: Any, kept: dict[int, str], loose: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Number of the rigid piece that each kept atom belongs to."""
    cut = {frozenset(pair) for pair in loose}
    piece: dict[int, int] = {}
    for number, start in enumerate(_starts(kept, piece)):
        reached = [start]
        while reached:
            index = reached.pop()
            piece[index] = number
            reached += [
                neighbor.GetIdx()
                for neighbor in mol.GetAtomWithIdx(index).GetNeighbors()
                if neighbor.GetIdx() in kept
                and neighbor.GetIdx() not in piece
                and frozenset((index, neighbor.GetIdx())) not in cut
            ]
    return piece


def _starts(kept: dict[int, str], piece: dict[int, int]) -> Iterator[int]:
    """An atom of each piece that has not been walked through."""
    return (index for index in kept if index not in piece)


def _line(mol: Any, index: int, serial: int, kind: str) -> str:
    place = mol.GetConformer().GetAtomPosition(index)
    symbol = mol.GetAtomWithIdx(index).GetSymbol()
    return (
        f"ATOM  {serial:5d} {symbol:<4} LIG A   1    "
        f"{place.x:8.3f}{place.y:8.3f}{place.z:8.3f}  1.00  0.00     0.000 {kind:<2}"
    )
