"""Docking: files for AutoDock Vina, and the oracle in a pocket made of a peptide."""

import subprocess
import sys

import pytest
from rdkit import Chem

from gflow.envs.molecules import MoleculeOracle
from gflow.envs.molecules.docking import Docking, Pocket, embedded, ligand_pdbqt, receptor_pdbqt
from gflow.oracles import OracleRunner


def mol(smiles):
    return Chem.MolFromSmiles(smiles)


def kinds(text):
    """AutoDock types of the atoms of a file."""
    return [line[77:79].strip() for line in text.splitlines() if line.startswith("ATOM")]


def turning(smiles):
    return int(ligand_pdbqt(mol(smiles)).split("TORSDOF")[1])


def test_types_and_dropped_hydrogens():
    paracetamol = ligand_pdbqt(mol("CC(=O)Nc1ccc(O)cc1"))
    assert sorted(kinds(paracetamol)) == sorted(
        ["A"] * 6 + ["C"] * 2 + ["N", "OA", "OA"] + ["HD"] * 2
    )
    assert sorted(kinds(ligand_pdbqt(mol("c1ccncc1")))) == sorted(["A"] * 5 + ["NA"])
    assert "NA" not in kinds(ligand_pdbqt(mol("c1cc[nH]c1")))
    assert "NA" in kinds(ligand_pdbqt(mol("CN(C)C"))) and "N" in kinds(ligand_pdbqt(mol("C[NH3+]")))
    assert kinds(ligand_pdbqt(mol("CSC"))).count("SA") == 1
    assert kinds(ligand_pdbqt(mol("CS(C)(=O)=O"))).count("S") == 1


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        ("C", 0),
        ("CC", 0),
        ("CCC", 0),
        ("CCCC", 1),
        ("CCO", 1),
        ("c1ccccc1", 0),
        ("c1ccccc1-c1ccccc1", 1),
        ("CC(=O)Nc1ccc(O)cc1", 2),
        ("CC(=O)NC", 0),
        ("CC#CC", 0),
        ("CC(C)Cc1ccc(C(C)C(=O)O)cc1", 5),
    ],
)
def test_rotatable_bonds(smiles, expected):
    assert turning(smiles) == expected


def test_branches_are_a_tree_of_the_molecule():
    molecule = mol("CC(C)Cc1ccc(C(C)C(=O)O)cc1")
    lines = ligand_pdbqt(molecule).splitlines()
    serials = [int(line[6:11]) for line in lines if line.startswith("ATOM")]
    assert serials == list(range(1, len(serials) + 1))
    assert lines[0] == "ROOT" and lines.count("ENDROOT") == 1
    open_branches = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("BRANCH"):
            open_branches.append(line)
            assert int(following[6:11]) == int(line.split()[2])
        elif line.startswith("ENDBRANCH"):
            assert line == f"END{open_branches.pop()}"
    assert not open_branches
    heavy = [line for line in lines if line.startswith("ATOM") and line[77:79].strip() != "HD"]
    assert len(heavy) == molecule.GetNumHeavyAtoms()


def test_coordinates_are_those_of_the_conformation():
    molecule = embedded(mol("CCO"))
    text = receptor_pdbqt(molecule)
    found = [
        tuple(float(line[a : a + 8]) for a in (30, 38, 46))
        for line in text.splitlines()
        if line.startswith("ATOM")
    ]
    places = molecule.GetConformer().GetPositions()
    assert found == [tuple(round(x, 3) for x in places[i]) for i in (0, 1, 2, 8)]
    assert ligand_pdbqt(mol("CCO")) == ligand_pdbqt(mol("CCO"))


def test_what_cannot_be_docked_says_why():
    with pytest.raises(ValueError, match="has several pieces"):
        ligand_pdbqt(mol("CCO.Cl"))
    with pytest.raises(ValueError, match="element B has no docking parameters"):
        ligand_pdbqt(mol("CB(O)O"))
    with pytest.raises(ValueError, match="needs coordinates"):
        receptor_pdbqt(mol("CCO"))


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    """A receptor of a peptide of ten residues, as a file of settings."""
    folder = tmp_path_factory.mktemp("pocket")
    peptide = embedded(Chem.MolFromSequence("GFYLWSDKHA"))
    (folder / "peptide.pdbqt").write_text(receptor_pdbqt(peptide))
    middle = peptide.GetConformer().GetPositions().mean(0)
    lines = [f"center_{axis} = {x:.3f}" for axis, x in zip("xyz", middle, strict=True)]
    lines += [f"size_{axis} = 16" for axis in "xyz"]
    settings = folder / "pocket.txt"
    settings.write_text(
        "\n".join(["receptor = peptide.pdbqt  # made by hand", *lines, "exhaustiveness = 1"])
    )
    return settings


def test_docking_in_a_peptide(pocket):
    pytest.importorskip("vina", reason="needs vina, the extra gflow[docking]")
    docking = Docking(Pocket.load(pocket))
    energies = {smiles: docking.energy(mol(smiles)) for smiles in ("C", "CCO", "c1ccccc1O")}
    # more atoms touch more of the pocket
    assert -6 < energies["c1ccccc1O"] < energies["CCO"] < energies["C"] < 0
    assert docking.reward(mol("CCO")) == pytest.approx(-energies["CCO"] / 12)
    again = Docking(Pocket.load(pocket))
    assert again.energy(mol("CCO")) == energies["CCO"]


def test_as_a_reward_in_a_worker(pocket):
    pytest.importorskip("vina", reason="needs vina, the extra gflow[docking]")
    oracle = MoleculeOracle.parse(f"qed,vina:{pocket}")
    (_, reward) = oracle.rewards
    assert (reward.name, reward.unit, reward.flipped) == ("docking", "12 kcal/mol", True)
    assert oracle.seconds >= 0.5 and "vina 1." in oracle.version
    with OracleRunner(oracle, str, workers=1, timeout=60.0) as runner:
        scores = runner.evaluate(["CCO", "CB(O)O", "CC"])
    assert scores.reasons == [None, "ValueError: element B has no docking parameters", None]
    assert scores.rewards[0, 1] > scores.rewards[2, 1] > 0
    receptor = pocket.with_name("peptide.pdbqt")
    text = receptor.read_text()
    try:
        receptor.write_text(text.replace("TER", "TER\nEND"))
        assert MoleculeOracle.parse(f"qed,vina:{pocket}").version != oracle.version
    finally:
        receptor.write_text(text)
    assert MoleculeOracle.parse(f"qed,vina:{pocket}").version == oracle.version


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("center_x", "centre_x"), "pocket.txt:2: unknown 'centre_x', known are receptor"),
        (("size_x = 16", "size_x = wide"), "pocket.txt:5: size_x cannot be 'wide'"),
        (("center_y", "#"), "center_y missing"),
        (("peptide.pdbqt", "other.pdbqt"), r"there is no receptor .*other\.pdbqt"),
        (("size_x = 16", "size_x = -1"), "must be positive"),
        (("exhaustiveness = 1", "exhaustiveness = 0"), "must be positive"),
        (("peptide.pdbqt", "pocket.txt"), "has no atoms: it must be a PDBQT file"),
    ],
)
def test_bad_settings_say_why(pocket, tmp_path, change, message):
    (tmp_path / "peptide.pdbqt").write_text(pocket.with_name("peptide.pdbqt").read_text())
    changed = tmp_path / "pocket.txt"
    changed.write_text(pocket.read_text().replace(*change))
    with pytest.raises(ValueError, match=message) as error:
        MoleculeOracle.parse(f"vina:{changed}")
    assert "\n" not in str(error.value)


def test_missing_settings_and_a_missing_package(pocket):
    with pytest.raises(ValueError, match=r"there is no docking configuration nowhere\.txt"):
        MoleculeOracle.parse("vina:nowhere.txt")
    with pytest.raises(ValueError, match=r"needs a configuration file, as in vina:pocket\.txt"):
        MoleculeOracle.parse("vina")
    code = (
        "import sys; sys.modules['vina'] = None\n"
        "from gflow.cli import main\n"
        f"main(['train', 'molecules', '--rewards', 'vina:{pocket}', '--out', '/nonexistent/run'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "docking needs vina: install it with `pip install gflow[docking]`" in done.stderr
