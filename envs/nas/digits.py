"""Accuracy against cost of all cells on scikit-learn's digits: a table, and training itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gflow.envs.nas.cell import EDGES, OPERATIONS, NASCell
from gflow.envs.nas.classes import KERNELS, classes, depth, form, prune
from gflow.envs.nas.training import CHANNELS, CLASSES, EPOCHS, Images, digits, train_cell
from gflow.envs.tables import TableOracle, chosen
from gflow.mdp import Reward

SEEDS = (0, 1, 2)
REWARDS = {
    "accuracy": Reward("accuracy", description="test accuracy on 773 digits"),
    "multiply_adds": Reward(
        "few multiply-adds", flipped=True, description="of one image, cheapest cell 1, dearest 0"
    ),
    "parameters": Reward(
        "few parameters", flipped=True, description="fewest 1, most 0; equal to few multiply-adds"
    ),
    "depth": Reward(
        "shallow", flipped=True, description="1 - convolutions one after another in a cell / 3"
    ),
}
"""What can be asked for. Both cells of a network cost the same number of weights, so that few
parameters and few multiply-adds, each mapped to [0, 1], are one reward."""

_PIXELS = (64, 16)


def costs(data: Tensor) -> Tensor:
    """Parameters, multiply-adds of one image, and depth, [n, 3] int64, of full cells [n, 6].

    Dead edges are free. Depth is the largest number of convolutions of a cell one after another.
    Multiply-adds are those of the convolutions and the linear layer with its bias.
    """
    stem, linear = CHANNELS * 9, CHANNELS * CLASSES + CLASSES
    rows = []
    for cell in data.tolist():
        names = [OPERATIONS[operation] for operation in prune(cell)]
        weights = sum(CHANNELS**2 * KERNELS[name] ** 2 for name in names if name in KERNELS)
        parameters = stem + len(_PIXELS) * weights + linear
        multiply_adds = stem * _PIXELS[0] + sum(_PIXELS) * weights + linear
        rows.append([parameters, multiply_adds, depth(form(cell))])
    return torch.tensor(rows).view(-1, 3)


def _values(accuracy: Tensor, cost: Tensor, names: Sequence[str]) -> Tensor:
    """Rewards [n, K] float64 of accuracies [n] and costs [n, 3]."""
    convolution = OPERATIONS.index("nor_conv_3x3")
    least, most = costs(torch.tensor([[0] * len(EDGES), [convolution] * len(EDGES)]))
    cheap = 1 - (cost - least).double() / (most - least)
    parameters, multiply_adds, shallow = cheap.unbind(1)
    columns = {
        "accuracy": accuracy,
        "multiply_adds": multiply_adds,
        "parameters": parameters,
        "depth": shallow,
    }
    return torch.stack([columns[name] for name in names], 1)


@cache
def _table() -> dict[str, NDArray[Any]]:
    path = resources.files("gflow.envs.nas").joinpath("data/digits.npz")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as table:
        return dict(table)


def accuracies() -> Tensor:
    """Test accuracy [15625, seeds] float64 of every cell, the last edge fastest, as a share."""
    return torch.from_numpy(_table()["accuracy"]).double()


def digits_table(names: Sequence[str] = ("accuracy", "multiply_adds", "depth")) -> TableOracle:
    """Rewards in [0, 1] of all 15,625 cells, known before: mean accuracy of its seeds, and costs.

    The network is that of `gflow.envs.nas.training`, trained for 10 epochs; the table comes with
    the package, made by `benchmarks/digits/make_table.py`.

    Raises:
        ValueError: a name is not in `REWARDS`, is given twice, or there is none.
    """
    rewards = chosen(REWARDS, names)
    env = NASCell()
    table = _table()
    columns = [table[name] for name in ("parameters", "multiply_adds", "depth")]
    cost = torch.from_numpy(np.stack(columns, 1).astype(np.int64))
    accuracy = accuracies().mean(1)
    # Rows of the file are in the order of all terminal states, the last edge fastest.
    cells = env.decode(env.all_terminal_states())
    return TableOracle(env, cells, _values(accuracy, cost, names), rewards, "digits.npz")


class DigitsTraining:
    """Trains the network of each cell it is asked about: a slow oracle that is real.

    Args:
        names: rewards, keys of `REWARDS`.
        epochs: how long to train; one epoch takes about 0.1 s.
        seed: of the weights and the batches.
        images: what to learn; scikit-learn's digits by default.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: `epochs` is not positive, or a name is not in `REWARDS`.
    """

    on_states = False

    def __init__(
        self,
        names: Sequence[str] = ("accuracy", "multiply_adds", "depth"),
        epochs: int = EPOCHS,
        seed: int = 0,
        images: Images | None = None,
    ):
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {epochs}")
        self.names, self.rewards = tuple(names), chosen(REWARDS, names)
        self.epochs, self.seed = epochs, seed
        self.images = digits() if images is None else images
        self.version = f"{epochs} epochs, seed {seed}"
        self.seconds = 0.1 * epochs

    def __call__(self, objects: Sequence[str]) -> Tensor:
        """Rewards [n, K] float64 of architecture strings."""
        cells = NASCell().encode(objects).data
        accuracy = [
            train_cell(cell, self.images, (self.seed,), self.epochs) for cell in cells.tolist()
        ]
        return _values(torch.cat(accuracy), costs(cells), self.names)


@cache
def _representatives() -> dict[str, str]:
    cells = NASCell().decode(NASCell().all_terminal_states())
    first: dict[int, str] = {}
    for number, cell in zip(classes().tolist(), cells, strict=True):
        first.setdefault(number, cell)
    return {cell: first[n] for n, cell in zip(classes().tolist(), cells, strict=True)}


def representative(cell: str) -> str:
    """The first of the cells that are the same network: a key under which it is trained once."""
    return _representatives()[cell]
