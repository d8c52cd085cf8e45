"""Oracles that misbehave, at the top level of a module so that workers can load them."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gflow.mdp import Reward


class Zoo:
    """Scores a string by its length and letters; some strings make it misbehave."""

    rewards = (Reward("length", "letters", 0.0, 20.0), Reward("a", "", 0.0, 1.0))
    version = "1"
    on_states = False
    seconds = 0.0

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.calls: list[list[str]] = []

    def row(self, text: str) -> list[float]:
        if text == "raise":
            raise RuntimeError(f"cannot dock\n{text}")
        if text == "hang":
            time.sleep(600)
        if text == "die":
            os._exit(3)
        if text == "nan":
            return [float("nan"), 0.5]
        if text == "range":
            return [4.0, 1.5]
        return [float(len(text)), text.count("a") / max(len(text), 1)]

    def __call__(self, objects: list[str]) -> Tensor:
        self.calls.append(objects)
        return torch.tensor([self.row(text) for text in objects], dtype=torch.float64)


class WrongShape(Zoo):
    """One column too few."""

    def __call__(self, objects: list[str]) -> Tensor:
        return torch.zeros(len(objects), 1)


class WithNone(Zoo):
    """A list with None where there is no value."""

    def __call__(self, objects: list[str]) -> Any:
        return [None if text == "none" else self.row(text) for text in objects]


class Traces(Zoo):
    """Sleeps, and leaves in `folder` one file per object: process, start, end."""

    def __init__(self, folder: Path, seconds: float) -> None:
        super().__init__(seconds)
        self.folder = folder

    def __call__(self, objects: list[str]) -> Tensor:
        for text in objects:
            start = time.monotonic()
            time.sleep(self.seconds)
            line = f"{os.getpid()} {start} {time.monotonic()} {torch.get_num_threads()}"
            (self.folder / text).write_text(line)
        return super().__call__(objects)


class Unloadable(Zoo):
    """Can be pickled but not unpickled."""

    def __reduce__(self) -> Any:
        return (_fail, ())


def _fail() -> None:
    raise ImportError("no module named docking")
