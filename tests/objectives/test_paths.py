"""Policy gradients on denoising paths: vectors of the shared pieces, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from gflow.envs.denoising import steps as tables
from gflow.envs.denoising.schedules import flow
from gflow.kernels import AffineGaussian
from gflow.mdp import Trajectories
from gflow.objectives.catalog import get_method
from gflow.objectives.policy_gradient.advantages import advantage
from gflow.objectives.policy_gradient.buffer import RewardBuffer
from gflow.objectives.policy_gradient.path_objective import PathGradient
from gflow.objectives.policy_gradient.paths import (
    StepTable,
    gradient_coefficients,
    mean_shift,
    path_weights,
    ratio_powers,
)
from gflow.objectives.policy_gradient.surrogates import ppo_clip
from tests import gauss1d
from tests.gauss1d import PLAIN, paths


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


def test_noise_weights_of_a_published_grid():
    """SD3 at shift 3, whose last time is not 0: one over the mean is the 2.25 of the release."""
    wanted = [0.7, 0.74296, 0.53615, 0.4459, 0.39179, 0.3528, 0.31907, 0.28201, 0.22536]
    u = torch.linspace(1, 0.00893 / (3 - 2 * 0.00893), 10, dtype=torch.float64)
    t = torch.cat([3 * u / (1 + 2 * u), u.new_zeros(1)])
    made = tables.flow_sde(t[:-1], t[1:], 0.7)
    weight = path_weights("noise", StepTable(made.b, made.s, -t.diff()), but_last())[:9]
    close(made.s[:9], wanted)
    assert 1 / float(made.s[:9].mean()) == pytest.approx(2.2522, abs=1e-4)
    close(weight, [1.5766, 1.6733, 1.2075, 1.0043, 0.8824, 0.7946, 0.7186, 0.6351, 0.5076])


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


def test_centering_makes_clipping_even_handed():
    """Shares of ratios beyond either bound, in closed form from the law of the log-ratio."""
    old, new, std = guard_example()
    normal = torch.distributions.Normal(0.0, 1.0)

    def beyond(scale, epsilon, centered):
        shift = float(mean_shift(new, old, std * scale))
        power = float(std * scale) if centered else 1.0
        mean, spread = 0.0 if centered else -shift, math.sqrt(2 * shift / 4)
        edges = torch.tensor([-math.log1p(epsilon), math.log1p(-epsilon)])
        signs = torch.tensor([1.0, -1.0])
        return normal.cdf((edges / power + signs * mean) / spread).tolist()

    assert beyond(1.0, 0.04, False) == pytest.approx([0.1625, 0.1988], abs=1e-4)
    small = 0.05 / float(std)
    assert float(mean_shift(new, old, std * small)) == pytest.approx(0.075)
    assert beyond(small, 0.04, False) == pytest.approx([0.2777, 0.5700], abs=1e-4)
    for scale in (1.0, small):
        assert beyond(scale, 0.01, True) == pytest.approx([0.1521, 0.1496], abs=1e-4)


def test_divergence_of_a_step():
    made = tables.flow_sde(torch.tensor([0.8]).double(), torch.tensor([0.7]).double(), 0.7)
    x, v = torch.tensor([[0.5]]).double(), torch.tensor([[-0.3]]).double()
    kernels = [
        AffineGaussian(made.a * x + made.b * u, made.s.view(1, 1), "mean") for u in (v, v + 0.2)
    ]
    assert float(kernels[0].kl(kernels[1])) == pytest.approx(1.581658e-3, abs=1e-9)


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


def test_bad_settings_are_refused():
    for changes, words in (
        ({"clip": (1.1, 0.9)}, "clip bounds must hold 1"),
        ({"power": "two"}, "unknown power"),
        ({"weight": "heavy"}, "unknown weight"),
        ({"scale": "std"}, "unknown scale"),
        ({"baseline": "mean"}, "unknown baseline"),
        ({"kl_scale": "h"}, "unknown kl_scale"),
        ({"best_of": 3}, "as many good paths as bad"),
        ({"drop_even": True, "baseline": "value"}, "drop_even has no effect"),
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
    for times in (tables.time_grid(5, shift=3.0), tables.time_grid(7)):
        policy.env = flow((1,), times)
        with pytest.raises(ValueError, match="another clock"):
            PLAIN(policy, batch)
    policy = gauss1d.make()
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


def test_rows_hold_the_published_settings():
    row = {name: get_method(name) for name in ("ddpo", "ddpo_sf", "dpok", "temp_flow_grpo")}
    for name in ("ddpo", "ddpo_sf"):
        found = row[name].objective
        assert (found.buffer, found.least, found.ddof, found.eps) == (32, 16, 0, 1e-6)
    # 100 (r - V) and 0.01 KL, of which only the ratio matters here.
    assert row["dpok"].objective.kl_weight == pytest.approx(1e-4)
    settings = row["temp_flow_grpo"].defaults
    assert settings["group_size"] == 24 and settings["paths"]["trunks"] == 4
    # MixGRPO's windows stay 25 updates, those of Flash 20.
    stays = [get_method(f"mix_grpo{end}").defaults["paths"]["window"] for end in ("", "_flash")]
    assert [(window["size"], window["every"]) for window in stays] == [(4, 25), (4, 20)]


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
