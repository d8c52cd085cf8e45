"""Take candidates away (CSV, SDF, SMILES, JSON lines, Parquet) and bring initial sets in."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gflow.candidates import Candidate, as_text
from gflow.mdp import Reward
from gflow.store import CandidateStore, StoreError

Row = dict[str, Any]
Writer = Callable[[Path, list[Row], list[str]], None]
_OBJECT_COLUMNS = ("smiles", "object", "sequence")


def export(
    candidates: Sequence[Candidate],
    path: str | Path,
    rewards: Sequence[Reward],
    *,
    column: str = "object",
) -> Path:
    """Write candidates to `path` in the format its suffix names.

    Known are .csv, .jsonl, .parquet (any objects) and .sdf, .smi (molecules, as SMILES). The
    file appears under its name only when it is complete.

    Args:
        candidates: what to write, failed ones included if there are any.
        path: the file, replaced if it exists.
        rewards: the K rewards of the store, which name the columns.
        column: name of the column that holds the object, "smiles" for molecules.

    Raises:
        StoreError: unknown suffix, no such folder, a missing extra, or objects that are no
            molecules where the format holds nothing else.
    """
    path = Path(path)
    writer = writer_of(path)
    rows = [_row(candidate, rewards, column) for candidate in candidates]
    columns = list(_row(_NOTHING, rewards, column))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        writer(unfinished, rows, columns)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def writer_of(path: Path) -> Writer:
    """What writes the format that the suffix of `path` names.

    Raises:
        StoreError: unknown suffix, or no such folder.
    """
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        known = ", ".join(_WRITERS)
        raise StoreError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; {known}")
    if not path.parent.is_dir():
        raise StoreError(f"{path}: there is no folder {path.parent}")
    return writer


_NOTHING = Candidate(
    "", "", None, None, None, None, None, None, None, source="", step=0, first_seen=0.0,
    last_seen=0.0, count=0,
)  # fmt: skip


def _row(candidate: Candidate, rewards: Sequence[Reward], column: str) -> Row:
    names = [reward.name for reward in rewards]
    missing = (None,) * len(names)
    row: Row = {column: candidate.object}
    row |= zip(names, candidate.rewards or missing, strict=True)
    row["failure"] = candidate.reason
    weights = (f"preference_{name}" for name in names)
    row |= zip(weights, candidate.preference or missing, strict=True)
    for name in ("inverse_temperature", "log_reward", "log_pf", "source", "step", "oracle_call"):
        row[name] = getattr(candidate, name)
    return row | {"count": candidate.count, "key": candidate.key}


def _write_csv(path: Path, rows: list[Row], columns: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            first, *rest = row.values()
            writer.writerow([as_text(first), *rest])


def _write_jsonl(path: Path, rows: list[Row], columns: list[str]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_parquet(path: Path, rows: list[Row], columns: list[str]) -> None:
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise StoreError(
            'Parquet files need pyarrow: pip install "gflow[data]", or write .csv'
        ) from None
    texts = ("failure", "source", "key")
    whole = ("step", "oracle_call", "count")
    fields = [(columns[0], arrow.string())]
    for name in columns[1:]:
        kind = arrow.string() if name in texts else arrow.float64()
        fields.append((name, arrow.int64() if name in whole else kind))
    data = {name: [row[name] for row in rows] for name in columns}
    data[columns[0]] = [as_text(item) for item in data[columns[0]]]
    parquet.write_table(arrow.table(data, schema=arrow.schema(fields)), path, compression="zstd")


def _write_sdf(path: Path, rows: list[Row], columns: list[str]) -> None:
    from rdkit import Chem
    from rdkit.Chem import rdDepictor

    with Chem.SDWriter(str(path)) as writer:
        for row in rows:
            molecule = _molecule(row[columns[0]])
            rdDepictor.Compute2DCoords(molecule)
            molecule.SetProp("_Name", row["key"])
            for name, value in row.items():
                if value is not None:
                    molecule.SetProp(name, str(value))
            writer.write(molecule)


def _write_smi(path: Path, rows: list[Row], columns: list[str]) -> None:
    lines = []
    for row in rows:
        _molecule(row[columns[0]])
        lines.append(f"{row[columns[0]]}\t{row['key']}\n")
    path.write_text("".join(lines), encoding="utf-8")


def _molecule(item: Any) -> Any:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(item) if isinstance(item, str) else None
    if molecule is None:
        raise StoreError(f"{item!r} is not a molecule: .sdf and .smi hold molecules, use .csv")
    return molecule


_WRITERS: dict[str, Writer] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
    ".sdf": _write_sdf,
    ".smi": _write_smi,
}


def read_objects(path: str | Path, column: str | None = None) -> list[tuple[int, str]]:
    """The objects of a CSV file with a header, or of a file with one object a line.

    Args:
        path: a .csv file, or any other text file, whose lines start with an object followed by
            white space or the end of the line (as .smi files do).
        column: column of the CSV file; None takes "smiles", "object" or "sequence".

    Returns:
        (line number, text) of every line that is not empty.

    Raises:
        StoreError: the file is missing or not text, or has no such column.
    """
    path = Path(path)
    if path.suffix.lower() != ".csv":
        lines = enumerate(_text(path).splitlines(), 1)
        return [(number, line.split()[0]) for number, line in lines if line.strip()]
    names, rows = read_csv(path)
    name = object_column(path, names, column)
    values = [(number, (row[name] or "").strip()) for number, row in rows]
    return [(number, value) for number, value in values if value]


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str | None, Any]]]]:
    """Column names, and (line number, values by name) of each row, as `csv.DictReader` has them.

    The separator is a comma, a semicolon or a tab, whichever the header has most of.

    Raises:
        StoreError: the file is missing or not text.
    """
    text = _text(path)
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        reader.fieldnames = names = [name.strip() for name in reader.fieldnames or []]
        return names, [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise StoreError(f"{path}:{reader.line_num}: cannot be read ({error})") from error


def object_column(path: Path, names: Sequence[str], column: str | None) -> str:
    """The column that holds the objects: `column`, or else the first that is usually called so.

    Raises:
        StoreError: there is none.
    """
    wanted = _OBJECT_COLUMNS if column is None else (column.lower(),)
    for want in wanted:
        for name in names:
            if name.lower() == want:
                return name
    expected = column or ", ".join(_OBJECT_COLUMNS)
    raise StoreError(f"{path}: no column {expected}; it has {', '.join(names) or 'none'}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise StoreError(f"{path}:{line}: cannot be read, save the file as UTF-8") from error


def import_objects(
    store: CandidateStore,
    path: str | Path,
    parse: Callable[[str], Any],
    key: Callable[[Any], str],
    column: str | None = None,
) -> list[str]:
    """Add the objects of a file to `store`, not yet scored, with source "imported".

    Args:
        store: where they go.
        path: see `read_objects`.
        parse: from text to the user's object; raises ValueError on malformed text.
        key: canonical key of an object.
        column: see `read_objects`.

    Returns:
        One line "file:line: what is wrong" for each object left out.
    """
    objects, problems = [], []
    for number, text in read_objects(path, column):
        try:
            objects.append(parse(text))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    store.add(objects, [key(item) for item in objects], source="imported")
    return problems
