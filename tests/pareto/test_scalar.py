import math

import numpy as np
import pytest
import torch

from gflow.pareto import focus_accuracy, hsr, pc_entropy, r2, spacing
from gflow.pareto.scalar import _sharpe

from .fronts import front, sphere_batch

FRONT = torch.tensor([[1.0, 0.2], [0.6, 0.6], [0.2, 1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
SAMPLES = torch.tensor([[0.9, 0.2], [0.2, 0.9], [0.25, 0.8], [0.6, 0.5]], dtype=torch.float64)


def test_r2_known_values():
    assert r2(FRONT, WEIGHTS).item() == pytest.approx(0.2 / 3, abs=1e-15)
    assert r2(FRONT, WEIGHTS, normalize="frobenius").item() == pytest.approx(0.126491, abs=1e-6)
    one_by_one = [(w * (1 - FRONT)).amax(-1).amin() for w in WEIGHTS]
    assert r2(FRONT, WEIGHTS).item() == pytest.approx(torch.stack(one_by_one).mean().item())
    moved = r2(FRONT + 3, WEIGHTS, ideal_point=4.0)
    torch.testing.assert_close(moved, r2(FRONT, WEIGHTS))
    costs = r2(1 - FRONT, WEIGHTS, ideal_point=[0.0, 0.0])
    torch.testing.assert_close(costs, r2(FRONT, WEIGHTS))


def test_r2_gradient_batch_mask_and_empty():
    points = (sphere_batch(2, 6, 3) * 0.9).requires_grad_()
    weights = front("linear", 9, 3)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 2:4] = False
    assert torch.autograd.gradcheck(lambda y: r2(y, weights, mask), points)
    whole = r2(points, weights, mask, memory_budget=1)
    torch.testing.assert_close(whole[1], r2(points[1][mask[1]], weights))
    assert r2(FRONT[:0], WEIGHTS).item() == math.inf
    dominated = torch.cat([FRONT, FRONT * 0.5])
    assert torch.equal(r2(dominated, WEIGHTS), r2(FRONT, WEIGHTS))


def test_pc_entropy():
    assert pc_entropy(SAMPLES, FRONT).item() == pytest.approx(1.039721, abs=1e-6)
    everywhere = pc_entropy(FRONT, FRONT).item()
    assert everywhere == pytest.approx(math.log(3), abs=1e-7)
    assert pc_entropy(FRONT[:1], FRONT).item() == pytest.approx(0, abs=1e-7)
    assert pc_entropy(FRONT[:0], FRONT).item() == 0
    batch = torch.stack([SAMPLES, SAMPLES.flip(0)])
    mask = torch.tensor([[True, True, True, False], [True, False, True, True]])
    batch[1, 2] = torch.nan
    whole = pc_entropy(batch, FRONT, mask, memory_budget=1)
    torch.testing.assert_close(whole[0], pc_entropy(SAMPLES[:3], FRONT))
    torch.testing.assert_close(whole[1], pc_entropy(batch[1][[0, 3]], FRONT))


def test_hsr_known_values():
    assert hsr(FRONT).item() == pytest.approx(0.857286, abs=1e-6)
    assert hsr(FRONT, margin=0.3).item() == pytest.approx(0.807225, abs=1e-6)
    assert hsr(1 - FRONT, maximize=False).item() == pytest.approx(0.857286, abs=1e-6)
    assert hsr(FRONT * 2 + 1, lower=1.0, upper=3.0, margin=0.2).item() == pytest.approx(
        0.857286, abs=1e-6
    )


def test_hsr_is_the_best_portfolio():
    points = front("concave", 12, 3)
    places = (points + 0.1) / 1.2
    best = _sharpe(places.numpy())
    returns = places.prod(-1).numpy()
    overlap = torch.minimum(places[:, None], places[None]).prod(-1).numpy()
    generator = np.random.default_rng(0)
    for x in generator.dirichlet(np.full(12, 0.3), 2000):
        gain = returns @ x
        assert gain / np.sqrt(x @ overlap @ x - gain**2) <= best * (1 + 1e-9)
    # The quadratic programme as the papers state it.
    from scipy.optimize import minimize

    solution = minimize(
        lambda x: x @ overlap @ x - (returns @ x) ** 2,
        np.full(12, 1 / returns.sum()),
        constraints={"type": "eq", "fun": lambda x: returns @ x - 1},
        bounds=[(0, None)] * 12,
        options={"maxiter": 1000, "ftol": 1e-15},
    )
    assert best == pytest.approx(solution.fun**-0.5, rel=1e-5)


def test_hsr_ignores_copies_and_dominated_points():
    more = torch.cat([FRONT, FRONT, FRONT * 0.7, FRONT[:1] * torch.nan])
    torch.testing.assert_close(hsr(more), hsr(FRONT))
    whole = hsr(torch.stack([FRONT, FRONT]), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool())
    alone = 1.1 * 0.3 / 1.44
    assert whole.tolist() == pytest.approx([0.857286, (alone / (1 - alone)) ** 0.5], abs=1e-6)
    assert hsr(FRONT[:0]).item() == 0
    assert hsr(FRONT - 0.3, lower=-1.0, upper=1.0).dtype is torch.float64


def test_spacing_by_hand():
    assert spacing(FRONT).item() == pytest.approx(0, abs=1e-15)
    points = torch.tensor([[0.0, 3.0], [1.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
    assert spacing(points).item() == pytest.approx((8 / 3 / 2) ** 0.5)
    assert spacing(points, correction=0).item() == pytest.approx((8 / 3 / 3) ** 0.5)
    padded = torch.cat([points, torch.full((2, 2), 9.0, dtype=points.dtype)])
    mask = torch.tensor([True, True, True, False, False])
    assert spacing(padded, mask, memory_budget=1).item() == spacing(points).item()
    assert spacing(points[:2]).item() == 0


def test_focus_accuracy():
    points = torch.tensor([[1.0, 1.0], [1.0, 0.9], [1.0, 0.0], [0.0, 0.0]])
    assert focus_accuracy(points, torch.tensor([2.0, 2.0])).item() == 0.5
    assert focus_accuracy(points, torch.ones(2), threshold=0.7).item() == 0.75
    assert focus_accuracy(points, torch.ones(2), torch.tensor([1, 1, 0, 0]).bool()).item() == 1
    own = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert focus_accuracy(points, own).item() == 0.5
    assert focus_accuracy(points[:0], torch.ones(2)).item() == 0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: r2(FRONT, WEIGHTS[0]), ValueError, "weights must have shape"),
        (lambda: r2(FRONT, WEIGHTS[:0]), ValueError, r"weights must be \[k, m\] with k >= 1"),
        (lambda: r2(FRONT, WEIGHTS, normalize="sum"), ValueError, "mean or frobenius"),
        (lambda: r2(FRONT / 0, WEIGHTS), ValueError, "infinite"),
        (lambda: r2(FRONT, WEIGHTS, ideal_point=[1.0] * 3), ValueError, r"ideal_point has shape"),
        (lambda: r2(FRONT, WEIGHTS, ideal_point=None), TypeError, "ideal_point must be a tensor"),
        (lambda: pc_entropy(SAMPLES, FRONT[:0]), ValueError, "p >= 1"),
        (lambda: pc_entropy(SAMPLES, FRONT.float()), TypeError, "reference is torch.float32"),
        (lambda: hsr(FRONT, lower=1.0, upper=1.0), ValueError, "range must not be empty"),
        (lambda: hsr(FRONT * 2), ValueError, "points lie outside"),
        (lambda: hsr(FRONT, memory_budget=99), ValueError, "front of 3 points needs 360 bytes"),
        (lambda: spacing(FRONT.long()), TypeError, "float32 or float64"),
        (lambda: focus_accuracy(FRONT, FRONT[0] * 0), ValueError, "must not be zero"),
        (lambda: focus_accuracy(FRONT, FRONT[0], threshold=2), ValueError, "cosine"),
        (lambda: focus_accuracy(FRONT, FRONT[:2]), ValueError, "does not broadcast"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.gpu
def test_on_cuda_as_on_cpu():
    points, weights = sphere_batch(3, 20, 3), front("linear", 9, 3)
    there = points.cuda()
    torch.testing.assert_close(r2(there, weights.cuda()).cpu(), r2(points, weights))
    torch.testing.assert_close(hsr(there).cpu(), hsr(points))
    torch.testing.assert_close(spacing(there).cpu(), spacing(points))
    torch.testing.assert_close(pc_entropy(there, weights.cuda()).cpu(), pc_entropy(points, weights))
