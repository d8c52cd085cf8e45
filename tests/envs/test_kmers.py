"""Text tables of DNA 8-mers."""

import math

import pytest
import torch

from gflow.envs.sequences import AppendSequences
from gflow.envs.sequences.kmers import e_scores, factor_file
from gflow.envs.sequences.measured import DNA, tf_binding
from gflow.pareto import non_dominated
from tests.envs.data import table

ENV = AppendSequences(DNA, 8)
WORDS = ENV.decode(ENV.all_terminal_states())
OTHER = str.maketrans("ACGT", "TGCA")


def other_strand(word):
    return word.translate(OTHER)[::-1]


def score(word, factor=0):
    """A made-up score in -0.45..0.45 that both strands share."""
    word = min(word, other_strand(word))
    return round(0.45 * math.sin(factor + sum((i + 2) * ord(c) for i, c in enumerate(word))), 5)


def lines(factor=0, both=False, names=True):
    """A table with one line for both strands, or one for each."""
    head = ["8-mer\t8-mer\tE-score\tMedian\tZ-score"] if names else []
    return head + [
        f"{word}\t{other_strand(word)}\t{score(word, factor)}\t1234.5\t0.67"
        for word in WORDS
        if both or word <= other_strand(word)
    ]


def write(path, rows):
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("names", [False, True])
def test_scores_of_all_words(tmp_path, both, names):
    rows = lines(both=both, names=names)
    assert len(rows) == (65_536 if both else 32_896) + names
    values = e_scores(write(tmp_path / "t.txt", rows))
    assert values.tolist() == [score(word) for word in WORDS]


def test_spaces_other_columns_lower_case_and_unknown_scores(tmp_path):
    rows = lines()
    rows[0] = "word other median e_score"
    rows[1:] = [" ".join(row.split("\t")[i] for i in (0, 1, 3, 2)).lower() for row in rows[1:]]
    rows[1] = rows[1].rpartition(" ")[0] + " NA"
    values = e_scores(write(tmp_path / "t.txt", ["", *rows, ""]))
    assert values.isnan().nonzero()[:, 0].tolist() == [0, 65_535]
    assert values[1:-1].tolist() == [score(word) for word in WORDS[1:-1]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("AAAAAAAA\tTTTTTTTT", "line 3: 2 columns where word, other strand and E-score are wanted"),
        ("AAAANAAA\tTTTTTTTT\t0.1", "line 3: 'AAAANAAA' is no word of 8 letters A, C, G, T"),
        ("AAAAAAA\tTTTTTTT\t0.1", "line 3: 'AAAAAAA' is no word of 8 letters A, C, G, T"),
        ("AAAAAAAC\tTTTTTTTT\t0.1", "'TTTTTTTT' is not the reverse complement of AAAAAAAC"),
        ("AAAAAAAC\tGTTTTTTT\thigh", "E-score 'high' is not a number"),
        ("AAAAAAAC\tGTTTTTTT\t12.5", r"E-score 12.5 lies outside -0.5..0.5"),
        ("AAAAAAAA\tTTTTTTTT\t0.012", "AAAAAAAA has another E-score, .* in an earlier line"),
    ],
)
def test_bad_lines_are_named(tmp_path, row, message):
    rows = lines()
    rows[2] = row
    with pytest.raises(ValueError, match=rf"t\.txt, .*{message}$"):
        e_scores(write(tmp_path / "t.txt", rows))


def test_bad_tables(tmp_path):
    rows = lines()
    with pytest.raises(ValueError, match=r"t.txt has 65534 of 65536 words: 'AAAAAAAC' is missing"):
        e_scores(write(tmp_path / "t.txt", rows[:2] + rows[3:]))
    rows[5] = rows[9] = "junk"
    with pytest.raises(ValueError, match=r"line 6: 1 columns.* \(and 1 more bad lines\)$"):
        e_scores(write(tmp_path / "t.txt", rows))
    with pytest.raises(ValueError, match="no column E-score; it has word, other, affinity"):
        e_scores(write(tmp_path / "t.txt", ["word\tother\taffinity", *rows[1:]]))
    with pytest.raises(FileNotFoundError, match=r"no file .*lost\.txt"):
        e_scores(tmp_path / "lost.txt")


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        write(tmp_path / "SIX6_REF_R1_8mers.txt", lines(0))
        write(tmp_path / "SIX.txt", lines(1))
        write(tmp_path / "ARX_R1.tsv", lines(2))
        return tmp_path

    def test_factors_are_found_by_file_name(self, folder):
        oracle = tf_binding(folder, ["SIX6", "ARX"], ["SIX"])
        rows = [[score(w, 0), score(w, 2), score(w, 1)] for w in WORDS]
        expected = torch.tensor(rows, dtype=torch.float64)
        low, high = expected.amin(0), expected.amax(0)
        expected = (expected - low) / (high - low)
        expected[:, 2] = 1 - expected[:, 2]
        torch.testing.assert_close(oracle.values, expected, rtol=0, atol=1e-12)
        assert [reward.name for reward in oracle.rewards] == ["bind SIX6", "bind ARX", "avoid SIX"]

    def test_unknown_and_ambiguous_factors(self, folder):
        with pytest.raises(ValueError, match="no table of 'SIX7'; it has SIX, SIX6"):
            tf_binding(folder, ["SIX7"])
        write(folder / "ARX_R2.txt", [])
        with pytest.raises(ValueError, match=r"several tables of 'ARX': ARX_R1\.tsv, ARX_R2\.txt"):
            factor_file(folder, "ARX")
        (folder / "empty").mkdir()
        with pytest.raises(ValueError, match=r"it has no \.txt or \.tsv file"):
            factor_file(folder / "empty", "ARX")


class TestMeasured:
    """The real table."""

    def test_text_and_parquet_agree(self, tmp_path):
        from pyarrow import parquet

        path = table("tf_binding.parquet")
        raw = parquet.read_table(path, columns=["sequence", "SIX6"]).to_pydict()
        rows = [
            f"{word}\t{other_strand(word)}\t{value!r}"
            for word, value in zip(raw["sequence"], raw["SIX6"], strict=True)
        ]
        write(tmp_path / "SIX6.txt", rows)
        text, binary = tf_binding(tmp_path), tf_binding(path)
        assert torch.equal(text.values, binary.values) and text.version == binary.version

    def test_tfbind8_is_six6_between_its_ends(self):
        from pyarrow import parquet

        path = table("tf_binding.parquet")
        raw = parquet.read_table(path, columns=["sequence", "SIX6"]).to_pydict()
        values = torch.tensor(raw["SIX6"], dtype=torch.float32)
        expected = (values - values.min()) / (values.max() - values.min())
        found = tf_binding(path)(ENV.encode(raw["sequence"])).squeeze(1)
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-7)

    def test_the_exact_front_by_comparing_all_pairs(self):
        oracle = tf_binding(table("tf_binding.parquet"), ["SIX6", "ARX"], ["BCL6"])
        values = oracle.values
        front = values[non_dominated(values)]
        beaten = torch.zeros(len(values), dtype=torch.bool)
        for point in front:
            beaten |= (point >= values).all(1) & (point > values).any(1)
        assert torch.equal(~beaten, non_dominated(values))
        assert not beaten.all() and len(front) > 3
