"""Policy gradients on denoising paths: vectors of the shared pieces, and the closed form."""

import math
from dataclasses import replace

import pytest
import torch

from gflow.conditions import PromptConditions
from gflow.envs.denoising import steps as tables
from gflow.envs.denoising.schedules import flow
from gflow.kernels import AffineGaussian
from gflow.mdp import States, Trajectories
from gflow.objectives.policy_gradient.advantages import advantage
from gflow.objectives.policy_gradient.buffer import RewardBuffer
from gflow.objectives.policy_gradient.path_objective import PathGradient, step_table
from gflow.objectives.policy_gradient.paths import (
    StepTable,
    gradient_coefficients,
    mean_shift,
    path_weights,
    ratio_powers,
)
from gflow.objectives.policy_gradient.surrogates import ppo_clip
from gflow.policies.reference import Anchored
from gflow.sampling.paths import OnPaths, Window
from gflow.sampling.rollout import rollout
from tests import gauss1d

PLAIN = PathGradient(baseline="leave_one_out", scale="none", bound=1e9, clip=(0.0, math.inf))


def table(steps=10, noise=0.7, shift=1.0, sampler=tables.flow_sde):
    t = tables.time_grid(steps, shift)
    made = sampler(t[:-1], t[1:], noise)
    return StepTable(made.b, made.s, t[:-1] - t[1:])


def but_last(steps=10):
    return torch.arange(steps) < steps - 1


def close(values, wanted, tolerance=6e-5):
    assert values.tolist() == pytest.approx(wanted, abs=tolerance)


def test_gradient_coefficients_of_flow_sde():
    path, trained = table(), but_last()
    one = ratio_powers("one", path)
    even = path_weights("even", path, trained)
    wanted = [0.1429, 0.1875, 0.2812, 0.3682, 0.4592, 0.5624, 0.6888, 0.8591, 1.1249]
    close(gradient_coefficients(path, one, even)[:9], wanted)
    noise = path_weights("noise", path, trained)
    tempered = gradient_coefficients(path, one, noise)[:9] * path.s[:9].mean()
    close(tempered, [0.1] + [0.1245] * 8, 1e-9)
    guard = gradient_coefficients(
        path, ratio_powers("noise", path), path_weights("time", path, trained)
    )
    close(guard[:9], [1.0] + [1.245] * 8, 1e-9)
    equal = path_weights("equal", path, trained)
    close(equal[:9], [3.2146, 2.4495, 1.633, 1.2472, 1, 0.8165, 0.6667, 0.5345, 0.4082])
    close(gradient_coefficients(path, one, equal)[:9], [0.4592] * 9)


@pytest.mark.parametrize(
    ("shift", "wanted"),
    [
        (1.0, [2.0496, 1.9444, 1.2963, 0.9901, 0.7938, 0.6481, 0.5292, 0.4243, 0.3241]),
        (3.0, [1.569, 1.655, 1.1917, 0.9895, 0.8691, 0.7845, 0.7161, 0.6511, 0.5742]),
    ],
)
def test_noise_weights(shift, wanted):
    weight = path_weights("noise", table(shift=shift), but_last())[:9]
    close(weight, wanted)
    assert float(weight.mean()) == pytest.approx(1)


def test_density_power_is_that_of_a_log_density_without_variance():
    path = table(sampler=tables.cps, noise=0.8)
    mean, x = torch.tensor([[0.3, -0.2]]).double(), torch.tensor([[0.5, 0.1]]).double()
    power = ratio_powers("density", path)
    for k in range(9):
        old, new = (AffineGaussian(m, path.s[k].view(1, 1), "mean") for m in (mean, mean + 0.05))
        plain = -(x - mean - 0.05).square().mean() + (x - mean).square().mean()
        assert float(power[k] * (new.log_prob(x) - old.log_prob(x))) == pytest.approx(float(plain))
    assert gradient_coefficients(path, power, torch.ones(10).double())[:9].tolist() == (
        pytest.approx((2 * path.s * path.b.abs())[:9].tolist())
    )


def guard_example():
    old = torch.tensor([[0.1, -0.2, 0.3, 0.0]], dtype=torch.float64)
    new = torch.tensor([[0.12, -0.21, 0.27, 0.01]], dtype=torch.float64)
    std = torch.tensor([[0.7 * math.sqrt(0.5 / 0.5) * math.sqrt(0.1)]], dtype=torch.float64)
    return old, new, std


def test_centered_ratio_of_a_step():
    old, new, std = guard_example()
    assert float(std) == pytest.approx(0.221359, abs=1e-6)
    noise = torch.tensor([[1, -0.5, 0.2, -1.2]], dtype=torch.float64)
    x = old + std * noise
    before, after = (AffineGaussian(mean, std, "mean") for mean in (old, new))
    delta = after.log_prob(x) - before.log_prob(x)
    shift = mean_shift(new, old, std)
    assert float(delta) == pytest.approx(0.004079164, abs=1e-9)
    assert float(shift) == pytest.approx(0.003826531, abs=1e-9)
    assert float(delta.exp()) == pytest.approx(1.004087495, abs=1e-9)
    assert float((std.squeeze(1) * (delta + shift)).exp()) == pytest.approx(1.001751532, abs=1e-9)
    assert float(shift) == pytest.approx(float(after.kl(before)))


def test_centering_makes_the_log_ratio_zero_mean_whatever_the_noise():
    old, new, std = guard_example()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400_000, 4, generator=generator, dtype=torch.float64)
    for scale in (1.0, 0.3):
        s = std * scale
        x = old + s * noise
        delta = AffineGaussian(new, s, "mean").log_prob(x) - AffineGaussian(
            old, s, "mean"
        ).log_prob(x)
        shift = mean_shift(new, old, s)
        assert float(delta.mean()) == pytest.approx(-float(shift), rel=0.05)
        if scale == 1.0:
            assert float(delta.std()) == pytest.approx(0.043741, rel=0.01)
        centered = s.squeeze(1) * (delta + shift)
        assert abs(float(centered.mean())) < 3 * 0.009682 / math.sqrt(400_000)
        assert float(centered.std()) == pytest.approx(0.009682, rel=0.01)


def test_divergence_of_a_step():
    made = tables.flow_sde(torch.tensor([0.8]).double(), torch.tensor([0.7]).double(), 0.7)
    x, v = torch.tensor([[0.5]]).double(), torch.tensor([[-0.3]]).double()
    kernels = [
        AffineGaussian(made.a * x + made.b * u, made.s.view(1, 1), "mean") for u in (v, v + 0.2)
    ]
    assert float(kernels[0].kl(kernels[1])) == pytest.approx(1.581658e-3, abs=1e-9)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("shift", [-0.3, 0.3])
def test_a_plain_clamp_has_no_gradient_outside_its_bounds(sign, shift):
    policy = gauss1d.make()
    batch = PLAIN.prepare(policy, paths(policy, 1))
    batch.advantage = torch.full_like(batch.advantage, sign)
    with torch.no_grad():
        policy.network.theta += shift
    bounds = (1 - 1e-9, 1 + 1e-9)
    moved = PathGradient(clip=bounds)(policy, batch)
    assert float(moved.metrics["clipped"]) == 1
    replace(PLAIN, clip=bounds, pessimistic=False)(policy, batch).value.backward()
    assert (policy.network.theta.grad == 0).all()
    # PPO's keeps the gradient of steps whose ratio went the wrong way.
    moved.value.backward()
    noise, path = table_noise(gauss1d.make(), batch)[0, 1:], step_table(policy)
    log_ratio = noise * (path.b * shift / path.s)[1:] - ((path.b * shift / path.s)[1:] ** 2) / 2
    assert torch.equal(policy.network.theta.grad != 0, sign * log_ratio < 0)


def test_clipping_each_reward_is_not_clipping_their_sum():
    advantage_ = torch.tensor([2.0, -1.0], dtype=torch.float64)
    ratio = torch.full((2,), 1.2, dtype=torch.float64)
    assert float(ppo_clip(ratio, advantage_, 0.9, 1.1).sum()) == pytest.approx(1.0)
    together = ppo_clip(ratio[:1], advantage_.sum().view(1), 0.9, 1.1)
    assert float(together) == pytest.approx(1.1)


def settings(**changes):
    """Advantages of one reward, by the settings of an objective."""
    made = PathGradient(**changes)

    def found(rewards, group):
        rewards = torch.tensor(rewards, dtype=torch.float64)
        rewards = rewards.view(len(rewards), -1)
        return advantage(
            rewards, torch.tensor(group), torch.ones(len(group)), combine=made.combine,
            baseline=made.baseline, scale=made.scale, eps=made.eps, ddof=made.ddof,
            weights=torch.full((rewards.shape[1],), 1 / rewards.shape[1], dtype=torch.float64),
        ).tolist()  # fmt: skip

    return found


def test_normalization_vectors():
    r = [1.0, 2, 3, 4]
    one = [0] * 4
    assert settings()(r, one) == pytest.approx([-1.161895, -0.387298, 0.387298, 1.161895], abs=1e-6)
    for eps, wanted in ((1e-4, (1.341521, 0.447174)), (1e-6, (1.341640, 0.447213))):
        found = settings(ddof=0, eps=eps)(r, one)
        assert found == pytest.approx([-wanted[0], -wanted[1], wanted[1], wanted[0]], abs=1e-6)
    two = [*r, 10.0, 10, 10, 14]
    group = [0] * 4 + [1] * 4
    wanted = [-0.333842, -0.111281, 0.111281, 0.333842, *[-0.222561] * 3, 0.667683]
    found = settings(ddof=0, eps=1e-4, scale="batch_std")(two, group)
    assert found == pytest.approx(wanted, abs=1e-6)
    found = settings(ddof=0, eps=1e-4)(two, group)[4:]
    assert found == pytest.approx([*[-0.577317] * 3, 1.731951], abs=1e-6)


def test_several_rewards_are_mixed_before_or_after():
    rewards = [[0.0, 0.0], [0.0, 10.0], [1.0, 0.0], [1.0, 10.0]]
    found = settings()(rewards, [0] * 4)
    assert found == pytest.approx([-0.947900, 0.775554, -0.775554, 0.947900], abs=1e-6)
    found = settings(combine="norm_then_sum")(rewards, [0] * 4)
    assert found == pytest.approx([-0.866025, 0, 0, 0.866025], abs=1e-6)


def paths(policy, n, seed=0):
    """Scored paths of the present policy with reward x_0, as one group."""
    generator = torch.Generator().manual_seed(seed)
    batch = rollout(
        policy, policy.env.initial(n), gauss1d.no_condition(n), generator, keep_log_pf=True
    )
    batch.rewards = batch.terminal.data[:, :1]
    batch.group = torch.zeros(n, dtype=torch.int64)
    return batch


def estimate(policy, objective, batch):
    """Gradient of the mean reward by each theta, and its standard error, [N]."""
    policy.zero_grad()
    batch = objective.prepare(policy, batch)
    objective(policy, batch).value.backward()
    steps = batch.valid.shape[1] - 1
    noise = table_noise(policy, batch)
    path = step_table(policy)
    coefficient = path.b / path.s * ratio_powers(objective.power, path)
    trained = batch.stochastic[0]
    coefficient = coefficient * path_weights(objective.weight, path, trained)
    single = batch.advantage * noise * coefficient
    error = single.std(0)[1:] / math.sqrt(batch.n)
    return -policy.network.theta.grad * steps, error, (coefficient * path.s / path.b)[1:]


def table_noise(policy, batch):
    """The noise of each step, from the points, [B, T]."""
    column = torch.arange(batch.valid.shape[1])
    noise = []
    for k in column.tolist():
        states = States(batch.states[:, k], column[k].expand(batch.n), batch.valid[:, k] & False)
        with torch.no_grad():
            kernel = policy.step(states, batch.condition)
        noise.append(((batch.states[:, k + 1] - kernel.mean) / kernel.std).squeeze(1))
    return torch.stack(noise, 1)


METHODS = {
    "ddpo_score_function": (
        PathGradient(baseline="none", scale="none", bound=1e9, clip=(0.0, math.inf)),
        ("flow_sde", {}),
    ),
    "ddpo": (PLAIN, ("flow_sde", {})),
    "dpok": (replace(PLAIN, pessimistic=False), ("flow_sde", {})),
    "flow_grpo": (replace(PLAIN, clip=(1 - 1e-4, 1 + 1e-4)), ("flow_sde", {})),
    "cps": (replace(PLAIN, power="density"), ("cps", {"noise": 0.5})),
    "dance_grpo": (PLAIN, ("dance_sde", {"noise": 0.3})),
    "temp_flow_weights": (replace(PLAIN, weight="noise"), ("flow_sde", {})),
    "grpo_guard": (replace(PLAIN, power="noise", weight="time", centered=True), ("flow_sde", {})),
    "equalized": (replace(PLAIN, weight="equal"), ("sage_sde", {})),
}


@pytest.mark.parametrize("name", METHODS)
def test_gradient_is_the_closed_form(name):
    objective, (sampler, options) = METHODS[name]
    policy = gauss1d.make(sampler, **options)
    # CPS has no noise in its last step, which therefore teaches nothing.
    last = policy.env.forward.s[-1] > 0
    batch = paths(policy, 100_000)
    found, error, factor = estimate(policy, objective, batch)
    if not last:
        found, error, factor = found[:-1] * 4 / 5, error[:-1], factor[:-1]
    truth = gauss1d.gradient_of_the_mean(policy.env)[: len(found)]
    assert ((found - factor * truth).abs() < 3 * error).all()
    assert (error < 0.2 * truth.abs().max() * factor.max()).all()


def test_the_closed_form_is_the_published_one():
    policy = gauss1d.make()
    wanted = [-0.033281, -0.088593, -0.156456, -0.233749, -0.249]
    truth = gauss1d.gradient_of_the_mean(policy.env)
    assert truth.tolist() == pytest.approx(wanted, abs=1e-6)
    assert float(truth.sum()) == pytest.approx(-0.761078, abs=1e-6)


def test_where_it_sampled_the_ratio_is_one_and_nothing_is_clipped():
    policy = gauss1d.make()
    batch = PLAIN.prepare(policy, paths(policy, 64))
    loss = replace(PLAIN, clip=(1 - 1e-6, 1 + 1e-6))(policy, batch)
    assert float(loss.metrics["clipped"]) == 0
    assert float(loss.metrics["log_ratio_spread"]) < 1e-12
    assert loss.value.item() == pytest.approx(-float(batch.advantage[:, 1:].mean()), abs=1e-12)


def test_importance_sampling_starts_as_the_score_function():
    policy = gauss1d.make()
    batch = PLAIN.prepare(policy, paths(policy, 64))
    gradients = []
    for clip in ((0.0, math.inf), (1 - 1e-4, 1 + 1e-4)):
        policy.zero_grad()
        replace(PLAIN, clip=clip)(policy, batch).value.backward()
        gradients.append(policy.network.theta.grad.clone())
    policy.zero_grad()
    noise, path = table_noise(policy, batch), step_table(policy)
    score = -(batch.advantage * noise * path.b / path.s)[:, 1:].mean(0) / 5
    assert torch.allclose(gradients[0], gradients[1]) and torch.allclose(gradients[0], score)


def test_equal_rewards_teach_nothing():
    policy = gauss1d.make()
    batch = paths(policy, 64)
    batch.rewards = torch.full_like(batch.rewards, 0.3)
    for objective in (PathGradient(), PathGradient(scale="batch_std"), PLAIN):
        policy.zero_grad()
        objective(policy, objective.prepare(policy, batch)).value.backward()
        assert float(policy.network.theta.grad.abs().max()) < 1e-15


def test_only_steps_with_noise_are_learned_from():
    policy = gauss1d.make()
    batch = PLAIN.prepare(policy, paths(policy, 64))
    batch.stochastic = batch.stochastic & (torch.arange(6) == 3)
    PLAIN(policy, batch).value.backward()
    assert (policy.network.theta.grad != 0).tolist() == [False, False, True, False, False]
    batch.stochastic = batch.stochastic & False
    with pytest.raises(ValueError, match="no step of the batch was drawn with noise"):
        PLAIN(policy, batch)


def test_order_of_paths_and_steps_does_not_matter():
    policy = gauss1d.make()
    batch = PLAIN.prepare(policy, paths(policy, 64))
    values = []
    for part in (batch, batch.rows(torch.randperm(64, generator=torch.Generator().manual_seed(3)))):
        policy.zero_grad()
        PLAIN(policy, part).value.backward()
        values.append(policy.network.theta.grad.clone())
    assert torch.allclose(*values, atol=1e-14)


def anchored(**options):
    policy = gauss1d.make(**options)
    policy.network = Anchored(policy.network)
    return policy


def test_divergence_to_the_reference():
    policy = anchored()
    batch = paths(policy, 32)
    objective = replace(PLAIN, kl_weight=2.0)
    batch = objective.prepare(policy, batch)
    plain, loss = PLAIN(policy, batch), objective(policy, batch)
    assert float(loss.metrics["kl"]) == 0 and loss.value.item() == plain.value.item()
    policy.zero_grad()
    (loss.value - plain.value).backward()
    assert float(policy.network.policy.theta.grad.abs().max()) == 0
    with torch.no_grad():
        policy.network.policy.theta += 0.2
    path = step_table(policy)
    exact = (path.b * 0.2).square() / (2 * path.s.square())
    found = objective(policy, batch).metrics["kl"]
    assert float(found) == pytest.approx(float(exact[1:].mean()))
    timed = replace(objective, kl_scale="time")(policy, batch).metrics["kl"]
    assert float(timed) == pytest.approx(float((exact * path.h)[1:].mean()))


def test_centering_uses_the_means_of_the_batch():
    policy = gauss1d.make()
    objective = replace(PLAIN, centered=True)
    batch = objective.prepare(policy, paths(policy, 4096))
    assert torch.isfinite(batch.mean_old).all()
    with torch.no_grad():
        policy.network.theta += 0.3
    path = step_table(policy)
    wanted = (path.b * 0.3).square() / (2 * path.s.square())
    plain, centered = PLAIN(policy, batch), objective(policy, batch)
    assert float(plain.metrics["log_ratio_spread"]) > 0
    kernel_shift = wanted[1:].mean()
    noise = table_noise(gauss1d.make(), batch)[:, 1:]
    exact = (noise * (path.b * 0.3 / path.s)[1:]).exp()
    value = -(batch.advantage[:, 1:] * exact).mean()
    assert float(kernel_shift) > 0.01
    assert centered.value.item() == pytest.approx(float(value))


def test_value_baseline_learns_what_a_state_is_worth():
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(6, 2, dtype=torch.float64))
            self.register_buffer("times", torch.cat([torch.ones(1), tables.time_grid(5)])[1:])

        def forward(self, x, t, encoding):
            step = (t.unsqueeze(1) - self.times).abs().argmin(1)
            return self.weight[step, 0] + self.weight[step, 1] * x.squeeze(1)

    policy = gauss1d.make(head=Linear())
    objective = replace(PLAIN, baseline="value", value_weight=1.0)
    assert objective.needs == {"log_flow"}
    batch = objective.prepare(policy, paths(policy, 8_000))
    optimizer = torch.optim.LBFGS(policy.flow_network.parameters(), max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = objective(policy, batch).value
        loss.backward()
        return loss

    optimizer.step(closure)
    path = policy.env.forward
    c = gauss1d.slope(tables.time_grid(5)[:-1])
    kept = (path.a[1:] + path.b[1:] * c).flip(0).cumprod(0).flip(0)
    found = policy.flow_network.weight[:5, 1].detach()
    assert (found - kept).abs().max() < 0.03
    with pytest.raises(ValueError, match="build the policy with flow="):
        objective(gauss1d.make(), batch)


def test_bad_settings_are_refused():
    for changes, words in (
        ({"clip": (1.1, 0.9)}, "clip bounds must hold 1"),
        ({"power": "two"}, "unknown power"),
        ({"weight": "heavy"}, "unknown weight"),
        ({"scale": "std"}, "unknown scale"),
        ({"baseline": "mean"}, "unknown baseline"),
        ({"kl_scale": "h"}, "unknown kl_scale"),
    ):
        with pytest.raises(ValueError, match=words):
            PathGradient(**changes)


def test_bad_batches_are_refused():
    policy = gauss1d.make()
    batch = paths(policy, 4)
    batch.stochastic = None
    with pytest.raises(ValueError, match="which steps had noise"):
        PLAIN(policy, batch)
    batch = paths(policy, 4)
    batch.rewards = None
    with pytest.raises(ValueError, match="need rewards and groups"):
        PLAIN.prepare(policy, batch)


def test_ratios_take_means_whatever_the_densities_of_the_policy():
    found = []
    for reduction in ("sum", "mean"):
        policy = make_wide()
        policy.reduction = reduction
        batch = PLAIN.prepare(policy, paths(policy, 64))
        with torch.no_grad():
            policy.network.theta += 0.3
        found.append(PLAIN(policy, batch).value.item())
    assert found[0] == pytest.approx(found[1], abs=1e-12)


def make_wide():
    """Three independent copies of the variable."""
    policy = gauss1d.make()
    policy.env = flow((3,), tables.time_grid(5), "flow_sde")
    return policy


def test_records_keep_old_means_through_checkpoints():
    policy = gauss1d.make()
    objective = replace(PLAIN, centered=True)
    batch = objective.prepare(policy, paths(policy, 4))
    again = Trajectories.from_state_dict(batch.state_dict())
    assert torch.equal(again.mean_old, batch.mean_old)
    assert again.rows(torch.tensor([1, 2])).mean_old.shape == (2, 6, 1)


def asked(*numbers):
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(1)


def test_rewards_of_earlier_batches_are_remembered():
    buffer = RewardBuffer(4, 3)
    first = buffer.standardized(asked(0, 0, 1), torch.tensor([1.0, 3, 2]).double(), 1e-6)
    assert first.tolist() == pytest.approx([-1.224743, 1.224743, 0], abs=1e-6)
    state = buffer.state_dict()
    second = buffer.standardized(asked(0, 0), torch.tensor([5.0, 7]).double(), 1e-6)
    assert second.tolist() == pytest.approx([0.447213, 1.341640], abs=1e-6)
    again = RewardBuffer(4, 3)
    again.load_state_dict(state)
    resumed = again.standardized(asked(0, 0), torch.tensor([5.0, 7]).double(), 1e-6)
    assert torch.equal(resumed, second)
    # Only the last four count: 7, 9, 9, 9 after three more.
    third = buffer.standardized(asked(0, 0, 0), torch.tensor([9.0, 9, 9]).double(), 1e-6)
    assert third.tolist() == pytest.approx([0.57735] * 3, abs=1e-5)
    many = RewardBuffer(2, 1).standardized(asked(*[0] * 5), torch.arange(5.0).double(), 0.0)
    assert many.tolist() == pytest.approx([-7, -5, -3, -1, 1])


def test_a_buffer_belongs_to_one_run():
    plain = PathGradient(buffer=4, least=2, ddof=0, eps=1e-6)
    policy = gauss1d.make()
    batch = paths(policy, 8)
    with pytest.raises(ValueError, match=r"train what fresh\(\) returns"):
        plain.prepare(policy, batch)
    one, two = plain.fresh(), plain.fresh()
    first = one.prepare(policy, batch).advantage
    one.prepare(policy, paths(policy, 8, seed=1))
    assert torch.equal(two.prepare(policy, batch).advantage, first)
    assert PLAIN.fresh() is PLAIN and PLAIN.state_dict() == {}
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.memory.ring, one.memory.ring)
    with pytest.raises(ValueError, match="cannot wait"):
        RewardBuffer(4, 5)


WALKS = {
    "flow_grpo": {},
    "flow_grpo_fast": {"window": Window("random", size=4), "shared": "prefix"},
    "dance_grpo": {"share": 0.6, "shared": "noise"},
    "mix_grpo": {"window": Window("sliding", size=2), "shared": "noise"},
    "temp_flow_grpo": {"shared": "prefix", "separate": True},
}


@pytest.mark.parametrize("name", WALKS)
def test_gradient_is_the_closed_form_however_paths_are_walked(name):
    policy = gauss1d.make()

    def score(batch):
        batch.rewards = batch.terminal.data
        return batch

    walk = OnPaths(
        policy, PromptConditions(1), score, 3000, 0, group_size=50, dtype=torch.float64,
        **WALKS[name],
    )  # fmt: skip
    gradients = []
    for _ in range(20):
        policy.zero_grad()
        batch = PLAIN.prepare(policy, walk())
        PLAIN(policy, batch).value.backward()
        gradients.append(-policy.network.theta.grad.clone())
    found = torch.stack(gradients)
    steps = batch.stochastic.any(0)[1:]
    truth = torch.zeros(5, dtype=torch.float64)
    for mask in torch.eye(5).bool()[steps] if name == "temp_flow_grpo" else [steps]:
        truth += gauss1d.gradient_of_the_mean(policy.env.only(mask)) * mask / steps.sum()
    error = found.std(0) / math.sqrt(20)
    assert steps.sum() == {"mix_grpo": 2}.get(name, 4)
    assert ((found.mean(0) - truth).abs() <= 3 * error).all()
    assert (error < 0.25 * truth.abs().max()).all() and (found[:, ~steps] == 0).all()
