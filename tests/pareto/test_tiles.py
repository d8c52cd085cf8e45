import pytest
import torch

from gflow.pareto._exclusive import volume
from gflow.pareto.tiles import tile_cuts, tiled_volume

from .fronts import KINDS, exact_hypervolume, front


def test_the_grid_chooses_itself():
    assert [tile_cuts(n, 4) for n in (10, 10**6)] == [1, 1]
    assert [tile_cuts(n, 5) for n in (100, 1999, 2000, 10_000)] == [1, 1, 3, 5]
    assert [tile_cuts(n, 6) for n in (100, 128, 1000, 10_000)] == [1, 2, 3, 6]
    assert all(tile_cuts(n, m) >= 2 for n in (200, 10**5) for m in (6, 8, 12))


@pytest.mark.parametrize("cuts", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_any_grid_gives_the_same_volume(kind, cuts):
    points = front(kind, 45, 3)
    sizes = []

    def base(gains):
        sizes.append(len(gains))
        return volume(gains.unsqueeze(0), 2**20)[0]

    value = tiled_volume(points, base, cuts, 2**20)
    assert value.item() == pytest.approx(float(exact_hypervolume(points)), rel=1e-13)
    if kind == "concave":
        assert len(sizes) == cuts
        assert max(sizes) <= 45


def test_one_value_on_the_cut_axis_gives_one_slab():
    points = front("concave", 60, 3)
    points[:, 0] = 0.25
    calls = []

    def base(gains):
        calls.append(gains)
        return volume(gains.unsqueeze(0), 2**20)[0]

    value = tiled_volume(points, base, 4, 2**20)
    assert len(calls) == 1
    assert value.item() == pytest.approx(float(exact_hypervolume(points)), rel=1e-13)


def test_nothing_above_the_origin():
    assert tiled_volume(torch.zeros(5, 6), lambda gains: gains.sum(), 3, 2**20).item() == 0
