"""Rewards of strands from ViennaRNA's structures."""

import itertools
import pickle
import subprocess
import sys

import pytest
import torch

from gflow.config import ConfigError
from gflow.envs.sequences.rna import RNAOracle, base_pairs, fold, n_stems
from gflow.oracles import OracleRunner
from gflow.tasks import make_task

RNA = pytest.importorskip("RNA", reason="needs ViennaRNA, the extra gflow[bio]")
HAIRPIN = "GGGGAAAACCCC"
TWO = "GGGGCGAAAGCCCCAAGGGGCGAAAGCCCC"


def structures(n):
    """Every structure of n nucleotides whose hairpin loops have at least 3."""
    if n <= 0:
        return [""]
    found = ["." + rest for rest in structures(n - 1)]
    for inside in range(3, n - 1):
        found += [
            f"({one}){rest}" for one in structures(inside) for rest in structures(n - inside - 2)
        ]
    return found


def test_no_structure_has_less_energy():
    # By trying all of them, with the energy of a given structure.
    for strand in (HAIRPIN, "GCGCAAAAGCGC", "GACUUCGGUC"):
        pairs = {a + b for a, b in ("GC", "CG", "AU", "UA", "GU", "UG")}
        possible = [
            one
            for one in structures(len(strand))
            if all(strand[i] + strand[j] in pairs for i, j in base_pairs(one))
        ]
        energies = [RNA.energy_of_struct(strand, one) for one in possible]
        (found,) = fold([strand])
        assert found.energy == pytest.approx(min(energies), abs=1e-4)
        assert found.structure == possible[energies.index(min(energies))]


def test_rewards_are_what_the_structure_says():
    oracle = RNAOracle(["energy", "pairs", "stems", "length"], 10, 30)
    names = [(reward.name, reward.unit, reward.flipped) for reward in oracle.rewards]
    assert names == [
        ("energy", "48 kcal/mol", True),
        ("pairs", "13 pairs", False),
        ("stems", "6 stems", False),
        ("length", "", True),
    ]
    one, two, none = fold([HAIRPIN, TWO, "A" * 20])
    assert one == ("((((....))))", -5.4)
    assert two == ("(((((....)))))..(((((....)))))", -21.9)
    values = oracle([HAIRPIN, TWO, "A" * 20])
    expected = [
        [-one.energy / 48, 4 / 13, 1 / 6, 10 / 12],
        [-two.energy / 48, two.structure.count(")") / 13, 2 / 6, 10 / 30],
        [0.0, 0.0, 0.0, 0.5],
    ]
    assert none.structure == "." * 20
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))
    assert two.energy < one.energy < 0


def test_distance_to_a_target_structure():
    target = "((((....))))"
    oracle = RNAOracle([f"target:{target}", "energy"], 12, 12)
    values = oracle([HAIRPIN, "GGGAAAAACCCA", "A" * 12])
    (reward, _) = oracle.rewards
    assert reward.description == "1 - distance to ((((....)))) / 8 base pairs"
    structure = fold(["GGGAAAAACCCA"])[0].structure
    # between strands of one length ViennaRNA counts the same pairs
    distance = RNA.bp_distance(structure, target)
    assert distance > 0
    assert values[:, 0].tolist() == [1.0, 1 - distance / 8, 0.5]


def test_counting_pairs_and_stems():
    assert base_pairs("(.(...)..)") == {(0, 9), (2, 6)}
    assert [n_stems(text) for text in ("", "....", "((...))", "((...)(...))", "(...).(...)")] == [
        0, 0, 1, 1, 2,
    ]  # fmt: skip


def test_values_stay_in_range_for_the_strongest_strands():
    for material, u in (("rna", "U"), ("dna", "T")):
        oracle = RNAOracle(["energy", "pairs", "stems", "length"], 30, 60, material)
        strands = ["G" * 28 + "GAAA" + "C" * 28, "GC" * 14 + "GAAA" + "GC" * 14]
        strands += ["GGCC" * 7 + "GAAA" + "GGCC" * 7, f"GC{u * 3}GC" * 8, u * 60]
        values = oracle(strands)
        raw = torch.tensor([one.energy for one in fold(strands, material)], dtype=torch.float64)
        assert ((values >= 0) & (values <= 1)).all()
        # no clamping happens: the scale covers them
        scale = 96 if material == "rna" else 60
        torch.testing.assert_close(values[:, 0], -raw / scale)
        assert 0.7 < values[:, 0].max() < 1


def test_dna_has_its_own_energies_and_leaves_the_users_alone():
    before = RNA.fold(HAIRPIN)
    dna = fold(["GGGGAAAACCCC", "GTCTAAAAAGAC"], "dna")
    assert RNA.fold(HAIRPIN) == before
    assert dna[0].energy > fold([HAIRPIN])[0].energy
    assert RNAOracle(["energy"], material="dna").version != RNAOracle(["energy"]).version


def test_the_oracle_goes_to_workers_and_a_bad_strand_fails_alone():
    oracle = RNAOracle(["energy", "target:((((....))))"], 4, 12)
    again = pickle.loads(pickle.dumps(oracle))
    assert again.rewards == oracle.rewards and again.version == oracle.version
    with OracleRunner(oracle, str, workers=1) as runner:
        scores = runner.evaluate([HAIRPIN, "GGTT", "AAAA"])
    assert scores.reasons == [
        None,
        "ValueError: 'GGTT': letter 'T' at position 2 is not one of ACGU, those of RNA",
        None,
    ]
    assert torch.equal(scores.rewards[0], oracle([HAIRPIN])[0])
    assert oracle([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        (["enrgy"], {}, "unknown reward 'enrgy'; did you mean energy"),
        (["energy:3"], {}, "reward 'energy' takes no argument, but got '3'"),
        (["target"], {}, "needs a structure such as"),
        (["target:((..)"], {}, r"'\(' at position 0 is not closed again"),
        (["target:(...))"], {}, r"'\)' at position 5 closes nothing"),
        (["target:[...]"], {}, r"'\[' at position 0 is not one of \( . \)"),
        (["target:(...)"], {}, "has 5 positions, and strands have 30 to 60"),
        (["energy", "energy"], {}, "each once"),
        ([], {}, "at least one reward"),
        (["energy"], {"material": "pna"}, "material must be rna or dna, not 'pna'"),
        (
            ["energy"],
            {"min_length": 9, "max_length": 5},
            "the shortest length, 9, must lie between 1 and the longest, 5",
        ),
    ],
)
def test_a_bad_specification_says_why(rewards, options, message):
    with pytest.raises(ValueError, match=message) as error:
        RNAOracle(rewards, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", ["append", "prepend_append", "insert"])
def test_the_task(order):
    task = make_task(
        "rna", "energy,pairs,length", {"min_length": 8, "max_length": 14, "order": order}
    )
    states = task.env.encode([HAIRPIN, "ACGUACGU"])
    assert task.env.decode(states) == [HAIRPIN, "ACGUACGU"]
    values = task.oracle(task.env.decode(states))
    assert values.shape == (2, 3) and values[0, 0] > values[1, 0]
    assert task.reference_point == (0.0, 0.0, 0.0)


def test_the_task_takes_its_length_from_the_target_structure():
    task = make_task("rna", "target:((((....)))),energy")
    assert task.env.min_length == task.env.length == 12 and not task.env.has_stop
    dna = make_task("rna", "energy,stems,pairs", {"material": "dna"})
    assert dna.env.vocabulary == tuple("ACGT") and (dna.env.min_length, dna.env.length) == (30, 60)
    with pytest.raises(ConfigError, match="no order 'slots'"):
        make_task("rna", options={"order": "slots"})


def test_without_viennarna_it_says_what_to_install():
    code = (
        "import sys; sys.modules['RNA'] = None\n"
        "from gflow.cli import main\n"
        "main(['train', 'rna', '--out', '/nonexistent/run'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "needs ViennaRNA: install it with `pip install gflow[bio]`" in done.stderr


def test_every_strand_of_a_small_space_is_scored():
    oracle = RNAOracle(["energy", "pairs"], 5, 5)
    strands = ["".join(letters) for letters in itertools.product("ACGU", repeat=5)]
    values = oracle(strands)
    assert values.isfinite().all() and ((values >= 0) & (values <= 1)).all()
