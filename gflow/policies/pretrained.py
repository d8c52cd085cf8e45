"""Image models of the diffusers library as networks of the denoising MDP.

A model becomes a `network(x, clock, encoding)` and its scheduler a table of times, read once: a
scheduler's own `step` keeps a hidden counter, so it can neither rescore a stored path nor take a
subset of its steps. Needs the extra gflow[diffusion].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gflow.policies.common import seeded_weights

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers that LoRA adapts unless told otherwise."""


class Prompts(NamedTuple):
    """Embedded prompts, one row each; row 0 is what guidance takes for no prompt.

    Attributes:
        tokens: [P, L, D], what attention reads.
        pooled: [P, E], the summary that transformers want beside it; None for U-Nets.
    """

    tokens: Tensor
    pooled: Tensor | None = None


class PretrainedNetwork(nn.Module):
    """A diffusers model that is asked for rows of embedded prompts.

    The condition's encoding [n, 1] holds the number of a prompt, not its embedding, so that
    thousands of rows share one copy of it.

    Args:
        model: an SD3 or FLUX transformer, or a U-Net with cross-attention.
        prompts: embedded prompts.
        height: latent rows of FLUX, whose latents are packed as [n, tokens, channels].
        guidance: the guidance that a distilled FLUX model takes as an input.

    Raises:
        ValueError: a model of another kind, or prompts that do not suit it.
    """

    input_dtype = torch.float32
    tokens: Tensor
    pooled: Tensor

    def __init__(
        self,
        model: nn.Module,
        prompts: Prompts,
        height: int | None = None,
        guidance: float = 3.5,
    ):
        super().__init__()
        kind = next((kind for kind in _CALLS if type(model).__name__.startswith(kind)), None)
        if kind is None:
            raise ValueError(
                f"{type(model).__name__} is none of the models known here: "
                f"{', '.join(f'{name}...' for name in _CALLS)}"
            )
        if prompts.pooled is None and kind != "UNet2DCondition":
            raise ValueError(f"{type(model).__name__} needs pooled embeddings of its prompts")
        if kind == "FluxTransformer" and height is None:
            raise ValueError("FLUX latents are packed: say how many rows they have by height=")
        self.model, self.height, self.guidance = model, height, guidance
        self.call = _CALLS[kind]
        self.register_buffer("tokens", prompts.tokens, persistent=False)
        self.register_buffer("pooled", prompts.pooled, persistent=False)

    def forward(self, x: Tensor, clock: Tensor, encoding: Tensor) -> Tensor:
        """The model's prediction in the dtype of x, computed in the model's own."""
        dtype = self.tokens.dtype
        prompt = encoding[:, 0].long()
        return self.call(self, x.to(dtype), clock, prompt).to(x.dtype)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model computes what it did before its adapters were trained.

        Raises:
            ValueError: the model has no adapters.
        """
        if not getattr(self.model, "peft_config", None):
            raise ValueError("this model has no adapters to switch off: see add_lora")
        self.model.disable_adapters()  # type: ignore[operator]
        try:
            yield
        finally:
            self.model.enable_adapters()  # type: ignore[operator]


def _sd3(network: PretrainedNetwork, x: Tensor, clock: Tensor, prompt: Tensor) -> Tensor:
    out: Tensor = network.model(
        hidden_states=x,
        timestep=clock,
        encoder_hidden_states=network.tokens[prompt],
        pooled_projections=network.pooled[prompt],
        return_dict=False,
    )[0]
    return out


def _flux(network: PretrainedNetwork, x: Tensor, clock: Tensor, prompt: Tensor) -> Tensor:
    tokens = network.tokens[prompt]
    assert network.height is not None
    rows, columns = torch.meshgrid(
        torch.arange(network.height), torch.arange(x.shape[1] // network.height), indexing="ij"
    )
    places = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).to(x)
    guided = network.model.config.guidance_embeds  # type: ignore[union-attr]
    out: Tensor = network.model(
        hidden_states=x,
        # The transformer multiplies by 1000 itself.
        timestep=clock / 1000,
        guidance=torch.full_like(clock, network.guidance) if guided else None,
        encoder_hidden_states=tokens,
        pooled_projections=network.pooled[prompt],
        txt_ids=x.new_zeros(tokens.shape[1], 3),
        img_ids=places,
        return_dict=False,
    )[0]
    return out


def _unet(network: PretrainedNetwork, x: Tensor, clock: Tensor, prompt: Tensor) -> Tensor:
    out: Tensor = network.model(x, clock, network.tokens[prompt], return_dict=False)[0]
    return out


_Call = Callable[[PretrainedNetwork, Tensor, Tensor, Tensor], Tensor]
_CALLS: dict[str, _Call] = {
    "SD3Transformer": _sd3,
    "FluxTransformer": _flux,
    "UNet2DCondition": _unet,
}


def add_lora(
    model: Any, rank: int = 32, alpha: float = 64, layers: Sequence[str] = ATTENTION, seed: int = 0
) -> None:
    """Freeze a diffusers model and give the named layers trainable adapters of low rank.

    Args:
        model: the model.
        rank: rank of the adapters.
        alpha: their scale, divided by the rank.
        layers: ends of the names of the layers to adapt.
        seed: seeds their initial weights; they start out changing nothing.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("LoRA adapters need the extra gflow[diffusion]") from error
    model.requires_grad_(False)
    with seeded_weights(seed):
        model.add_adapter(
            LoraConfig(
                r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(layers)
            )
        )


def flow_times(scheduler: Any, steps: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Times and clock of a flow-matching scheduler, as its own `step` would take them.

    Args:
        scheduler: a FlowMatchEulerDiscreteScheduler.
        steps: number of steps N.
        options: what its `set_timesteps` takes besides, such as mu where it shifts dynamically.

    Returns:
        [N + 1] times in float64 from noise to data, and what the model is fed at each.
    """
    scheduler.set_timesteps(steps, **options)
    times = scheduler.sigmas.double()
    clock = torch.cat([scheduler.timesteps.double(), times.new_zeros(1)])
    return times, clock


def diffusion_signals(scheduler: Any, steps: int) -> tuple[Tensor, Tensor]:
    """Cumulative alphas of the times that a DDIM or DDPM scheduler visits, and its clock.

    Args:
        scheduler: a DDIMScheduler or DDPMScheduler.
        steps: number of steps N.

    Returns:
        [N + 1] cumulative alphas in float64 from noise to data, and what the model is fed at each.

    Raises:
        ValueError: a scheduler that clips its estimate of the data, since such a step is not
            affine, or whose steps do not end where the next ones start.
    """
    config = scheduler.config
    if config.get("clip_sample") or config.get("thresholding"):
        raise ValueError(
            "a scheduler that clips its estimate of the data takes no Gaussian steps around an "
            "affine mean: build it with clip_sample=False and thresholding=False"
        )
    scheduler.set_timesteps(steps)
    now = scheduler.timesteps.cpu().long()
    after = now - config.num_train_timesteps // steps
    if not torch.equal(after[:-1], now[1:]):
        raise ValueError(
            f"{steps} steps do not divide the scheduler's {config.num_train_timesteps} times, so "
            "that its steps would not join"
        )
    known = scheduler.alphas_cumprod.double().cpu()
    end = torch.as_tensor(getattr(scheduler, "final_alpha_cumprod", 1.0)).double()
    last = known[after[-1]] if after[-1] >= 0 else end
    return torch.cat([known[now], last.view(1)]), torch.cat([now.double(), last.new_zeros(1)])


PREDICTIONS = {"epsilon": "noise", "sample": "clean", "v_prediction": "velocity"}
"""What a scheduler's `prediction_type` is called in `gflow.envs.denoising`."""
