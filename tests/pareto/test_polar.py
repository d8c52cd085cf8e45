import pytest
import torch

from gflow.pareto import hypervolume, polar_hypervolume

from .fronts import KINDS, front, sphere_batch


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
    with pytest.raises(ValueError, match="infinite"):
        polar_hypervolume(torch.ones(3, 2) / 0, [0.0, 0.0])


@pytest.mark.gpu
def test_on_cuda():
    points = sphere_batch(16, 40, 4)
    value, error = polar_hypervolume(points.cuda(), [0.0] * 4)
    assert ((value.cpu() - hypervolume(points, [0.0] * 4)).abs() <= 4 * error.cpu()).all()
