"""N-grams, bit sequences and measured sequence spaces."""

import itertools
import random
import re
import subprocess
import sys

import moocore
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gflow.envs.sequences import AppendSequences, InsertSequences, PrependAppendSequences, Slots
from gflow.envs.sequences.bits import BLOCKS, BitModes, bit_modes, bit_words, flipped_modes
from gflow.envs.sequences.measured import DNA, QM9_SYMBOLS, qm9_blocks, tf_binding
from gflow.envs.sequences.ngrams import PROTEIN, NGrams
from tests.envs.data import table, write_parquet


def occurrences(text, gram):
    return len(re.findall(f"(?={gram})", text))


class TestNGrams:
    def test_the_documented_example(self):
        env = AppendSequences(PROTEIN, 36, 1)
        oracle = NGrams(PROTEIN, ("AV", "VC", "CA"))
        assert oracle.counts(env.encode(["AVVCAVCA"]).data).tolist() == [[2, 2, 2]]
        assert oracle(env.encode(["AVVCAVCA"])).tolist() == [[2 / 18] * 3]

    @given(st.lists(st.text("AVC", min_size=1, max_size=12), min_size=1, max_size=4))
    def test_counts_agree_with_a_regular_expression(self, texts):
        grams = ("A", "AA", "AVA", "VC")
        counts = NGrams("AVC", grams, 12).counts(AppendSequences("AVC", 12, 1).encode(texts).data)
        assert counts.tolist() == [[occurrences(text, gram) for gram in grams] for text in texts]

    @pytest.mark.parametrize(
        ("grams", "length", "points", "volume"),
        [
            (("AV", "VC"), 36, 13, 0.629630),
            (("AV", "VC", "CA"), 36, 21, 0.409294),
            (("AV", "VC", "CA", "AB"), 36, 309, 0.106186),
            ("AV", 18, 19, 0.472222),
            ("AVC", 18, 190, 0.139918),
            ("AVCD", 18, 1330, 0.029150),
        ],
    )
    def test_exact_fronts(self, grams, length, points, volume):
        values = NGrams(PROTEIN + "B", grams, length).attainable(length).numpy()
        front = values[moocore.is_nondominated(values, maximise=True)]
        assert len(front) == points
        assert moocore.hypervolume(-front, ref=[0.0] * len(grams)) == pytest.approx(
            volume, abs=1e-6
        )

    @pytest.mark.parametrize("grams", [("AV", "VA"), ("AA", "AV"), ("AVA", "V"), ("AA", "VV")])
    @pytest.mark.parametrize("shortest", [0, 3, 6])
    def test_attainable_vectors_are_those_of_all_sequences(self, grams, shortest):
        env = AppendSequences("AVC", 6, shortest)
        oracle = NGrams("AVC", grams, 6, 6.0)
        expected = oracle(env.all_terminal_states()).unique(dim=0)
        assert torch.equal(oracle.attainable(shortest), expected)
        most = [reward.high for reward in oracle.rewards]
        assert expected.amax(0).tolist() == pytest.approx(most)

    @pytest.mark.parametrize(
        ("grams", "message"),
        [
            (("AV", "AB"), "'AB' can never occur: 'B' is not in the vocabulary"),
            (("AVAV",), "1 to 3 symbols"),
            ((), "at least one gram"),
        ],
    )
    def test_bad_grams(self, grams, message):
        with pytest.raises(ValueError, match=message):
            NGrams(PROTEIN, grams, max_length=3)


class TestBits:
    def test_modes_are_the_published_ones(self):
        source = np.random.RandomState(0)
        expected = ["".join(source.choice(BLOCKS) for _ in range(15)) for _ in range(60)]
        assert list(bit_modes()) == expected

    @pytest.mark.parametrize("make", [AppendSequences, Slots])
    def test_both_orders_spell_bits(self, make):
        env = make(bit_words(8), 15)
        assert env.max_steps == 15 and not env.has_stop and env.fixed_length
        states = env.encode(bit_modes())
        assert tuple(env.decode(states)) == bit_modes()
        oracle = BitModes(8)
        assert torch.equal(oracle(states), torch.ones(60, 1, dtype=torch.float64))
        assert oracle.found(states).all()

    def test_distances_by_brute_force(self):
        modes = bit_modes(24, 4)
        env = Slots(bit_words(4), 6)
        source = random.Random(1)
        texts = ["".join(source.choices("01", k=24)) for _ in range(20)]
        found = BitModes(4, modes).distances(env.encode(texts))
        expected = [
            [sum(a != b for a, b in zip(text, mode, strict=True)) for mode in modes]
            for text in texts
        ]
        assert found.tolist() == expected
        rewards = BitModes(4, modes, temperature=2.0)(env.encode(texts)).squeeze(1)
        assert rewards.log().tolist() == pytest.approx([-min(row) / 2 for row in expected])

    def test_the_test_set_flips_ever_more_bits(self):
        texts = flipped_modes(bit_modes(), torch.Generator().manual_seed(0))
        assert len(texts) == 7200
        env, oracle = AppendSequences(bit_words(8), 15), BitModes(8)
        distances = oracle.distances(env.encode(texts)).view(60, 120, 60)
        own = distances[torch.arange(60), :, torch.arange(60)]
        assert torch.equal(own, torch.arange(120).expand(60, 120))

    def test_a_mode_is_found_within_the_radius(self):
        oracle = BitModes(8, bit_modes(40, 2, seed=1))
        env = AppendSequences(bit_words(8), 5)
        near = env.encode([oracle.modes[0][:-3] + "101"])
        distances = oracle.distances(near)[0]
        assert oracle.found(near, int(distances[0])).tolist()[0]
        assert not oracle.found(near, int(distances[0]) - 1).tolist()[0]

    def test_bad_settings(self):
        with pytest.raises(ValueError, match="16 bits, not 17"):
            bit_words(17)
        with pytest.raises(ValueError, match="60 is no multiple of 8"):
            bit_modes(60)
        with pytest.raises(ValueError, match="multiple of k=7"):
            BitModes(7)
        with pytest.raises(ValueError, match="multiple of k=0"):
            BitModes(0)
        with pytest.raises(ValueError, match="full rows"):
            BitModes(8)(Slots(bit_words(8), 15).initial(1))
        with pytest.raises(ValueError, match="unknown symbol '012'"):
            Slots(bit_words(3), 2).encode(["000012"])


class TestBinding:
    @pytest.fixture(scope="class")
    def path(self):
        return table("tf_binding.parquet")

    def test_tfbind8(self, path):
        oracle = tf_binding(path)
        assert oracle.values.shape == (65536, 1)
        assert (oracle.rewards[0].name, oracle.rewards[0].flipped) == ("bind SIX6", False)
        assert (float(oracle.values.min()), float(oracle.values.max())) == (0.0, 1.0)

    def test_every_order_reads_the_same_table(self, path):
        oracle = tf_binding(path, ["SIX6", "ARX"], ["BCL6"])
        texts = ["ACGTACGT", "TTTTTTTT", "GATTACAA"]
        rows = [
            oracle(order(DNA, 8).encode(texts))
            for order in (AppendSequences, PrependAppendSequences, InsertSequences)
        ]
        assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])
        assert oracle.rewards[2].name == "avoid BCL6" and oracle.rewards[2].flipped
        flipped = tf_binding(path, ["BCL6"])
        assert torch.allclose(rows[0][:, 2:], 1 - flipped(AppendSequences(DNA, 8).encode(texts)))

    def test_strands_score_alike(self, path):
        oracle, env = tf_binding(path, ["SIX6", "ARX"]), AppendSequences(DNA, 8)
        states = env.all_terminal_states()
        other = states._replace(data=3 - states.data.flip(1))
        assert torch.equal(oracle(states), oracle(other))

    def test_values_come_from_the_right_rows(self, path):
        from pyarrow import parquet

        raw = parquet.read_table(path, columns=["sequence", "ARX"]).slice(1000, 50).to_pydict()
        oracle = tf_binding(path, ["ARX"])
        found = oracle(AppendSequences(DNA, 8).encode(raw["sequence"])).squeeze(1)
        score = np.array(raw["ARX"], dtype=np.float64)
        assert np.corrcoef(found.numpy(), score)[0, 1] == pytest.approx(1.0, abs=1e-12)

    def test_unknown_factor(self, path):
        with pytest.raises(ValueError, match=r"no column 'SIX66'; it has .*SIX6"):
            tf_binding(path, ["SIX66"])
        with pytest.raises(ValueError, match="each once"):
            tf_binding(path, ["SIX6"], ["SIX6"])


class TestBlocks:
    def test_gap(self):
        oracle = qm9_blocks(table("qm9str.parquet"))
        env = PrependAppendSequences(QM9_SYMBOLS, 5)
        states = env.all_terminal_states()
        assert states.n == 161_051
        values = oracle(states)
        assert float(values.max()) == 1.0 and float(values.min()) == oracle.rewards[0].low > 0
        assert float(oracle(env.encode(["00000"]))) == pytest.approx(8.5926 / 17.374775, abs=1e-6)


def test_environments_import_without_table_readers():
    code = (
        "import sys, gflow.envs.nas.oracle, gflow.envs.sequences.measured, gflow.envs.grids, "
        "gflow.envs.sets, gflow.envs.sequences.bits, gflow.envs.sequences.ngrams; "
        "print(*{'pyarrow', 'pandas', 'scipy', 'rdkit'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


class TestBadTables:
    """Files that are not what they should be."""

    @staticmethod
    def blocks():
        return ["".join(row) for row in itertools.product(QM9_SYMBOLS, repeat=5)]

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no file .*lost\.parquet"):
            qm9_blocks(tmp_path / "lost.parquet")

    def test_no_parquet(self, tmp_path):
        path = tmp_path / "text.parquet"
        path.write_text("hello")
        with pytest.raises(ValueError, match=r"text\.parquet is not a Parquet file"):
            qm9_blocks(path)

    def test_missing_column(self, tmp_path):
        path = write_parquet(tmp_path / "t.parquet", blocks=["00000"], gape=[1.0])
        with pytest.raises(ValueError, match="no column 'gap'; it has gape"):
            qm9_blocks(path)

    def test_missing_row(self, tmp_path):
        blocks = self.blocks()
        del blocks[17]
        path = write_parquet(tmp_path / "t.parquet", blocks=blocks, gap=[1.0] * len(blocks))
        with pytest.raises(ValueError, match="161050 of 161051 rows: '00016' is missing"):
            qm9_blocks(path)

    def test_repeated_row(self, tmp_path):
        blocks = self.blocks()
        blocks[17] = blocks[4]
        path = write_parquet(tmp_path / "t.parquet", blocks=blocks, gap=[1.0] * len(blocks))
        with pytest.raises(ValueError, match="lists '00004' 2 times"):
            qm9_blocks(path)

    @pytest.mark.parametrize(
        ("block", "message"),
        [("0000b", "unknown symbol 'b' at position 4"), ("000000", "has 6 symbols")],
    )
    def test_malformed_row(self, tmp_path, block, message):
        path = write_parquet(tmp_path / "t.parquet", blocks=["00000", block], gap=[1.0, 2.0])
        with pytest.raises(ValueError, match=rf"t\.parquet: object 1.*{message}"):
            qm9_blocks(path)

    def test_unknown_value_is_not_a_number(self, tmp_path):
        blocks = self.blocks()
        gap = [2.0, None, *[4.0] * (len(blocks) - 2)]
        oracle = qm9_blocks(write_parquet(tmp_path / "t.parquet", blocks=blocks, gap=gap))
        values = oracle.values[:3, 0]
        assert values[0] == 0.5 and values[1].isnan() and values[2] == 1.0
        env = PrependAppendSequences(QM9_SYMBOLS, 5)
        begun = env.step(env.initial(1), torch.tensor([3]))
        assert oracle(begun).isnan().all()
        with pytest.raises(ValueError, match="rows of 5, not of 6"):
            oracle(PrependAppendSequences(QM9_SYMBOLS, 6).initial(1))
