"""Rewards of sets: one energy term per item."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gflow.mdp import Reward, States

SETTINGS: dict[str, tuple[int, int, tuple[float, ...]]] = {
    "small": (
        30, 20,
        (-.43814, -.400464, -.274506, .01315, .411054, .626175, .696147, .744228, .820635, .883495),
    ),
    "medium": (
        80, 60,
        (-.786683, -.783787, -.52305, -.418608, -.385521, .296122, .57318, .600929, .688181,
         .739635),
    ),
    "large": (
        100, 80,
        (-.859685, -.593879, -.559618, -.459, -.15383, .138322, .392503, .723198, .732699, .924454),
    ),
}  # fmt: skip
"""Numbers of items, set size and the ten distinct energies of 2302.01687's three problems."""


class SetEnergy:
    """R(x) = exp(-sum of the energies of its items), known for every partial set too.

    (Better Training of GFlowNets with Local Credit and Incomplete Trajectories, 2023,
    arXiv 2302.01687.)

    Args:
        energies: one energy per item.
        size: number of items of a finished set, or the largest with `stop`.
        stop: smaller sets count as well.
    """

    version = "1"
    on_states = True
    seconds = 0.0

    def __init__(self, energies: Sequence[float], size: int, stop: bool = False):
        self.energies = torch.tensor(energies, dtype=torch.float64)
        self.size, self.stop = size, stop
        if not 1 <= size <= len(self.energies):
            raise ValueError(f"size must lie in 1..{len(self.energies)}, not {size}")
        gains = -self.energies.sort().values
        best, worst = gains[:size], gains[len(gains) - size :]
        if stop:
            best, worst = best.clamp(min=0), worst.clamp(max=0)
        low, high = float(worst.sum().exp()), float(best.sum().exp())
        self.rewards = (Reward("boltzmann", low=low, high=high, description="exp(-energy)"),)

    @classmethod
    def setting(cls, name: str) -> SetEnergy:
        """The problem "small", "medium" or "large"; each energy is repeated in turn.

        Raises:
            ValueError: unknown name.
        """
        if name not in SETTINGS:
            raise ValueError(f"there is no set problem {name!r}: choose from {', '.join(SETTINGS)}")
        n_items, size, distinct = SETTINGS[name]
        return cls(distinct * (n_items // len(distinct)), size)

    def __call__(self, objects: States) -> Tensor:
        """Rewards [n, 1] float64."""
        return self.partial_log_reward(objects).exp().unsqueeze(-1)

    def partial_log_reward(self, states: States) -> Tensor:
        """-energy of every state, partial or finished, [n] float64; 0 at the empty set."""
        return -(states.data.double() @ self.energies.to(states.data.device))

    def log_partition(self) -> Tensor:
        """Exact log Z: elementary symmetric polynomials of exp(-energy) by recurrence."""
        log_e = torch.full((self.size + 1,), -torch.inf, dtype=torch.float64)
        log_e[0] = 0.0
        for energy in self.energies:
            log_e[1:] = torch.logaddexp(log_e[1:], log_e[:-1] - energy)
        return torch.logsumexp(log_e, 0) if self.stop else log_e[-1]
