"""Denoising schedules and small policies on them, for tests."""

import math

import torch
from torch import nn

from gflow.conditions import Conditions
from gflow.envs.denoising import brownian, denoising_diffusion, diffusion, flow, time_grid
from gflow.policies.denoiser import DenoiserPolicy, TimeMLP
from gflow.sampling.rollout import rollout


def alphas(steps=8):
    return torch.linspace(0.1, 0.998, steps + 1, dtype=torch.float64)


SCHEDULES = {
    "brownian": lambda shape: brownian(shape, 9, variance=2.0),
    "dds": lambda shape: denoising_diffusion(shape, 9, variance=2.0),
    "flow_sde": lambda shape: flow(shape, time_grid(9, shift=2.0)),
    "euler": lambda shape: flow(shape, time_grid(5), "euler"),
    "cps": lambda shape: flow(shape, time_grid(6), "cps", noise=0.5),
    "ddpm": lambda shape: diffusion(shape, alphas(), clock=1000 * time_grid(8)),
}
WITH_DENSITY = [name for name in SCHEDULES if name not in ("euler", "cps")]


def make_policy(env, dtype=torch.float64, scale=0.1, **options):
    size = math.prod(env.state_shape)
    network = TimeMLP(size, size, seed=1)
    draw = torch.Generator().manual_seed(3)
    for p in network.trunk[-1].parameters():
        nn.init.normal_(p, std=scale, generator=draw)
    return DenoiserPolicy(env, network, flow=TimeMLP(size, 1, seed=2), **options).to(dtype)


def sample(policy, n=6, seed=0, dtype=torch.float64, **options):
    condition = Conditions().sample(n, dtype=dtype)
    source = torch.Generator().manual_seed(seed)
    start = policy.env.initial(n)
    return rollout(policy, start, condition, source, keep_log_pf=True, **options)


def scored(batch, seed=5):
    source = torch.Generator().manual_seed(seed)
    batch.log_reward = torch.randn(batch.n, generator=source, dtype=batch.states.dtype)
    return batch
