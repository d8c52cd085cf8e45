import math

import numpy as np
import pytest
import torch

from gflow.pareto import _check, crowding_distance, non_dominated, non_dominated_rank
from gflow.pareto.dominance import covered

from .fronts import KINDS, front, sphere_batch


@pytest.fixture(params=["host", "tensor"])
def route(request, monkeypatch):
    """Both roads: the compiled filter, and the tensor code that serves other devices."""
    if request.param == "tensor":
        monkeypatch.setattr("gflow.pareto._check.moocore", lambda: None)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 2, 3, 6])
@pytest.mark.parametrize("n", [1, 2, 60, 500])
def test_filter_agrees_with_moocore(route, kind, n, m):
    import moocore

    points = front(kind, n, m)
    for keep_weakly in (True, False):
        wanted = moocore.is_nondominated(points.numpy(), maximise=True, keep_weakly=keep_weakly)
        ours = non_dominated(points, deduplicate=not keep_weakly)
        assert ours.tolist() == wanted.tolist()


@pytest.mark.parametrize("kind", ["random", "tied"])
def test_filter_agrees_with_botorch(route, kind):
    from botorch.utils.multi_objective import is_non_dominated

    points = front(kind, 200, 3).view(4, 50, 3)
    assert torch.equal(non_dominated(points), is_non_dominated(points, deduplicate=False))


@pytest.mark.parametrize("m", [2, 3, 5])
def test_rank_agrees_with_pymoo(route, m):
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    points = front("tied", 150, m) + front("random", 150, m).round(decimals=1)
    ranks = non_dominated_rank(points)
    for rank, members in enumerate(NonDominatedSorting().do(-points.numpy())):
        assert sorted((ranks == rank).nonzero().flatten().tolist()) == sorted(members)


def test_copies_nan_and_mask(route):
    nan = math.nan
    points = torch.tensor([[1.0, nan], [0.5, 0.5], [0.5, 0.5], [0.2, 0.4], [9.0, 9.0]])
    mask = torch.tensor([True, True, True, True, False])
    assert non_dominated(points, mask).tolist() == [False, True, True, False, False]
    once = non_dominated(points, mask, deduplicate=True)
    assert once.tolist() == [False, True, False, False, False]
    assert non_dominated_rank(points, mask).tolist() == [5, 0, 0, 1, 5]


def test_direction_of_each_objective(route):
    points = torch.tensor([[1.0, 1.0], [2.0, 2.0], [2.0, 1.0], [0.0, 3.0]])
    assert non_dominated(points, maximize=(True, False)).tolist() == [False, False, True, False]
    assert non_dominated(points, maximize=False).tolist() == [True, False, False, True]
    assert torch.equal(non_dominated(points), non_dominated(-points, maximize=False))
    flags = np.array([True, False])
    for mixed in (flags, list(flags), torch.tensor(flags)):
        assert torch.equal(
            non_dominated(points, maximize=mixed), non_dominated(points, maximize=(True, False))
        )


def test_infinite_coordinates_are_ordered(route):
    points = torch.tensor([[math.inf, 0.0], [0.0, -math.inf], [0.0, 0.0]])
    assert non_dominated(points).tolist() == [True, False, False]


def test_batch_is_a_loop_and_a_small_budget_changes_nothing(route):
    points = sphere_batch(3, 2, 40, 3).round(decimals=1)
    mask = torch.rand(3, 2, 40, generator=torch.Generator().manual_seed(1)) < 0.7
    whole = non_dominated(points, mask, memory_budget=1)
    ranks = non_dominated_rank(points, mask)
    for i, j in np.ndindex(3, 2):
        assert torch.equal(whole[i, j], non_dominated(points[i, j], mask[i, j]))
        assert torch.equal(ranks[i, j], non_dominated_rank(points[i, j], mask[i, j]))


def test_empty_sets(route):
    assert non_dominated(torch.zeros(0, 3)).shape == (0,)
    assert non_dominated(torch.zeros(0, 5, 3)).shape == (0, 5)
    assert non_dominated_rank(torch.zeros(4, 0, 3)).shape == (4, 0)
    assert crowding_distance(torch.zeros(4, 0, 3)).shape == (4, 0)


def test_crowding_agrees_with_pymoo():
    from pymoo.operators.survival.rank_and_crowding.metrics import get_crowding_function

    for m in (2, 3, 5):
        points = front("concave", 80, m)
        wanted = get_crowding_function("cd").do(-points.numpy()) * m
        np.testing.assert_allclose(crowding_distance(points).numpy(), wanted, rtol=1e-12)


def test_crowding_by_hand():
    points = torch.tensor([[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0]])
    inf = math.inf
    assert crowding_distance(points).tolist() == [inf, 1.5, 1.5, inf]
    mask = torch.tensor([True, False, True, True])
    assert crowding_distance(points, mask).tolist() == [inf, 0.0, 2.0, inf]
    assert crowding_distance(points[:2]).tolist() == [inf, inf]
    flat = torch.tensor([[0.0, 1.0], [1.0, 1.0], [4.0, 1.0]])
    assert crowding_distance(flat).tolist() == [inf, 1.0, inf]


@pytest.mark.parametrize("copies", [1, 5])
def test_covered_is_weak_dominance(copies):
    points = torch.tensor([[[2, 3, 3, 1]], [[2, 1, 0, 6]]])
    by = torch.tensor([[[2, 2, -1]], [[2, 5, -1]]]).repeat(1, 1, copies)
    assert covered(points, by, 1).tolist() == [[True, False, False, False]]
    assert not covered(points, by[..., :0], 1).any()


@pytest.mark.parametrize(
    ("points", "options", "error", "words"),
    [
        (torch.zeros(3, 2, dtype=torch.long), {}, TypeError, "float32 or float64, not torch.int64"),
        (torch.zeros(3, 2).half(), {}, TypeError, "not torch.float16"),
        ([[1.0, 2.0]], {}, TypeError, "must be a torch tensor, not list"),
        (torch.zeros(3), {}, ValueError, r"must have shape \[\.\.\., n, m\]"),
        (torch.zeros(3, 0), {}, ValueError, "m >= 1"),
        (torch.zeros(3, 2), {"maximize": (True,) * 3}, ValueError, "maximize has 3 entries"),
        (torch.zeros(3, 2), {"maximize": [1, -1]}, TypeError, r"bool, or one .*, not \[1, -1\]"),
        (torch.zeros(3, 2), {"maximize": ["max", "min"]}, TypeError, "maximize must be a bool"),
        (torch.zeros(3, 3), {"maximize": "min"}, TypeError, "not 'min'"),
        (torch.zeros(3, 2), {"maximize": None}, TypeError, "not None"),
        (
            torch.zeros(3, 2),
            {"mask": torch.ones(2).bool()},
            ValueError,
            r"mask must have shape \[3",
        ),
        (torch.zeros(3, 2), {"mask": torch.ones(3)}, TypeError, "bool tensor"),
        (
            torch.zeros(3, 2),
            {"mask": torch.ones(3, dtype=torch.bool, device="meta")},
            ValueError,
            "mask is on meta but the points are on cpu",
        ),
    ],
)
def test_bad_input(points, options, error, words):
    with pytest.raises(error, match=words):
        non_dominated(points, **options)


def test_crowding_refuses_infinity():
    with pytest.raises(ValueError, match="infinite"):
        crowding_distance(torch.tensor([[math.inf, 0.0]]))


def test_moocore_is_optional(monkeypatch):
    def missing(name):
        raise ImportError(name)

    _check.moocore.cache_clear()
    monkeypatch.setattr(_check.importlib, "import_module", missing)
    try:
        assert _check.moocore() is None
    finally:
        _check.moocore.cache_clear()


@pytest.mark.gpu
def test_on_cuda_as_on_cpu():
    points = sphere_batch(4, 300, 3).round(decimals=2)
    assert torch.equal(non_dominated(points.cuda()).cpu(), non_dominated(points))
    assert torch.equal(non_dominated_rank(points.cuda()).cpu(), non_dominated_rank(points))
    torch.testing.assert_close(crowding_distance(points.cuda()).cpu(), crowding_distance(points))
