"""Measured values from CSV files: nothing good is lost, nothing bad gets in, all is accounted."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gflow.cli import main
from gflow.envs.molecules.chemistry import canonical_smiles
from gflow.measurements import Endpoint, read_measurements
from gflow.store import CandidateStore, StoreError
from tests.envs.data import table

ASSAY = """\
id,smiles,type,relation,value,units
1,CCO,IC50,=,10,nM
2,OCC,IC50,=,1,uM
3,c1ccccc1,IC50,>,10,uM
4,c1ccccc1,IC50,>,30000,nM
5,CCC,IC50,<,5,nM
6,CCC,IC50,=,2,nM
7,CC(C,IC50,=,3,nM
8,CCN,IC50,=,50,%
9,CCN,Inhibition,=,50,%
10,CCN,IC50,=,,nM
11,CCN,IC50,=,n.d.,nM
12,CCN,IC50,=,0,nM
13,CCN,IC50,~,7,nM
14,CCN,IC50,=,7
15,,IC50,=,7,nM
16,CCO,IC50,=,100,nM
17,C1CC1,IC50,=,0.5,\u00b5M
18,C1CCC1,IC50,=,5,
"""
PIC50 = Endpoint(
    "pIC50",
    "value",
    unit="nM",
    unit_column="units",
    relation_column="relation",
    where={"type": "IC50"},
    negative_log=True,
)


def write(folder, text, name="assay.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def assay(tmp_path):
    return read_measurements(write(tmp_path, ASSAY), [PIC50], parse=canonical_smiles)


def test_duplicates_units_and_bounds(assay):
    assert assay.objects == ["CCO", "c1ccccc1", "CCC", "C1CC1"]
    # 10 nM, 1 uM and 100 nM of one molecule: the median is 100 nM
    expected = [7.0, math.nan, -math.log10(2e-9), -math.log10(5e-7)]
    torch.testing.assert_close(
        assay.values[:, 0], torch.tensor(expected, dtype=torch.float64), equal_nan=True
    )
    assert assay.values[0, 0] == 7.0
    assert assay.counts[:, 0].tolist() == [3, 0, 1, 1]
    assert assay.spread[0, 0] == pytest.approx(2.0) and assay.spread[1, 0].isnan()
    # IC50 > 30 uM says pIC50 < 4.52, tighter than < 5; IC50 < 5 nM says pIC50 > 8.30
    assert assay.below[1, 0] == pytest.approx(-math.log10(3e-5)) and assay.above[1, 0].isnan()
    assert assay.above[2, 0] == pytest.approx(-math.log10(5e-9))
    assert assay.bounds(1) == "pIC50 < 4.52288" and assay.bounds(2) == ""
    assert assay.lines == [[2, 3, 17], [4, 5], [6, 7], [18]]


def test_every_row_left_out_has_its_line_and_reason(assay):
    assert assay.rows == 18
    taken = {line for lines in assay.lines for line in lines}
    assert taken.isdisjoint(note.line for note in assay.notes)
    assert len(taken) + len(assay.notes) == 18
    assert [(note.line, note.kind) for note in assay.notes] == [
        (8, "object cannot be read"),
        (9, "unit"),
        (10, "another end point"),
        (11, "no value"),
        (12, "not a number"),
        (13, "not positive"),
        (14, "relation not understood"),
        (15, "wrong number of fields"),
        (16, "object cannot be read"),
        (19, "unit"),
    ]
    texts = {note.line: note.text for note in assay.notes}
    assert texts[8] == "RDKit cannot read 'CC(C'"
    assert texts[9] == "pIC50: % cannot be turned into nM"
    assert texts[19] == "pIC50: no unit cannot be turned into nM"
    assert texts[10] == "type Inhibition" and texts[16] == "smiles is empty"


def test_the_summary_tells_all_of_it(assay):
    assert assay.summary().splitlines() == [
        "8 of 18 rows taken: 4 objects, 3 complete",
        "pIC50: 5 values of 3 objects, 1 known only as < or >",
        "  1 objects measured differently, taken at the median; most by 2 (lines 2, 3, 17)",
        "left out, object cannot be read: 2 (lines 8, 16)",
        "left out, unit: 2 (lines 9, 19)",
        "left out, another end point: 1 (line 10)",
        "left out, no value: 1 (line 11)",
        "left out, not a number: 1 (line 12)",
        "left out, not positive: 1 (line 13)",
        "left out, relation not understood: 1 (line 14)",
        "left out, wrong number of fields: 1 (line 15)",
    ]


def test_bounds_against_the_value_are_told(tmp_path):
    text = "object,value\nA,5\nA,> 7\nB,5\nB,> 3\nC,5\nC,<4\nD,>9\n"
    found = read_measurements(write(tmp_path, text), [Endpoint("value")])
    assert found.values[:3, 0].tolist() == [5.0] * 3
    assert "  2 objects with a bound against their value (lines 2, 3)" in found.summary()


def test_several_columns_with_marks_of_their_own(tmp_path):
    text = "Sequence; affinity ;yield\nACGU;1.5;> 20\nAC;;3\nGG;x;4\nUU;;\n"
    path = write(tmp_path, text)
    found = read_measurements(path, [Endpoint("affinity", minimize=True), Endpoint("yield")])
    assert found.objects == ["ACGU", "AC", "GG"]
    nan = math.nan
    expected = torch.tensor([[1.5, nan], [nan, 3.0], [nan, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(found.values, expected, equal_nan=True)
    assert found.rewards[0, 0] == -1.5 and found.above[0, 1] == 20.0
    assert found.bounds(0) == "yield > 20" and found.bounds(1) == "affinity not measured"
    assert [note[:2] for note in found.notes] == [(4, "not a number"), (5, "no value")]


def test_the_unit_of_the_file_serves_where_there_is_one(tmp_path):
    path = write(tmp_path, "smiles,t,units,type\nC,2,h,A\nCC,1,,A\nCCC,5,min,B\n")
    endpoint = Endpoint("t", unit_column="units", where={"type": "A"})
    found = read_measurements(path, [endpoint])
    assert found.endpoints[0].unit == "h" and found.objects == ["C"]
    with pytest.raises(
        StoreError, match=r"holds h \(line 2\) and min \(line 4\): say which unit t"
    ):
        read_measurements(path, [Endpoint("t", unit_column="units")])
    hours = read_measurements(path, [Endpoint("t", unit="min", unit_column="units")])
    assert hours.values[:, 0].tolist() == [120.0, 5.0]


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        (Endpoint("potency"), "no column potency for potency; it has smiles, value"),
        (Endpoint("value", relation_column="rel"), "no column rel for value"),
        (Endpoint("value", unit_column="unit"), "no column unit for value"),
        (Endpoint("value", where={"type": "IC50"}), "no column type for value"),
    ],
)
def test_a_file_without_the_columns(tmp_path, endpoint, message):
    path = write(tmp_path, "smiles,value\nC,1\n")
    with pytest.raises(StoreError, match=message) as error:
        read_measurements(path, [endpoint])
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_files_that_cannot_be_read_at_all(tmp_path):
    one = [Endpoint("value")]
    with pytest.raises(StoreError, match="no column smiles, object, sequence; it has value"):
        read_measurements(write(tmp_path, "value\n1\n"), one)
    with pytest.raises(StoreError, match="it has none"):
        read_measurements(write(tmp_path, ""), one)
    with pytest.raises(StoreError, match="cannot be read"):
        read_measurements(tmp_path / "missing.csv", one)
    (tmp_path / "latin.csv").write_bytes("smiles,value\nC,1\nCC,2 µM\n".encode("latin-1"))
    with pytest.raises(StoreError, match=r"latin\.csv:3: cannot be read, save the file as UTF-8"):
        read_measurements(tmp_path / "latin.csv", one)
    with pytest.raises(StoreError, match="more than one column is called value"):
        read_measurements(write(tmp_path, "smiles,value,value\nC,1,2\n"), one)
    with pytest.raises(ValueError, match="distinct names"):
        read_measurements(tmp_path / "missing.csv", one * 2)
    with pytest.raises(ValueError, match="needs one of the units M, mM"):
        Endpoint("pIC50", unit="%", negative_log=True)


def test_an_empty_table_has_no_objects(tmp_path):
    found = read_measurements(write(tmp_path, "smiles,value\n"), [Endpoint("value")])
    assert found.values.shape == (0, 1) and found.rows == 0 and found.objects == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["A", "B", "C"]),
            st.sampled_from(["", "<", ">"]),
            st.integers(1, 10**6),
            st.sampled_from(["nM", "uM"]),
        ),
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_rows_in_any_order_say_the_same(tmp_path_factory, rows, shuffled):
    folder = tmp_path_factory.mktemp("rows")
    endpoint = Endpoint("pIC50", "ic50", unit="nM", unit_column="units", negative_log=True)

    def read(entries):
        lines = [f"{name},{mark}{value},{unit}" for name, mark, value, unit in entries]
        text = "\n".join(["object,ic50,units", *lines])
        found = read_measurements(write(folder, text), [endpoint])
        table = torch.stack([found.values, found.above, found.below, found.spread], -1)
        return dict(zip(found.keys, table[:, 0].tolist(), strict=True))

    other = list(rows)
    shuffled.shuffle(other)
    one, two = read(rows), read(other)
    assert one.keys() == two.keys() == {row[0] for row in rows}
    for key, values in one.items():
        exact = [
            9 - math.log10(value * (1000 if unit == "uM" else 1))
            for name, mark, value, unit in rows
            if name == key and not mark
        ]
        middle = statistics.median(exact) if exact else math.nan
        assert values[0] == pytest.approx(middle, abs=1e-12, nan_ok=True)
        assert values == pytest.approx(two[key], abs=1e-12, nan_ok=True)


def test_import_fills_a_store_and_can_be_repeated(tmp_path, capsys):
    path, run = write(tmp_path, ASSAY), tmp_path / "run"
    command = ["import", str(path), str(run), "pIC50=value", "--where=type=IC50"]
    command += ["--relation=relation", "--units=units", "--unit=nM", "--negative_log"]
    main(command)
    assert "4 objects new" in capsys.readouterr().out
    with CandidateStore(run / "candidates.sqlite") as store:
        assert [(c.object, c.rewards) for c in store.candidates()] == [
            ("CCO", (7.0,)),
            ("CCC", (pytest.approx(8.69897),)),
            ("C1CC1", (pytest.approx(6.30103),)),
        ]
        (bound,) = store.candidates("rewards IS NULL")
        assert bound.object == "c1ccccc1" and bound.reason == "pIC50 < 4.52288"
        assert bound.source == "measured" and store.rewards[0].name == "pIC50"
    left_out = (run / "assay_left_out.csv").read_text().splitlines()
    assert left_out[:2] == ["line,kind,reason", "8,object cannot be read,RDKit cannot read 'CC(C'"]
    assert len(left_out) == 11
    main(command)
    out = capsys.readouterr().out
    assert "2 of 18 rows taken: 1 objects, 0 complete" in out and "0 objects new" in out
    assert (
        "left out, the store has values already, which stay: 6 (lines 2, 3, 6, 7, 17, ...)" in out
    )
    with CandidateStore(run / "candidates.sqlite") as store:
        assert len(store) == 4 and len(store.candidates()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pIC50=value", "--negative_log"], "needs one of the units"),
        (["dose"], "no column dose for dose"),
        (["value", "--where=type"], "where: 'type' is not of the form NAME=VALUE"),
        (["value", "--kind=cell"], "kind must be one of molecule, text"),
        (["=value"], "values: '=value' is not of the form NAME=VALUE"),
    ],
)
def test_import_refuses_in_one_line(tmp_path, capsys, arguments, message):
    path = write(tmp_path, ASSAY)
    with pytest.raises(SystemExit):
        main(["import", str(path), str(tmp_path / "run"), *arguments])
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_values_outside_the_rewards_of_a_run_are_left_out(tmp_path, capsys):
    from gflow.mdp import Reward

    path, run = write(tmp_path, "smiles,score\nC,0.5\nCC,7\n"), tmp_path / "run"
    run.mkdir()
    with CandidateStore(run / "candidates.sqlite", [Reward("score")]) as store:
        store.add(["N"], ["N"], torch.tensor([[0.25]]))
    main(["import", str(path), str(run), "score"])
    assert "outside the range of the rewards: 1 (line 3)" in capsys.readouterr().out
    with CandidateStore(run / "candidates.sqlite") as store:
        assert [c.object for c in store.candidates()] == ["N", "C"]
    with pytest.raises(SystemExit):
        main(["import", str(path), str(run), "activity=score"])
    assert "holds rewards score, not activity" in capsys.readouterr().err


def test_the_soluble_epoxide_hydrolase_file():
    found = read_measurements(table("seh_chembl.csv"), [PIC50], parse=canonical_smiles)
    assert found.rows == 2852
    kinds = {}
    for note in found.notes:
        kinds[note.kind] = kinds.get(note.kind, 0) + 1
    # 2,411 rows are IC50; 105 of them hold no value, 8 no unit; 2,298 are in nM
    assert kinds == {"another end point": 441, "no value": 105, "unit": 8}
    assert sum(map(len, found.lines)) == 2852 - 441 - 105 - 8
    assert int(found.counts.sum()) == 2147
    complete = ~found.values.isnan()[:, 0]
    assert (found.values[complete] > 0).all() and (found.values[complete] < 13).all()
    assert int((found.spread[complete] > 0).sum()) > 50
    assert len(set(found.keys)) == len(found.keys)
