"""Models and schedulers of diffusers: tiny random models from their configurations."""

import pytest
import torch

from gflow.conditions import PromptConditions
from gflow.envs.denoising import steps as tables
from gflow.envs.denoising.schedules import diffusion, flow
from gflow.mdp import States, evaluate
from gflow.objectives.policy_gradient.path_objective import PathGradient
from gflow.policies.denoiser import DenoiserPolicy
from gflow.policies.pretrained import (
    PretrainedNetwork,
    Prompts,
    add_lora,
    diffusion_signals,
    flow_times,
)
from gflow.sampling.paths import OnPaths
from gflow.sampling.rollout import rollout
from gflow.training import Events, Trainer, TrainerSettings

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
        clip_sample=False, timestep_spacing=spacing, set_alpha_to_one=False, steps_offset=1
    )
    signal, clock = diffusion_signals(scheduler, 10)
    table = tables.ddim(signal[:-1], signal[1:], eta)
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
    uneven = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="7 steps do not divide"):
        diffusion_signals(uneven, 7)


def test_models_that_do_not_fit_are_refused():
    network, _ = sd3()
    with pytest.raises(ValueError, match="Linear is none of the models known"):
        PretrainedNetwork(torch.nn.Linear(1, 1), prompts())
    with pytest.raises(ValueError, match="needs pooled embeddings"):
        PretrainedNetwork(network.model, Prompts(prompts().tokens))
    with pytest.raises(ValueError, match="by height="):
        PretrainedNetwork(flux()[0].model, prompts())


def policy_of(network, shape, sampler="flow_sde", steps=4, guidance=1.0):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    times, clock = flow_times(scheduler, steps)
    env = flow(shape, times, sampler, clock=clock)
    return DenoiserPolicy(env, network, condition_size=1, guidance=guidance), scheduler


def walk(policy, n=4, seed=3):
    condition = PromptConditions(3).make(torch.arange(n) % 3, torch.float32)
    return rollout(policy, policy.env.initial(n), condition, generator(seed), keep_log_pf=True)


@pytest.mark.parametrize("make", [sd3, flux])
@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_paths_without_noise_are_those_of_the_scheduler(make, guidance):
    network, shape = make()
    policy, scheduler = policy_of(network, shape, "euler", guidance=guidance)
    batch = walk(policy)
    scheduler.set_timesteps(4)
    x = batch.states[:, 1]
    null = torch.zeros_like(batch.condition.encoding)
    for k, clock in enumerate(scheduler.timesteps):
        with torch.no_grad():
            both = network(
                torch.cat([x, x]),
                clock.expand(8),
                torch.cat([batch.condition.encoding, null]),
            )
            asked, plain = both.chunk(2)
            if guidance == 1:
                v = network(x, clock.expand(4), batch.condition.encoding)
            else:
                v = torch.lerp(plain, asked, guidance)
        x = scheduler.step(v, clock, x, return_dict=False)[0]
        assert torch.equal(batch.states[:, k + 2], x)


def test_ancestral_paths_are_those_of_the_scheduler():
    network, shape = unet()
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    signal, clock = diffusion_signals(scheduler, 5)
    env = diffusion(shape, signal, 1.0, clock=clock)
    policy = DenoiserPolicy(env, network, condition_size=1)
    batch = walk(policy)
    x = batch.states[:, 1]
    for k, now in enumerate(scheduler.timesteps):
        states = States(x, torch.full((4,), k + 1), torch.zeros(4, dtype=torch.bool))
        with torch.no_grad():
            kernel = policy.step(states, batch.condition)
            output = network(x, now.float().expand(4), batch.condition.encoding)
        noise = torch.randn(x.shape, generator=generator(k))
        theirs = scheduler.step(output, int(now), x, eta=1.0, variance_noise=noise).prev_sample
        assert torch.allclose(kernel.sample(noise), theirs, atol=3e-6)
        x = theirs


@MODELS
def test_stored_paths_are_scored_as_they_were_sampled(make):
    network, shape = make()
    policy, _ = policy_of(network, shape)
    batch = walk(policy)
    again = evaluate(policy, batch, frozenset()).log_pf
    # Rows of all steps are one batch here and four rows at a time there.
    assert ((again - batch.log_pf_old) / batch.states[0, 0].numel()).abs().max() < 1e-6


def test_policy_gradients_train_the_adapters_near_their_reference():
    network, shape = sd3()
    add_lora(network.model, rank=4, alpha=8)
    policy, _ = policy_of(network, shape)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def score(batch):
        batch.rewards = batch.terminal.data.flatten(1).mean(1, keepdim=True)
        return batch

    sampler = OnPaths(policy, PromptConditions(3), score, 12, 0, group_size=4)
    objective = PathGradient(kl_weight=0.1)
    seen = []
    trainer = Trainer(
        policy, objective, sampler, TrainerSettings(learning_rate=1e-2, log_every=1),
        events=Events(on_log=[lambda trainer, info: seen.append(info)]),
    )  # fmt: skip
    trainer.run(3)
    assert seen[0]["kl"] == 0 and seen[2]["kl"] > 0
    changed = [
        name for name, value in network.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert changed and all("lora" in name for name in changed)


def test_half_precision_models_get_the_clock_unrounded():
    network, shape = sd3()
    heard = []
    network.model.time_text_embed.register_forward_pre_hook(
        lambda module, inputs: heard.append(inputs[0].clone())
    )
    half = PretrainedNetwork(network.model.bfloat16(), Prompts(*(p.bfloat16() for p in prompts())))
    policy, scheduler = policy_of(half, shape)
    batch = walk(policy)
    assert batch.states.dtype == torch.float32
    scheduler.set_timesteps(4)
    assert [float(clock[0]) for clock in heard] == scheduler.timesteps.tolist()
    assert any(float(t.bfloat16()) != float(t) for t in scheduler.timesteps)
