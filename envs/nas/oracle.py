"""Accuracy against cost on NAS-Bench-201."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gflow.envs.nas.cell import NASCell
from gflow.envs.nas.costs import flops, parameters
from gflow.envs.nas.nats import EPOCHS, accuracies, is_nats_file, open_nats
from gflow.envs.tables import TableOracle, chosen, column, read_columns, rescaled
from gflow.mdp import Reward

REWARDS = {
    "accuracy": Reward("accuracy"),
    "flops": Reward(
        "few FLOPs", flipped=True, description="multiply-adds, cheapest cell 1, dearest 0"
    ),
    "parameters": Reward("few parameters", flipped=True, description="weights, fewest 1, most 0"),
}
DATASETS = ("cifar10", "cifar100", "imagenet16")


def nas_bench_201(
    path: str | Path,
    dataset: str = "cifar10",
    split: str = "test",
    epochs: int = 12,
    names: Sequence[str] = tuple(REWARDS),
) -> TableOracle:
    """Rewards in [0, 1]: accuracy, few FLOPs, few parameters.

    Accuracies are those of training for **12 epochs** (as a share of one; CIFAR-10 test maximum
    0.8916): not to be compared with published figures of 200 epochs, which a file of nats_bench
    has too (all 15,625 entries are read, which takes minutes). FLOPs and parameters are
    counted from the cell for the CIFAR-10 network, and mapped linearly so that the cheapest cell
    has 1 and the dearest 0. (NAS-Bench-201, 2020, arXiv 2001.00326.)

    Args:
        path: Parquet file with the columns `cell` and `<dataset>_<split>` in percent; or a file
            or folder of the package nats_bench.
        dataset: "cifar10", "cifar100" or "imagenet16".
        split: "test" or "val".
        epochs: 12, or 200 for files of nats_bench.
        names: rewards, keys of `REWARDS`.

    Raises:
        ImportError: pyarrow or nats_bench, whichever reads the file, is not installed.
        FileNotFoundError: there is no such file.
        ValueError: unknown data set, split, epochs or reward, missing columns, or missing,
            repeated or malformed rows.
    """
    if dataset not in DATASETS or split not in ("test", "val"):
        raise ValueError(
            f"dataset must be one of {', '.join(DATASETS)} and split test or val, "
            f"not {dataset!r} and {split!r}"
        )
    accurate = f"{dataset} {split} accuracy after {epochs} epochs"
    known = {**REWARDS, "accuracy": REWARDS["accuracy"]._replace(description=accurate)}
    rewards = chosen(known, names)
    nats = is_nats_file(path)
    if epochs not in (EPOCHS if nats else EPOCHS[:1]):
        raise ValueError(f"epochs must be 12, or 200 with a file of nats_bench, not {epochs}")
    env, name = NASCell(), f"{dataset}_{split}"
    if nats:
        cells = env.decode(env.all_terminal_states())
        accuracy = accuracies(open_nats(path), cells, dataset, split, epochs)
    else:
        table = read_columns(path, ["cell", name])
        cells, accuracy = table["cell"], table[name]
    try:
        data = env.encode(cells).data
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    values = {
        "accuracy": column(accuracy) / 100,
        "flops": 1 - rescaled(flops(data).double()),
        "parameters": 1 - rescaled(parameters(data).double()),
    }
    return TableOracle(env, cells, torch.stack([values[name] for name in names], 1), rewards, path)
