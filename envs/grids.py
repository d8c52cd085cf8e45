"""HyperGrid: the standard test bed of GFlowNets, in any dimension and side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from gflow.mdp import Environment, States


class HyperGrid(Environment):
    """Walk up a grid {0..side-1}^dim from the origin, one coordinate at a time; stop anywhere.

    Actions 0..dim-1 raise a coordinate, action dim stops. The backward actions have the same
    numbers. (Flow Network based Generative Models, 2021, arXiv 2106.04399.)

    Args:
        dim: number of coordinates, at least 1.
        side: number of values of each coordinate, at least 2.
    """

    enumerable = True

    def __init__(self, dim: int = 2, side: int = 8):
        if dim < 1 or side < 2:
            raise ValueError(f"HyperGrid needs dim >= 1 and side >= 2, not dim={dim}, side={side}")
        self.dim, self.side = dim, side
        self.state_shape = (dim,)
        self.action_sizes = (dim + 1,)
        self.n_backward_actions = dim + 1
        self.max_steps = dim * (side - 1) + 1
        self.observation_size = dim * side

    def initial(self, n: int, device: torch.device | str = "cpu") -> States:
        """`n` walkers at the origin."""
        zeros = torch.zeros(n, dtype=torch.int64, device=device)
        data = torch.zeros(n, self.dim, dtype=torch.int64, device=device)
        return States(data, zeros, zeros.bool())

    def step(self, states: States, actions: Tensor) -> States:
        """Raise one coordinate, or stop."""
        actions = actions.where(~states.done, self.dim + 1)
        moves = actions.unsqueeze(-1) == torch.arange(self.dim, device=actions.device)
        done = actions >= self.dim
        return States(states.data + moves, states.step + (actions <= self.dim), done)

    def backstep(self, states: States, actions: Tensor) -> States:
        """Take back the stop, or lower one coordinate."""
        actions = torch.where(states.done, self.dim, actions)
        actions = torch.where(states.step == 0, self.dim + 1, actions)
        moves = actions.unsqueeze(-1) == torch.arange(self.dim, device=actions.device)
        done = torch.zeros_like(states.done)
        return States(states.data - moves.long(), states.step - (actions <= self.dim).long(), done)

    def forward_mask(self, states: States, *chosen: Tensor) -> Tensor:
        """Coordinates below the border, and stop always."""
        data = torch.where(states.done.unsqueeze(-1), self.side, states.data)
        # Padding integers, since padded booleans break the compiler's CPU back end.
        return torch.nn.functional.pad(data, (0, 1)) < self.side - 1

    def backward_mask(self, states: States) -> Tensor:
        """Coordinates above 0; of a finished row only its stop."""
        done = states.done | (states.step == 0)
        lower = (states.data > 0) & ~done.unsqueeze(-1)
        return torch.cat([lower, done.unsqueeze(-1)], -1)

    def observe(self, states: States) -> Tensor:
        """One-hot coordinates, [n, dim * side]."""
        eye = torch.eye(self.side, dtype=torch.get_default_dtype(), device=states.data.device)
        return eye[states.data].flatten(1)

    def decode(self, states: States) -> list[tuple[int, ...]]:
        """Coordinates as tuples."""
        return [tuple(row) for row in states.data.tolist()]

    def encode(self, objects: Sequence[Sequence[int]]) -> States:
        """Finished walkers at the given coordinates."""
        data = torch.as_tensor([list(point) for point in objects], dtype=torch.int64)
        if data.ndim != 2 or data.shape[1] != self.dim or data.min() < 0 or data.max() >= self.side:
            raise ValueError(f"points must have {self.dim} coordinates in 0..{self.side - 1}")
        return States(data, data.sum(1) + 1, torch.ones(len(data), dtype=torch.bool))

    def log_n_paths(self, states: States) -> Tensor:
        """Multinomial coefficient (sum s)! / prod s_d!, as a logarithm."""
        data = states.data.double()
        return torch.lgamma(data.sum(-1) + 1) - torch.lgamma(data + 1).sum(-1)

    def all_terminal_states(self) -> States:
        """All side ** dim points, last coordinate fastest."""
        return self.encode(list(itertools.product(range(self.side), repeat=self.dim)))


def corner_reward(
    data: Tensor, side: int, r0: float = 0.1, r1: float = 0.5, r2: float = 2.0
) -> Tensor:
    """The standard HyperGrid reward, [n], with 2 ** dim modes.

    R = r0 + r1 prod 1[a > 1/4] + r2 prod 1[0.3 < a < 0.4], a = |s / (side - 1) - 1/2|
    (2106.04399).
    """
    a = (data.double() / (side - 1) - 0.5).abs()
    outer = (a > 0.25 + 1e-12).all(-1)
    ring = ((a > 0.3 + 1e-12) & (a < 0.4 - 1e-12)).all(-1)
    return r0 + r1 * outer + r2 * ring
