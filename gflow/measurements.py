"""Measured values from a laboratory's CSV file, with an account of what was taken and what not.

Such files hold the same object several times, values outside the range of an assay ("> 10000"),
several quantities and units, and rows that cannot be read. Each row is taken, kept as a bound, or
left out with its line number and the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflow.export import object_column, read_csv
from gflow.mdp import Reward
from gflow.store import StoreError

_PARTS = {
    "mol/L": {"M": 1, "mM": 10**3, "uM": 10**6, "nM": 10**9, "pM": 10**12, "fM": 10**15},
    "g/L": {"g/L": 1, "mg/mL": 1, "mg/L": 10**3, "ug/mL": 10**3, "ug/L": 10**6, "ng/mL": 10**6},
    "h": {"h": 1, "hr": 1, "min": 60, "s": 3600},
    "fraction": {"fraction": 1, "%": 100},
}
"""Units that can be turned into each other, by quantity: how many of them make its own unit."""

_RELATIONS = {"": 0, "=": 0, ">": 1, ">=": 1, ">>": 1, "<": -1, "<=": -1, "<<": -1, "≥": 1, "≤": -1}


@dataclass(frozen=True)
class Endpoint:
    """One measured quantity, and how a file says it.

    Attributes:
        name: what to call it.
        column: column of the numbers; the name by default. A number may carry a mark of its own,
            as in "<10" or "> 5.5".
        unit: unit to convert to; with no `unit_column`, the unit the numbers are in.
        unit_column: column of units, if rows can differ.
        relation_column: column of =, < and >, if there is one.
        where: only rows with these values in these columns, such as {"type": "IC50"}.
        negative_log: turn concentrations into -log10 of mol/L, as in pIC50.
        minimize: small values are good.
    """

    name: str
    column: str = ""
    unit: str = ""
    unit_column: str | None = None
    relation_column: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    negative_log: bool = False
    minimize: bool = False

    def __post_init__(self) -> None:
        if not self.column:
            object.__setattr__(self, "column", self.name)
        if self.negative_log and _plain(self.unit) not in _PARTS["mol/L"]:
            known = ", ".join(_PARTS["mol/L"])
            raise ValueError(
                f"end point {self.name!r}: -log10 of mol/L needs one of the units {known}, "
                f"not {self.unit!r}"
            )

    @property
    def reward(self) -> Reward:
        """The reward of any value this quantity stands for."""
        unit = "" if self.negative_log else self.unit
        what = "measured, -log10(mol/L)" if self.negative_log else "measured"
        return Reward(self.name, unit, -math.inf, math.inf, self.minimize, what)


class Note(NamedTuple):
    """A row that was left out: its line in the file, the kind of reason, and the reason."""

    line: int
    kind: str
    text: str


@dataclass(frozen=True)
class Measurements:
    """n distinct objects and what was measured of K quantities.

    Attributes:
        endpoints: the K quantities.
        objects: [n], in the order of the file.
        keys: [n], canonical keys.
        values: [n, K] float64, the median of an object's exact measurements; NaN where it has
            none. In the end point's unit, or -log10(mol/L).
        counts: [n, K] int64, number of exact measurements behind each value.
        spread: [n, K] float64, largest minus smallest of them; NaN without any.
        above: [n, K] float64, largest bound that the value was found to lie above, else NaN.
        below: [n, K] float64, smallest bound that the value was found to lie below, else NaN.
        lines: [n], lines of the file an object was taken from.
        rows: number of rows in the file.
        notes: what was left out, in the order of the file.
    """

    endpoints: tuple[Endpoint, ...]
    objects: list[Any]
    keys: list[str]
    values: Tensor
    counts: Tensor
    spread: Tensor
    above: Tensor
    below: Tensor
    lines: list[list[int]]
    rows: int
    notes: list[Note]

    @property
    def rewards(self) -> Tensor:
        """[n, K] float64, `values` with the sign that makes more better."""
        signs = [-1.0 if endpoint.minimize else 1.0 for endpoint in self.endpoints]
        return self.values * torch.tensor(signs, dtype=torch.float64)

    def without(self, reasons: Mapping[int, tuple[str, str]]) -> Measurements:
        """What is left when objects are left out: (kind, reason) by their place among the n."""
        keep = [i for i in range(len(self.objects)) if i not in reasons]
        notes = [Note(line, *reasons[i]) for i in reasons for line in self.lines[i]]
        parts = ("values", "counts", "spread", "above", "below")
        return replace(
            self,
            objects=[self.objects[i] for i in keep],
            keys=[self.keys[i] for i in keep],
            lines=[self.lines[i] for i in keep],
            notes=sorted(self.notes + notes),
            **{name: getattr(self, name)[keep] for name in parts},
        )

    def bounds(self, row: int) -> str:
        """What is known of the quantities without exact value of an object, in words."""
        words = []
        for k, endpoint in enumerate(self.endpoints):
            if self.counts[row, k]:
                continue
            known = [
                f"{endpoint.name} {mark} {bound[row, k]:g}"
                for mark, bound in ((">", self.above), ("<", self.below))
                if not bound[row, k].isnan()
            ]
            words.append(" and ".join(known) or f"{endpoint.name} not measured")
        return ", ".join(words)

    def summary(self) -> str:
        """What was taken and what was not, in a few lines."""
        used = sum(map(len, self.lines))
        whole = int(self.counts.bool().all(1).sum())
        lines = [f"{used} of {self.rows} rows taken: {len(self.objects)} objects, {whole} complete"]
        for k, endpoint in enumerate(self.endpoints):
            counts, spread = self.counts[:, k], self.spread[:, k]
            only = int(
                ((counts == 0) & ~(self.above[:, k].isnan() & self.below[:, k].isnan())).sum()
            )
            text = (
                f"{endpoint.name}: {int(counts.sum())} values of {int((counts > 0).sum())} objects"
            )
            text += f", {only} known only as < or >" if only else ""
            lines.append(text)
            if varied := int((spread > 0).sum()):
                worst = int(spread.nan_to_num(-1.0).argmax())
                where = _some(self.lines[worst])
                lines.append(
                    f"  {varied} objects measured differently, taken at the median; most by "
                    f"{spread[worst]:g} ({where})"
                )
            against = (self.values < self.above) | (self.values > self.below)
            if rows := against[:, k].nonzero().squeeze(1).tolist():
                where = _some(self.lines[rows[0]])
                lines.append(f"  {len(rows)} objects with a bound against their value ({where})")
        for kind, found in _by_kind(self.notes).items():
            rows = list(dict.fromkeys(note.line for note in found))
            lines.append(f"left out, {kind}: {len(rows)} ({_some(rows)})")
        return "\n".join(lines)


def _some(lines: Sequence[int]) -> str:
    word = "line" if len(lines) == 1 else "lines"
    return f"{word} {', '.join(map(str, lines[:5]))}" + ", ..." * (len(lines) > 5)


def _by_kind(notes: Sequence[Note]) -> dict[str, list[Note]]:
    kinds: dict[str, list[Note]] = {}
    for note in notes:
        kinds.setdefault(note.kind, []).append(note)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


class _Unusable(ValueError):
    """A value that cannot be used: the kind of reason, then the reason."""


def read_measurements(
    path: str | Path,
    endpoints: Sequence[Endpoint],
    *,
    column: str | None = None,
    parse: Callable[[str], Any] = str,
    key: Callable[[Any], str] = str,
) -> Measurements:
    """Read a CSV file of measured objects.

    Exact measurements of one object (equal keys) become their median; rows with < or > become
    bounds and never exact values. Units of one quantity are converted; a row in a unit that cannot
    be, with a value that is no number, or with an object that cannot be read is left out and noted.

    Args:
        path: a file with a header; separated by commas, semicolons or tabs.
        endpoints: the K quantities to read.
        column: column of the objects; None takes "smiles", "object" or "sequence".
        parse: from text to an object; raises ValueError on what cannot be read.
        key: canonical key of an object.

    Raises:
        StoreError: the file cannot be read, or lacks a column; or the units of its rows differ and
            no end point says which one to convert to.
        ValueError: no end point, or two of one name.
    """
    path = Path(path)
    names = [endpoint.name for endpoint in endpoints]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"end points must have distinct names, not {names}")
    header, rows = read_csv(path)
    objects_at = object_column(path, header, column)
    endpoints = [_resolved(path, header, endpoint, rows) for endpoint in endpoints]
    found: dict[str, _Found] = {}
    notes: list[Note] = []
    for line, row in rows:
        if None in row or None in row.values():
            notes.append(Note(line, "wrong number of fields", f"not {len(header)} fields"))
            continue
        values, problems = _values(row, endpoints)
        notes += [Note(line, *problem) for problem in problems]
        if not values:
            continue
        text = row[objects_at].strip()
        try:
            if not text:
                raise ValueError(f"{objects_at} is empty")
            item = parse(text)
            name = key(item)
        except ValueError as error:
            notes.append(Note(line, "object cannot be read", " ".join(str(error).split())))
            continue
        found.setdefault(name, _Found(item, len(endpoints))).add(line, values)
    return _collect(tuple(endpoints), found, len(rows), notes)


class _Found:
    """What the rows of one object say."""

    def __init__(self, item: Any, n_endpoints: int):
        self.item = item
        self.lines: list[int] = []
        # Bounds from below, exact values, bounds from above.
        self.values: dict[int, list[list[float]]] = {
            side: [[] for _ in range(n_endpoints)] for side in (-1, 0, 1)
        }

    def add(self, line: int, values: list[tuple[int, int, float]]) -> None:
        self.lines.append(line)
        for k, side, value in values:
            self.values[side][k].append(value)


def _collect(
    endpoints: tuple[Endpoint, ...], found: dict[str, _Found], rows: int, notes: list[Note]
) -> Measurements:
    def table(side: int, function: Callable[[list[float]], float]) -> Tensor:
        cells = [
            [function(values) if values else math.nan for values in one.values[side]]
            for one in found.values()
        ]
        return torch.tensor(cells, dtype=torch.float64).view(len(found), len(endpoints))

    counts = table(0, len).nan_to_num(0.0).long()
    return Measurements(
        endpoints,
        [one.item for one in found.values()],
        list(found),
        table(0, median),
        counts,
        table(0, lambda values: max(values) - min(values)),
        table(1, max),
        table(-1, min),
        [one.lines for one in found.values()],
        rows,
        notes,
    )


def _values(
    row: Mapping[Any, str], endpoints: Sequence[Endpoint]
) -> tuple[list[tuple[int, int, float]], list[tuple[str, str]]]:
    """(end point, side, value) of a row, and (kind, reason) for what cannot be used."""
    values: list[tuple[int, int, float]] = []
    problems: list[tuple[str, str]] = []
    meant = [
        (k, endpoint)
        for k, endpoint in enumerate(endpoints)
        if all(row[name].strip() == want for name, want in endpoint.where.items())
    ]
    if not meant:
        other = dict.fromkeys(name for endpoint in endpoints for name in endpoint.where)
        what = ", ".join(f"{name} {row[name].strip() or 'empty'}" for name in other)
        return [], [("another end point", what)]
    for k, endpoint in meant:
        try:
            if row[endpoint.column].strip():
                values.append((k, *_value(row, endpoint)))
        except _Unusable as error:
            kind, reason = error.args
            problems.append((kind, f"{endpoint.name}: {reason}"))
    if not (values or problems):
        problems.append(("no value", ", ".join(endpoint.name for _, endpoint in meant)))
    return values, problems


def _value(row: Mapping[Any, str], endpoint: Endpoint) -> tuple[int, float]:
    """Which side of the value the number is on (0: it is the value), and the number."""
    text = row[endpoint.column].strip()
    digits = text.lstrip("<>=≤≥ ")
    marks = {text[: len(text) - len(digits)].strip()}
    if endpoint.relation_column is not None:
        marks.add(row[endpoint.relation_column].strip().strip("'"))
    sides = {_RELATIONS.get(mark) for mark in marks - {"", "="}} or {0}
    side = sides.pop()
    if sides or side is None:
        raise _Unusable("relation not understood", " ".join(sorted(marks)))
    try:
        value = float(digits)
    except ValueError:
        raise _Unusable("not a number", repr(text)) from None
    if not math.isfinite(value):
        raise _Unusable("not a number", repr(text))
    unit = endpoint.unit
    if endpoint.unit_column is not None:
        unit = row[endpoint.unit_column].strip()
    value *= _factor(unit, endpoint.unit)
    if not endpoint.negative_log:
        return side, value
    if value <= 0:
        raise _Unusable("not positive", f"{text} has no logarithm")
    # Two logarithms: pIC50 of 1 nM is 9 to the last digit.
    return -side, math.log10(_PARTS["mol/L"][_plain(endpoint.unit)]) - math.log10(value)


def _factor(unit: str, wanted: str) -> float:
    """How many of the wanted unit one `unit` is."""
    one, other = _plain(unit), _plain(wanted)
    if one == other:
        return 1.0
    for parts in _PARTS.values():
        if one in parts and other in parts:
            return parts[other] / parts[one]
    raise _Unusable("unit", f"{unit or 'no unit'} cannot be turned into {wanted or 'none'}")


def _plain(unit: str) -> str:
    """The unit with u for micro, of which Unicode has two signs."""
    return unit.replace("\u00b5", "u").replace("\u03bc", "u")


def _resolved(
    path: Path, header: Sequence[str], endpoint: Endpoint, rows: Sequence[tuple[int, Any]]
) -> Endpoint:
    """The end point with its columns checked, and with the unit of the file if it names none."""
    named = (endpoint.column, endpoint.unit_column, endpoint.relation_column, *endpoint.where)
    for name in named:
        if name is not None and name not in header:
            has = ", ".join(header) or "none"
            raise StoreError(f"{path}: no column {name} for {endpoint.name}; it has {has}")
        if name is not None and header.count(name) > 1:
            raise StoreError(f"{path}: more than one column is called {name}")
    if endpoint.unit_column is None or endpoint.unit:
        return endpoint
    units: dict[str, int] = {}
    for line, row in rows:
        if all((row[name] or "").strip() == want for name, want in endpoint.where.items()):
            units.setdefault((row[endpoint.unit_column] or "").strip(), line)
    units.pop("", None)
    if len(units) > 1:
        some = " and ".join(f"{unit} (line {line})" for unit, line in units.items())
        raise StoreError(
            f"{path}: column {endpoint.unit_column} holds {some}: say which unit "
            f"{endpoint.name} is wanted in"
        )
    return replace(endpoint, unit=next(iter(units), ""))
