"""Pictures of colored shapes on request: a text-to-image problem small enough to check exactly.

Prompts ask for colors, counts, positions, pairs and relations; a program, not a learned model,
decides whether a picture follows them. `scenevec` writes a scene as 32 numbers, `shapes16` as a
picture of 16 x 16 pixels.
"""

from gflow.envs.denoising.shapes.checks import Alignment, Detections, alignment, scene_text
from gflow.envs.denoising.shapes.oracle import REWARDS, SPACES, SceneRewards, Space
from gflow.envs.denoising.shapes.prompts import (
    FIELD_SIZES,
    FIELDS,
    all_prompts,
    find_prompts,
    held_out,
    novel_prompts,
    prompt_text,
    prompt_texts,
    train_prompts,
)
from gflow.envs.denoising.shapes.scenes import Scenes, sample_scenes

__all__ = [
    "FIELDS",
    "FIELD_SIZES",
    "REWARDS",
    "SPACES",
    "Alignment",
    "Detections",
    "SceneRewards",
    "Scenes",
    "Space",
    "alignment",
    "all_prompts",
    "find_prompts",
    "held_out",
    "novel_prompts",
    "prompt_text",
    "prompt_texts",
    "sample_scenes",
    "scene_text",
    "train_prompts",
]
