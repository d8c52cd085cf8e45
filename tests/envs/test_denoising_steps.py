"""Step tables against the numbers of their papers, computed in float64."""

import math

import pytest
import torch

from gflow.envs.denoising import steps as st
from gflow.kernels import AffineGaussian


def at(value):
    return torch.tensor(float(value), dtype=torch.float64)


def near(value, expected, digits=6):
    assert torch.allclose(
        torch.as_tensor(value, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=0,
        atol=0.51 * 10**-digits,
    )


def named(value):
    return getattr(value, "__name__", "")


ONE_STEP = [
    (st.euler, {}, (1, -0.1, 0, 0.53, None)),
    (st.flow_sde, {"noise": 0.7}, (0.8775, -0.1245, 0.442719, 0.4761, -0.143279)),
    (st.dance_sde, {"noise": 0.3}, (0.994375, -0.101125, 0.094868, 0.527525, 1.144514)),
    (st.sage_sde, {"noise": 0.5}, (0.952271, -0.109546, 0.276344, 0.508999, 0.312949)),
    (st.cps, {"noise": 0.8}, (0.516312, -0.196738, 0.665740, 0.317177, -0.602320)),
    (st.dpm_sde, {}, (0.708333, -0.158333, 0.568563, 0.401667, None)),
]


@pytest.mark.parametrize(
    "sampler, options, expected", ONE_STEP, ids=lambda v: getattr(v, "__name__", "")
)
def test_one_step(sampler, options, expected):
    table = sampler(at(0.8), at(0.7), **options)
    a, b, s, mean, log_density = expected
    near(table.a, a)
    near(table.b, b)
    near(table.s, s)
    mu = table.a * 0.5 + table.b * -0.3
    near(mu, mean)
    if log_density is not None:
        kernel = AffineGaussian(mu.view(1, 1), table.s.view(1, 1))
        near(kernel.log_prob(at(0.6).view(1, 1)), [log_density])


def test_first_step_of_flow_sde_is_clamped_at_the_next_time():
    table = st.flow_sde(at(1), at(0.9), 0.7)
    near(torch.stack(table), [0.755, -0.1, 0.7])


def test_cps_without_noise_is_euler():
    grid = st.time_grid(7, shift=3.0)
    for a, b in zip(st.cps(grid[:-1], grid[1:], 0.0), st.euler(grid[:-1], grid[1:]), strict=True):
        assert torch.allclose(a, b, atol=1e-15)


@pytest.mark.parametrize(
    "eta, mean, std", [(0.0, 0.533820, 0.0), (0.5, 0.525694, 0.207020), (1.0, 0.495990, 0.414039)]
)
def test_ddim(eta, mean, std):
    table = st.ddim(at(0.5), at(0.7), eta)
    near(table.a * 0.5 + table.b * 0.2, mean)
    near(table.s, std)
    if eta == 1:
        kernel = AffineGaussian(at(mean).view(1, 1), at(std).view(1, 1))
        near(kernel.log_prob(at(0.6).view(1, 1)), [-0.068697], 5)


def test_ddim_with_eta_one_is_the_posterior_of_ddpm():
    signal, nearer = at(0.5), at(0.7)
    alpha = signal / nearer
    table = st.ddim(signal, nearer)
    x, noise = at(0.5), at(0.2)
    clean = (x - (1 - signal).sqrt() * noise) / signal.sqrt()
    mean = (nearer.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - nearer) * x) / (1 - signal)
    assert torch.allclose(table.a * x + table.b * noise, mean, atol=1e-15)
    near(table.s, math.sqrt((1 - nearer) / (1 - signal) * (1 - alpha)), 12)


def test_multistep_solver():
    x, v, before = at(0.5), at(-0.3), at(0.7)
    clean = x - 0.8 * v
    table = st.dpm_multistep(at(0.8), at(0.7), at(0.9))
    near(table.a * x + table.b * clean + table.c * before, 0.531662)
    # Order 1 is Euler's rule: without a past, after a step from t = 1, and in a step to t = 0.
    for t, t_next, t_before in [(0.8, 0.7, math.nan), (0.8, 0.7, 1.0), (0.8, 0.0, 0.9)]:
        table = st.dpm_multistep(at(t), at(t_next), at(t_before))
        clean = x - t * v
        assert table.c == 0
        assert torch.allclose(table.a * x + table.b * clean, x + (t_next - t) * v, atol=1e-15)


def terminal_variance(sampler, steps, tau, **options):
    """Variance and mean at t = 0 under the exact velocity of a target N(2, tau^2)."""
    grid = st.time_grid(steps)
    t, t_next = grid[:-1], grid[1:]
    table = sampler(t, t_next, **options)
    total = (1 - t).square() * tau**2 + t.square()
    slope = (t - (1 - t) * tau**2) / total
    mean, variance = at(0), at(1)
    for k in range(steps):
        velocity = slope[k] * (mean - (1 - t[k]) * 2) - 2
        mean = table.a[k] * mean + table.b[k] * velocity
        variance = (table.a[k] + table.b[k] * slope[k]).square() * variance + table.s[k].square()
    return mean, variance


MARGINALS = [
    (st.euler, {}, (0.18557, 0.23214, 0.24541, 0.24971)),
    (st.flow_sde, {"noise": 0.7}, (0.22996, 0.24737, 0.25091, 0.25066)),
    (st.dance_sde, {"noise": 0.3}, (0.19497, 0.23482, 0.24611, 0.24975)),
    (st.dance_sde, {"noise": 1.0}, (0.25070, 0.24941, 0.24981, 0.24999)),
    (st.sage_sde, {"noise": 0.5}, (0.23372, 0.24644, 0.24894, 0.24996)),
    (st.cps, {"noise": 0.8}, (0.12375, 0.14906, 0.15825, 0.16285)),
]


@pytest.mark.parametrize(
    "sampler, options, expected", MARGINALS, ids=lambda v: getattr(v, "__name__", "")
)
def test_which_marginals_are_kept(sampler, options, expected):
    """The target's variance is 0.25; coefficients-preserving sampling does not converge to it."""
    for steps, variance in zip((10, 40, 160, 2560), expected, strict=True):
        mean, found = terminal_variance(sampler, steps, 0.5, **options)
        near(mean, 2.0, 8)
        near(found, variance, 5)


@pytest.mark.parametrize(
    "sampler, options, expected",
    [
        (st.euler, {}, 0),
        (st.cps, {"noise": 0.8}, 0),
        (st.flow_sde, {"noise": 0.7}, 0.006858),
        (st.sage_sde, {"noise": 0.5}, 0.001407),
        (st.dance_sde, {"noise": 0.3}, 0.012189),
        (st.dance_sde, {"noise": 1.0}, 4.030),
    ],
)
def test_noise_left_on_a_point_mass(sampler, options, expected):
    digits = 3 if expected > 1 else 6
    near(terminal_variance(sampler, 10, 0.0, **options)[1], expected, digits)


def moved_variance(sampler, t, t_next, tau, noise):
    """Variance after one step of the exact velocity from the path's marginal."""
    table = sampler(at(t), at(t_next), noise)
    total = (1 - t) ** 2 * tau**2 + t**2
    slope = (t - (1 - t) * tau**2) / total
    return (table.a + table.b * slope) ** 2 * total + table.s**2


def test_one_step_leaves_the_variance_that_is_known():
    # Flow-SDE on a point mass: g^2 h^2 / t + g^4 h^2 / (4 t^2) too much.
    near(moved_variance(st.flow_sde, 0.5, 0.4, 0.0, 0.7) - 0.4**2, 0.012201)
    # Its first step, whose variance is that of the next time's denominator.
    near(moved_variance(st.flow_sde, 1.0, 0.9999999, 0.5, 0.7), 1 + 0.7**4 / 4, 4)
    # CPS at a standstill: -P Q (1 - c)^2 / (P + Q).
    p, q, c = 0.25 * 0.25, 0.25, math.cos(0.8 * math.pi / 2)
    near(moved_variance(st.cps, 0.5, 0.5, 0.5, 0.8), p + q - p * q * (1 - c) ** 2 / (p + q))
    near(moved_variance(st.cps, 0.5, 0.5, 0.5, 0.8), 0.288627)


def test_cps_at_full_noise_starts_anew_from_the_clean_point():
    table = st.cps(at(0.8), at(0.7), 1.0)
    near(torch.stack(table), [0.3, -0.8 * 0.3, 0.7])


def test_gradient_coefficients_of_flow_sde():
    grid = st.time_grid(10)
    table = st.flow_sde(grid[:-1], grid[1:], 0.7)
    expected = [0.1429, 0.1875, 0.2812, 0.3682, 0.4592, 0.5624, 0.6888, 0.8591, 1.1249]
    near((table.b.abs() / table.s)[:9], expected, 4)
    near(table.b.abs()[:9] / 0.1, [1.0] + [1.245] * 8, 12)


def test_integrated_variance():
    grid = st.time_grid(10)
    table = st.sage_sde(grid[:-1], grid[1:], 1.0)
    expected = [3.4066, 0.5931, 0.3055, 0.1877, 0.1231, 0.0823, 0.0542, 0.0335, 0.0178, 0.0054]
    near(table.s.square(), expected, 4)


def test_shifted_grid():
    grid = st.time_grid(20, shift=5.0)
    assert grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()
    assert torch.allclose(grid[10], 5 * at(0.5) / (1 + 4 * at(0.5)))
    near(st.sage_sde(grid[:1], grid[1:2], 1.0).s.square(), [1.2344], 4)
    with pytest.raises(ValueError, match="shift"):
        st.time_grid(5, shift=0.0)


def test_noising_composes_to_the_path():
    """From data, step after step, the forward process has the path's marginals."""
    t = st.time_grid(6).flip(0)
    for path in (st.linear_path, lambda t: st.variance_preserving(1 - 0.999 * t)):
        table = st.noising(path(t[1:]), path(t[:-1]))
        scale, variance = at(1), at(0)
        scale, variance = scale * path(t[0]).signal, path(t[0]).noise ** 2
        for k in range(6):
            scale = scale * table.a[k]
            variance = variance * table.a[k] ** 2 + table.s[k] ** 2
            assert torch.allclose(scale, path(t[k + 1]).signal, atol=1e-14)
            assert torch.allclose(variance.sqrt(), path(t[k + 1]).noise, atol=1e-14)


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("given", st.PREDICTIONS)
@pytest.mark.parametrize("wanted", st.PREDICTIONS)
def test_predictions_are_translated(given, wanted, linear):
    t = torch.linspace(0.9, 0.1, 5, dtype=torch.float64)
    path = st.linear_path(t) if linear else st.variance_preserving((1 - t).square())
    clean, noise = at(0.3), at(-1.1)
    x = path.signal * clean + path.noise * noise
    velocity = noise - clean if linear else path.signal * noise - path.noise * clean
    truth = {"clean": clean.expand(5), "noise": noise.expand(5), "velocity": velocity.expand(5)}
    alpha, beta = st.translation(path, given, wanted, linear)
    assert torch.allclose(alpha * x + beta * truth[given], truth[wanted], atol=1e-12)
    steps = st.euler(t, t - 0.05)
    other = st.predicting(steps, alpha, beta)
    assert torch.allclose(
        steps.a * x + steps.b * truth[wanted], other.a * x + other.b * truth[given], atol=1e-12
    )


def test_a_noise_prediction_says_nothing_at_pure_noise():
    with pytest.raises(ValueError, match="'noise' does not determine 'velocity'"):
        st.translation(st.linear_path(torch.tensor([1.0, 0.5])), "noise", "velocity")
    with pytest.raises(ValueError, match="unknown prediction"):
        st.translation(st.linear_path(torch.tensor([0.5])), "score", "velocity")


def test_gaussian_kernel_divergences_and_reductions():
    draw = torch.Generator().manual_seed(0)
    m1, m2 = torch.randn(2, 5, 3, 2, generator=draw, dtype=torch.float64)
    s1, s2 = torch.rand(2, 5, 1, 1, generator=draw, dtype=torch.float64) + 0.5
    p, q = AffineGaussian(m1, s1), AffineGaussian(m2, s2)
    truth = torch.distributions.Normal(m1, s1.expand(m1.shape))
    other = torch.distributions.Normal(m2, s2.expand(m1.shape))
    x = p.sample(torch.randn(m1.shape, generator=draw, dtype=torch.float64))
    assert torch.allclose(p.log_prob(x), truth.log_prob(x).sum((1, 2)))
    assert torch.allclose(p.entropy(), truth.entropy().sum((1, 2)))
    assert torch.allclose(p.kl(q), torch.distributions.kl_divergence(truth, other).sum((1, 2)))
    mean = AffineGaussian(m1, s1, "mean")
    assert torch.allclose(6 * mean.log_prob(x), p.log_prob(x))
    assert torch.allclose(6 * mean.entropy(), p.entropy())
    warm = p.explore(None, 4.0)
    assert torch.equal(warm.mean, m1) and torch.allclose(warm.std, 2 * s1)


def test_kl_to_the_reference():
    """B5: t = 0.8 -> 0.7, a = 0.7, velocities 0.2 apart."""
    table = st.flow_sde(at(0.8), at(0.7), 0.7)
    kernels = [AffineGaussian((table.b * v).view(1, 1), table.s.view(1, 1)) for v in (0.1, 0.3)]
    near(kernels[0].kl(kernels[1]), [1.581658e-3], 9)


def test_a_deterministic_row_has_no_density():
    mean = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    kernel = AffineGaussian(mean, torch.tensor([[0.0], [2.0]], dtype=torch.float64))
    noise = torch.ones(2, 3, dtype=torch.float64)
    x = kernel.sample(noise).detach()
    assert (x[0] == 0).all() and (x[1] == 2).all()
    values = kernel.log_prob(x + 1)
    assert values[0] == 0 and values[1] != 0
    assert kernel.entropy()[0] == 0 and kernel.kl(kernel)[0] == 0
    values.sum().backward()
    assert (mean.grad[0] == 0).all() and (mean.grad[1] != 0).all()


def test_what_a_gaussian_kernel_refuses():
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match="float32 or float64"):
            AffineGaussian(torch.zeros(2, 3, dtype=dtype), torch.ones(2, 1, dtype=dtype))
    kernel = AffineGaussian(torch.zeros(2, 3), torch.ones(2, 1))
    with pytest.raises(ValueError, match="unknown reduction"):
        AffineGaussian(torch.zeros(2, 3), torch.ones(2, 1), "median")
    # Something wrong with the width must not pass for a step without noise.
    for wrong in (math.nan, -1.0):
        broken = AffineGaussian(torch.zeros(2, 3), torch.full((2, 1), wrong))
        for value in (broken.log_prob(torch.ones(2, 3)), broken.entropy(), broken.kl(kernel)):
            assert value.isnan().all()
    with pytest.raises(ValueError, match="no even choice"):
        kernel.explore(torch.ones(2, dtype=torch.bool), 1.0)
    with pytest.raises(NotImplementedError):
        kernel.log_probs()
