"""`gflow propose` and `gflow tell`: files to a laboratory and back."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from gflow.active import Session
from gflow.cli import main

START = "propose run --task grid_objectives --options.side 8 --steps 2 --batch_size 16"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def refused(capsys, command):
    """The sentence with which `command` is refused."""
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.err.count("\n") == 1
    return captured.err.removeprefix("gflow: ").strip()


def rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def filled(source, target, cells):
    """A plate with results in its first rows."""
    header, *body = rows(source)
    for row, values in zip(body, cells, strict=False):
        row[1:3] = map(str, values)
    with open(target, "w", newline="") as file:
        csv.writer(file).writerows([header, *body])


def test_a_plate_goes_out_and_comes_back(capsys):
    main(f"{START} -n 6 -o plate.csv".split())
    said = capsys.readouterr().out
    assert "round 1: 6 objects to measure, 0 pending from earlier rounds" in said
    assert "gflow tell run plate.csv" in said
    header, *body = rows("plate.csv")
    assert header == ["object", "branin", "currin", "round"] and len(body) == 6
    assert all(row[1:] == ["", "", "1"] for row in body)

    filled("plate.csv", "back.csv", [(0.5, 0.25), (0.75, 0.1), ("failed", 1), (">0.5", 0.2)])
    main("tell run back.csv".split())
    said = capsys.readouterr().out
    assert "3 new results, 0 known already" in said
    assert "not a number: 1 (line 4)" in said and "no value: 2 (lines 6, 7)" in said
    # A row without all its numbers waits; a bound is a result, though not an exact one.
    assert "2 objects measured, 3 pending" in said and "hypervolume 0 -> 0.15" in said

    main("propose run -n 4 -o second.csv".split())
    assert "round 2: 4 objects to measure, 3 pending" in capsys.readouterr().out
    items = [row[0] for row in body]
    assert not {row[0] for row in rows("second.csv")[1:]} & set(items)


def test_results_of_strangers_repeated_and_corrected(capsys):
    main(f"{START} -n 4 -o plate.csv".split())
    filled("plate.csv", "back.csv", [(0.5, 0.25)] * 4)
    main("tell run back.csv".split())
    filled("plate.csv", "other.csv", [(0.5, 0.25)] * 3 + [(0.6, 0.3)])
    with open("other.csv", "a") as file:
        file.write('"[5, 6]",0.1,0.1,\n')
    capsys.readouterr()
    main("tell run other.csv".split())
    said = capsys.readouterr().out
    assert "1 new results, 3 known already" in said
    assert "1 objects had other results, now replaced" in said
    assert "1 objects were never proposed; their results are stored and used all the same" in said
    with Session("run") as session:
        assert len(session.measured()) == 5


def test_a_plate_chosen_by_a_killed_process_is_handed_over(capsys):
    main(f"{START} -n 4 -o first.csv".split())
    with Session("run") as session:
        batch = [list(item) for item in session.ask(4)]
    # Killed here, before the file was written.
    capsys.readouterr()
    main("propose run -n 9 -o plate.csv".split())
    said = capsys.readouterr().out
    assert "round 2 was chosen before but not handed over" in said and "4 objects (of 9" in said
    assert [row[0] for row in rows("plate.csv")[1:]] == [str(item) for item in batch]
    assert rows("plate.csv") == rows(Path("run", "plates", "round_002.csv"))


def test_a_start_from_measurements(capsys):
    Path("known.csv").write_text(
        "object,branin,currin\n\"[1, 1]\",0.1,0.2\n\"[2, 3]\",0.4,0.4\n\"[9, 9]\",1,1\n"
        "\"[4, 5]\",0.9,>1\n"
    )  # fmt: skip
    main(f"{START} --start known.csv -n 3 -o plate.csv".split())
    said = capsys.readouterr().out
    assert "3 of 4 rows taken" in said and "object cannot be read: 1 (line 4)" in said
    assert "round 1: 3 objects" in said
    with Session("run") as session:
        assert len(session.measured()) == 2 and session.progress()[0].measured == 2


def test_bad_input_is_one_sentence(capsys):
    assert "no task 'grid_objektives'" in refused(
        capsys, "propose new --task grid_objektives -o p.csv"
    )
    assert "a plate is a .csv file" in refused(capsys, f"{START} -o plate.xlsx")
    assert "there is no folder nowhere" in refused(capsys, f"{START} -o nowhere/plate.csv")
    assert "n must be at least 1" in refused(capsys, f"{START} -n 0")
    assert "surrogate must be one of gp" in refused(capsys, f"{START} --surrogate forest")
    assert "NAME:WORST..BEST" in refused(capsys, f"{START} --measure pIC50")
    assert "none.csv: cannot be read" in refused(capsys, f"{START} --start none.csv")
    assert "nothing holds no session" in refused(capsys, "tell nothing results.csv")
    # What was refused began nothing.
    assert not Path("run", "session.yaml").exists()
    main(f"{START} -n 2 -o plate.csv".split())
    capsys.readouterr()
    assert "with seed 0, not 3" in refused(capsys, "propose run --seed 3")
    assert "with task 'grid_objectives', not 'hypergrid'" in refused(
        capsys, "propose run --task hypergrid"
    )
    Path("short.csv").write_text('object,branin\n"[1, 1]",0.5\n')
    assert "short.csv: no column currin" in refused(capsys, "tell run short.csv")
    Path("columns.csv").write_text("name,branin,currin\nx,1,1\n")
    assert "no column smiles, object, sequence" in refused(capsys, "tell run columns.csv")


def test_other_commands_do_not_load_botorch():
    code = "import sys, gflow.cli; gflow.cli.build_parser(); print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"botorch", "gpytorch", "rdkit"} & set(done.stdout.split())
