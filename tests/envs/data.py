"""Where the measured tables are, if they are."""

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("GFLOW_DATA", _ROOT.parent / "shared" / "data"))


def table(name):
    """Path of a table; skips the test where the file is missing."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"needs {name}: set GFLOW_DATA to the folder that holds it")
    return path


def write_parquet(path, **columns):
    """A small table."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path
