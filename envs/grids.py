"""HyperGrid: the standard test bed of GFlowNets, in any dimension and side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gflow.envs.common import (
    MAX_ENUMERABLE,
    all_digits,
    as_numbers,
    finished,
    numbers,
    one_hot,
    require_enumerable,
    undo_mask,
    uniform_states,
)
from gflow.envs.grid_rewards import CornerReward, GridObjectives, corner_reward
from gflow.mdp import Environment, States

__all__ = ["CornerReward", "GridObjectives", "HyperGrid", "corner_reward"]


class HyperGrid(Environment):
    """Walk up a grid {0..side-1}^dim from the origin, one coordinate at a time; stop anywhere.

    Actions 0..dim-1 raise a coordinate, action dim stops. The backward actions have the same
    numbers. (Flow Network based Generative Models, 2021, arXiv 2106.04399.)

    With `stop_at_border` a walker that has reached side - 1 in one coordinate can only stop (the
    grid of Multi-Objective GFlowNets, 2022, arXiv 2210.12765). Points with two such coordinates
    do not exist then, and a border point has one parent: its other neighbours could not go on.

    Args:
        dim: number of coordinates, at least 1.
        side: number of values of each coordinate, at least 2.
        stop_at_border: stopping is the only choice at the upper border.
    """

    def __init__(self, dim: int = 2, side: int = 8, stop_at_border: bool = False):
        if dim < 1 or side < 2:
            raise ValueError(f"HyperGrid needs dim >= 1 and side >= 2, not dim={dim}, side={side}")
        self.dim, self.side, self.stop_at_border = dim, side, stop_at_border
        self.state_shape = (dim,)
        self.action_sizes = (dim + 1,)
        self.n_backward_actions = dim + 1
        self.max_steps = dim * (side - 2) + 2 if stop_at_border else dim * (side - 1) + 1
        self.observation_size = dim * side
        self.enumerable = side**dim <= MAX_ENUMERABLE

    def initial(self, n: int, device: torch.device | str = "cpu") -> States:
        """`n` walkers at the origin."""
        return uniform_states(n, self.dim, 0, device)

    def step(self, states: States, actions: Tensor) -> States:
        """Raise one coordinate, or stop."""
        actions = actions.masked_fill(states.done, self.dim)
        moves = actions.unsqueeze(-1) == numbers(0, self.dim, 1, actions.device)
        return States(states.data + moves, states.step + ~states.done, actions == self.dim)

    def backstep(self, states: States, actions: Tensor) -> States:
        """Take back the stop, or lower one coordinate."""
        actions = torch.where(states.done | (states.step == 0), self.dim, actions)
        moves = actions.unsqueeze(-1) == numbers(0, self.dim, 1, actions.device)
        step = (states.step - 1).clamp(min=0)
        return States(states.data - moves.long(), step, torch.zeros_like(states.done))

    def forward_mask(self, states: States, *chosen: Tensor) -> Tensor:
        """Coordinates below the border, and stop always."""
        border, closed = self.side - 1, states.done.unsqueeze(-1)
        if self.stop_at_border:
            closed = closed | (states.data == border).any(-1, keepdim=True)
        # Padded as integers: padded booleans break the compiler's CPU back end.
        data = torch.nn.functional.pad(states.data.masked_fill(closed, border), (0, 1), value=-1)
        return data < border

    def backward_mask(self, states: States) -> Tensor:
        """Coordinates above 0 whose lowering gives a point that can go on; or only the stop."""
        lower = states.data > 0
        if self.stop_at_border:
            border = states.data == self.side - 1
            lower = lower & (border | ~border.any(-1, keepdim=True))
        return undo_mask(lower, states, has_stop=True)

    def indices(self, states: States) -> Tensor:
        """Where `observe` has its ones, [n, dim]."""
        start = numbers(0, self.observation_size, self.side, states.data.device)
        return states.data + start

    def observe(self, states: States) -> Tensor:
        """One-hot coordinates, [n, dim * side]."""
        return one_hot(states.data, self.side)

    def identify(self, states: States) -> Tensor | None:
        """The rows as numbers, [n]."""
        return as_numbers(states.data, self.side, states.done)

    def decode(self, states: States) -> list[tuple[int, ...]]:
        """Coordinates as tuples."""
        return [tuple(row) for row in states.data.tolist()]

    def encode(self, objects: Sequence[Sequence[int]]) -> States:
        """Finished walkers at the given coordinates.

        Raises:
            ValueError: a point has the wrong number of coordinates or lies outside the grid.
        """
        for i, point in enumerate(objects):
            if len(point) != self.dim or not all(0 <= x < self.side for x in point):
                raise ValueError(
                    f"point {i}, {tuple(point)}, needs {self.dim} coordinates in 0..{self.side - 1}"
                )
            if self.stop_at_border and list(point).count(self.side - 1) > 1:
                raise ValueError(f"point {i}, {tuple(point)}, lies beyond the border: unreachable")
        points = [list(point) for point in objects]
        data = torch.tensor(points, dtype=torch.int64).view(-1, self.dim)
        return finished(data, data.sum(1) + 1)

    def log_n_paths(self, states: States) -> Tensor:
        """Multinomial coefficient (sum s)! / prod s_d!, as a logarithm; [n] float64."""
        data = states.data.double()
        if self.stop_at_border:
            # The last move, onto the border, is certain.
            data = data - (states.data == self.side - 1).double()
        return torch.lgamma(data.sum(-1) + 1) - torch.lgamma(data + 1).sum(-1)

    def all_terminal_states(self) -> States:
        """All points that can be reached, last coordinate fastest."""
        require_enumerable(self, f"{self.side} values of {self.dim} coordinates")
        data = all_digits(self.side, self.dim)
        if self.stop_at_border:
            data = data[(data == self.side - 1).sum(-1) <= 1]
        return finished(data, data.sum(1) + 1)
