"""Accuracies from a file of the package nats_bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

EPOCHS = (12, 200)
_NAMES = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet16": "ImageNet16-120"}


def is_nats_file(path: str | Path) -> bool:
    """The path is a folder or a file as nats_bench publishes them, not a table."""
    return Path(path).is_dir() or ".pickle" in Path(path).suffixes


def open_nats(path: str | Path) -> Any:
    """The topology benchmark behind a file or a folder ("...-simple").

    nats_bench unpickles what it reads: open only files you trust.

    Raises:
        ImportError: nats_bench is not installed.
        FileNotFoundError: there is no such file.
        ValueError: nats_bench cannot read it.
    """
    try:
        import nats_bench
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs nats_bench: install it with `pip install nats_bench`"
        ) from error
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return nats_bench.create(str(path), "tss", fast_mode=Path(path).is_dir(), verbose=False)
    except Exception as error:
        raise ValueError(f"{path} is no topology file of nats_bench: {error}") from error


def accuracies(
    api: Any, cells: Sequence[str], dataset: str, split: str, epochs: int
) -> list[float]:
    """Accuracy in percent of each cell, the mean of the benchmark's seeds.

    Args:
        api: what `open_nats` returns.
        cells: architecture strings.
        dataset: "cifar10", "cifar100" or "imagenet16".
        split: "test" or "val".
        epochs: 12 or 200.

    Raises:
        ValueError: the benchmark lacks a cell or has no such accuracy.
    """
    # The validation half of CIFAR-10 was kept apart in a training of its own.
    name = "cifar10-valid" if (dataset, split) == ("cifar10", "val") else _NAMES[dataset]
    key = {"test": "test-accuracy", "val": "valid-accuracy"}[split]
    found = []
    for cell in cells:
        index = api.query_index_by_arch(cell)
        if index < 0:
            raise ValueError(f"the benchmark has no cell {cell!r}")
        known = api.get_more_info(index, name, hp=str(epochs), is_random=False)
        if known.get(key) is None:
            raise ValueError(f"the benchmark has no {key} of {cell!r} on {name}, {epochs} epochs")
        found.append(float(known[key]))
    return found
