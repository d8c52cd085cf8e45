"""Checkpoints: written atomically, read without unpickling code."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

VERSION = 1


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file and the reason, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def write_atomically(path: Path, write: Any) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 3) -> Path:
    """Write `folder/step_{step}.pt` and delete all but the newest `keep` checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:09d}.pt"
    write_atomically(path, lambda file: torch.save({"version": VERSION, **state}, file))
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest first."""
    found = [path for path in folder.glob("step_*.pt") if re.fullmatch(r"step_\d+", path.stem)]
    return sorted(found, key=lambda path: int(path.stem[5:]))


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint, or of another version.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged or no checkpoint ({type(error).__name__}); "
            "an older one in the same folder may still be good"
        ) from error
    version = state.get("version") if isinstance(state, dict) else None
    if version != VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format {version}, this gflow reads format {VERSION}"
        )
    return dict(state)
