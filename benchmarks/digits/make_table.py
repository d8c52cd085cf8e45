"""Makes envs/nas/data/digits.npz: every cell trained on digits with three seeds.

    nice python benchmarks/digits/make_table.py --progress digits.jsonl

Equal networks are trained once. One line per network is appended to the progress file, and a new
start goes on where it ended; the table is written when all are there. What the table has already
is not trained again: delete it to start anew. About 15 minutes on one core (`train.cpp` beside this
file, compiled here with g++, does what `gflow.envs.nas.training` does).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import torch

from gflow.envs.nas.cell import EDGES, OPERATIONS
from gflow.envs.nas.classes import classes, prune
from gflow.envs.nas.digits import SEEDS, costs
from gflow.envs.nas.training import BATCH, CellNetwork, Images, batches, digits, train_cell

TABLE = Path(__file__).resolve().parents[2] / "envs" / "nas" / "data" / "digits.npz"


class Fast:
    """`train_cell` of one seed in C++."""

    def __init__(self, images: Images) -> None:
        library = Path(tempfile.mkdtemp()) / "train.so"
        source = Path(__file__).with_name("train.cpp")
        flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", "-std=c++17"]
        subprocess.run(["g++", *flags, "-o", str(library), str(source)], check=True)
        self._train = ctypes.CDLL(str(library)).train
        floats, ints = (np.ctypeslib.ndpointer(kind, flags="C") for kind in (np.float32, np.int32))
        number, real = ctypes.c_int, ctypes.c_float
        self._train.argtypes = [
            *(ints, floats, ints, number, number, ints, number, number),
            *(real, real, real, floats, number, floats),
        ]
        self._train.restype = None
        self.images = images
        # 16 images go side by side.
        spare = -len(images.labels) % 16
        self._pixels = np.pad(images.pixels.numpy(), ((0, spare), (0, 0), (0, 0)))
        self._labels = np.pad(images.labels.numpy(), (0, spare)).astype(np.int32)

    def __call__(self, cell: tuple[int, ...], seed: int) -> float:
        """Test accuracy."""
        operations = np.array(prune(cell), dtype=np.int32)
        if not operations.any():
            return float(train_cell(cell, self.images, (seed,)))
        weights = CellNetwork(cell, [seed]).weights.detach()[0].numpy().copy()
        order = batches(self.images.n_train, seed).numpy().astype(np.int32)
        logits = np.empty((len(self._labels), 10), dtype=np.float32)
        seen = self.images.n_train
        self._train(
            *(operations, self._pixels, self._labels, len(self._labels), seen, order),
            *(len(order), BATCH, 0.1, 0.9, 5e-4, weights, len(weights), logits),
        )
        test = slice(seen, len(self.images.labels))
        return float((logits[test].argmax(1) == self._labels[test]).mean())


def shipped() -> dict[tuple[int, int], float]:
    """What the table has, by class and seed."""
    if not TABLE.exists():
        return {}
    with np.load(TABLE, allow_pickle=False) as table:
        rows = zip(table["network"].tolist(), table["accuracy"].tolist(), strict=True)
        return {(n, seed): value for n, row in rows for seed, value in enumerate(row)}


def trained(path: Path) -> dict[tuple[int, int], float]:
    """What the progress file has, by class and seed; a line cut off by a kill does not count."""
    done = {}
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n"):
            number, seed, accuracy = json.loads(line)
            done[number, seed] = accuracy
    return done


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--progress", type=Path, default=Path("digits.jsonl"))
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    arguments = parser.parse_args()
    path, seeds = arguments.progress, SEEDS[: arguments.seeds]
    torch.set_num_threads(1)
    cells = list(product(range(len(OPERATIONS)), repeat=len(EDGES)))
    number = classes()
    first = {int(n): i for i, n in reversed(list(enumerate(number)))}
    done = trained(path)
    path.write_text("".join(f"{json.dumps([*key, value])}\n" for key, value in done.items()))
    done = shipped() | done
    train = Fast(digits())
    with path.open("a") as file:
        for seed, n in product(seeds, sorted(first)):
            if (n, seed) not in done:
                done[n, seed] = train(cells[first[n]], seed)
                file.write(f"{json.dumps([n, seed, done[n, seed]])}\n")
                file.flush()
    accuracy = np.array([[done[int(n), seed] for seed in seeds] for n in number])
    columns = costs(torch.tensor(cells)).numpy()
    np.savez_compressed(
        TABLE,
        accuracy=accuracy.astype(np.float32),
        parameters=columns[:, 0].astype(np.int32),
        multiply_adds=columns[:, 1].astype(np.int32),
        depth=columns[:, 2].astype(np.uint8),
        network=number.numpy().astype(np.int16),
    )


if __name__ == "__main__":
    main()
