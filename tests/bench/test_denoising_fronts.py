"""The front that a benchmark calls exact, by enumeration of all scenes."""

import itertools

import torch

from benchmarks.denoising_fronts import scenes_front
from gflow.envs.denoising.shapes import alignment, find_prompts
from gflow.envs.denoising.shapes.checks import Detections, share
from gflow.pareto import non_dominated


def test_the_exact_front_of_four_squares():
    # What a color says here is whether it is warm, so two of the four are enough.
    slots = [(0, 0, 0), *((1, c, s) for c in (0, 1) for s in range(3))]
    scenes = torch.tensor(list(itertools.product(slots, repeat=4)))
    found, color, shape = scenes.unbind(2)
    seen = Detections(found.bool(), color, shape, torch.zeros(*color.shape, 2))
    prompts = find_prompts(["4 squares"]).expand(len(scenes), -1)
    soft = alignment(seen, prompts, torch.float64).soft
    warm = share(seen, color == 0, torch.float64)
    cool = share(seen, color == 1, torch.float64)
    rewards = torch.stack([soft, warm, cool], 1).unique(dim=0)
    front = rewards[non_dominated(rewards)]
    assert len(front) == len(scenes_front()) == 7
    assert torch.cdist(front, scenes_front()).amin(1).max() < 1e-12
