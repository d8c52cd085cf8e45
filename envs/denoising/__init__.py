"""Denoising as an MDP: step samplers, the environment, its schedules."""

from gflow.envs.denoising.environment import Denoising
from gflow.envs.denoising.schedules import SAMPLERS, brownian, denoising_diffusion, diffusion, flow
from gflow.envs.denoising.steps import PREDICTIONS, Path, Steps, time_grid

__all__ = [
    "PREDICTIONS",
    "SAMPLERS",
    "Denoising",
    "Path",
    "Steps",
    "brownian",
    "denoising_diffusion",
    "diffusion",
    "flow",
    "time_grid",
]
