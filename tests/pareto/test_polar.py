from functools import partial

import pytest
import torch

from gflow.pareto import hypervolume, non_dominated, polar_hypervolume

from .fronts import KINDS, front, sphere_batch
from .test_hypervolume import finite_differences
from .test_package import growth


@pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
def test_within_four_standard_errors(m):
    points = torch.stack([front(kind, 60, m) for kind in KINDS[:6]])
    # One objective in other units: the directions follow the scale of the points.
    points[..., 0] *= 1000
    exact = hypervolume(points, [0.0] * m)
    value, error = polar_hypervolume(points, [0.0] * m)
    assert (error <= 0.05 * exact).all()
    assert ((value - exact).abs() <= 4 * error + 1e-12 * exact).all()
    assert (error > 0).all() or m == 1
    single = polar_hypervolume(points.float(), [0.0] * m)
    assert ((single.value - exact).abs() <= 4 * single.standard_error + 1e-5 * exact).all()


def test_points_drawn_with_a_common_seed_are_not_the_directions():
    for seed in range(3):
        points = sphere_batch(300, 6, seed=seed)
        value, error = polar_hypervolume(points, [0.0] * 6, n_directions=4000)
        assert (value - hypervolume(points, [0.0] * 6)).abs() <= 4 * error


def test_more_directions_are_closer():
    points = front("concave", 60, 3)
    few = polar_hypervolume(points, [0.0] * 3, n_directions=1000)
    many = polar_hypervolume(points, [0.0] * 3, n_directions=100_000)
    ratio = few.standard_error / many.standard_error
    assert 8 < ratio.item() < 12.5


def test_the_directions_are_the_callers():
    points = front("concave", 20, 3)
    once = polar_hypervolume(points, [0.0] * 3, n_directions=64)
    assert torch.equal(once.value, polar_hypervolume(points, [0.0] * 3, n_directions=64).value)
    other = torch.Generator().manual_seed(5)
    other = polar_hypervolume(points, [0.0] * 3, n_directions=64, generator=other)
    assert not torch.equal(once.value, other.value)
    state = torch.get_rng_state()
    polar_hypervolume(points, [0.0] * 3, n_directions=64)
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_points_the_way_of_the_exact_one():
    points = sphere_batch(2, 10, 3).requires_grad_()
    (ours,) = torch.autograd.grad(
        polar_hypervolume(points, [0.0] * 3, n_directions=200_000).value.sum(), points
    )
    (exact,) = torch.autograd.grad(hypervolume(points, [0.0] * 3).sum(), points)
    torch.testing.assert_close(ours, exact, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
def test_gradient_is_the_finite_difference(m):
    points, ref = front("random", 14, m, seed=5).view(2, 7, m), [-0.2] * m

    def value(y):
        return polar_hypervolume(y, ref, n_directions=1000).value

    leaf = points.clone().requires_grad_()
    (ours,) = torch.autograd.grad(value(leaf).sum(), leaf)
    # A step may move a direction to another point or axis: the step is short.
    wanted = finite_differences(value, points, 1e-8)
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)
    assert (ours[~non_dominated(points)] == 0).all()


def test_no_gradient_for_weakly_dominated_points_and_copies():
    rows = [[1.0, 1.0], [2.0, 1.0], [2.0, 1.0], [-1.0, 9.0]]
    leaf = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(hypervolume(leaf, [0.0, 0.0], method="polar"), leaf)
    assert (ours[[0, 2, 3]] == 0).all()
    torch.testing.assert_close(ours[1], torch.tensor([1.0, 2.0]).double(), rtol=0.05, atol=0)


def test_points_beyond_the_reference_do_not_stretch_the_directions():
    points = torch.tensor([[1.0, 1.0], [1e6, -1.0]], dtype=torch.float64)
    outside = polar_hypervolume(points, [0.0, 0.0])
    assert outside == polar_hypervolume(points[:1], [0.0, 0.0])


def test_a_zero_draw_does_no_harm():
    """In float32 the draws of this seed hold an exact zero."""
    points = torch.cat([torch.full((2, 3), 0.5), torch.zeros(2, 3)])
    generator = torch.Generator().manual_seed(146)
    assert (torch.randn(16384, 3, generator=generator) == 0).any()
    value, error = polar_hypervolume(points, [0.0] * 3, generator=generator.manual_seed(146))
    assert abs(value.item() - 0.125) <= 4 * error.item()


def test_memory_of_many_fronts_is_bounded():
    points = sphere_batch(256, 4, 6)
    budget = 32 * 2**20
    peak = growth(lambda: polar_hypervolume(points, [0.0] * 6, memory_budget=budget))
    assert peak < 3 * budget


def test_batch_mask_and_budget():
    points = sphere_batch(3, 12, 4)
    mask = torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    points[0, 0] = torch.nan
    whole = polar_hypervolume(points, [-1.0] * 4, mask, n_directions=500, memory_budget=1)
    for y, keep, value in zip(points, mask, whole.value, strict=True):
        keep = keep & ~y.isnan().any(-1)
        part = polar_hypervolume(y[keep], [-1.0] * 4, n_directions=500)
        torch.testing.assert_close(value, part.value)
    flipped = polar_hypervolume(-points, [1.0] * 4, mask, maximize=False, n_directions=500)
    torch.testing.assert_close(flipped.value, whole.value)


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2"):
        polar_hypervolume(torch.ones(3, 2), [0.0, 0.0], n_directions=1)
    with pytest.raises(ValueError, match="never guessed"):
        polar_hypervolume(torch.ones(3, 2), None)
    for method in (polar_hypervolume, partial(hypervolume, method="polar")):
        with pytest.raises(ValueError, match="no point dominates the reference point"):
            method(-torch.ones(3, 2), [0.0, 0.0])
    with pytest.raises(ValueError, match="infinite"):
        polar_hypervolume(torch.ones(3, 2) / 0, [0.0, 0.0])


@pytest.mark.gpu
def test_on_cuda():
    points = sphere_batch(16, 40, 4)
    value, error = polar_hypervolume(points.cuda(), [0.0] * 4)
    assert ((value.cpu() - hypervolume(points, [0.0] * 4)).abs() <= 4 * error.cpu()).all()
