"""Random and exhaustive walks through the molecule environment, and an independent assembler."""

import torch
from rdkit import Chem

from gflow.envs.molecules import FragmentMolecules, Vocabulary
from gflow.mdp import States

SYMMETRIC = Vocabulary(
    ("c1ccccc1", "O", "n1cnccc1", "N"),
    ((0, 1, 2, 3, 4, 5), (0, 0), (1, 3, 4, 5), (0, 0, 0)),
)
ALL_PAIRS = [[True] * 10] * 10


def any_legal(mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(mask.shape, generator=generator) * mask).argmax(1)


def random_action(env: FragmentMolecules, states: States, generator: torch.Generator):
    slot = any_legal(env.forward_mask(states), generator)
    return torch.stack([slot, any_legal(env.forward_mask(states, slot), generator)], 1)


def walk(env: FragmentMolecules, n: int, seed: int = 0) -> list[tuple[States, torch.Tensor]]:
    """States and actions of n uniformly random trajectories; the last states are terminal."""
    generator = torch.Generator().manual_seed(seed)
    states, path = env.initial(n), []
    while not states.done.all():
        actions = random_action(env, states, generator)
        path.append((states, actions))
        states = env.step(states, actions)
    return [*path, (states, random_action(env, states, generator))]


def random_molecules(env: FragmentMolecules, n: int, seed: int = 0) -> States:
    return walk(env, n, seed)[-1][0]


def children(env: FragmentMolecules, states: States) -> tuple[torch.Tensor, torch.Tensor, States]:
    """Every growing action of every state: the state's row, the action, and the child."""
    row, slot = env.forward_mask(states)[:, :-1].nonzero(as_tuple=True)
    grown = states.rows(row)
    which, entry = env.forward_mask(grown, slot).nonzero(as_tuple=True)
    actions = torch.stack([slot[which], entry], 1)
    return row[which], actions, env.step(grown.rows(which), actions)


def merge(states: States, weight: torch.Tensor, key: torch.Tensor) -> tuple[States, torch.Tensor]:
    """One state for each different key [n, ...], and the sum of the weights [n] it stands for."""
    _, inverse = torch.unique(key, dim=0, return_inverse=True)
    first = torch.zeros(int(inverse.max()) + 1, dtype=torch.int64)
    first = first.scatter(0, inverse, torch.arange(states.n))
    return states.rows(first), weight.new_zeros(len(first)).index_add(0, inverse, weight)


def assemble(env: FragmentMolecules, nodes: list[list[int]]) -> str:
    """Canonical SMILES of one table, bond by bond, without the library's own conversion."""
    vocabulary, mol, start = env.vocabulary, Chem.RWMol(), []
    nodes = [node for node in nodes if node[0] < len(vocabulary)]
    for fragment, slot, site, _ in nodes:
        part = Chem.MolFromSmiles(vocabulary.smiles[fragment])
        start.append(mol.GetNumAtoms())
        mol.InsertMol(part)
        if slot >= 0:
            node, other = divmod(slot, env.n_sites)
            ends = (
                start[node] + vocabulary.sites[nodes[node][0]][other],
                start[-1] + vocabulary.sites[fragment][site],
            )
            mol.AddBond(*ends, Chem.BondType.SINGLE)
            for end in ends:
                atom = mol.GetAtomWithIdx(end)
                atom.SetNumExplicitHs(max(atom.GetNumExplicitHs() - 1, 0))
    Chem.SanitizeMol(mol)
    return Chem.MolToSmiles(mol)
