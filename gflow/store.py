"""Candidates on disk: one SQLite row per unique object, written in batches, readable meanwhile.

Every batch is one transaction on a write-ahead log, so a process killed at any moment leaves all
earlier batches intact, and other connections read while a run writes.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gflow.candidates import COLUMNS, Candidate, as_text, candidate_of, read_numbers, stack_rewards
from gflow.mdp import Reward

_FLOATS = ("inverse_temperature", "log_reward", "log_pf")
_APPLICATION = 0x67666C77  # "gflw", in the file's header
_SCHEMA = 1
_BUSY_SECONDS = 60.0
_CHUNK = 4096

FRONT_CAPACITY = 20_000
"""Most different reward vectors that `CandidateStore.front` tells apart."""

_TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS candidates (
    key TEXT PRIMARY KEY,
    object TEXT NOT NULL,
    is_text INTEGER NOT NULL,
    rewards TEXT,
    reason TEXT,
    oracle_version TEXT,
    oracle_call INTEGER,
    preference TEXT,
    inverse_temperature REAL,
    log_reward REAL,
    log_pf REAL,
    source TEXT NOT NULL,
    step INTEGER NOT NULL,
    first_seen REAL NOT NULL,
    last_seen REAL NOT NULL,
    count INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS candidates_by_call ON candidates (oracle_call);
"""

# How an object was first met stays; what the oracle said is replaced when it was asked anew.
_UPSERT = """
INSERT INTO candidates VALUES (
    :key, :object, :is_text, :rewards, :reason, :oracle_version, :oracle_call, :preference,
    :inverse_temperature, :log_reward, :log_pf, :source, :step, :now, :now, 1
) ON CONFLICT (key) DO UPDATE SET
    last_seen = excluded.last_seen,
    count = count + 1,
    rewards = iif(excluded.oracle_call IS NULL, rewards, excluded.rewards),
    reason = iif(excluded.oracle_call IS NULL, reason, excluded.reason),
    oracle_version = iif(excluded.oracle_call IS NULL, oracle_version, excluded.oracle_version),
    oracle_call = ifnull(excluded.oracle_call, oracle_call)
"""


class StoreError(RuntimeError):
    """A candidate store that cannot be opened or does not fit; the file is left as it was."""


class CandidateStore:
    """The candidates of one run.

    Args:
        path: the SQLite file; created when missing, if `rewards` say what it will hold.
        rewards: what the K reward columns mean; None takes what the file says.
        oracle_version: outcomes recorded under another version are scored anew, and are no
            candidates until then. "" takes the file's last one.

    Raises:
        StoreError: no such file (and no `rewards`), not a candidate store, damaged, of another
            schema version, or made for other rewards. Nothing is overwritten.
    """

    rewards: tuple[Reward, ...]
    oracle_version: str

    def __init__(
        self,
        path: str | Path,
        rewards: Sequence[Reward] | None = None,
        oracle_version: str = "",
    ) -> None:
        self.path = Path(path)
        if rewards is None and not self.path.is_file():
            raise StoreError(f"{self.path}: there is no such candidate store")
        try:
            self._db = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: cannot be opened ({error})") from error
        try:
            self._open(rewards, oracle_version)
        except sqlite3.Error as error:
            self._db.close()
            raise StoreError(f"{self.path}: not a candidate store, or damaged ({error})") from error
        except BaseException:
            self._db.close()
            raise
        # Failures may have been accidents of their time: those of earlier sessions do not count.
        self._session_start = self.oracle_calls

    def _open(self, rewards: Sequence[Reward] | None, oracle_version: str) -> None:
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables == 0:
            if rewards is None:
                raise StoreError(f"{self.path}: holds nothing yet")
            self._create(rewards, oracle_version)
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (schema,) = self._db.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION:
            raise StoreError(f"{self.path}: a database, but not a candidate store")
        if schema != _SCHEMA:
            raise StoreError(
                f"{self.path}: schema version {schema}, this gflow reads version {_SCHEMA}"
            )
        (damage,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if damage != "ok":
            raise StoreError(f"{self.path}: damaged ({damage})")
        self._db.execute("PRAGMA synchronous=NORMAL")
        about = dict(self._db.execute("SELECT name, value FROM about").fetchall())
        self.rewards = tuple(Reward(*row) for row in json.loads(about["rewards"]))
        if rewards is not None and [r.name for r in rewards] != [r.name for r in self.rewards]:
            held = ", ".join(reward.name for reward in self.rewards)
            asked = ", ".join(reward.name for reward in rewards)
            raise StoreError(f"{self.path}: holds rewards {held}, not {asked}")
        self.oracle_version = oracle_version or about["oracle_version"]
        if self.oracle_version != about["oracle_version"]:
            self._db.execute(
                "UPDATE about SET value = ? WHERE name = 'oracle_version'", (oracle_version,)
            )

    def _create(self, rewards: Sequence[Reward], oracle_version: str) -> None:
        meanings = json.dumps([list(reward) for reward in rewards])
        about = {"rewards": meanings, "oracle_version": oracle_version}
        self._write_ahead()
        with self._transaction():
            # Another process may have been faster; what it wrote stays.
            for statement in _TABLES.split(";"):
                self._db.execute(statement)
            self._db.executemany("INSERT OR IGNORE INTO about VALUES (?, ?)", about.items())
            self._db.execute(f"PRAGMA application_id={_APPLICATION}")
            self._db.execute(f"PRAGMA user_version={_SCHEMA}")

    def _write_ahead(self) -> None:
        """Log writes ahead; SQLite does not wait by itself for another process that does so."""
        until = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def add(
        self,
        objects: Sequence[Any],
        keys: Sequence[str],
        rewards: Tensor | None = None,
        reasons: Sequence[str | None] | None = None,
        *,
        preference: Tensor | None = None,
        inverse_temperature: Tensor | None = None,
        log_reward: Tensor | None = None,
        log_pf: Tensor | None = None,
        source: str = "policy",
        step: int = 0,
        replace: bool = False,
    ) -> int:
        """Store a batch of n objects in one transaction; known ones are counted up.

        Args:
            objects: n objects that JSON can hold (strings, numbers, nested sequences, tensors).
            keys: n canonical keys.
            rewards: [n, K], rows with NaN are failures; None stores objects not yet scored.
            reasons: n reasons of failure, None where there is none.
            preference: [n, K] weights each object was sampled for.
            inverse_temperature: [n].
            log_reward: [n].
            log_pf: [n], log-probability of each trajectory.
            source: where the batch came from.
            step: training step.
            replace: rewards and failures known before give way to these.

        Returns:
            How many objects the store had not met before.
        """
        n = len(objects)
        outcomes = self._outcomes(n, rewards, reasons)
        preferences = _column(n, preference)
        columns = [_column(n, value) for value in (inverse_temperature, log_reward, log_pf)]
        now = time.time()
        rows = []
        for i, key in enumerate(keys):
            row: dict[str, Any] = {"key": key, "object": as_text(objects[i])}
            row |= {"source": source, "step": step}
            # Strings are kept as they are: escaped SMILES would be no joy to read or query.
            row["is_text"] = isinstance(objects[i], str)
            row |= {"now": now, "preference": preferences[i] and json.dumps(preferences[i])}
            row |= zip(_FLOATS, (column[i] for column in columns), strict=True)
            row["rewards"], row["reason"] = outcomes[i]
            row["oracle_version"] = self.oracle_version if rewards is not None else None
            rows.append(row)
        with self._transaction():
            (met,) = self._db.execute(
                "SELECT count(*) FROM candidates WHERE key IN (SELECT value FROM json_each(?))",
                (json.dumps(list(keys)),),
            ).fetchone()
            numbers = {} if rewards is None else self._number(keys, replace)
            # Only the first of equal rows was an oracle call.
            rows = [row | {"oracle_call": numbers.pop(row["key"], None)} for row in rows]
            self._db.executemany(_UPSERT, rows)
        return len(set(keys)) - int(met)

    def skip(self, n: int) -> None:
        """Count n objects that were scored and are not kept."""
        with self._transaction():
            calls = self.oracle_calls + n
            self._db.execute("INSERT OR REPLACE INTO about VALUES ('oracle_calls', ?)", (calls,))

    def lookup(self, keys: Sequence[str]) -> dict[str, tuple[float, ...] | str]:
        """Outcomes the current oracle version gave: rewards, or the reason of a failure.

        Failures of earlier sessions are left out, so that a resumed run tries them again.
        """
        rows = self._db.execute(
            "SELECT key, rewards, reason FROM candidates"
            " WHERE key IN (SELECT value FROM json_each(?)) AND oracle_version = ?"
            " AND (rewards IS NOT NULL OR oracle_call > ?)",
            (json.dumps(list(keys)), self.oracle_version, self._session_start),
        )
        return {key: read_numbers(text) or reason for key, text, reason in rows}

    def candidates(
        self, where: str = "", values: Sequence[Any] = (), *, limit: int | None = None
    ) -> list[Candidate]:
        """Scored candidates in the order in which they were scored.

        Args:
            where: SQL condition on the columns of `candidates`, for example "source = ?"; with
                one, rows that failed, were never scored, or belong to another oracle version
                are included as far as they meet it.
            values: what stands for the question marks.
            limit: at most so many, the earliest.
        """
        if not where:
            where, values = "rewards IS NOT NULL AND oracle_version = ?", (self.oracle_version,)
        rows = self._db.execute(
            f"SELECT {COLUMNS} FROM candidates WHERE {where}"
            " ORDER BY oracle_call IS NULL, oracle_call, rowid LIMIT ?",
            (*values, -1 if limit is None else limit),
        )
        return [candidate_of(row) for row in rows]

    def rewards_tensor(self) -> Tensor:
        """[n, K] float64, the rewards of `candidates()`."""
        return stack_rewards(self.candidates(), len(self.rewards))

    def front(self) -> list[Candidate]:
        """The candidates that no other candidate dominates, equal ones included.

        Rows stream through a Pareto archive: a store of any size takes little memory. Of more
        than `FRONT_CAPACITY` different reward vectors the most crowded are left out.
        """
        from gflow.pareto import ParetoArchive

        # No hypervolume is asked for: nothing exceeds this reference point.
        nowhere = [torch.finfo(torch.float64).max] * len(self.rewards)
        archive = ParetoArchive(FRONT_CAPACITY, nowhere, dtype=torch.float64)
        scored = "rewards IS NOT NULL AND oracle_version = ?"
        rows = self._db.execute(
            f"SELECT rowid, rewards FROM candidates WHERE {scored}", (self.oracle_version,)
        )
        while chunk := rows.fetchmany(_CHUNK):
            values = torch.tensor([json.loads(text) for _, text in chunk], dtype=torch.float64)
            archive.add(values, ids=torch.tensor([number for number, _ in chunk]))
        numbers = json.dumps(archive.ids[archive.mask].tolist())
        best = "SELECT rewards FROM candidates WHERE rowid IN (SELECT value FROM json_each(?))"
        return self.candidates(f"{scored} AND rewards IN ({best})", (self.oracle_version, numbers))

    @property
    def oracle_calls(self) -> int:
        """How many objects were scored so far, failures and those not kept included.

        What was known already is no call; an object scored anew (by another version, or after a
        failure) is.
        """
        rows = self._db.execute(
            "SELECT max(oracle_call) FROM candidates UNION ALL"
            " SELECT CAST(value AS INTEGER) FROM about WHERE name = 'oracle_calls'"
        )
        return max(calls or 0 for (calls,) in rows)

    def __len__(self) -> int:
        """Number of unique objects, failed and unscored ones included."""
        (n,) = self._db.execute("SELECT count(*) FROM candidates").fetchone()
        return int(n)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _number(self, keys: Sequence[str], replace: bool) -> dict[str, int]:
        """Running numbers of the oracle calls that this batch took."""
        known = {} if replace else self.lookup(keys)
        fresh = dict.fromkeys(key for key in keys if key not in known)
        calls = self.oracle_calls
        return {key: calls + place for place, key in enumerate(fresh, 1)}

    def _outcomes(
        self, n: int, rewards: Tensor | None, reasons: Sequence[str | None] | None
    ) -> list[tuple[str | None, str | None]]:
        if rewards is None:
            return [(None, None)] * n
        if tuple(rewards.shape) != (n, len(self.rewards)):
            expected = (n, len(self.rewards))
            raise ValueError(f"rewards have shape {tuple(rewards.shape)}, expected {expected}")
        failed = rewards.isnan().any(1).tolist()
        why = reasons or [None] * n
        return [
            (None, why[i] or "no value") if failed[i] else (json.dumps(row), None)
            for i, row in enumerate(rewards.tolist())
        ]


def _column(n: int, values: Tensor | None) -> list[Any]:
    if values is None:
        return [None] * n
    if values.shape[0] != n:
        raise ValueError(f"expected {n} rows, got {values.shape[0]}")
    return values.detach().tolist()  # type: ignore[no-any-return]
