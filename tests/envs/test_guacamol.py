"""The goal-directed tasks of GuacaMol."""

import itertools
import math
import pickle

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem, Crippen, Descriptors, rdMolDescriptors
from rdkit.DataStructs import TanimotoSimilarity

from gflow.envs.molecules import MoleculeOracle
from gflow.envs.molecules.guacamol import (
    MOLECULES,
    TASKS,
    at_least,
    at_most,
    clipped,
    gauss,
    guacamol_task,
)
from gflow.envs.molecules.properties import fingerprint

MOLS = {name: Chem.MolFromSmiles(smiles) for name, smiles in MOLECULES.items()}
FORMULAS = {
    "albuterol": "C13H21NO3",
    "amlodipine": "C20H25ClN2O5",
    "aripiprazole": "C23H27Cl2N3O2",
    "camphor": "C10H16O",
    "celecoxib": "C17H14F3N3O2S",
    "fexofenadine": "C32H39NO4",
    "menthol": "C10H20O",
    "mestranol": "C21H26O2",
    "osimertinib": "C28H33N7O2",
    "perindopril": "C19H32N2O5",
    "quinazoline": "C22H24N4O3S2",
    "ranolazine": "C24H33N3O4",
    "sildenafil": "C22H30N6O4S",
    "sitagliptin": "C16H15F6N5O",
    "tadalafil": "C22H19N3O4",
    "thiothixene": "C23H29N3O2S2",
    "troglitazone": "C24H27NO5S",
    "zaleplon": "C17H15N5O",
}
N_COMPONENTS = {
    "celecoxib": 1, "troglitazone": 1, "thiothixene": 1, "aripiprazole": 1, "albuterol": 1,
    "mestranol": 1, "c11h24": 1, "c9h10n2o2pf2cl": 1, "median1": 2, "median2": 2,
    "osimertinib": 4, "fexofenadine": 3, "ranolazine": 4, "perindopril": 2, "amlodipine": 2,
    "sitagliptin": 4, "zaleplon": 2, "valsartan": 4, "deco_hop": 4, "scaffold_hop": 3,
}  # fmt: skip


def test_the_molecules_are_the_drugs():
    assert {name: rdMolDescriptors.CalcMolFormula(mol) for name, mol in MOLS.items()} == FORMULAS
    for name, smiles in MOLECULES.items():
        assert Chem.MolToSmiles(MOLS[name]) == Chem.CanonSmiles(smiles)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "published"),
    [
        ("ECFP4", lambda mol: AllChem.GetMorganFingerprint(mol, 2)),
        ("ECFP6", lambda mol: AllChem.GetMorganFingerprint(mol, 3)),
        ("FCFP4", lambda mol: AllChem.GetMorganFingerprint(mol, 2, useFeatures=True)),
        ("AP", lambda mol: AllChem.GetAtomPairFingerprint(mol, maxLength=10)),
    ],
)
def test_fingerprints_are_those_of_the_published_functions(kind, published):
    names = list(MOLS)
    for one, other in itertools.pairwise(names):
        ours = TanimotoSimilarity(fingerprint(kind, MOLS[one]), fingerprint(kind, MOLS[other]))
        theirs = TanimotoSimilarity(published(MOLS[one]), published(MOLS[other]))
        assert ours == theirs


def test_modifiers():
    assert gauss(2, 0.5, 2) == 1 and gauss(2, 0.5, 1) == pytest.approx(math.exp(-2))
    assert at_most(1, 1, 0.2) == 1 and at_most(1, 1, 3) == pytest.approx(math.exp(-2))
    assert at_least(90, 10, 95) == 1 and at_least(90, 10, 80) == pytest.approx(math.exp(-0.5))
    assert clipped(0.8, 0.4) == 0.5 and clipped(0.8, 0.9) == 1


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_its_components_in_range(name):
    assert len(TASKS) == 20
    slow = name.endswith("hop")
    molecules = ["quinazoline", "camphor"] if slow else list(MOLS)
    oracle = MoleculeOracle.parse(f"guacamol:{name}")
    values = oracle([MOLECULES[molecule] for molecule in molecules])
    assert values.shape[1] == N_COMPONENTS[name]
    assert ((values >= 0) & (values <= 1)).all()
    if slow:
        expected = values.mean(1)
    else:
        expected = values.prod(1) ** (1 / values.shape[1])
    score = MoleculeOracle.parse(f"guacamol:{name}:score")
    torch.testing.assert_close(score([MOLECULES[m] for m in molecules])[:, 0], expected)


@pytest.mark.parametrize(
    "name", ["celecoxib", "troglitazone", "thiothixene", "aripiprazole", "albuterol", "mestranol"]
)
def test_a_target_is_worth_one_and_nothing_else_is(name):
    task = guacamol_task(name)
    scores = {other: task.score(mol) for other, mol in MOLS.items()}
    assert scores.pop(name) == 1.0
    assert max(scores.values()) < 0.6


def test_isomers():
    task = guacamol_task("c11h24")
    assert task.score(Chem.MolFromSmiles("CC(C)CCCCCCCC")) == 1.0
    # C10H22: one carbon, two hydrogens, three atoms missing
    expected = math.exp(-(0.5 + 2 + 9 / 8) / 3)
    assert task.score(Chem.MolFromSmiles("CCCCCCCCCC")) == pytest.approx(expected)
    isomer = "CC(NC(=O)c1cc(P)cc(F)c1Cl)(F)O"
    assert rdMolDescriptors.CalcMolFormula(Chem.MolFromSmiles(isomer)) == "C9H9ClF2NO2P"
    near = guacamol_task("c9h10n2o2pf2cl").score(Chem.MolFromSmiles(isomer))
    # one nitrogen and one hydrogen too few, two atoms in all, of seven elements and the sum
    assert near == pytest.approx(math.exp(-(0.5 + 0.5 + 4 / 8) / 8))


def test_the_targets_of_the_property_tasks():
    def parts(name, molecule=None):
        mol = MOLS[molecule or name]
        return {part.name: part.of_mol(mol) for part in guacamol_task(name).parts}

    osimertinib = MOLS["osimertinib"]
    assert parts("osimertinib") == pytest.approx(
        {
            "like_osimertinib": 1.0,
            "not_quite_osimertinib": math.exp(-((0.15 / 0.1) ** 2) / 2),
            "tpsa": math.exp(-(((100 - Descriptors.TPSA(osimertinib)) / 10) ** 2) / 2),
            "logp": math.exp(-((Crippen.MolLogP(osimertinib) - 1) ** 2) / 2),
        }
    )
    assert parts("perindopril") == pytest.approx(
        {"like_perindopril": 1.0, "aromatic_rings": math.exp(-8)}
    )
    assert parts("amlodipine") == pytest.approx({"like_amlodipine": 1.0, "rings": math.exp(-2)})
    assert parts("sitagliptin") == pytest.approx(
        {"unlike_sitagliptin": math.exp(-50), "logp": 1.0, "tpsa": 1.0, "formula": 1.0}
    )
    fluorines = parts("ranolazine")["fluorines"]
    assert fluorines == pytest.approx(math.exp(-0.5))
    valsartan = parts("valsartan", "sitagliptin")
    assert valsartan == {"pattern": 0.0, "logp": 1.0, "tpsa": 1.0, "bertz": 1.0}
    with_pattern = Chem.MolFromSmiles("CN(C=O)Cc1ccc(-c2ccccc2)cc1")
    assert guacamol_task("valsartan").parts[0].of_mol(with_pattern) == 1.0


def test_hops():
    deco = {p.name: p.of_mol(MOLS["quinazoline"]) for p in guacamol_task("deco_hop").parts}
    assert deco == {"like_quinazoline": 1.0, "no_sulfone": 0.0, "no_arm": 0.0, "scaffold": 1.0}
    hop = {p.name: p.of_mol(MOLS["quinazoline"]) for p in guacamol_task("scaffold_hop").parts}
    assert hop == {"like_quinazoline": 1.0, "decoration": 1.0, "no_scaffold": 0.0}


def test_medians_have_no_molecule_that_is_both():
    for task, pair in (
        ("median1", ("camphor", "menthol")),
        ("median2", ("tadalafil", "sildenafil")),
    ):
        rows = MoleculeOracle.parse(f"guacamol:{task}")([MOLECULES[name] for name in pair])
        assert rows.diagonal().tolist() == [1.0, 1.0]
        assert rows[0, 1] == rows[1, 0] < 0.5


def test_several_tasks_in_one_specification():
    oracle = MoleculeOracle.parse("qed,guacamol:osimertinib,guacamol:fexofenadine:score,logp:1..4")
    assert [reward.name for reward in oracle.rewards] == [
        "qed", "like_osimertinib", "not_quite_osimertinib", "tpsa", "logp", "fexofenadine",
        "logp_2",
    ]  # fmt: skip
    again = pickle.loads(pickle.dumps(oracle))
    assert torch.equal(again(["CCO", "C1CC"]).nan_to_num(9), oracle(["CCO", "C1CC"]).nan_to_num(9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guacamol:osimertinb", "there is no GuacaMol task 'osimertinb': osimertinib"),
        ("guacamol", "there is no GuacaMol task '': celecoxib"),
        ("guacamol:zaleplon:sum", "say guacamol:zaleplon or guacamol:zaleplon:score"),
        ("guacamol:zaleplon:", "say guacamol:zaleplon or guacamol:zaleplon:score"),
    ],
)
def test_a_bad_task_says_why(text, message):
    with pytest.raises(ValueError, match=message):
        MoleculeOracle.parse(text)
