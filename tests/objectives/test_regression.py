"""Regression losses: zero with zero slope at 0, their curvatures, and large residuals."""

import pytest
import torch

from gflow.objectives.balance import REGRESSIONS
from gflow.objectives.balance.regression import linex, log_cosh
from tests.diamond import close

CURVATURE = {
    "squared": 2.0,
    "half_squared": 1.0,
    "huber": 1.0,
    "shifted_cosh": 2.0,
    "linex": 1.0,
    "linex_half": 1.0,
    "log_cosh": 1.0,
}


def test_every_loss_is_listed():
    assert set(CURVATURE) == set(REGRESSIONS)


@pytest.mark.parametrize("name", CURVATURE)
def test_value_slope_and_curvature_at_zero(name):
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = REGRESSIONS[name](t)
    (slope,) = torch.autograd.grad(value, t, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, t, allow_unused=True)
    close(value, 0.0, 1e-12)
    close(slope, 0.0, 1e-12)
    if name in ("huber", "log_cosh"):  # torch's derivatives of |t| at 0 are no use here
        h = torch.tensor([1e-3], dtype=torch.float64)
        curvature = (REGRESSIONS[name](h) + REGRESSIONS[name](-h)).squeeze() / 1e-6
    close(curvature, CURVATURE[name], 1e-5)


@pytest.mark.parametrize("name", CURVATURE)
def test_large_residuals_stay_finite(name):
    t = torch.tensor([-1e4, -90.0, 90.0, 1e4], requires_grad=True)
    value = REGRESSIONS[name](t)
    assert torch.isfinite(value).all() and (value > 0).all()
    (gradient,) = torch.autograd.grad(value.sum(), t)
    assert torch.isfinite(gradient).all()


def test_closed_forms():
    t = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64)
    close(REGRESSIONS["shifted_cosh"](t), t.exp() + (-t).exp() - 2)
    close(linex(t, 0.5), ((0.5 * t).exp() - 0.5 * t - 1) / 0.25)
    close(log_cosh(t, 2.0), (2 * t).cosh().log())
    close(REGRESSIONS["huber"](t), [1.5, 0.125, 2.5])


def test_linex_is_steeper_where_the_sampler_has_too_much_mass():
    t = torch.tensor([2.0], dtype=torch.float64)
    assert float(linex(t)) > float(linex(-t))
