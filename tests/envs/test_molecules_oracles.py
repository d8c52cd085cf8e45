import math
import pickle

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import QED, Crippen, DataStructs, Descriptors, rdFingerprintGenerator

from gflow.envs.molecules import MoleculeOracle
from gflow.envs.molecules.diversity import (
    diverse_top_k,
    fingerprints,
    mean_distance,
    n_scaffolds,
    novelty,
    tanimoto,
)

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
SMILES = [
    "CCO",
    ASPIRIN,
    "c1ccc2ccccc2c1",
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "C1CCCCC1",
    "C" * 40,
    "OCC(O)C(O)C(O)C(O)CO",
]
EVERYTHING = f"qed,sa,logp:1..4,tpsa:40..90,mw:200..450,similar:{ASPIRIN},sp3,rings:2..4"


def test_columns_are_what_rdkit_says():
    from rdkit.Contrib.SA_Score import sascorer

    oracle = MoleculeOracle.parse(EVERYTHING)
    names = [reward.name for reward in oracle.rewards]
    assert names == ["qed", "sa", "logp", "tpsa", "mw", "similar", "sp3", "rings"]
    assert [reward.name for reward in oracle.rewards if reward.flipped] == ["sa"]
    values = dict(zip(names, oracle(SMILES).T.tolist(), strict=True))
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2)
    target = generator.GetSparseCountFingerprint(Chem.MolFromSmiles(ASPIRIN))

    def window(x, low, high, width):
        return (
            1.0
            if low <= x <= high
            else math.exp(-((min(abs(x - low), abs(x - high)) / width) ** 2) / 2)
        )

    for row, mol in enumerate(map(Chem.MolFromSmiles, SMILES)):
        count = generator.GetSparseCountFingerprint(mol)
        expected = {
            "qed": QED.qed(mol),
            "sa": (10 - sascorer.calculateScore(mol)) / 9,
            "logp": window(Crippen.MolLogP(mol), 1, 4, 1),
            "tpsa": window(Descriptors.TPSA(mol), 40, 90, 20),
            "mw": window(Descriptors.MolWt(mol), 200, 450, 50),
            "similar": DataStructs.TanimotoSimilarity(target, count),
            "sp3": Descriptors.FractionCSP3(mol),
            "rings": window(mol.GetRingInfo().NumRings(), 2, 4, 1),
        }
        for name, value in expected.items():
            assert values[name][row] == pytest.approx(value, abs=1e-12), (name, SMILES[row])
    assert values["similar"][1] == 1.0 and values["rings"][2] == 1.0
    assert values["rings"][4] == pytest.approx(math.exp(-0.5))


def test_values_lie_in_the_declared_range():
    oracle = MoleculeOracle.parse(EVERYTHING)
    values = oracle([*SMILES, "C" * 60, "OC(=O)CC(O)(CC(=O)O)C(=O)O", "N", "[Na+]"])
    assert ((values >= 0) & (values <= 1)).all()


def test_what_cannot_be_read_is_nan_and_the_rest_is_scored():
    values = MoleculeOracle.parse("qed,logp:1..4")(["CCO", "C1CC", "", "not a molecule", "CCO"])
    assert values.isnan().all(1).tolist() == [False, True, True, True, False]
    assert torch.equal(values[0], values[4]) and values.dtype == torch.float64
    assert MoleculeOracle.parse("qed,sa")([]).shape == (0, 2)


def test_oracle_survives_pickling():
    oracle = MoleculeOracle.parse(EVERYTHING)
    again = pickle.loads(pickle.dumps(oracle))
    assert again.rewards == oracle.rewards and again.version == oracle.version
    assert torch.equal(again(SMILES), oracle(SMILES))
    assert oracle.version != MoleculeOracle.parse("qed").version


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "chemist_rewards.py").write_text(
        "def weight(smiles):\n    return [len(text) for text in smiles]\n"
        "weight.high, weight.unit, weight.seconds = 100.0, 'letters', 0.5\n"
        "def short(smiles):\n    return [0.5]\n"
        "def some(smiles):\n    return [None if 'C' in text else 1.0 for text in smiles]\n"
        "def my_own_score(smiles):\n    import numpy as np\n    return np.full(len(smiles), 0.25)\n"
        "constant = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_users_function(user_module):
    oracle = MoleculeOracle.parse("qed,chemist_rewards:weight,chemist_rewards:my_own_score")
    assert [reward.name for reward in oracle.rewards] == ["qed", "weight", "my_own_score"]
    assert oracle.rewards[1][1:4] == ("letters", 0.0, 100.0) and oracle.seconds > 0.5
    values = pickle.loads(pickle.dumps(oracle))(["CCO", "C(", "c1ccccc1"])
    np.testing.assert_array_equal(values[:, 1], [3, math.nan, 8])
    np.testing.assert_array_equal(values[:, 2], [0.25, math.nan, 0.25])
    some = MoleculeOracle.parse("chemist_rewards:some")(["CCO", "N"])
    np.testing.assert_array_equal(some[:, 0], [math.nan, 1])
    with pytest.raises(ValueError, match="short returned 1 numbers for 2 molecules"):
        MoleculeOracle.parse("chemist_rewards:short")(["C", "CC"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("qedd", "unknown reward 'qedd'; did you mean qed?"),
        ("qed,lopg:1..4", "unknown reward 'lopg:1..4'; did you mean logp"),
        ("zzz", "unknown reward 'zzz'; there are qed, sa, sp3, logp"),
        ("logp", "reward 'logp' needs a range such as logp:1..4, not ''"),
        ("mw:200-300", "reward 'mw' needs a range such as mw:200..450, not '200-300'"),
        ("tpsa:90..40", "reward 'tpsa': the range '90..40' does not go from low to high"),
        ("tpsa:nan..40", "reward 'tpsa': the range 'nan..40' does not go from low to high"),
        ("similar:CC(", "reward 'similar' needs a target SMILES; RDKit cannot read 'CC('"),
        ("similar", "reward 'similar' needs a target SMILES"),
        ("qed:3", "reward 'qed' takes no argument, but got '3'"),
        ("qed,,sa", "rewards must be names with commas between them, not 'qed,,sa'"),
        ("qed,sa,qed", "reward 'qed' is asked for twice"),
        ("simlar:CCO", "unknown reward 'simlar:CCO': cannot import simlar"),
        ("math:nothing", "reward 'math:nothing': module math has no function nothing"),
    ],
)
def test_a_reward_that_cannot_be_used_says_why(text, message):
    with pytest.raises(ValueError) as error:
        MoleculeOracle.parse(text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_something_that_is_no_function(user_module):
    with pytest.raises(ValueError, match="module chemist_rewards has no function constant"):
        MoleculeOracle.parse("chemist_rewards:constant")


def test_names_are_unique():
    oracle = MoleculeOracle.parse("similar:CCO,logp:1..2,similar:CCC,logp:3..4,similar:C")
    names = [reward.name for reward in oracle.rewards]
    assert names == ["similar", "logp", "similar_2", "logp_2", "similar_3"]


def test_tanimoto_agrees_with_rdkit():
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    bits = [generator.GetFingerprint(Chem.MolFromSmiles(text)) for text in SMILES]
    expected = [DataStructs.BulkTanimotoSimilarity(one, bits) for one in bits]
    mine = fingerprints(SMILES)
    assert mine.dtype == torch.bool
    torch.testing.assert_close(tanimoto(mine, mine), torch.tensor(expected))
    off_diagonal = 1 - (np.sum(expected) - 7) / 42
    assert mean_distance(SMILES) == pytest.approx(off_diagonal, abs=1e-6)
    nothing = torch.zeros(1, 2048, dtype=torch.bool)
    assert tanimoto(nothing, nothing).item() == 1.0 and tanimoto(nothing, mine).max() == 0.0


def test_mean_distance_of_extremes():
    assert mean_distance(["CCO"] * 3) == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(mean_distance(["CCO"]))


def test_scaffolds():
    assert n_scaffolds(["c1ccccc1C", "c1ccccc1CC", "c1ccncc1C", "CCO", "CCCC"]) == 3


def test_diverse_top_k_takes_the_best_of_each_kind():
    smiles = ["CCCCCCO", "CCCCCCCO", "c1ccccc1", "CCCCCCCCO", "c1ccncc1"]
    assert diverse_top_k(smiles, [0.5, 0.9, 0.3, 0.8, 0.4], 3, threshold=0.5) == [1, 4, 2]
    assert diverse_top_k(smiles, [0.5, 0.9, math.nan, 0.8, 0.4], 9, threshold=1.0) == [1, 3, 0, 4]
    assert diverse_top_k(smiles, [1, 2, 3, 4, 5], 0) == []
    with pytest.raises(ValueError, match="5 molecules need as many scores, not 1"):
        diverse_top_k(smiles, [1.0], 2)


def test_novelty():
    values = novelty(["CCO", "c1ccccc1"], ["CCO", "CCN"])
    assert values[0] == 0.0 and values[1] == 1.0
    with pytest.raises(ValueError, match="at least one reference"):
        novelty(["CCO"], [])
    with pytest.raises(ValueError, match="cannot read SMILES 'C\\('"):
        novelty(["CCO"], ["C("])
