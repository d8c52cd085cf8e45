"""Invariants of denoising trajectories, before any objective rests on them."""

import copy
import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from gflow.conditions import Conditions
from gflow.envs.denoising import (
    SAMPLERS,
    Denoising,
    brownian,
    denoising_diffusion,
    diffusion,
    flow,
    time_grid,
)
from gflow.envs.denoising.steps import Steps
from gflow.estimators import log_z_bounds
from gflow.mdp import concat_trajectories, evaluate, pad_trajectories
from gflow.objectives.balance import (
    DetailedBalance,
    SubTrajectoryBalance,
    TrajectoryBalance,
    VarGrad,
    trajectory_balance,
)
from gflow.policies.denoiser import DenoiserPolicy
from gflow.sampling import Replay
from gflow.sampling.rollout import Exploration, rollout
from tests.denoisers import SCHEDULES, WITH_DENSITY, alphas, make_policy, sample, scored

DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_replay_identity(name, dtype):
    """Re-evaluated with unchanged parameters, every step's ratio to its sampled density is 1.

    A step of standard deviation s makes of a point's rounding 1 / s as much in its log-density: in
    float32 the ratio is 1 within 1e-6 where s is 0.1 or more, and within 1e-6 / s below (here in
    the last steps of DDPM and DDS).
    """
    policy = make_policy(SCHEDULES[name]((3,)), dtype)
    batch = sample(policy, 50, dtype=dtype)
    assert batch.states.dtype == dtype
    again = evaluate(policy, batch, frozenset()).log_pf
    s = policy.env.forward.s
    small = (s > 0) & (s < 0.1) & (dtype == torch.float32)
    bound = torch.where(small, 1e-6 / s, 1e-6)
    assert (((again - batch.log_pf_old).exp() - 1).abs() < bound).all()
    policy.env.check(batch)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_record(name):
    env = SCHEDULES[name]((3,))
    batch = sample(make_policy(env), 4)
    blank = int(env.source > 0)
    assert batch.valid.all() and batch.valid.shape == (4, env.max_steps)
    assert batch.actions.numel() == batch.backward_actions.numel() == 0
    assert (batch.states[:, 0] == 0).all()
    assert batch.clock.shape == (4, env.max_steps + 1)
    assert (batch.clock[:, blank:].diff(dim=1) < 0).all() and (batch.clock[:, -1] == 0).all()
    assert torch.equal(batch.stochastic[0], env.drawn)
    assert batch.stochastic[:, :blank].sum() == 0
    assert env.deterministic == (name in ("euler", "cps"))
    assert batch.terminal.done.all()
    points = env.decode(batch.terminal)
    again = env.encode(points)
    assert torch.equal(again.data, batch.terminal.data)
    assert torch.equal(again.step, batch.terminal.step)


@pytest.mark.parametrize("variance, dim", [(1.0, 2), (5.0, 3)])
def test_brownian_identity(variance, dim):
    """Without drift, against the bridge and a normal target, every residual is 0."""
    env = brownian((dim,), 20, variance)
    policy = make_policy(env, scale=0.0)
    batch = sample(policy, 32, exploration=Exploration(temperature=3.0))
    x = batch.terminal.data
    batch.log_reward = -0.5 * x.square().sum(1) / variance - 0.5 * dim * math.log(
        2 * math.pi * variance
    )
    found = evaluate(policy, batch, frozenset({"log_pb"}))
    residual = trajectory_balance(found.log_pf, found.log_pb, torch.zeros(32), batch.log_reward)
    assert residual.abs().max() < 1e-12


def test_stationary_diffusion_identity():
    """The same for the variance-preserving reference."""
    env = denoising_diffusion((2,), 15, 3.0)
    policy = make_policy(env, scale=0.0)
    batch = sample(policy, 32)
    x = batch.terminal.data
    batch.log_reward = -x.square().sum(1) / 6.0 - math.log(2 * math.pi * 3.0)
    found = evaluate(policy, batch, frozenset({"log_pb"}))
    residual = trajectory_balance(found.log_pf, found.log_pb, torch.zeros(32), batch.log_reward)
    assert residual.abs().max() < 1e-12


class ExactVelocity(nn.Module):
    """E[eps - x_0 | x_t] for data N(0, I)."""

    def forward(self, x, t, encoding):
        t = t.unsqueeze(1)
        return x * (2 * t - 1) / ((1 - t).square() + t.square())


def test_noising_is_the_reverse_of_the_flow():
    """With the exact velocity of normal data detailed balance comes with a finer grid.

    The noise is that of the noising process itself, g^2 = 2 t / (1 - t); any other is a process
    that the backward kernel does not reverse.
    """
    spread = []
    for steps in (20, 80, 320):
        env = flow((2,), time_grid(steps), noise=math.sqrt(2))
        policy = DenoiserPolicy(env, ExactVelocity()).double()
        batch = sample(policy, 64)
        found = evaluate(policy, batch, frozenset({"log_pb"}))
        middle = slice(steps // 4, 3 * steps // 4)
        gap = (found.log_pf - found.log_pb)[:, middle].sum(1)
        here, there = batch.states[:, middle.start], batch.states[:, middle.stop]
        t, s = (batch.clock[0, i].double() for i in (middle.start, middle.stop))
        marginal = [
            -0.5 * z.square().sum(1) / v - v.log()
            for z, v in ((here, (1 - t) ** 2 + t**2), (there, (1 - s) ** 2 + s**2))
        ]
        spread.append(float((marginal[0] + gap - marginal[1]).abs().mean()))
    assert spread[1] < 0.6 * spread[0] and spread[2] < 0.6 * spread[1] and spread[2] < 0.2


@pytest.mark.parametrize("objective", [TrajectoryBalance(), DetailedBalance(), VarGrad()])
@pytest.mark.parametrize("name", ["brownian", "flow_sde"])
def test_padding_changes_nothing(objective, name):
    policy = make_policy(SCHEDULES[name]((3,)))
    batch = scored(sample(policy))
    padded = pad_trajectories(batch, batch.valid.shape[1] + 3)
    want = objective(policy, batch).value
    # The appended columns have no clock of the schedule's own; they repeat the last one.
    got = objective(policy, padded).value
    assert torch.allclose(want, got, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["brownian", "dds"])
def test_units_do_not_matter(name):
    """In other units both densities shift alike, so that log P_F - log P_B is unchanged."""
    unit = 3.0
    factory = {"brownian": brownian, "dds": denoising_diffusion}[name]
    small, large = factory((2,), 7, 1.5), factory((2,), 7, 1.5 * unit**2)

    class Rescaled(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x, t, encoding):
            out = self.network(x / unit, t, encoding)
            return out * unit if name == "brownian" else out / unit

    policy = make_policy(small)
    other = DenoiserPolicy(large, Rescaled(policy.network)).double()
    batch = sample(policy)
    scaled = replace(batch, states=batch.states * unit)
    one = evaluate(policy, batch, frozenset({"log_pb"}))
    two = evaluate(other, scaled, frozenset({"log_pb"}))
    random = small.drawn
    shift = -2 * math.log(unit)
    assert torch.allclose(two.log_pf[:, random], one.log_pf[:, random] + shift)
    between = random & (small.undoing[1, 1:] > 0)
    assert torch.allclose(two.log_pb[:, between], one.log_pb[:, between] + shift)


def test_continuous_and_discrete_share_their_functions():
    """Trajectory balance of a denoising batch is that of the plain numbers."""
    policy = make_policy(SCHEDULES["flow_sde"]((3,)))
    batch = scored(sample(policy))
    found = evaluate(policy, batch, frozenset({"log_pb", "log_z"}))
    by_hand = found.log_z + found.log_pf.sum(1) - found.log_pb.sum(1) - batch.log_reward
    loss = TrajectoryBalance()(policy, batch)
    assert torch.allclose(loss.value, by_hand.square().mean())
    loss.value.backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.network.parameters())


@pytest.mark.parametrize("name", WITH_DENSITY)
def test_backward_walks_are_forward_records(name):
    """Noised from given points, a record starts where walks start and is scored like any other."""
    policy = make_policy(SCHEDULES[name]((3,)))
    ends = policy.env.encode(list(torch.randn(5, 3, generator=torch.Generator().manual_seed(0))))
    condition = Conditions().sample(5, dtype=torch.float64)
    batch = rollout(policy, ends, condition, torch.Generator().manual_seed(1), backward=True)
    assert torch.allclose(batch.terminal.data.float(), ends.data)
    assert (batch.states[:, 0] == 0).all()
    found = evaluate(policy, batch, frozenset({"log_pb"}))
    assert torch.isfinite(found.log_pf).all() and torch.isfinite(found.log_pb).all()
    assert batch.clock is not None and batch.stochastic is not None


def test_batches_are_joined_stored_and_replayed():
    policy = make_policy(brownian((3,), 5), torch.float32)
    first, second = (sample(policy, 4, seed, torch.float32) for seed in (0, 1))
    both = concat_trajectories([first, second])
    replay = Replay(6)
    replay.add(scored(both))
    assert len(replay) == 6
    again = replay.sample(10, torch.Generator().manual_seed(0))
    log_pf = evaluate(policy, again, frozenset()).log_pf
    assert torch.allclose(log_pf, again.log_pf_old, rtol=0, atol=1e-6)


def test_another_clock_is_refused():
    policy = make_policy(flow((3,), time_grid(9)))
    batch = sample(policy)
    for other in (
        flow((3,), time_grid(9, shift=3.0)),
        flow((3,), time_grid(9), clock=time_grid(9) * 1e3),
    ):
        policy.env = other
        with pytest.raises(ValueError, match="another clock"):
            evaluate(policy, batch, frozenset())
    batch.clock = None
    with pytest.raises(ValueError, match="another clock"):
        evaluate(policy, batch, frozenset())


def test_noise_in_a_window_of_steps():
    env = flow((3,), time_grid(6), noise=0.5)
    mask = torch.tensor([False, True, True, False, False, False])
    some = env.only(mask)
    assert torch.equal(some.drawn, torch.tensor([False, *mask.tolist()]))
    policy = make_policy(some)
    batch = sample(policy)
    assert torch.equal(batch.stochastic[0], some.drawn)
    ode = flow((3,), time_grid(6), "euler")
    wanted = [
        torch.where(mask, a[1:], b[1:]) for a, b in zip(env.forward, ode.forward, strict=True)
    ]
    for table, expected in zip(some.forward, wanted, strict=True):
        assert torch.equal(table[1:], expected)
    # Moving the window makes the stored batch another schedule's.
    policy.env = env.only(mask.roll(1))
    with pytest.raises(ValueError, match="another choice of stochastic steps"):
        evaluate(policy, batch, frozenset())
    with pytest.raises(ValueError, match="deterministic steps"):
        brownian((3,), 6).only(mask)


@pytest.mark.parametrize(
    "objective",
    [TrajectoryBalance(), VarGrad(), DetailedBalance(), SubTrajectoryBalance(),
     TrajectoryBalance(relative=True)],
)  # fmt: skip
@pytest.mark.parametrize("name", ["euler", "cps"])
def test_a_deterministic_step_in_a_balance_loss_is_refused(objective, name):
    policy = make_policy(SCHEDULES[name]((3,)))
    if objective.relative:
        objective = replace(objective, prior=make_policy(policy.env))
    with pytest.raises(ValueError, match="deterministic"):
        objective(policy, scored(sample(policy)))


def test_the_noising_of_the_denoising_diffusion_sampler():
    """From data to source, the share of the data that is left falls evenly in its logit."""
    env = denoising_diffusion((1,), 9, 4.0, ends=(0.02, 0.004))
    kept = env.backward.a[1:].square().flip(0).cumprod(0)
    assert torch.allclose(env.backward.s[1:].square(), 4.0 * (1 - env.backward.a[1:].square()))
    assert torch.allclose(kept[[0, -1]], torch.tensor([0.996, 0.02], dtype=torch.float64))
    gaps = kept.logit().diff()
    assert torch.allclose(gaps, gaps[:1].expand(8))
    for wrong in ((1.0, 0.1), (0.9, 0.2), (0.0, 0.1)):
        with pytest.raises(ValueError, match="ends within"):
            denoising_diffusion((1,), 9, ends=wrong)


def test_schedules_that_do_not_end_at_data_are_refused():
    with pytest.raises(ValueError, match=r"does not end at data: noise of 0[.]125"):
        flow((3,), time_grid(9)[:-1])
    with pytest.raises(ValueError, match="does not end at data"):
        diffusion((3,), torch.linspace(0.1, 0.9, 5), clock=time_grid(4))
    with pytest.raises(ValueError, match="times must fall"):
        flow((3,), time_grid(9).flip(0))
    with pytest.raises(ValueError, match="must rise"):
        diffusion((3,), torch.linspace(0.9, 0.1, 5), clock=time_grid(4))
    with pytest.raises(ValueError, match="unknown sampler 'heun'"):
        flow((3,), time_grid(4), "heun")
    with pytest.raises(ValueError, match=r"unknown setting 'eta' .*flow_sde.*: it has noise"):
        flow((3,), time_grid(4), eta=0.5)
    with pytest.raises(ValueError, match=r"unknown setting 'noise' .*dpm_sde.*: it has none"):
        flow((3,), time_grid(4), "dpm_sde", noise=0.5)
    with pytest.raises(ValueError, match=r"need tables of 7 steps"):
        flow((3,), time_grid(9), clock=time_grid(7))


def test_schedules_that_do_not_start_at_noise_are_refused():
    """The source is N(0, I), which is not what a path has on its way."""
    with pytest.raises(ValueError, match="does not start at noise: signal of 1 times the noise"):
        flow((3,), 0.5 * time_grid(4))
    with pytest.raises(ValueError, match="does not start at noise: signal of 3 times the noise"):
        diffusion((3,), torch.linspace(0.9, 0.999, 5), clock=time_grid(4))
    # The first of four "leading" times of Stable Diffusion has a cumulative alpha of 0.056.
    diffusion((3,), torch.linspace(0.056, 0.999, 5), clock=time_grid(4))
    flow((3,), 0.98 * time_grid(4))


def test_environments_travel():
    env = flow((3,), time_grid(4), "dance_sde", noise=0.2)
    batch = sample(make_policy(env))
    for other in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        other.check(batch)
    assert set(SAMPLERS) == {"euler", "flow_sde", "dance_sde", "sage_sde", "cps", "dpm_sde"}


def test_schedules_without_a_density_where_one_is_needed_are_refused():
    ones, times = torch.ones(2, dtype=torch.float64), time_grid(2)

    def make(forward, backward):
        steps = [Steps(ones, ones, torch.tensor(s).double()) for s in (forward, backward)]
        return Denoising((3,), *steps, times)

    assert not make((1.0, 1.0), (0.0, 1.0)).deterministic
    for forward, backward in (((1.0, 0.0), (0.0, 1.0)), ((1.0, 1.0), (1.0, 0.0))):
        policy = make_policy(make(forward, backward))
        batch = scored(sample(policy))
        with pytest.raises(ValueError, match="deterministic"):
            TrajectoryBalance()(policy, batch)
        with pytest.raises(ValueError, match="importance weights need the density"):
            log_z_bounds(policy, batch)
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="no finite numbers"):
            make((1.0, wrong), (0.0, 1.0))
    with pytest.raises(ValueError, match="below 0"):
        make((1.0, -1.0), (0.0, 1.0))


def test_settings_of_schedules_out_of_range_are_refused():
    signal = alphas()
    for eta in (-0.5, 2.0, math.nan):
        with pytest.raises(ValueError, match="eta must lie in"):
            diffusion((3,), signal, eta, clock=time_grid(8))
    for noise in (-0.7, math.nan):
        with pytest.raises(ValueError, match="noise must be at least 0"):
            flow((3,), time_grid(4), noise=noise)
    with pytest.raises(ValueError, match="times must fall"):
        flow((3,), torch.tensor([1.0, 0.5, -0.2]))
    for make in (brownian, denoising_diffusion):
        for variance in (0.0, -1.0):
            with pytest.raises(ValueError, match="variance of a walk must be above 0"):
                make((3,), 5, variance)


@pytest.mark.parametrize("prediction", ["velocity", "noise", "clean"])
def test_steps_are_as_long_whatever_is_predicted(prediction):
    times = 0.98 * time_grid(5)
    env = flow((3,), times, prediction=prediction)
    assert torch.allclose(env.lengths, -times.diff())
    assert torch.equal(env.only(torch.arange(5) < 2).lengths, env.lengths)
    even = diffusion((3,), alphas(), clock=1000 * time_grid(8), prediction=prediction)
    assert torch.allclose(even.lengths, torch.full((8,), 0.125, dtype=torch.float64))
