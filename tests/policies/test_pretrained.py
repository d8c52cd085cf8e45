"""Models and schedulers of diffusers: tiny random models from their configurations."""

import pytest
import torch

from gflow.envs.denoising import steps as tables
from gflow.policies.pretrained import (
    PretrainedNetwork,
    Prompts,
    add_lora,
    diffusion_signals,
    flow_times,
)

diffusers = pytest.importorskip("diffusers")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def prompts(n=3, tokens=5, width=16, pooled=8, seed=1):
    source = generator(seed)
    return Prompts(
        torch.randn(n, tokens, width, generator=source), torch.randn(n, pooled, generator=source)
    )


def sd3():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
            attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
            caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=8,
        )  # fmt: skip
    return PretrainedNetwork(model.eval(), prompts()), (4, 8, 8)


def flux():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=8,
            guidance_embeds=True, axes_dims_rope=(4, 4, 8),
        )  # fmt: skip
    return PretrainedNetwork(model.eval(), prompts(), height=4), (16, 4)


def unet():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
            block_out_channels=(16, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16,
            norm_num_groups=8, attention_head_dim=8,
        )  # fmt: skip
    return PretrainedNetwork(model.eval(), Prompts(prompts().tokens)), (4, 8, 8)


MODELS = pytest.mark.parametrize("make", [sd3, flux, unet])


def inputs(shape, n=4):
    source = generator(2)
    x = torch.randn(n, *shape, generator=source)
    clock = torch.tensor([999.0, 700.0, 300.0, 20.0])[:n]
    encoding = torch.tensor([[0.0], [1.0], [2.0], [1.0]])[:n]
    return x, clock, encoding


@MODELS
def test_models_predict_row_by_row(make):
    network, shape = make()
    x, clock, encoding = inputs(shape)
    with torch.no_grad():
        whole = network(x, clock, encoding)
        one = network(x[1:2], clock[1:2], encoding[1:2])
        other = network(x, clock, encoding.roll(1, 0))
    assert whole.shape == x.shape and torch.isfinite(whole).all()
    assert torch.allclose(whole[1:2], one, atol=1e-5)
    assert (whole - other).abs().amax(tuple(range(1, x.ndim))).min() > 1e-5


@MODELS
def test_adapters_are_the_reference_switch(make):
    network, shape = make()
    x, clock, encoding = inputs(shape)
    with torch.no_grad():
        before = network(x, clock, encoding)
    with pytest.raises(ValueError, match="no adapters to switch off"), network.reference():
        pass
    add_lora(network.model, rank=2, alpha=4)
    trained = [p for p in network.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in trained) < 0.2 * sum(p.numel() for p in network.parameters())
    with torch.no_grad():
        assert torch.equal(network(x, clock, encoding), before)
        for parameter in trained:
            parameter += 0.1
        assert not torch.equal(network(x, clock, encoding), before)
        with network.reference():
            assert torch.equal(network(x, clock, encoding), before)
        assert not torch.equal(network(x, clock, encoding), before)
        with pytest.raises(RuntimeError, match="stop"), network.reference():
            raise RuntimeError("stop")
        assert not torch.equal(network(x, clock, encoding), before)
    network(x, clock, encoding).sum().backward()
    assert all(p.grad is not None for p in trained)


def test_seeds_decide_the_adapters():
    def weights(seed):
        network = sd3()[0]
        add_lora(network.model, rank=2, seed=seed)
        return [p.clone() for p in network.parameters() if p.requires_grad]

    one, two, three = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


@pytest.mark.parametrize("options", [{}, {"mu": 0.8}])
def test_euler_steps_are_those_of_the_flow_scheduler(options):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=bool(options)
    )
    times, clock = flow_times(scheduler, 8, **options)
    assert times.shape == clock.shape == (9,) and float(times[-1]) == 0
    assert torch.equal(clock[:-1].float(), scheduler.timesteps)
    table = tables.euler(times[:-1], times[1:])
    source = generator()
    x = torch.randn(3, 4, generator=source)
    for k in range(8):
        v = torch.randn(3, 4, generator=source)
        mine = table.a[k].float() * x + table.b[k].float() * v
        theirs = scheduler.step(v, scheduler.timesteps[k], x, return_dict=False)[0]
        assert torch.equal(mine, theirs)
        x = theirs


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_steps_are_those_of_the_scheduler(eta, spacing):
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False, timestep_spacing=spacing, set_alpha_to_one=False
    )
    signal, signal_next, clock = diffusion_signals(scheduler, 10)
    table = tables.ddim(signal, signal_next, eta)
    assert clock.shape == (11,) and torch.equal(clock[:-1].long(), scheduler.timesteps)
    x = torch.randn(3, 4, generator=generator(), dtype=torch.float64)
    for k in range(10):
        noise = torch.randn(3, 4, generator=generator(k), dtype=torch.float64)
        output = torch.randn(3, 4, generator=generator(100 + k), dtype=torch.float64)
        mine = table.a[k] * x + table.b[k] * output + table.s[k] * noise
        theirs = scheduler.step(
            output, int(scheduler.timesteps[k]), x, eta=eta, variance_noise=noise
        ).prev_sample
        # The scheduler takes its square roots in float32.
        assert torch.allclose(mine, theirs, atol=3e-6, rtol=1e-6)
        x = theirs


def test_clipping_schedulers_are_refused():
    with pytest.raises(ValueError, match="clip_sample=False"):
        diffusion_signals(diffusers.DDIMScheduler(clip_sample=True), 10)


def test_models_that_do_not_fit_are_refused():
    network, _ = sd3()
    with pytest.raises(ValueError, match="Linear is none of the models known"):
        PretrainedNetwork(torch.nn.Linear(1, 1), prompts())
    with pytest.raises(ValueError, match="needs pooled embeddings"):
        PretrainedNetwork(network.model, Prompts(prompts().tokens))
    with pytest.raises(ValueError, match="by height="):
        PretrainedNetwork(flux()[0].model, prompts())
