import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gflow.pareto import (
    hypervolume,
    hypervolume_contributions,
    hypervolume_improvement,
    non_dominated,
)

from .fronts import KINDS, by_removal, exact_hypervolume, finite_differences, front, sphere_batch

# n, m: sizes at which the plain tensor code stays fast on a CPU.
SLICED = {(n, m) for n in (1, 2, 7, 40) for m in range(1, 7)} | {(300, 2), (300, 3), (120, 4)}
CASES = [
    (kind, n, m)
    for kind in KINDS
    for n in (1, 2, 7, 40, 300, 1000)
    for m in range(1, 7)
    if (kind, n, m) != ("convex", 1000, 6)  # the library itself takes seconds
]


def reference_value(points):
    import moocore

    m = points.shape[-1]
    return moocore.hypervolume(points.double().numpy(), ref=np.zeros(m), maximise=True)


@pytest.mark.parametrize(("kind", "n", "m"), CASES)
def test_every_method_agrees_with_moocore(kind, n, m):
    points = front(kind, n, m)
    wanted = reference_value(points)
    methods = ("auto", "tiles", "slices") if (n, m) in SLICED else ("auto",)
    if wanted == 0:
        # Every point lies on a face through the reference point.
        assert kind == "tied" or n <= 2
        return
    for method in methods:
        value = hypervolume(points, [0.0] * m, method=method)
        assert abs(value.item() / wanted - 1) < 1e-12, method
        single = hypervolume(points.float(), [0.0] * m, method=method)
        assert single.dtype is torch.float32
        assert abs(single.item() / wanted - 1) < 1e-5, method


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6, 7])
def test_tiles_on_large_fronts(m):
    n = 150 if m == 7 else 600
    for kind in ("concave", "clustered", "tied", "linear"):
        points = front(kind, n, m, seed=1)
        value = hypervolume(points, [0.0] * m, method="tiles" if m > 4 else "slices")
        assert abs(value.item() / reference_value(points) - 1) < 1e-12


def test_without_the_compiled_library(monkeypatch):
    monkeypatch.setattr("gflow.pareto._check.moocore", lambda: None)
    for n, m in ((200, 2), (200, 3), (60, 4), (80, 5), (130, 6)):
        points = front("concave", n, m)
        wanted = reference_value(points)
        assert abs(hypervolume(points, [0.0] * m).item() / wanted - 1) < 1e-12
        few = points[:12]
        ours = hypervolume_contributions(few, [0.0] * m)
        torch.testing.assert_close(ours, by_removal(few), rtol=1e-10, atol=1e-15)


def test_agreement_with_pymoo_and_botorch():
    from botorch.utils.multi_objective.hypervolume import Hypervolume
    from pymoo.indicators.hv import HV

    for m in (2, 3, 4):
        points = front("concave", 30, m)
        value = hypervolume(points, [-0.1] * m).item()
        ref = torch.full((m,), -0.1, dtype=points.dtype)
        assert abs(Hypervolume(ref).compute(points) / value - 1) < 1e-12
        assert abs(HV(ref_point=-ref.numpy())(-points.numpy()) / value - 1) < 1e-12


def test_known_values():
    points = torch.tensor([[1.0, 0.2], [0.6, 0.6], [0.2, 1.0]], dtype=torch.float64)
    assert hypervolume(points, [0.0, 0.0]).item() == pytest.approx(0.52, abs=1e-15)
    contributions = hypervolume_contributions(points, [0.0, 0.0])
    assert contributions.tolist() == pytest.approx([0.08, 0.16, 0.08], abs=1e-15)
    costs = 1 - points
    assert hypervolume(costs, [1.0, 1.0], maximize=False).item() == pytest.approx(0.52, abs=1e-15)
    mixed = torch.stack([points[:, 0], 1 - points[:, 1]], -1)
    value = hypervolume(mixed, [0.0, 1.0], maximize=(True, False))
    assert value.item() == pytest.approx(0.52, abs=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_single_precision_loses_nothing_on_the_way(seed, monkeypatch):
    """A far reference point: differences of large boxes, whose rounding adds up in float32."""
    points = front("clustered", 1000, 3, seed=seed).float()
    ref = torch.full((3,), -3.05)
    wide, wide_ref = points.double(), ref.double()
    value = hypervolume(wide, wide_ref)
    each = hypervolume_contributions(wide, wide_ref)
    new = wide[:40] * 1.01
    gain = hypervolume_improvement(new.float(), points, ref)
    wanted = hypervolume_improvement(new.float().double(), wide, wide_ref)
    torch.testing.assert_close(gain.double(), wanted, rtol=1e-6, atol=0)
    for library in (True, False):
        if not library:
            monkeypatch.setattr("gflow.pareto._check.moocore", lambda: None)
        single = hypervolume(points, ref, method="slices")
        assert single.dtype is torch.float32
        assert abs(single.item() / value.item() - 1) < 1e-6
        ours = hypervolume_contributions(points, ref)
        torch.testing.assert_close(ours.double(), each, rtol=1e-5, atol=1e-14)


@pytest.mark.parametrize("method", ["auto", "slices", "tiles"])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6])
def test_gradient_is_the_finite_difference(m, method):
    points = front("random", 14, m, seed=5).view(2, 7, m)
    ref = torch.full((m,), -0.2, dtype=points.dtype)
    leaf, ref_leaf = points.clone().requires_grad_(), ref.clone().requires_grad_()
    value = hypervolume(leaf, ref_leaf, method=method)
    value.sum().backward()
    wanted = finite_differences(lambda y: hypervolume(y, ref), points)
    torch.testing.assert_close(leaf.grad, wanted, rtol=1e-6, atol=1e-7)
    wanted = finite_differences(lambda r: hypervolume(points, r), ref)
    torch.testing.assert_close(ref_leaf.grad, wanted, rtol=1e-6, atol=1e-7)
    assert (leaf.grad[~non_dominated(points)] == 0).all()
    assert (leaf.grad[non_dominated(points)] > 0).all()


def test_gradient_through_mask_direction_and_weights():
    points = front("random", 24, 3, seed=6).view(2, 12, 3)
    mask = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)) < 0.7
    weight = torch.tensor([2.0, -3.0], dtype=points.dtype)

    def value(y):
        return weight * hypervolume(y, [1.1] * 3, mask, maximize=False)

    leaf = points.clone().requires_grad_()
    value(leaf).sum().backward()
    wanted = finite_differences(value, points)
    torch.testing.assert_close(leaf.grad, wanted, rtol=1e-6, atol=1e-7)
    assert (leaf.grad[~mask] == 0).all()


def test_gradient_without_the_compiled_library(monkeypatch):
    leaf = front("concave", 40, 4).requires_grad_()
    (with_library,) = torch.autograd.grad(hypervolume(leaf, [0.0] * 4), leaf)
    monkeypatch.setattr("gflow.pareto._check.moocore", lambda: None)
    (without,) = torch.autograd.grad(hypervolume(leaf, [0.0] * 4), leaf)
    torch.testing.assert_close(without, with_library, rtol=1e-10, atol=1e-14)


def test_gradient_of_weakly_dominated_points_and_copies():
    rows = [[2.0, 1.0], [1.0, 1.0], [2.0, 1.0], [1.0, 2.0], [1.0, math.nan]]
    leaf = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    hypervolume(leaf, [0.0, 0.0]).backward()
    assert leaf.grad.tolist() == [[1, 1], [0, 0], [0, 0], [1, 1], [0, 0]]


def test_empty_sets_and_batches():
    for method in ("auto", "slices", "tiles", "polar"):
        assert hypervolume(torch.zeros(0, 3), [0.0] * 3, method=method).item() == 0
        assert hypervolume(torch.zeros(2, 0, 3), [0.0] * 3, method=method).tolist() == [0, 0]
        assert hypervolume(torch.zeros(0, 4, 3), [0.0] * 3, method=method).shape == (0,)
        nothing = torch.zeros(2, 5, dtype=torch.bool)
        assert hypervolume(torch.ones(2, 5, 3), [0.0] * 3, nothing, method=method).sum() == 0
    assert hypervolume_contributions(torch.zeros(2, 0, 3), [0.0] * 3).shape == (2, 0)
    new = torch.ones(1, 3, dtype=torch.float64)
    nobody = torch.zeros(0, 3, dtype=torch.float64)
    assert hypervolume_improvement(new, nobody, [0.0] * 3).item() == 1
    assert hypervolume_improvement(nobody, new, [0.0] * 3).item() == 0


def test_reference_for_each_front():
    points = sphere_batch(2, 3, 9, 3)
    ref = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(2), dtype=points.dtype) * 0.3
    whole = hypervolume(points, ref)
    for i, j in np.ndindex(2, 3):
        assert whole[i, j] == hypervolume(points[i, j], ref[i, j])


def test_infinite_and_nan_points_outside_the_mask_do_not_matter():
    points = torch.tensor([[1.0, 2.0], [math.inf, 1.0], [math.nan, 9.0]])
    mask = torch.tensor([True, False, True])
    assert hypervolume(points, [0.0, 0.0], mask).item() == 2
    assert hypervolume_contributions(points, [0.0, 0.0], mask).tolist() == [2, 0, 0]


ONES = torch.ones(3, 2)


@pytest.mark.parametrize("function", [hypervolume, hypervolume_contributions])
@pytest.mark.parametrize(
    ("points", "ref", "error", "words"),
    [
        (ONES, None, ValueError, "reference point is needed and is never guessed"),
        (ONES, 0.0, TypeError, "ref_point must be a tensor or m numbers, not 0.0"),
        (ONES, [[0.0, 0.0]], TypeError, r"a tensor or m numbers, not \[\[0.0, 0.0\]\]"),
        (ONES, "ab", TypeError, "a tensor or m numbers, not 'ab'"),
        (ONES, [0.0], ValueError, r"ref_point has shape \[1\] but the points have 2"),
        (ONES, torch.zeros(3, 2), ValueError, "it must be"),
        (ONES, [0.0, math.nan], ValueError, "NaN or infinite"),
        (ONES, torch.tensor([0.0, -math.inf]), ValueError, "NaN or infinite"),
        (ONES, torch.zeros(2, device="meta"), ValueError, "ref_point is on meta but points is on"),
        (ONES, torch.zeros(2).long(), TypeError, "ref_point must be a floating tensor"),
        (ONES, [1.0, 1.0], ValueError, "no point dominates the reference point"),
        (ONES, [2.0, 0.0], ValueError, "no point dominates the reference point"),
        (ONES.long(), [0.0, 0.0], TypeError, "float32 or float64"),
        (ONES.half(), [0.0, 0.0], TypeError, "float32 or float64"),
        (ONES[0], [0.0, 0.0], ValueError, r"\[\.\.\., n, m\]"),
        (ONES / 0, [0.0, 0.0], ValueError, "infinite coordinates"),
        (-ONES / 0, [0.0, 0.0], ValueError, "infinite coordinates"),
    ],
)
def test_bad_input(function, points, ref, error, words):
    with pytest.raises(error, match=words):
        function(points, ref)
    if function is hypervolume and error is ValueError and points.dim() > 1:
        with pytest.raises(error, match=words):
            function(points, ref, method="slices")


def test_bad_options():
    with pytest.raises(ValueError, match="method must be auto, slices, tiles or polar"):
        hypervolume(ONES, [0.0, 0.0], method="exact")
    with pytest.raises(TypeError, match=r"new is .*float32 but archive is .*float64"):
        hypervolume_improvement(ONES, ONES.double(), [0.0, 0.0])
    with pytest.raises(ValueError, match="new has 2 objectives but archive has 3"):
        hypervolume_improvement(ONES, torch.ones(3, 3), [0.0, 0.0])
    with pytest.raises(ValueError, match="same leading shape"):
        hypervolume_improvement(ONES, ONES[None], [0.0, 0.0])


def test_a_front_below_the_reference_among_others_has_no_volume():
    points = torch.stack([torch.ones(3, 2), -torch.ones(3, 2)])
    assert hypervolume(points, [0.0, 0.0]).tolist() == [1, 0]
    assert hypervolume(points, [0.0, 0.0], method="slices").tolist() == [1, 0]


fronts = st.tuples(st.integers(1, 12), st.integers(2, 5), st.integers(0, 10**6)).map(
    lambda spec: front(KINDS[spec[2] % 6], *spec[:2], seed=spec[2]) + 0.01
)


@given(fronts, st.sampled_from(["auto", "slices", "tiles"]), st.randoms(use_true_random=False))
def test_properties(points, method, random):
    n, m = points.shape
    origin = [0.0] * m

    def value(y):
        return hypervolume(y, origin, method=method).item()

    volume = value(points)
    assert volume == pytest.approx(float(exact_hypervolume(points)), rel=1e-12)
    order = torch.tensor(random.sample(range(n), n))
    assert value(points[order]) == pytest.approx(volume, rel=1e-12)
    scale = torch.tensor([2.0**k for k in range(m)], dtype=points.dtype)
    assert value(points * scale) == pytest.approx(volume * scale.prod().item(), rel=1e-12)
    again = torch.cat([points, points[:3], points * 0.7])
    assert value(again) == pytest.approx(volume, rel=1e-12)
    more = torch.cat([points, points[:1] * 1.5])
    assert value(more) > volume
    contributions = hypervolume_contributions(points, origin)
    assert contributions.sum() <= volume * (1 + 1e-12)
    permuted = hypervolume_contributions(points[order], origin)
    torch.testing.assert_close(permuted, contributions[order], rtol=1e-9, atol=1e-13)


@given(st.integers(1, 9), st.integers(2, 4), st.integers(0, 10**6))
def test_batch_is_a_loop_and_mask_is_removal(n, m, seed):
    points = torch.stack([front(kind, n, m, seed=seed) + 0.01 for kind in KINDS[:4]])
    mask = torch.rand(4, n, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0, 0] = True
    origin = [0.0] * m
    for method in ("auto", "slices", "tiles"):
        whole = hypervolume(points, origin, mask, method=method)
        parts = [hypervolume(y[keep], origin) for y, keep in zip(points, mask, strict=True)]
        torch.testing.assert_close(whole, torch.stack(parts), rtol=1e-12, atol=0)
    whole = hypervolume_contributions(points, origin, mask)
    assert (whole[~mask] == 0).all()
    for y, keep, row in zip(points, mask, whole, strict=True):
        part = hypervolume_contributions(y[keep], origin)
        torch.testing.assert_close(row[keep], part, rtol=1e-9, atol=1e-14)


def test_a_small_memory_budget_changes_nothing():
    points = sphere_batch(2, 60, 4)
    for method in ("slices", "tiles", "auto"):
        a = hypervolume(points, [0.0] * 4, method=method)
        b = hypervolume(points, [0.0] * 4, method=method, memory_budget=1)
        torch.testing.assert_close(a, b, rtol=1e-13, atol=0)


@pytest.mark.gpu
def test_on_cuda_as_on_cpu():
    for m in (2, 3, 4, 5):
        points = sphere_batch(8, 60, m)
        leaf, twin = points.clone().requires_grad_(), points.cuda().requires_grad_()
        here, there = hypervolume(leaf, [0.0] * m), hypervolume(twin, [0.0] * m)
        torch.testing.assert_close(there.cpu(), here, rtol=1e-12, atol=0)
        here.sum().backward()
        there.sum().backward()
        torch.testing.assert_close(twin.grad.cpu(), leaf.grad, rtol=1e-9, atol=1e-13)
        ours = hypervolume_contributions(points.cuda(), [0.0] * m).cpu()
        torch.testing.assert_close(ours, hypervolume_contributions(points, [0.0] * m))
