from collections import Counter, defaultdict

import pytest
import torch
from rdkit import Chem

from gflow.envs.molecules import FragmentMolecules, Vocabulary
from gflow.envs.molecules.chemistry import automorphisms
from gflow.mdp import concat_states
from tests.envs.molecule_walks import (
    ALL_PAIRS,
    SYMMETRIC,
    assemble,
    children,
    merge,
    random_molecules,
)

# Piperazine has one carbon site only, so its two nitrogens are alike until the carbon is used.
HALF_CLOSED = Vocabulary(("C1CNCCN1", "CC", "O"), ((0, 2, 5), (0, 0, 1), (0, 0)))
# Two hydrogens on one atom of a ring, an N-H that breaks a symmetry, and a sulfur of valence 6.
ODD = Vocabulary(
    ("C1CCC1", "c1cn[nH]c1", "O=[SH2]=O", "C12CC(C1)C2"), ((0, 0, 1, 2), (0, 1, 3), (1, 1), (0, 2))
)


def all_sequences(env, size):
    """Distinct tables up to `size` fragments, and the number of sequences to each."""
    states, tables, counts = env.initial(1), [], []
    weight = torch.ones(1, dtype=torch.int64)
    for _ in range(size):
        row, _, grown = children(env, states)
        states, weight = merge(grown, weight[row], grown.data)
        tables.append(states)
        counts.append(weight)
    return concat_states(tables), torch.cat(counts)


@pytest.mark.parametrize(
    "vocabulary, pairs, size, sequences, molecules",
    [
        (SYMMETRIC, ALL_PAIRS, 3, 22_729, 259),
        (HALF_CLOSED, None, 4, None, None),
        (ODD, None, 3, None, None),
    ],
)
def test_counts_agree_with_enumeration(vocabulary, pairs, size, sequences, molecules):
    env = FragmentMolecules(vocabulary, max_fragments=size, min_fragments=1, pairs=pairs)
    states, n_sequences = all_sequences(env, size)
    smiles = [assemble(env, nodes) for nodes in states.data.tolist()]
    paths, rooted, keys = Counter(), Counter(), defaultdict(set)
    ways = env.count_ways(states)
    for text, n, key in zip(smiles, n_sequences.tolist(), ways.key.tolist(), strict=True):
        paths[text] += n
        rooted[text] += 1
        keys[text].add(key)
    if sequences is not None:
        assert (paths.total(), len(paths)) == (sequences, molecules)
    assert all(len(found) == 1 for found in keys.values())
    assert len(set(ways.key.tolist())) == len(keys)
    expected = torch.tensor([[paths[text], rooted[text]] for text in smiles]).double()
    torch.testing.assert_close(env.log_n_paths(states), expected[:, 0].log(), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        env.log_n_rooted_trees(states), expected[:, 1].log(), rtol=0, atol=1e-12
    )


def test_automorphisms_keep_hydrogens_and_charges():
    n_symmetries = {
        "c1ccccc1": 12, "C1CCC1": 8, "c1cn[nH]c1": 1, "[O-]C=O": 1, "OC(=O)O": 2, "C[N+](C)C": 6,
        "NC(=O)N": 2, "[13CH3]C": 1, "CC(C)(C)C": 24, "C1CNCCN1": 4,
    }  # fmt: skip
    for smiles, n in n_symmetries.items():
        found = automorphisms(Chem.MolFromSmiles(smiles))
        assert len(set(found)) == len(found) == n, smiles


def test_counts_of_children_are_sums_over_parents():
    # N(x') = sum over one table of each parent molecule of N(x) times the actions that lead to x'.
    env = FragmentMolecules(SYMMETRIC, max_fragments=4, min_fragments=1)
    states = env.initial(1)
    assert env.log_n_paths(states).tolist() == [0.0]
    for _ in range(4):
        row, _, grown = children(env, states)
        ways = env.log_n_paths(states).exp()[row]
        states, total = merge(grown, ways, env.count_ways(grown).key)
        torch.testing.assert_close(env.log_n_paths(states).exp(), total, rtol=1e-12, atol=0)


def test_counts_are_those_of_the_molecule_not_of_its_table():
    env = FragmentMolecules(max_fragments=6)
    states = random_molecules(env, 200)
    again = env.encode(env.decode(states))
    same = env.count_ways(states).key == env.count_ways(again).key
    # The others are written with fewer, composite fragments.
    assert same.float().mean() > 0.9
    assert not (states.data == again.data).flatten(1).all(1).all()
    for name in ("log_n_paths", "log_n_rooted_trees"):
        one, other = getattr(env, name)(states), getattr(env, name)(again)
        torch.testing.assert_close(one[same], other[same], rtol=0, atol=1e-12)
    alone = torch.cat([env.log_n_paths(states.rows(torch.tensor([i]))) for i in range(20)])
    assert torch.equal(alone, env.log_n_paths(states)[:20])


def test_stop_and_partial_states_count_alike():
    env = FragmentMolecules()
    states = random_molecules(env, 50)
    undone = env.backstep(states, torch.full((50,), env.max_fragments))
    assert torch.equal(env.log_n_paths(states), env.log_n_paths(undone))
