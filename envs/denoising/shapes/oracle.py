"""Rewards of generated scenes: what a prompt asks for, and what pulls against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gflow.envs.denoising.shapes import images, vectors
from gflow.envs.denoising.shapes.checks import Alignment, Detections, alignment, share
from gflow.envs.denoising.shapes.prompts import FIELDS
from gflow.envs.denoising.shapes.scenes import Scenes
from gflow.mdp import Condition, Reward, States


@dataclass(frozen=True)
class Space:
    """How scenes are written as tensors.

    Attributes:
        state_shape: shape of one of them.
        draw: scenes and a generator to data [n, *state_shape].
        detect: data to the objects in it.
        crispness: data to its closeness to noiseless data, [n] in [0, 1].
    """

    state_shape: tuple[int, ...]
    draw: Callable[[Scenes, torch.Generator | None], Tensor]
    detect: Callable[[Tensor], Detections]
    crispness: Callable[[Tensor], Tensor]


SPACES = {
    "scenevec": Space(vectors.STATE_SHAPE, vectors.draw, vectors.detect, vectors.crispness),
    "shapes16": Space(images.STATE_SHAPE, images.draw, images.detect, images.crispness),
}

REWARDS = {
    "strict": Reward("strict", description="1 where every condition of the prompt holds"),
    "soft": Reward("soft", description="share of the prompt's conditions that hold"),
    "uncounted": Reward("uncounted", description="soft, blind to the number of objects"),
    "crisp": Reward("crisp", description="closeness to noiseless data"),
    "warm": Reward("warm", description="share of objects that are red or yellow"),
    "cool": Reward("cool", description="share of objects that are green or blue"),
    "top": Reward("top", description="share of objects in the top half"),
}


class SceneRewards:
    """Rewards of finished scenes under the prompts they were generated for.

    Args:
        space: "scenevec" or "shapes16".
        names: keys of `REWARDS`.

    Raises:
        ValueError: unknown space or reward.
    """

    version = "1"
    on_states = True
    conditional = True
    seconds = 0.0

    def __init__(self, space: str, names: Sequence[str] = ("strict",)):
        if space not in SPACES:
            raise ValueError(f"there is no scene space {space!r}: choose from {', '.join(SPACES)}")
        for name in names:
            if name not in REWARDS:
                raise ValueError(f"there is no reward {name!r}: choose from {', '.join(REWARDS)}")
        if not names:
            raise ValueError(f"scenes need a reward: choose from {', '.join(REWARDS)}")
        self.space, self.names = SPACES[space], tuple(names)
        self.rewards = tuple(REWARDS[name] for name in names)

    def __call__(self, objects: States, condition: Condition | None = None) -> Tensor:
        """Rewards [n, K]; the first columns of the condition's encoding are the prompt.

        Raises:
            ValueError: no condition.
        """
        if condition is None:
            raise ValueError("scenes are scored by what was asked for: give their conditions")
        x = objects.data
        seen = self.space.detect(x)
        prompts = condition.encoding[:, : len(FIELDS)].long()
        aligned: Alignment = alignment(seen, prompts, x.dtype)
        warm = (seen.color == 0) | (seen.color == 3)
        values: dict[str, Callable[[], Tensor]] = {
            "strict": lambda: aligned.strict,
            "soft": lambda: aligned.soft,
            "uncounted": lambda: aligned.uncounted,
            "crisp": lambda: self.space.crispness(x),
            "warm": lambda: share(seen, warm, x.dtype),
            "cool": lambda: share(seen, ~warm, x.dtype),
            "top": lambda: share(seen, seen.quadrant < 2, x.dtype),
        }
        return torch.stack([values[name]() for name in self.names], -1)
