"""The front that a benchmark calls exact, by enumeration of all scenes."""

import itertools

import pytest
import torch

from benchmarks.denoising_fronts import SPACE_OF, scenes_front
from gflow.conditions import PromptConditions
from gflow.envs.denoising.shapes import SPACES, SceneRewards, Scenes, find_prompts
from gflow.mdp import States
from gflow.pareto import non_dominated


@pytest.mark.parametrize("space", SPACE_OF.values())
def test_the_exact_front_of_four_squares(space):
    # Rewards ask of a color whether it is warm, so two of the four are enough: red and green.
    slots = [(0, 0, 0), *((1, c, s) for c in (0, 1) for s in range(3))]
    present, color, shape = torch.tensor(list(itertools.product(slots, repeat=4))).unbind(2)
    x = SPACES[space].draw(Scenes(present.bool(), color, shape), torch.Generator().manual_seed(0))
    asked = PromptConditions(1, 3, find_prompts(["4 squares"]).float())
    condition = asked.make(torch.zeros(len(x), dtype=torch.int64), torch.float32)
    oracle = SceneRewards(space, ("soft", "warm", "cool"))
    rewards = oracle(States(x, present[:, 0], present[:, 0].bool()), condition).double()
    # Shares are fractions up to quarters: off them is rounding.
    rewards = ((rewards * 12).round() / 12).unique(dim=0)
    front = rewards[non_dominated(rewards)]
    assert len(front) == len(scenes_front()) == 7
    assert torch.cdist(front, scenes_front()).amin(1).max() < 1e-12
