"""Text tables of protein-binding microarrays: a line for each DNA 8-mer and its other strand."""

from __future__ import annotations

import difflib
import math
from pathlib import Path

import torch
from torch import Tensor

LENGTH = 8
_NUMBER = {letter: number for number, letter in enumerate("ACGT")}
_OTHER = str.maketrans("ACGT", "TGCA")
_UNKNOWN = ("", "NA", "NAN")


def e_scores(path: str | Path) -> Tensor:
    """E-scores [65536] float64 of all 8-mers in alphabetical order, NaN where the table has NA.

    The usual table has the columns word, its reverse complement, E-score, median intensity and
    Z-score, parted by tabs or spaces, with or without a line of names; either strand may come
    first, and a word may come once on each strand's line or once for both. (Universal
    protein-binding microarrays: Berger et al., 2006, doi 10.1038/nbt1246.)

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the first bad line, or a word that is missing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    known: dict[str, float] = {}
    problems: list[str] = []
    column, first = 2, True
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), 1):
        fields = [field.strip() for field in (line.split("\t") if "\t" in line else line.split())]
        if not any(fields):
            continue
        if first and not set(fields[0].upper()) <= set(_NUMBER):
            names = [field.lower().replace("-", "").replace("_", "") for field in fields]
            if "escore" not in names:
                raise ValueError(f"{path} has no column E-score; it has {', '.join(fields)}")
            column = names.index("escore")
        elif problem := _take(fields, column, known):
            problems.append(f"line {number}: {problem}")
        first = False
    if problems:
        more = f" (and {len(problems) - 1} more bad lines)" if len(problems) > 1 else ""
        raise ValueError(f"{path}, {problems[0]}{more}")
    found = [known.get(_word(row), math.inf) for row in range(4**LENGTH)]
    values = torch.tensor(found, dtype=torch.float64)
    if (lost := values.isinf()).any():
        word = _word(int(lost.nonzero()[0]))
        raise ValueError(
            f"{path} has {int((~lost).sum())} of {4**LENGTH} words: {word!r} is missing"
        )
    return values


def _take(fields: list[str], column: int, known: dict[str, float]) -> str | None:
    """Add a line to the known words, or say what is wrong with it."""
    if len(fields) <= column:
        return f"{len(fields)} columns where word, other strand and E-score are wanted"
    word, other = fields[0].upper(), fields[1].upper()
    if len(word) != LENGTH or not set(word) <= set(_NUMBER):
        return f"{fields[0]!r} is no word of {LENGTH} letters A, C, G, T"
    if other != word.translate(_OTHER)[::-1]:
        return f"{fields[1]!r} is not the reverse complement of {word}"
    try:
        score = math.nan if fields[column].upper() in _UNKNOWN else float(fields[column])
    except ValueError:
        return f"E-score {fields[column]!r} is not a number"
    if not (math.isnan(score) or -0.5 <= score <= 0.5):
        return f"E-score {fields[column]} lies outside -0.5..0.5"
    if word in known and known[word] != score and not math.isnan(score):
        return f"{word} has another E-score, {known[word]:g}, in an earlier line"
    known[word] = known[other] = score
    return None


def _word(row: int) -> str:
    return "".join("ACGT"[row >> 2 * place & 3] for place in range(LENGTH - 1, -1, -1))


def factor_file(folder: str | Path, factor: str) -> Path:
    """The table of a factor: the file called as it is, or so up to an underscore.

    Raises:
        ValueError: the folder has none, or several.
    """
    files = sorted(path for path in Path(folder).iterdir() if path.suffix in (".txt", ".tsv"))
    found = [path for path in files if f"{path.stem}_".startswith(f"{factor}_")]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} has several tables of {factor!r}: {several}; keep one of them")
    known = sorted({path.stem.partition("_")[0] for path in files})
    near = difflib.get_close_matches(factor, known, n=3, cutoff=0.5) or known[:8]
    has = ", ".join(near) if near else "no .txt or .tsv file"
    raise ValueError(f"{folder} has no table of {factor!r}; it has {has}")
