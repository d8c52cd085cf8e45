"""One normal variable denoised exactly: every expectation on its paths is known.

Data are N(2, 0.5^2); the velocity is the exact one plus a parameter for each step.
"""

import math

import torch
from torch import nn

from gflow.envs.denoising.schedules import flow
from gflow.envs.denoising.steps import time_grid
from gflow.mdp import Condition
from gflow.objectives.policy_gradient.path_objective import PathGradient
from gflow.policies.denoiser import DenoiserPolicy
from gflow.sampling.rollout import rollout

MEAN, SPREAD = 2.0, 0.5

PLAIN = PathGradient(baseline="leave_one_out", scale="none", bound=1e9, clip=(0.0, math.inf))


def slope(t):
    """c_t of the exact velocity c_t (x - (1 - t) m) - m."""
    return (t - (1 - t) * SPREAD**2) / ((1 - t) ** 2 * SPREAD**2 + t**2)


class Shifted(nn.Module):
    """The exact velocity plus theta_k in step k."""

    def __init__(self, times):
        super().__init__()
        self.register_buffer("times", times.double())
        self.theta = nn.Parameter(torch.zeros(len(times) - 1, dtype=torch.float64))

    def forward(self, x, t, encoding):
        step = (t.double().unsqueeze(1) - self.times[:-1]).abs().argmin(1)
        t = t.unsqueeze(1)
        return slope(t) * (x - (1 - t) * MEAN) - MEAN + self.theta[step].unsqueeze(1)


def make(sampler="flow_sde", steps=5, head=None, **options):
    """A policy on the exact velocity in float64, which acts as one without conditions."""
    times = time_grid(steps)
    env = flow((1,), times, sampler, **options)
    return DenoiserPolicy(env, Shifted(times), flow=head).double()


def no_condition(n):
    one = torch.ones(n, dtype=torch.float64)
    return Condition(one.new_zeros(n, 0), None, one)


def gradient_of_the_mean(env, steps=None):
    """d E[x_0] / d theta_k, [N]: B_k times what the later steps keep of a shift.

    Args:
        env: the schedule.
        steps: table to walk the later steps by, that of `env` by default.
    """
    times = env.tables[-1][1:]
    c = slope(times[:-1])
    later = env.forward if steps is None else steps
    a, b = (table[-len(c) :] for table in later[:2])
    kept = (a + b * c).flip(0).cumprod(0).flip(0)
    kept = torch.cat([kept[1:], kept.new_ones(1)])
    return env.forward.b[1:] * kept


def paths(policy, n, seed=0):
    """Scored paths of the present policy with reward x_0, as one group."""
    generator = torch.Generator().manual_seed(seed)
    batch = rollout(policy, policy.env.initial(n), no_condition(n), generator, keep_log_pf=True)
    batch.rewards = batch.terminal.data[:, :1]
    batch.group = torch.zeros(n, dtype=torch.int64)
    return batch
