import os
from pathlib import Path

import pytest
import torch
from rdkit import Chem

from gflow.envs.molecules import FragmentMolecules, Vocabulary, fragment_molecules
from gflow.envs.molecules.fragmentation import cut
from tests.envs.molecule_walks import random_action

MESSY = """\ufeffid;Canonical_SMILES ;note
1;CC(=O)Nc1ccc(O)cc1;paracetamol
2;OC(=O)c1ccccc1NC(C)=O;
3;not a molecule;
4;;empty
5;CC(=O)Nc1ccc(O)cc1;again
6;C[C@H](N)C(=O)Nc1ccccc1.Cl;a salt
7;CCCCCC;nothing to cut
8;c1ccccc1S(=O)(=O)N1CCCC1
9
"""


def sites_of(vocabulary, smiles):
    return vocabulary.sites[vocabulary.smiles.index(smiles)]


def test_a_messy_file(tmp_path):
    path = tmp_path / "known.csv"
    path.write_text(MESSY)
    report = fragment_molecules(path)
    vocabulary = report.vocabulary
    assert (report.n_rows, report.n_molecules, report.n_repeated, report.n_salts) == (9, 4, 1, 1)
    assert [(row.line, row.smiles) for row in report.unusable] == [
        (4, "not a molecule"), (5, ""), (8, "CCCCCC"), (10, ""),
    ]  # fmt: skip
    assert "cannot read" in report.unusable[0].reason
    assert [row.reason for row in report.unusable[1:]] == [
        "no SMILES",
        "no bond to cut",
        "no SMILES",
    ]
    # Benzene was cut twice in ortho position, and once in another molecule.
    assert sites_of(vocabulary, "c1ccccc1") == (0, 1)
    assert sites_of(vocabulary, "Oc1ccccc1") == (4,)
    assert sites_of(vocabulary, "O=[SH](=O)c1ccccc1") == (1,)
    assert vocabulary.counts == tuple(sorted(vocabulary.counts, reverse=True))
    assert vocabulary.counts[vocabulary.smiles.index("c1ccccc1")] == 2
    lines = report.summary().splitlines()
    assert lines[0] == "9 rows: 4 different molecules cut, 1 repeats, 4 unusable"
    assert lines[2:4] == [
        "1 rows hold several molecules: the largest was taken",
        "line 4: RDKit cannot read it: not a molecule",
    ]
    vocabulary.save(tmp_path / "mine.csv")
    assert Vocabulary.load(tmp_path / "mine.csv") == vocabulary


def test_limits(tmp_path):
    path = tmp_path / "known.smi"
    path.write_text("CC(=O)Nc1ccc(O)cc1 paracetamol\n\nCC(=O)Nc1ccccc1\nC(\n")
    report = fragment_molecules(path)
    assert report.unusable[0].line == 4 and report.n_dropped == 0
    n_all = len(report.vocabulary)
    report = fragment_molecules(path, min_count=2)
    assert set(report.vocabulary.smiles) == {"CC=O", "N"} and report.n_dropped == n_all - 2
    assert len(fragment_molecules(path, max_fragments=1).vocabulary) == 1
    with pytest.raises(ValueError, match="no fragment occurs 5 times"):
        fragment_molecules(path, min_count=5)
    with pytest.raises(ValueError, match="at least 1"):
        fragment_molecules(path, max_atoms=0)
    path.write_text("CCC\nC(\n")
    with pytest.raises(ValueError, match="none of 2 rows gave a fragment"):
        fragment_molecules(path)


def test_the_column(tmp_path):
    path = tmp_path / "known.csv"
    path.write_text("smiles_of_salt,SMILES,other\nCl,CC(=O)NC,c1ccccc1NC(=O)C\n")
    assert "CC=O" in fragment_molecules(path).vocabulary.smiles
    assert "c1ccccc1" in fragment_molecules(path, column="Other").vocabulary.smiles
    with pytest.raises(ValueError, match="no column 'mol' among smiles_of_salt, SMILES, other"):
        fragment_molecules(path, column="mol")


def test_a_molecule_with_too_many_symmetries_is_reported(tmp_path):
    path = tmp_path / "known.smi"
    path.write_text("CC(=O)NC\nO=C(C)NC" + "C(C(C)(C)C)(C(C)(C)C)" * 3 + "\n")
    report = fragment_molecules(path, max_atoms=40)
    assert [row.line for row in report.unusable] == [2] and report.n_molecules == 1
    assert "more than 10000 symmetries" in report.unusable[0].reason


def test_large_pieces_are_cut_further():
    mol = Chem.MolFromSmiles("C" * 15 + "c1ccccc1")
    assert sorted(piece.n_atoms for piece in cut(mol, 15)) == [6, 15]
    assert sorted(piece.n_atoms for piece in cut(mol, 14)) == [1] * 15 + [6]


def test_cutting_known_inhibitors_and_writing_them_again():
    folder = os.environ.get("GFLOW_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data"
    path = Path(folder) / "seh_chembl.csv"
    if not path.exists():
        pytest.skip("needs seh_chembl.csv in GFLOW_DATA or ../shared/data")
    report = fragment_molecules(path, max_fragments=10_000)
    assert report.n_rows == 2852
    total = report.n_molecules + report.n_repeated + len(report.unusable)
    assert total == report.n_rows and len(report.unusable) < 0.01 * report.n_rows
    vocabulary = report.vocabulary
    assert len(vocabulary) > 300 and vocabulary.counts[0] > 1000
    # A molecule whose pieces are all in the vocabulary can be written with it.
    env = FragmentMolecules(vocabulary, max_fragments=14)
    smiles = [line.split(",")[1] for line in path.read_text().splitlines()[1:120]]
    mols = [Chem.MolFromSmiles(text) for text in smiles]
    for mol in mols:
        Chem.RemoveStereochemistry(mol)
    plain = [Chem.MolToSmiles(mol) for mol in mols]
    assert env.decode(env.encode(plain)) == plain
    states = env.initial(64)
    generator = torch.Generator().manual_seed(0)
    while not states.done.all():
        states = env.step(states, random_action(env, states, generator))
    assert all(Chem.MolFromSmiles(text) is not None for text in env.decode(states))
