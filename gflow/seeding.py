"""Independent random streams from one seed."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 32-bit seed for the stream called `names`.

    Hashed, because nearby or large seeds of torch's CPU generator can give the same stream.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for the stream called `names`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *names))
