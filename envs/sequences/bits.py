"""Bit sequences: binary words as symbols, and the reward for coming near to hidden modes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gflow.mdp import Reward, States

BLOCKS = ("00000000", "11111111", "11110000", "00001111", "00111100")
"""What the modes are put together from (Trajectory Balance, 2022, arXiv 2201.13259)."""


def bit_words(k: int) -> tuple[str, ...]:
    """The 2 ** k words of k bits, word i being i in binary: the vocabulary of a bit sequence.

    Raises:
        ValueError: not 1 <= k <= 16.
    """
    if not 1 <= k <= 16:
        raise ValueError(f"words must have 1 to 16 bits, not {k}")
    return tuple(format(i, f"0{k}b") for i in range(2**k))


def bit_modes(n_bits: int = 120, n_modes: int = 60, seed: int = 0) -> tuple[str, ...]:
    """The modes of the benchmark: random sequences of blocks.

    Raises:
        ValueError: `n_bits` is no multiple of 8.
    """
    if n_bits % 8:
        raise ValueError(f"modes are made of blocks of 8 bits: {n_bits} is no multiple of 8")
    # The legacy generator, because the published modes were drawn from it.
    chosen = np.random.RandomState(seed).choice(len(BLOCKS), size=(n_modes, n_bits // 8))
    return tuple("".join(BLOCKS[i] for i in row) for row in chosen.tolist())


class BitModes:
    """R(x) = exp(-(Hamming distance to the nearest mode) / temperature).

    The published runs square this reward: an inverse temperature of 2. (Trajectory Balance, 2022,
    arXiv 2201.13259; Generative Flow Networks as Entropy-Regularized RL, 2023, arXiv 2310.12934.)

    Args:
        k: bits of a word; states hold word numbers as `bit_words` counts them.
        modes: bit strings of one length, a multiple of k.
        temperature: positive scale of the distance.

    Raises:
        ValueError: no modes, modes of unequal length or not made of k-bit words, or a bad
            temperature.
    """

    version = "1"
    on_states = True
    seconds = 0.0

    def __init__(self, k: int, modes: tuple[str, ...] | None = None, temperature: float = 1.0):
        modes = bit_modes() if modes is None else modes
        if len({len(mode) for mode in modes}) != 1 or k < 1 or len(modes[0]) % k:
            raise ValueError(f"the modes must have one length, a multiple of k={k}")
        if set("".join(modes)) - {"0", "1"} or temperature <= 0:
            raise ValueError("modes must consist of 0 and 1, and the temperature be positive")
        self.k, self.modes, self.temperature = k, modes, temperature
        self._modes = torch.tensor([[int(bit) for bit in mode] for mode in modes])
        low = float(np.exp(-len(modes[0]) / temperature))
        self.rewards = (Reward("nearness", low=low, description="exp(-distance to a mode)"),)

    def __call__(self, objects: States) -> Tensor:
        """Rewards [n, 1] float64 of full word rows [n, n_bits / k]."""
        nearest = self.distances(objects).amin(1, keepdim=True)
        return (-nearest.double() / self.temperature).exp()

    def distances(self, states: States) -> Tensor:
        """Hamming distance [n, modes] int64 of each state to each mode.

        Raises:
            ValueError: a row has an empty place.
        """
        if bool((states.data < 0).any()):
            raise ValueError("distances to modes are those of full rows, without empty places")
        shift = torch.arange(self.k - 1, -1, -1, device=states.data.device)
        bits = (states.data.unsqueeze(-1) >> shift & 1).flatten(1)
        modes = self._modes.to(bits.device)
        # Counts stay below 2 ** 24, where float32 products are exact.
        both = (bits.float() @ modes.T.float()).long()
        return bits.sum(1, keepdim=True) + modes.sum(1) - 2 * both

    def found(self, states: States, radius: int = 30) -> Tensor:
        """Which modes [modes] bool have a state within `radius` flips."""
        return (self.distances(states) <= radius).any(0)


def flipped_modes(modes: tuple[str, ...], generator: torch.Generator | None = None) -> list[str]:
    """The test set of the benchmark: each mode with 0, 1, ..., n - 1 random bits flipped."""
    sequences = []
    for mode in modes:
        bits = torch.tensor([int(bit) for bit in mode])
        for flips in range(len(mode)):
            changed = torch.randperm(len(mode), generator=generator)[:flips]
            sequence = bits.index_copy(0, changed, 1 - bits[changed])
            sequences.append("".join(map(str, sequence.tolist())))
    return sequences
