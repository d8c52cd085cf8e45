"""Networks for colored shapes, and their weights after flow matching on half-corrupted scenes."""

from __future__ import annotations

import math
from importlib.resources import files

import torch
from torch import Tensor, nn

from gflow.envs.denoising.shapes import FIELD_SIZES, SPACES
from gflow.policies.networks import PromptMLP, PromptUNet


def scene_network(space: str, numbers: int = 0, seed: int = 0) -> PromptMLP | PromptUNet:
    """An untrained network for "scenevec" or "shapes16".

    Args:
        space: key of `SPACES`.
        numbers: numbers that follow the prompt in the condition's encoding.
        seed: seeds the initial weights.
    """
    shape = SPACES[space].state_shape
    if len(shape) == 1:
        return PromptMLP(shape[0], FIELD_SIZES, numbers, seed=seed)
    return PromptUNet(shape[0], FIELD_SIZES, numbers, seed=seed)


def base_network(space: str, numbers: int = 0) -> PromptMLP | PromptUNet:
    """The pre-trained network that ships with the library; see `benchmarks/pretrain_scenes.py`.

    With further `numbers` in the encoding it starts out ignoring them.
    """
    from safetensors.torch import load

    network = scene_network(space, numbers)
    data = files("gflow.policies").joinpath("data").joinpath(f"{space}.safetensors")
    weights = {name: value.to(torch.float32) for name, value in load(data.read_bytes()).items()}
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"condition.numbers.weight"}
    return network


def save_base(network: nn.Module, path: str) -> None:
    """Write a network's weights in half precision, which costs no measurable quality."""
    from safetensors.torch import save_file

    weights = network.state_dict()
    save_file({name: value.half().contiguous() for name, value in weights.items()}, path)


class ValueNetwork(nn.Module):
    """V(x, t, prompt): what a scene network's point of the path is worth, [n].

    Args:
        space: key of `SPACES`.
        numbers: numbers that follow the prompt in the condition's encoding.
        seed: seeds the weights; it starts at 0.
    """

    def __init__(self, space: str, numbers: int = 0, seed: int = 0):
        super().__init__()
        size = math.prod(SPACES[space].state_shape)
        self.body = PromptMLP(size, FIELD_SIZES, numbers, width=128, depth=2, seed=seed)

    def forward(self, x: Tensor, t: Tensor, encoding: Tensor) -> Tensor:
        """Values [n]."""
        values: Tensor = self.body(x.flatten(1), t, encoding).mean(1)
        return values
