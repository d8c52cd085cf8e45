"""Measured rewards of complete spaces, read from Parquet files the user names."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gflow.envs.sequences.base import TokenRows
from gflow.mdp import Reward, States


def read_columns(path: str | Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a Parquet file as lists.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: there is no such file.
        ValueError: the file is no Parquet file, or lacks a column.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs pyarrow: install it with `pip install gflow[data]`"
        ) from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        known = parquet.read_schema(path).names
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
            raise ValueError(f"{path} has no column {name!r}; it has {', '.join(near)}")
    table = parquet.read_table(path, columns=list(names))
    return {name: table.column(name).to_pylist() for name in names}


class TableOracle:
    """Rewards looked up by the tokens of a full row.

    Args:
        env: any environment of full rows over the vocabulary; its `encode` reads the objects.
        objects: every object of the space, in any order.
        values: [V ** length, K] rewards, a row per object; NaN marks an unknown value.
        rewards: what the K columns mean.
        source: where the table comes from, for error messages.

    Attributes:
        values: [V ** length, K] float64, ordered by token numbers, the last place fastest.

    Raises:
        ValueError: an object cannot be encoded, occurs twice or is missing.
    """

    on_states = True
    seconds = 0.0

    def __init__(
        self,
        env: TokenRows,
        objects: Sequence[str],
        values: Tensor,
        rewards: tuple[Reward, ...],
        source: str | Path,
    ):
        self._base, self._length = env.n_symbols, env.length
        size = self._base**env.length
        try:
            row = self._row(env.encode(objects).data)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        times = torch.bincount(row, minlength=size)
        if int(times.max()) > 1:
            twice = objects[int((times[row] > 1).nonzero()[0])]
            raise ValueError(f"{source} lists {twice!r} {int(times.max())} times")
        if len(objects) < size:
            raise ValueError(
                f"{source} has {len(objects)} of {size} rows: "
                f"{self._object(env, int((times == 0).nonzero()[0]))!r} is missing"
            )
        self.values = torch.empty(size, len(rewards), dtype=torch.float64)
        self.values[row] = values.double()
        self.rewards = rewards
        self.version = hashlib.sha256(self.values.numpy().tobytes()).hexdigest()[:12]

    def __call__(self, objects: States) -> Tensor:
        """Rewards [n, K] float64 of rows [n, length]; NaN where a place is empty.

        Raises:
            ValueError: the rows have another length than those of the table.
        """
        data = objects.data
        if data.shape[1] != self._length:
            raise ValueError(f"the table is of rows of {self._length}, not of {data.shape[1]}")
        full = (data >= 0).all(1)
        values = self.values[self._row(data).where(full, 0).cpu()].to(data.device)
        return values.where(full.unsqueeze(1), torch.nan)

    def _row(self, data: Tensor) -> Tensor:
        place = self._base ** torch.arange(data.shape[1] - 1, -1, -1, device=data.device)
        return (data * place).sum(1)

    def _object(self, env: TokenRows, row: int) -> Any:
        digits = [row // self._base**i % self._base for i in range(env.length - 1, -1, -1)]
        data = torch.tensor([digits])
        return env.decode(States(data, data[:, 0], data[:, 0] >= 0))[0]


def chosen(known: Mapping[str, Reward], names: Sequence[str]) -> tuple[Reward, ...]:
    """The rewards called `names`.

    Raises:
        ValueError: a name that is not known or is given twice, or no name.
    """
    for name in names:
        if name not in known:
            raise ValueError(f"there is no reward {name!r}: choose from {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"name at least one reward, and each once, not {list(names)}")
    return tuple(known[name] for name in names)


def column(values: Sequence[float | None]) -> Tensor:
    """One column as [n] float64, NaN for nulls."""
    return torch.tensor([float("nan") if x is None else x for x in values], dtype=torch.float64)


def rescaled(values: Tensor) -> Tensor:
    """Values [n] mapped linearly to [0, 1]; NaN stays."""
    finite = values[~values.isnan()]
    low, high = finite.min(), finite.max()
    return (values - low) / (high - low)
