"""Small problems whose fronts are known by heart."""

import torch

from gflow.bench.plan import Cell, Contestant, Plan, Problem
from gflow.mdp import Reward

GRID = Problem("grid", "grid_objectives", 60, rewards="branin,currin", options={"side": 16})
BITS = Problem(
    "bits", "bit_sequences", 40, options={"bits": 8, "word": 1, "modes": 2, "order": "slots"}
)
MOLECULES = Problem("molecules", "molecules", 80)


def plan(*contestants, problems=(GRID,), seeds=(0,), **more):
    """A plan of bare methods."""
    entries = tuple(
        Contestant(name, name) if isinstance(name, str) else name for name in contestants
    )
    return Plan("test", tuple(problems), entries, tuple(seeds), **more)


def cell(method, problem=GRID, seed=0, **settings):
    return Cell(problem, Contestant(method, method, settings), seed)


class Corners:
    """Rewards of a 4 x 4 grid: x / 3 and y / 3, so that the corner (3, 3) dominates."""

    on_states = True
    seconds = 0.0
    version = "1"
    rewards = (Reward("x"), Reward("y"))

    def __init__(self):
        self.asked = 0

    def __call__(self, states):
        self.asked += states.n
        return states.data.double() / 3


class Fragile:
    """The length of a string, on objects; fails on strings with an A."""

    on_states = False
    seconds = 0.0
    version = "1"
    rewards = (Reward("b"), Reward("c"))

    def __init__(self):
        self.asked = []

    def __call__(self, objects):
        self.asked += objects
        nan = float("nan")
        return torch.tensor(
            [[nan, nan] if "A" in x else [x.count("B") / 4, x.count("C") / 4] for x in objects]
        )
