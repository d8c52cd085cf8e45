import math

import numpy as np
import pytest
import torch

from gflow.pareto import (
    cube_faces,
    infer_reference_point,
    non_dominated,
    pareto_front_of,
    reference_directions,
)

from .fronts import sphere_batch


def test_infer_reference_point_agrees_with_botorch():
    from botorch.utils.multi_objective.hypervolume import infer_reference_point as peer

    points = sphere_batch(4, 30, 3)
    ours = infer_reference_point(points)
    for y, ref in zip(points, ours, strict=True):
        torch.testing.assert_close(ref, peer(y[non_dominated(y)]))
    torch.testing.assert_close(infer_reference_point(-points, maximize=False), -ours)
    one = torch.tensor([[2.0, 0.0]])
    torch.testing.assert_close(infer_reference_point(one), peer(one))
    dominated = torch.cat([points, points * 0.1], -2)
    assert torch.equal(infer_reference_point(dominated), ours)


@pytest.mark.parametrize("points", [torch.zeros(0, 2), torch.full((2, 2), math.nan)])
def test_nothing_to_infer_from(points):
    with pytest.raises(ValueError, match="empty set"):
        infer_reference_point(points)


def test_directions():
    grid = reference_directions(3, partitions=4)
    assert grid.shape == (15, 3)
    assert grid.dtype is torch.float32
    torch.testing.assert_close(grid.sum(-1), torch.ones(15))
    assert {tuple(row) for row in (grid * 4).round().int().tolist()} == {
        (a, b, 4 - a - b) for a in range(5) for b in range(5 - a)
    }
    energy = reference_directions(3, n_points=12, method="energy", dtype=torch.float64)
    assert energy.shape == (12, 3)
    assert (energy >= 0).all()
    torch.testing.assert_close(energy.sum(-1), torch.ones(12, dtype=torch.float64))
    again = reference_directions(3, n_points=12, method="energy", dtype=torch.float64)
    assert torch.equal(again, energy)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"m": 1, "partitions": 3}, "two objectives"),
        ({"m": 3}, "take partitions"),
        ({"m": 3, "partitions": 0}, "take partitions"),
        ({"m": 3, "n_points": 9}, "take partitions"),
        ({"m": 3, "partitions": 3, "method": "energy"}, "take n_points"),
        ({"m": 3, "n_points": 2, "method": "energy"}, "take n_points"),
        ({"m": 3, "partitions": 3, "method": "grid"}, "das-dennis or energy"),
    ],
)
def test_bad_directions(options, words):
    with pytest.raises(ValueError, match=words):
        reference_directions(**options)


def test_cube_faces():
    assert [len(cube_faces(m)) for m in (1, 2, 3, 4)] == [1, 19, 271, 3439]
    faces = cube_faces(2, 3)
    wanted = {(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (1.0, 0.5), (1.0, 0.0)}
    assert {tuple(row) for row in faces.tolist()} == wanted
    with pytest.raises(ValueError, match="steps >= 2"):
        cube_faces(2, 1)


def test_fronts_of_pymoo_problems():
    zdt1 = pareto_front_of("zdt1", 50, dtype=torch.float64)
    assert zdt1.shape == (50, 2)
    torch.testing.assert_close(-zdt1[:, 1], 1 - (-zdt1[:, 0]).sqrt())
    dtlz2 = pareto_front_of("dtlz2", 100)
    assert len(dtlz2) >= 100
    torch.testing.assert_close(dtlz2.norm(dim=-1), torch.ones(len(dtlz2)))
    assert non_dominated(dtlz2).all()


def test_fronts_of_botorch_problems():
    from botorch.test_functions.multi_objective import DTLZ2, ZDT1

    torch.manual_seed(0)
    for negate in (False, True):
        front = pareto_front_of(DTLZ2(dim=5, num_objectives=3, negate=negate), 40)
        assert front.shape == (40, 3)
        assert (front <= 0).all()
        torch.testing.assert_close(front.norm(dim=-1), torch.ones(40))
    torch.testing.assert_close(pareto_front_of(ZDT1(dim=3), 50), pareto_front_of("zdt1", 50))


def test_drawn_fronts_are_reproducible_and_leave_the_global_generator_alone():
    from botorch.test_functions.multi_objective import DTLZ2

    state, problem = torch.get_rng_state(), DTLZ2(dim=5, num_objectives=3)
    front = pareto_front_of(problem, 20)
    assert torch.equal(front, pareto_front_of(problem, 20))
    assert not torch.equal(front, pareto_front_of(problem, 20, seed=1))
    assert torch.equal(state, torch.get_rng_state())


def test_dominated_points_of_a_stored_front_are_left_out():
    """Some points of pymoo's ZDT3 are dominated by the end of the part before."""
    front = pareto_front_of("zdt3", 100, dtype=torch.float64)
    assert 90 < len(front) < 100
    assert non_dominated(front).all()


def test_a_front_that_cannot_be_fetched(monkeypatch):
    from pymoo.problems.many.dtlz import DTLZ5

    def offline(self, *args):
        raise OSError("no network")

    monkeypatch.setattr(DTLZ5, "_calc_pareto_front", offline)
    with pytest.raises(ValueError, match="front of DTLZ5 from its site: no network"):
        pareto_front_of("dtlz5")


def test_problems_without_a_front():
    from botorch.test_functions.multi_objective import VehicleSafety
    from pymoo.problems.functional import FunctionalProblem

    with pytest.raises(ValueError, match="VehicleSafety has no known Pareto front"):
        pareto_front_of(VehicleSafety())
    problem = FunctionalProblem(1, [lambda x: x[0], lambda x: -x[0]], xl=np.zeros(1), xu=np.ones(1))
    with pytest.raises(ValueError, match="FunctionalProblem has no known Pareto front"):
        pareto_front_of(problem)
    with pytest.raises(ValueError, match="pymoo does not give the problem 'zdt9'"):
        pareto_front_of("zdt9")
    with pytest.raises(ValueError, match="int is neither a pymoo nor a botorch problem"):
        pareto_front_of(3)
