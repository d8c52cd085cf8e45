import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gflow.pareto import (
    averaged_hausdorff,
    epsilon_additive,
    epsilon_multiplicative,
    gd,
    gd_plus,
    igd,
    igd_plus,
)

from .fronts import KINDS, front, sphere_batch

METRICS = [
    gd,
    igd,
    gd_plus,
    igd_plus,
    averaged_hausdorff,
    epsilon_additive,
    epsilon_multiplicative,
]
FRONT = torch.tensor([[1.0, 0.2], [0.6, 0.6], [0.2, 1.0]], dtype=torch.float64)
POINTS = torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64)


def test_known_values():
    assert gd(POINTS, FRONT).item() == pytest.approx(0.2, abs=1e-15)
    assert gd_plus(POINTS, FRONT).item() == pytest.approx(0.2, abs=1e-15)
    assert igd(POINTS, FRONT).item() == pytest.approx(0.282405, abs=1e-6)
    assert igd_plus(POINTS, FRONT).item() == pytest.approx(0.266667, abs=1e-6)
    assert averaged_hausdorff(POINTS, FRONT, plus=True).item() == pytest.approx(0.266667, abs=1e-6)
    assert averaged_hausdorff(POINTS, FRONT).item() == igd(POINTS, FRONT).item()
    assert epsilon_additive(POINTS, FRONT).item() == pytest.approx(0.4, abs=1e-15)
    assert epsilon_multiplicative(POINTS, FRONT).item() == pytest.approx(3.0, abs=1e-14)


@pytest.mark.parametrize("kind", KINDS[:6])
@pytest.mark.parametrize("m", [2, 3, 6])
def test_agreement_with_moocore_and_pymoo(kind, m):
    import moocore
    from pymoo.indicators.gd import GD
    from pymoo.indicators.gd_plus import GDPlus
    from pymoo.indicators.igd import IGD
    from pymoo.indicators.spacing import SpacingIndicator

    from gflow.pareto import spacing

    points, reference = front(kind, 70, m) + 0.1, front("concave", 90, m, seed=1) + 0.2
    a, p = points.numpy(), reference.numpy()
    up = {"maximise": True}
    wanted = {
        gd: GD(-p)(-a),
        gd_plus: GDPlus(-p)(-a),
        igd: moocore.igd(a, p, **up),
        igd_plus: moocore.igd_plus(a, p, **up),
        averaged_hausdorff: moocore.avg_hausdorff_dist(a, p, p=1, **up),
        epsilon_additive: moocore.epsilon_additive(a, p, **up),
        epsilon_multiplicative: moocore.epsilon_mult(a, p, **up),
    }
    for metric, value in wanted.items():
        assert metric(points, reference).item() == pytest.approx(value, rel=1e-12), metric
        single = metric(points.float(), reference.float()).item()
        assert single == pytest.approx(value, rel=1e-5, abs=1e-6), metric
    assert IGD(-p)(-a) == pytest.approx(igd(points, reference).item(), rel=1e-12)
    third = averaged_hausdorff(points, reference, power=3).item()
    assert third == pytest.approx(moocore.avg_hausdorff_dist(a, p, p=3, **up), rel=1e-12)
    spread = SpacingIndicator()(a)
    assert spacing(points, correction=0).item() == pytest.approx(spread, rel=1e-11)
    mixed = [True] * (m - 1) + [False]
    value = epsilon_multiplicative(points, reference, maximize=mixed).item()
    assert value == pytest.approx(moocore.epsilon_mult(a, p, maximise=mixed), rel=1e-12)
    value = igd_plus(points, reference, maximize=mixed).item()
    assert value == pytest.approx(moocore.igd_plus(a, p, maximise=mixed), rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_batch_mask_and_budget(metric):
    points = sphere_batch(2, 3, 9, 3) + 0.1
    reference = sphere_batch(2, 3, 8, 3, seed=1) + 0.1
    mask = torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(1)) < 0.6
    reference_mask = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(2)) < 0.6
    points[0, 0, 0] = torch.nan
    whole = metric(points, reference, mask, reference_mask, memory_budget=1)
    mask[0, 0, 0] = False
    for i, j in np.ndindex(2, 3):
        a, p = points[i, j][mask[i, j]], reference[i, j][reference_mask[i, j]]
        torch.testing.assert_close(whole[i, j], metric(a, p), rtol=1e-13, atol=0)
    shared = metric(points[1], reference[0, 0])
    for y, value in zip(points[1], shared, strict=True):
        torch.testing.assert_close(value, metric(y, reference[0, 0]), rtol=1e-13, atol=0)


@pytest.mark.parametrize("metric", METRICS)
def test_an_empty_set_is_infinitely_far(metric):
    assert metric(FRONT[:0], FRONT).item() == math.inf
    assert metric(FRONT.expand(2, 3, 2), FRONT, torch.zeros(2, 3).bool()).tolist() == [math.inf] * 2
    with pytest.raises(ValueError, match="reference has a front without a single point"):
        metric(FRONT, FRONT[:0])


@pytest.mark.parametrize("metric", METRICS)
def test_gradient_is_the_finite_difference(metric):
    points = (sphere_batch(2, 5, 3) * 0.9).requires_grad_()
    reference = sphere_batch(2, 7, 3, seed=1)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 1] = False
    assert torch.autograd.gradcheck(lambda y: metric(y, reference, mask), points)


def test_gradient_where_a_point_meets_the_reference():
    points = FRONT.clone().requires_grad_()
    for metric in (gd, igd, gd_plus, igd_plus):
        for power in (1.0, 2.0, 0.5):
            (gradient,) = torch.autograd.grad(metric(points, FRONT, power=power), points)
            assert (gradient == 0).all()
            behind = (FRONT - torch.tensor([[0.1], [0.0], [0.0]])).requires_grad_()
            (gradient,) = torch.autograd.grad(metric(behind, FRONT, power=power), behind)
            assert gradient.isfinite().all() and (gradient[0] < 0).all()


@pytest.mark.parametrize("metric", [gd, igd, gd_plus, igd_plus, averaged_hausdorff])
@pytest.mark.parametrize("power", [0.5, 2.0, 3.0])
def test_gradient_of_a_mean_of_powers(metric, power):
    points, reference = (sphere_batch(2, 5, 3) * 0.9).requires_grad_(), sphere_batch(2, 7, 3)
    assert torch.autograd.gradcheck(lambda y: metric(y, reference, power=power), points)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 4), st.integers(0, 10**6))
def test_properties(n, p, m, seed):
    points = front(KINDS[seed % 6], n, m, seed=seed) + 0.05
    reference = front("concave", p, m, seed=seed + 1) + 0.05
    assert igd_plus(points, reference) <= igd(points, reference) + 1e-15
    assert gd_plus(points, reference) <= gd(points, reference) + 1e-15
    dominated = torch.cat([points, points * 0.5])
    assert torch.equal(igd_plus(dominated, reference), igd_plus(points, reference))
    assert torch.equal(epsilon_additive(dominated, reference), epsilon_additive(points, reference))
    ahead = (points.unsqueeze(0) >= reference.unsqueeze(1)).all(-1)
    assert (igd_plus(points, reference) == 0) == ahead.any(1).all()
    assert (gd_plus(points, reference) == 0) == ahead.any(0).all()
    for metric in METRICS:
        value = metric(points, reference)
        torch.testing.assert_close(
            metric(points.flip(0), reference.flip(0)), value, rtol=1e-12, atol=0
        )
        # Never further away with one point more, except for the averages over the points.
        if metric not in (gd, gd_plus, averaged_hausdorff):
            assert metric(torch.cat([points, points[:1] * 1.1]), reference) <= value
    scaled = igd_plus(points * 3, reference * 3)
    torch.testing.assert_close(scaled, 3 * igd_plus(points, reference), rtol=1e-12, atol=1e-15)


def test_bad_input():
    with pytest.raises(ValueError, match="points has 2 objectives but reference has 3"):
        igd(FRONT, torch.ones(4, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"points is .*float64 but reference is .*float32"):
        igd(FRONT, FRONT.float())
    with pytest.raises(ValueError, match="points is on cpu but reference is on meta"):
        igd(FRONT, FRONT.to("meta"))
    with pytest.raises(TypeError, match="reference must be float32 or float64"):
        igd(FRONT, FRONT.long())
    with pytest.raises(ValueError, match="share the leading shape"):
        igd(FRONT[None], FRONT.expand(2, 3, 2))
    for power in (0, math.inf, math.nan):
        with pytest.raises(ValueError, match="power must be positive and finite"):
            gd(FRONT, FRONT, power=power)
    with pytest.raises(ValueError, match="points has infinite coordinates"):
        gd(FRONT / 0, FRONT)
    with pytest.raises(ValueError, match="reference must be positive"):
        epsilon_multiplicative(FRONT, FRONT - 0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
def test_on_cuda_as_on_cpu(metric):
    points, reference = sphere_batch(3, 20, 3), sphere_batch(30, 3, seed=1)
    there = metric(points.cuda(), reference.cuda()).cpu()
    torch.testing.assert_close(there, metric(points, reference))
