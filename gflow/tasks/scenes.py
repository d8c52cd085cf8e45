"""Tasks: pictures of colored shapes on request, by fine-tuning a pre-trained denoiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gflow.conditions import Conditions, PromptConditions
from gflow.config import PolicySettings
from gflow.mdp import Trajectories

from .registry import Task, names, point_key, register


@register
def scenevec(
    rewards: str = "strict",
    prompt: str = "",
    preferences: bool = False,
    sampler: str = "flow_sde",
    noise: float = 0.7,
    steps: int = 10,
    guidance: float = 1.0,
) -> Task:
    """Scenes of colored shapes on request, as 32 numbers; the base model follows half its prompts.

    Args:
        rewards: strict, soft, uncounted, crisp, warm, cool, top, separated by commas.
        prompt: one prompt in words, such as "2 squares"; the 106 training prompts by default.
        preferences: the sampler also sees a preference over the rewards.
        sampler: flow_sde, dance_sde, cps, sage_sde or dpm_sde; none takes the method's.
        noise: how much noise the sampler adds.
        steps: denoising steps.
        guidance: of predictions by the prompt, in training and sampling alike; 1 is none.
    """
    return _scenes("scenevec", rewards, prompt, preferences, sampler, noise, steps, guidance)


@register
def shapes16(
    rewards: str = "strict",
    prompt: str = "",
    preferences: bool = False,
    sampler: str = "flow_sde",
    noise: float = 0.7,
    steps: int = 10,
    guidance: float = 1.0,
) -> Task:
    """Scenes of colored shapes on request, as pictures of 16 x 16 pixels.

    Args:
        rewards: strict, soft, uncounted, crisp, warm, cool, top, separated by commas.
        prompt: one prompt in words, such as "2 squares"; the 106 training prompts by default.
        preferences: the sampler also sees a preference over the rewards.
        sampler: flow_sde, dance_sde, cps, sage_sde or dpm_sde; none takes the method's.
        noise: how much noise the sampler adds.
        steps: denoising steps.
        guidance: of predictions by the prompt, in training and sampling alike; 1 is none.
    """
    return _scenes("shapes16", rewards, prompt, preferences, sampler, noise, steps, guidance)


def _scenes(
    space: str,
    rewards: str,
    prompt: str,
    preferences: bool,
    sampler: str,
    noise: float,
    steps: int,
    guidance: float,
) -> Task:
    from gflow.envs.denoising.schedules import flow
    from gflow.envs.denoising.shapes import SPACES, SceneRewards, find_prompts, train_prompts
    from gflow.envs.denoising.steps import time_grid

    oracle = SceneRewards(space, names(rewards))
    rows = find_prompts([prompt]) if prompt else train_prompts()
    k = len(oracle.rewards)
    further = Conditions(k, concentration=1.0) if preferences else None
    conditions = PromptConditions(len(rows), k, rows.float(), further)
    options: dict[str, Any] = {} if sampler in ("dpm_sde", "euler") else {"noise": noise}
    env = flow(SPACES[space].state_shape, time_grid(steps), sampler, **options)

    def make_policy(
        settings: PolicySettings, condition_size: int, flow: bool, energy: bool, seed: int
    ) -> nn.Module:
        from gflow.policies.denoiser import DenoiserPolicy
        from gflow.policies.reference import Anchored
        from gflow.policies.scenes import ValueNetwork, base_network

        if energy:
            raise ValueError("denoisers have no network for learned energies")
        size = condition_size - rows.shape[1]
        network = Anchored(base_network(space, size))
        value = ValueNetwork(space, size, seed) if flow else None
        return DenoiserPolicy(
            env, network, condition_size=condition_size, flow=value, guidance=guidance
        )

    return Task(
        env,
        oracle,
        make_policy,
        kind="image" if len(env.state_shape) == 3 else "text",
        key=point_key,
        conditions=conditions,
        describe=_drawn if len(env.state_shape) == 3 else _told,
    )


def _told(batch: Trajectories) -> list[Any]:
    """Prompts and scenes in words."""
    from gflow.envs.denoising.shapes import SPACES, prompt_texts, scene_text

    seen = SPACES["scenevec"].detect(batch.terminal.data)
    asked = prompt_texts(batch.condition.encoding)
    return [f"{a}: {b}" for a, b in zip(asked, scene_text(seen), strict=True)]


def _drawn(batch: Trajectories) -> list[Any]:
    """Prompts, and pictures as PNG files in data URIs."""
    from gflow.envs.denoising.shapes import prompt_texts

    asked = prompt_texts(batch.condition.encoding)
    pictures = map(data_uri, batch.terminal.data)
    return [{"prompt": a, "image": b} for a, b in zip(asked, pictures, strict=True)]


def data_uri(picture: Tensor) -> str:
    """A picture [3, height, width] in [-1, 1] as a PNG file in a data URI."""
    import base64
    import io

    from PIL import Image

    levels = ((picture.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
