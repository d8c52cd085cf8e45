import pickle

import pytest
import torch
from rdkit import Chem

from gflow.envs.molecules import FragmentMolecules, Vocabulary
from gflow.envs.molecules.chemistry import SITE_CLASSES
from gflow.mdp import concat_states
from tests.envs.molecule_walks import SYMMETRIC, assemble, random_molecules, walk

FORBIDDEN = (
    "[#7]!@[#7]",
    "[#7]!@[#8]",
    "[#8]!@[#8]",
    "[#16]!@[#16]",
    "[#7,#8,#16][F,Cl,Br,I]",
    "[F,Cl,Br,I][F,Cl,Br,I]",
    "[CX3](=[O,N,S])[F,Cl,Br,I]",
    "[CX3](=O)!@[CX3]=O",
    "[SX2]!@[#7,#8]",
    "C(=O)!@S(=O)",
)


@pytest.fixture(scope="module")
def env():
    return FragmentMolecules(preset="irreducible")


def test_random_molecules_are_molecules_without_forbidden_bonds(env):
    smiles = env.decode(random_molecules(env, 2000))
    patterns = [Chem.MolFromSmarts(pattern) for pattern in FORBIDDEN]
    for text in smiles:
        mol = Chem.MolFromSmiles(text)
        assert mol is not None and Chem.MolToSmiles(mol) == text
        assert len(Chem.GetMolFrags(mol)) == 1
        assert not any(a.GetNumRadicalElectrons() for a in mol.GetAtoms())
        found = [p for p, q in zip(FORBIDDEN, patterns, strict=True) if mol.HasSubstructMatch(q)]
        assert not found, (text, found)
    assert len(set(smiles)) > 1950


@pytest.mark.parametrize("preset", ["full", "irreducible"])
def test_decode_agrees_with_assembly_bond_by_bond(preset):
    env = FragmentMolecules(preset=preset)
    states = concat_states([states for states, _ in walk(env, 60, seed=1)])
    assert env.decode(states) == [assemble(env, nodes) for nodes in states.data.tolist()]


def test_decode_of_nothing(env):
    assert env.decode(env.initial(2)) == ["", ""]
    assert env.decode(env.initial(0)) == []


@pytest.mark.parametrize("preset", ["full", "irreducible"])
def test_encode_gives_back_the_molecule(preset):
    env = FragmentMolecules(preset=preset)
    states = random_molecules(env, 80, seed=2)
    smiles = env.decode(states)
    again = env.encode(smiles)
    assert env.decode(again) == smiles
    assert again.done.all() and torch.equal(again.step, env.size(again) + 1)
    if preset == "irreducible":
        # One decomposition only: the same fragments, hung up at another root.
        assert torch.equal(env.count_ways(again).key, env.count_ways(states).key)
    else:
        assert (env.size(again) <= env.size(states)).all()
    # What encode returns must be reachable: take it apart and build it again by legal actions.
    generator = torch.Generator().manual_seed(0)
    while (again.step > 0).any():
        mask = env.backward_mask(again)
        undo = (torch.rand(mask.shape, generator=generator) * mask).argmax(1)
        parents, redo = env.backstep(again, undo), env.forward_action(again, undo)
        begun = again.step > 0
        legal = env.forward_mask(parents, redo[:, 0]).gather(1, redo[:, 1:])[:, 0]
        assert legal[begun].all()
        again = parents


def test_encode_says_why_it_cannot(env):
    for smiles, why in (
        ("c1ccccc1P", r"cannot write 'c1ccccc1P' with this vocabulary: no fragment fits at atom 6"),
        ("Cc1ccccc1C(", "cannot read SMILES"),
        ("", "cannot read SMILES ''"),
        ("CCO.CCN", "'CCO.CCN' is more than one molecule"),
        ("c1ccccc1", "takes 1 fragments, not 2 to 9"),
        ("C" * 12, "takes 12 fragments, not 2 to 9"),
        ("NNc1ccccc1", "cannot write 'NNc1ccccc1'"),
    ):
        with pytest.raises(ValueError, match=why):
            env.encode(["Cc1ccccc1", smiles])


def test_fragments_keep_charges_stereo_marks_and_odd_hydrogens():
    vocabulary = Vocabulary(
        ("C[C@@H](N)O", "C[N+](C)C", "O=[SH2]=O", "c1cc[nH]c1", "[13CH4]", "[O-]C=O"),
        ((1,), (0, 2), (1, 1), (3, 0), (0, 0), (1,)),
    )
    env = FragmentMolecules(vocabulary, max_fragments=5)
    states = concat_states([states for states, _ in walk(env, 100)])
    smiles = env.decode(states)
    assert smiles == [assemble(env, nodes) for nodes in states.data.tolist()]
    assert any("[N+]" in text for text in smiles) and any("[C@" in text for text in smiles)


def test_default_vocabulary():
    vocabulary = Vocabulary.default()
    assert len(vocabulary) == 115 and sum(map(len, vocabulary.sites)) == 384
    n_sites = [sum(len(sites) == n for sites in vocabulary.sites) for n in range(1, 7)]
    assert n_sites == [14, 28, 20, 24, 16, 13]
    small = Vocabulary.irreducible()
    assert len(small) == 95
    assert set(vocabulary.smiles) - set(small.smiles) >= {"CC", "CO", "NC=O", "FC(F)F"}
    classes = {SITE_CLASSES[c] for row in vocabulary.site_classes for c in row}
    assert classes == set(SITE_CLASSES) - {"other"}


def test_site_classes():
    vocabulary = Vocabulary(
        ("c1ccccc1", "C", "C=O", "C#N", "N", "OC=O", "CS", "O=[SH]C", "F", "I", "CP", "O=[SH2]=O"),
        ((0,), (0,), (0,), (0,), (0,), (0, 1), (1,), (1,), (0,), (0,), (1,), (1, 1)),
    )
    names = [[SITE_CLASSES[c] for c in row] for row in vocabulary.site_classes]
    assert names == [
        ["aryl C"], ["sp3 C"], ["acyl C"], ["acyl C"], ["N"], ["O", "acyl C"], ["S(II)"],
        ["S(VI)"], ["F"], ["halogen"], ["other"], ["S(VI)", "S(VI)"],
    ]  # fmt: skip


def test_vocabulary_round_trip(tmp_path):
    for vocabulary in (SYMMETRIC, Vocabulary(("C", "O"), ((0, 0), (0,)), (5, 3))):
        vocabulary.save(tmp_path / "v.csv")
        assert Vocabulary.load(tmp_path / "v.csv") == vocabulary
        assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary


def test_vocabulary_names_every_bad_row(tmp_path):
    rows = [
        "c1ccccc1,0 3", "c1ccccc,0", "C,4", "O,0 0 0", "C1=CC=CC=C1,0", "CC,x", "CN,", "[*]CC,1",
        "C.C,0", "[H]O,0", ",0", "CC,0 0 0 1 1 1 0",
    ]  # fmt: skip
    path = tmp_path / "mine.csv"
    path.write_text("smiles,sites\n" + "\n".join(rows) + "\n")
    with pytest.raises(ValueError) as error:
        Vocabulary.load(path)
    message = str(error.value)
    assert str(path) in message and "11 unusable fragments" in message
    for part in (
        "line 3: cannot read SMILES 'c1ccccc'",
        "line 4: 'C' has no atom 4 (it has atoms 0 to 0)",
        "line 5: 'O': atom 0 is a site 3 times but has 2 hydrogens",
        "line 6: 'C1=CC=CC=C1' is the same fragment as in line 2",
        "line 7: sites must be atom indices with spaces between them",
        "line 8: 'CN' has 0 sites, not 1 to 6",
        "line 9: '[*]CC': attachment points are given as atom indices",
        "line 10: 'C.C' is more than one molecule",
        "line 11: '[H]O': write hydrogens inside the atoms",
        "line 12: cannot read SMILES ''",
        "line 13: 'CC' has 7 sites, not 1 to 6",
    ):
        assert part in message
    assert "line 2:" not in message


def test_a_fragment_with_too_many_symmetries():
    crowded = "C" + "C(C(C)(C)C)(C(C)(C)C)" * 3
    with pytest.raises(ValueError, match=r"fragment 1: .* has more than 10000 symmetries"):
        Vocabulary(("C", crowded), ((0,), (0,)))


def test_vocabulary_without_the_columns_it_needs(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("smiles,atoms\nC,0\n")
    with pytest.raises(ValueError, match="no column sites in line 1"):
        Vocabulary.load(path)
    path.write_text("smiles,sites\n")
    with pytest.raises(ValueError, match="no fragments"):
        Vocabulary.load(path)
    with pytest.raises(ValueError, match="at least one fragment"):
        Vocabulary((), ())
