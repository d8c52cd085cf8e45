"""A proxy of docking scores to soluble epoxide hydrolase, from a file of weights.

The network of Bengio et al. (2021, arXiv 2106.04399): twelve rounds of edge-conditioned
convolution and a gated recurrent unit, then Set2Set. Its edge network sees nothing but the type of
a bond, so that it is evaluated once for each type instead of once for each bond. An atom's own
state is multiplied by the transpose of the file's third array, as in published fragment benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor
from torch.nn.functional import leaky_relu, linear

HIGHEST = 1.5
"""Rewards are clipped to 1e-4..1.5."""

_CHUNK = 128
_ROUNDS = 12
_READOUTS = 3
_SHAPES = (
    (64, 71), (64,), (64, 64), (64,), (128, 4), (128,), (4096, 128), (4096,),
    (192, 64), (192, 64), (192,), (192,), (512, 64), (512,), (105, 512), (105,),
    (256, 128), (256, 64), (256,), (256,), (1, 128), (1,),
)  # fmt: skip
"""Shapes of the arrays of the file; the two linear layers behind the recurrent unit go unused."""

_ELEMENTS = {1: 0, 6: 1, 7: 2, 8: 3, 9: 4}
_OTHER, _AROMATIC, _HYDROGENS, _NUMBER = 5, 9, 13, 14
_LARGEST = 56
_HYBRIDS = {
    Chem.HybridizationType.SP: 10,
    Chem.HybridizationType.SP2: 11,
    Chem.HybridizationType.SP3: 12,
}
_BONDS = {
    Chem.BondType.SINGLE: 0,
    Chem.BondType.DOUBLE: 1,
    Chem.BondType.TRIPLE: 2,
    Chem.BondType.AROMATIC: 3,
}
_LONE = 4  # what a molecule of one atom has in place of a bond


class MoleculeGraph(NamedTuple):
    """Atoms [a] as (element, aromatic, hybridization, hydrogens), bonds as (from, to, type)."""

    atoms: list[tuple[int, bool, Any, int]]
    bonds: list[tuple[int, int, int]]


def graph_of(mol: Any) -> MoleculeGraph | None:
    """The graph of an RDKit molecule; None where it has atoms or bonds the network never saw."""
    atoms = [
        (
            atom.GetAtomicNum(),
            atom.GetIsAromatic(),
            atom.GetHybridization(),
            atom.GetTotalNumHs(includeNeighbors=True),
        )
        for atom in mol.GetAtoms()
    ]
    if not atoms or any(not 1 <= atom[0] <= _LARGEST for atom in atoms):
        return None
    bonds = []
    for bond in mol.GetBonds():
        kind = _BONDS.get(bond.GetBondType())
        if kind is None:
            return None
        one, other = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        bonds += [(one, other, kind), (other, one, kind)]
    return MoleculeGraph(atoms, bonds or [(0, 0, _LONE)])


class SEHProxy:
    """The network with its weights; the literature's reward is an eighth of its value.

    Args:
        arrays: the 22 arrays of the file, in their order.
        dtype: of the arithmetic.
        device: where it happens, and where the values come back.

    Raises:
        ValueError: other arrays.
    """

    def __init__(
        self,
        arrays: Sequence[Any],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shapes = tuple(tuple(array.shape) for array in arrays)
        if shapes != _SHAPES:
            wrong = next(
                (
                    i
                    for i, pair in enumerate(zip(shapes, _SHAPES, strict=False))
                    if len(set(pair)) > 1
                ),
                min(len(shapes), len(_SHAPES)),
            )
            raise ValueError(
                f"not the weights of the sEH proxy: array {wrong} of {len(shapes)} does not fit"
            )
        weights = [torch.as_tensor(np.asarray(array)).to(device, dtype) for array in arrays]
        self.first, self.root, self.bias = weights[0:2], weights[2], weights[3]
        kinds = torch.eye(5, 4, dtype=dtype, device=device)
        edge = linear(leaky_relu(linear(kinds, *weights[4:6])), *weights[6:8])
        # [64, 5 * 64]: what an atom sends along each type of bond, side by side
        self.messages = edge.view(5, 64, 64).permute(1, 0, 2).flatten(1).contiguous()
        self.gru, self.lstm, self.last = weights[8:12], weights[16:20], weights[20:22]

    @classmethod
    def load(cls, path: str | Path) -> SEHProxy:
        """Read an .npz file of arrays p00 .. p21.

        Raises:
            ValueError: there is no such file, or it holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls([file[name] for name in sorted(file.files)])
        except FileNotFoundError:
            raise ValueError(f"there is no file {path} of sEH proxy weights") from None
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: {error}") from error

    @torch.no_grad()
    def __call__(self, graphs: Sequence[MoleculeGraph]) -> Tensor:
        """Proxy of the negative docking score of n molecules, [n]."""
        x, edges, owner = self._batch(graphs)
        source, target, kind = edges
        degree = x.new_zeros(len(x)).index_add_(0, target, torch.ones_like(x[target, 0]))
        state = leaky_relu(linear(x, *self.first))
        for _ in range(_ROUNDS):
            sent = (state @ self.messages).view(-1, 5, 64)[source, kind]
            mean = torch.zeros_like(state).index_add_(0, target, sent) / degree.clamp(
                min=1
            ).unsqueeze(1)
            message = leaky_relu(mean + linear(state, self.root) + self.bias)
            state = torch.gru_cell(message, state, *self.gru)
        return linear(self._readout(state, owner, len(graphs)), *self.last).squeeze(1)

    def rewards(self, mols: Sequence[Any]) -> list[float]:
        """An eighth of the values of RDKit molecules, clipped; NaN for those it cannot read."""
        graphs = [graph_of(mol) for mol in mols]
        known = [(row, graph) for row, graph in enumerate(graphs) if graph is not None]
        rewards = [math.nan] * len(graphs)
        for start in range(0, len(known), _CHUNK):
            rows, part = zip(*known[start : start + _CHUNK], strict=True)
            values = (self(part) / 8).clamp(1e-4, HIGHEST).tolist()
            for row, value in zip(rows, values, strict=True):
                rewards[row] = value
        return rewards

    def _readout(self, state: Tensor, owner: Tensor, n: int) -> Tensor:
        """Set2Set (Vinyals et al., 2016, arXiv 1511.06391), [n, 128]."""
        query = state.new_zeros(n, 128)
        hidden = cell = state.new_zeros(n, 64)
        for _ in range(_READOUTS):
            hidden, cell = torch.lstm_cell(query, (hidden, cell), *self.lstm)
            energy = (state * hidden[owner]).sum(1)
            top = energy.new_full((n,), -torch.inf).scatter_reduce_(0, owner, energy, "amax")
            weight = (energy - top[owner]).exp()
            total = weight.new_zeros(n).index_add_(0, owner, weight)
            share = (weight / total[owner]).unsqueeze(1)
            read = state.new_zeros(n, 64).index_add_(0, owner, share * state)
            query = torch.cat([hidden, read], 1)
        return query

    def _batch(self, graphs: Sequence[MoleculeGraph]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Features [a, 71] of all atoms, bonds (from, to, type), and each atom's molecule [a]."""
        sizes = torch.tensor([len(graph.atoms) for graph in graphs])
        owner = torch.repeat_interleave(torch.arange(len(graphs)), sizes)
        atoms = [atom for graph in graphs for atom in graph.atoms]
        x = torch.zeros(len(atoms), 71, dtype=self.bias.dtype)
        rows = torch.arange(len(atoms))
        number = torch.tensor([atom[0] for atom in atoms])
        x[rows, torch.tensor([_ELEMENTS.get(atom[0], _OTHER) for atom in atoms])] = 1
        x[:, _AROMATIC] = torch.tensor([atom[1] for atom in atoms], dtype=x.dtype)
        hybrid = torch.tensor([_HYBRIDS.get(atom[2], 0) for atom in atoms])
        known = hybrid > 0
        x[rows[known], hybrid[known]] = 1
        x[:, _HYDROGENS] = torch.tensor([atom[3] for atom in atoms], dtype=x.dtype)
        x[rows, _NUMBER + number - 1] = 1
        start = sizes.cumsum(0) - sizes
        bonds = torch.tensor([bond for graph in graphs for bond in graph.bonds]).view(-1, 3)
        n_bonds = torch.tensor([len(graph.bonds) for graph in graphs])
        offset = torch.repeat_interleave(start, n_bonds)
        edges = [bonds[:, 0] + offset, bonds[:, 1] + offset, bonds[:, 2]]
        device = self.bias.device
        return x.to(device), [part.to(device) for part in edges], owner.to(device)
