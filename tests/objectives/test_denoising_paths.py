"""GFlowNet objectives on denoising paths: published vectors, exact chains, gradients."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from gflow.conditions import Conditions
from gflow.envs.denoising import brownian, denoising_diffusion, flow, time_grid
from gflow.envs.denoising.energies import EnergyOracle, GaussianMixture, gaussians9
from gflow.estimators import eubo, log_z_bounds, mode_shares
from gflow.mdp import Reward, evaluate
from gflow.objectives.balance import (
    DetailedBalance,
    GradientBalance,
    SubTrajectoryBalance,
    TrajectoryBalance,
    VarGrad,
    detailed_balance,
    potentials,
    subtrajectory_balance,
    trajectory_balance,
    trajectory_score,
    vargrad,
)
from gflow.objectives.balance.gradient import backward_residual, forward_residual, forward_score
from gflow.objectives.balance.regression import REGRESSIONS
from gflow.policies.denoiser import DenoiserPolicy, GradientGuided, TimeMLP
from gflow.policies.exact import MixtureVelocity
from gflow.sampling import Exploration, OnPolicy, Scorer
from gflow.sampling.clean import WithCleanRewards
from gflow.sampling.rollout import rollout
from gflow.scalarize import log_linear
from gflow.training import Trainer, TrainerSettings

half = REGRESSIONS["half_squared"]


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def test_vectors_of_diffusion_samplers():
    log_pf, log_pb, log_r = row(-0.5, -1.2), row(0.0, -0.7), row(0.4)[0]
    residual = trajectory_balance(log_pf, log_pb, row(0.3)[0], log_r)
    assert torch.allclose(half(residual), row(0.605)[0])
    lengths = torch.tensor([2])
    u = potentials(row(0.3, 0.1, 0.4), log_pf, log_pb, lengths)
    assert torch.allclose(half(detailed_balance(u, lengths)).sum(), row(0.365)[0])
    assert torch.allclose(subtrajectory_balance(u, lengths, 2.0), row(0.7875)[0])


def test_vectors_of_log_weights():
    log_w = row(0.2, -0.1, 0.5, 0.0)[0]
    one_group = torch.zeros(4, dtype=torch.int64)
    assert torch.allclose(half(vargrad(-log_w, one_group)).mean(), row(0.02625)[0])
    assert torch.allclose(vargrad(-log_w, one_group).square().sum() / 3, row(0.07)[0])
    # A constant added to log R drops out.
    assert torch.allclose(vargrad(-log_w + 3, one_group), vargrad(-log_w, one_group))


def test_vectors_of_relative_trajectory_balance():
    log_p, log_prior = row(-3.0, -2.0)[0], row(-3.4, -2.1)[0]
    log_r, one = row(0.5, -0.2)[0], torch.ones(2, 1, dtype=torch.float64)
    residual = trajectory_balance(log_p[:, None], log_prior[:, None], 0.1 * one[:, 0], log_r)
    assert torch.allclose(half(residual), row(0.0, 0.08)[0])
    score = trajectory_score(log_p[:, None], log_prior[:, None], log_r)
    assert torch.allclose(score.mean(), row(0.1)[0])
    centred = vargrad(score, torch.zeros(2, dtype=torch.int64))
    assert torch.allclose(half(centred).mean(), row(0.02)[0])
    # Weight alpha on both log-probabilities.
    tempered = trajectory_score(0.5 * log_p[:, None], 0.5 * log_prior[:, None], log_r)
    centred = vargrad(tempered, torch.zeros(2, dtype=torch.int64))
    assert torch.allclose(half(centred).mean(), row(0.0378125)[0])


def test_bounds_of_log_z():
    """Target 2 N(0, 1), sampler N(0.8, 1) in one step."""
    env = brownian((1,), 1)
    policy = DenoiserPolicy(env, _Constant(0.8)).double()
    target = GaussianMixture(row(0.0), 1.0)
    n = 200_000
    condition = Conditions().sample(n, dtype=torch.float64)
    fresh = rollout(policy, env.initial(n), condition, torch.Generator().manual_seed(0))
    exact = env.terminal(target.sample(n, torch.Generator().manual_seed(1)))
    back = rollout(policy, exact, condition, torch.Generator().manual_seed(2), backward=True)
    for batch in (fresh, back):
        batch.log_reward = target.log_density(batch.terminal.data) + math.log(2)
    bounds = log_z_bounds(policy, fresh)
    assert abs(bounds.elbo - 0.3731472) < 0.01
    assert abs(bounds.log_z - 0.6931472) < 0.01
    assert abs(eubo(policy, back) - 1.0131472) < 0.01


class _Constant(nn.Module):
    def __init__(self, *values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, x, t, encoding):
        return self.values.expand_as(x)


class _Half(nn.Module):
    """log F = -|x|^2 / 2 - d log(2 pi) / 2."""

    def forward(self, x, t, encoding):
        size = x.shape[1] * 0.5 * math.log(2 * math.pi)
        return -0.5 * x.square().sum(1, keepdim=True) - size


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_stationary_flow_has_no_residual(temperature):
    """The reversible reference of a normal target: each transition balances, whoever drew it."""
    env = denoising_diffusion((3,), 12, 1.0)
    policy = DenoiserPolicy(env, TimeMLP(3, 3), flow=_Half()).double()
    condition = Conditions().sample(20, dtype=torch.float64)
    batch = rollout(
        policy,
        env.initial(20),
        condition,
        torch.Generator().manual_seed(0),
        exploration=Exploration(temperature=temperature),
    )
    found = evaluate(policy, batch, frozenset({"log_pb", "log_flow"}))
    terminal = GaussianMixture(torch.zeros(1, 3).double(), 1.0).log_density(batch.terminal.data)
    phi = torch.cat([found.log_flow, terminal.unsqueeze(1)], 1)
    u = potentials(phi, found.log_pf, found.log_pb, batch.lengths)
    # The first transition draws the source: the blank state's flow is log Z = 0.
    residual = detailed_balance(u, batch.lengths)[:, 1:]
    assert residual.abs().max() < 1e-12


def test_dag_residual():
    """log F = f + log R(x0_hat): f 0.2 and 0.5, log R 1 and 1.4, log P -1.3 and -0.9."""
    lengths = torch.tensor([1])
    u = potentials(row(0.2 + 1.0, 0.5 + 1.4), row(-1.3), row(-0.9), lengths)
    assert torch.allclose(detailed_balance(u, lengths).square(), row(1.21))


def test_log_rewards_of_clean_estimates():
    energy = gaussians9()
    env = flow((2,), time_grid(6))
    policy = DenoiserPolicy(env, MixtureVelocity(energy.means, energy.std)).double()
    score = Scorer(env, EnergyOracle(energy, env), log_linear)
    fresh = OnPolicy(policy, Conditions(), score, 5, 0, dtype=torch.float64)
    strategy = WithCleanRewards(fresh, policy, lambda x, c: energy.log_density(x))
    batch = strategy()
    partial = batch.partial_log_reward
    assert partial.shape == (5, env.max_steps + 1)
    assert torch.equal(partial[:, -1], batch.log_reward)
    assert (partial[:, 0] == 0).all()
    for k in range(1, env.max_steps):
        x, t = batch.states[:, k], batch.clock[:, k].double()
        clean = x - t[:, None] * policy.network(x, t, x[:, :0])
        assert torch.allclose(partial[:, k], energy.log_density(clean), atol=1e-4)
    loss = DetailedBalance(potential="forward_looking")
    flowing = DenoiserPolicy(env, TimeMLP(2, 2), flow=TimeMLP(2, 1)).double()
    assert torch.isfinite(loss(flowing, batch).value)


class _Linear(nn.Module):
    """Velocity slope_k x + shift_k on the steps of a grid."""

    def __init__(self, times, slope, shift):
        super().__init__()
        self.times, self.slope, self.shift = times, slope, shift

    def forward(self, x, t, encoding):
        k = (t.double().unsqueeze(1) - self.times[:-1]).abs().argmin(1)
        return self.slope[k, None] * x + self.shift[k, None]


def tilted_chain(noise):
    """Prior N(0, 1), log R = c x: prior, tilted policy, c_k of h_k = exp(c_k x), and c."""
    times, c = time_grid(12), 0.7
    env = flow((1,), times, noise=noise)
    t = times[:-1]
    slope = (2 * t - 1) / ((1 - t).square() + t.square())
    a, b, s = (table[1:] for table in env.forward)
    keep = a + b * slope
    passed = [torch.tensor(c, dtype=torch.float64)]
    for k in range(11, -1, -1):
        passed.append(passed[-1] * keep[k])
    passed = torch.stack(passed).flip(0)
    prior = DenoiserPolicy(env, _Linear(times, slope, torch.zeros(12).double())).double()
    tilted = DenoiserPolicy(env, _Linear(times, slope, passed[1:] * s.square() / b)).double()
    return prior, tilted, passed, c


def walk(policy, n, **options):
    condition = Conditions().sample(n, dtype=torch.float64)
    source = torch.Generator().manual_seed(0)
    return rollout(policy, policy.env.initial(n), condition, source, **options)


@pytest.mark.parametrize("noise", [0.7, math.sqrt(2)])
def test_relative_balance_of_an_exact_chain(noise):
    """Prior N(0, 1) and log R = c x: the tilted chain is exact but for the source.

    With h_k = exp(c_k x) passed back through the linear steps the tilted kernels move their means
    by c_{k+1} s_k^2. Nothing moves the source, so what is left of the residual is c_0 x_T: 0 only
    for noise that forgets it.
    """
    prior, tilted, passed, c = tilted_chain(noise)
    n = 64
    batch = walk(tilted, n, exploration=Exploration(temperature=1.7))
    batch.log_reward = c * batch.terminal.data[:, 0]
    mine = evaluate(tilted, batch, frozenset()).log_pf
    theirs = evaluate(prior, batch, frozenset()).log_pf
    residual = trajectory_balance(mine, theirs, torch.zeros(n), batch.log_reward)
    left = residual + passed[0] * batch.states[:, 1, 0]
    assert (left - left[0]).abs().max() < 1e-10
    assert (abs(passed[0]) > 0.05) == (noise == 0.7)
    if noise != 0.7:
        # log Z = c^2 / 2 of the continuous process; the chain of 12 steps has its own.
        assert abs(-left[0] - c**2 / 2) < 0.1
    loss = TrajectoryBalance(relative=True, regression="half_squared", prior=prior)
    assert torch.allclose(loss(tilted, batch).value, half(residual).mean())
    same = replace(loss, prior=tilted)
    batch.log_reward = torch.zeros(n, dtype=torch.float64)
    assert same(tilted, batch).value == 0


def test_gradient_balance_vectors():
    """mu_ref = 0.9 x, s = 0.5, log R = 2 x': the optimum is mu = 0.9 x + 0.5 with flow 1.8."""
    x, x_next, std = row(1.0), row(1.2), row(0.5)
    score = forward_score(x_next, 0.9 * x + 0.5, std)
    reference = forward_score(x_next, 0.9 * x, std)
    assert torch.allclose(score, row(0.8)) and torch.allclose(reference, row(-1.2))
    zero = row(0.0)
    assert forward_residual(score, reference, zero, row(2.0)).abs() < 1e-12
    back, back_reference = -0.9 * score, -0.9 * reference
    assert torch.allclose(back, row(-0.72)) and torch.allclose(back_reference, row(1.08))
    assert backward_residual(back, back_reference, row(1.8), zero).abs() < 1e-12


def nabla(steps=6):
    """A frozen mixture prior, a policy that starts there, and an objective."""
    env = flow((2,), time_grid(steps), noise=math.sqrt(2))
    energy = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double(), 0.5)
    prior = DenoiserPolicy(env, MixtureVelocity(energy.means, energy.std)).double()
    policy = DenoiserPolicy(env, _Corrected(prior.network), flow=TimeMLP(2, 2)).double()
    objective = GradientBalance(lambda x, c: 1.5 * x[:, 0], prior)
    score = Scorer(env, _Tilt(), log_linear)
    sampler = OnPolicy(policy, Conditions(), score, 32, 0, dtype=torch.float64)
    return policy, prior, objective, sampler


class _Tilt:
    rewards = (Reward("tilt", low=-math.inf, high=math.inf),)
    version = "1"
    on_states = True
    seconds = 0.0

    def __call__(self, states):
        return 1.5 * states.data[:, :1]


class _Corrected(nn.Module):
    def __init__(self, prior):
        super().__init__()
        self.prior, self.change = prior, TimeMLP(2, 2)

    def forward(self, x, t, encoding):
        return self.prior(x, t, encoding) + self.change(x, t, encoding)


def test_gradient_balance_without_a_reward_keeps_the_prior():
    policy, _, objective, sampler = nabla()
    none = replace(objective, log_reward=lambda x, c: 0.0 * x[:, 0])
    assert none(policy, sampler()).value < 1e-20
    # A constant added to log R changes nothing.
    batch = sampler()
    more = replace(objective, log_reward=lambda x, c: 1.5 * x[:, 0] + 7)
    assert torch.equal(objective(policy, batch).value, more(policy, batch).value)
    assert objective(policy, batch).value > 0.01


def test_gradient_balance_refuses():
    policy, prior, objective, sampler = nabla()
    with pytest.raises(ValueError, match="needs a log_reward and a reference"):
        GradientBalance()(policy, sampler())
    with pytest.raises(ValueError, match="needs gradients"):
        objective(
            DenoiserPolicy(policy.env, policy.network, flow=TimeMLP(2, 1)).double(), sampler()
        )
    with pytest.raises(ValueError, match="flow network"):
        objective(prior, sampler())
    with pytest.raises(ValueError, match="needs a flow"):
        GradientBalance(flow=False)
    batch, n = sampler(), policy.env.max_steps - 1
    other = DenoiserPolicy(flow(policy.env.state_shape, time_grid(n, 3.0)), TimeMLP(2, 2)).double()
    with pytest.raises(ValueError, match="another clock"):
        replace(objective, reference=other)(policy, batch)
    policy.env = prior.env = policy.env.only(torch.zeros(n, dtype=torch.bool))
    with pytest.raises(ValueError, match="no step of the batch was drawn with noise"):
        objective(policy, sampler())


def test_gradient_balance_of_an_exact_chain():
    """The tilted chain of `tilted_chain` balances with the gradient of its own log F~, c_k."""
    prior, tilted, passed, c = tilted_chain(math.sqrt(2))
    times = prior.network.times

    class Rest(nn.Module):
        """c_k minus the reward part c d x0_hat / d x."""

        def forward(self, x, t, encoding):
            k = (t.double().unsqueeze(1) - times).abs().argmin(1)
            slope = torch.cat([tilted.network.slope, torch.zeros(1).double()])[k]
            return (passed[k] - c * (1 - t * slope)).unsqueeze(1).expand_as(x)

    tilted.flow_network = Rest()
    batch = walk(tilted, 16)
    objective = GradientBalance(lambda x, _: c * x[:, 0], prior)
    loss = objective(tilted, batch)
    assert loss.value < 1e-20
    assert objective(_with_flow(prior, Rest()), batch).value > 1e-3


def _with_flow(policy, network):
    return DenoiserPolicy(policy.env, policy.network, flow=network).double()


def test_gradient_balance_moves_towards_the_tilt():
    """prior(x) exp(1.5 x_0) puts e^3 : 1 on two modes that the prior holds evenly."""
    policy, _, objective, sampler = nabla(8)
    Trainer(policy, objective, sampler, TrainerSettings(5e-3, log_every=0)).run(50)
    x = walk(policy, 2000).terminal.data
    assert (x[:, 0] > 0).double().mean() > 0.6


@pytest.mark.parametrize(
    "objective", [TrajectoryBalance(), VarGrad(), SubTrajectoryBalance(potential="forward_looking")]
)
def test_objectives_learn_two_modes(objective):
    """From a few hundred steps: both modes, and log Z by importance weights."""
    energy = GaussianMixture(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]).double(), 0.5)
    env = denoising_diffusion((2,), 12, 4.0)
    network = GradientGuided(TimeMLP(2, 2), energy.log_density)
    policy = DenoiserPolicy(env, network, flow=TimeMLP(2, 1, seed=1))
    score = Scorer(env, EnergyOracle(energy, env), log_linear, partial=True)
    sampler = OnPolicy(policy, Conditions(), score, 48, 0, exploration=Exploration(temperature=1.5))
    Trainer(policy, objective, sampler, TrainerSettings(5e-3, 0.1, log_every=0)).run(100)
    check = OnPolicy(policy, Conditions(), score, 2000, 1)
    with torch.no_grad():
        batch = check()
    bounds = log_z_bounds(policy, batch)
    shares = mode_shares(batch.terminal.data, energy.modes, 2.0)
    # 12 steps leave a gap to the ELBO that no network closes.
    assert abs(bounds.log_z) < 0.15 and bounds.elbo > -1.5
    assert (shares > 0.35).all()
