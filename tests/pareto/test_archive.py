import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gflow.pareto import ParetoArchive, hypervolume, hypervolume_contributions, non_dominated

from .fronts import KINDS, front, sphere_batch

F64 = torch.float64


def rows(points):
    return sorted(map(tuple, points.tolist()))


@given(
    st.sampled_from(KINDS[:6]),
    st.integers(2, 5),
    st.integers(0, 10**6),
    st.sampled_from([True, False]),
)
def test_an_archive_that_never_fills_is_the_front_of_everything(kind, m, seed, maximize):
    stream = [front(kind, 9, m, seed=seed + step) for step in range(4)]
    ref = [-0.1] * m
    if not maximize:
        stream, ref = [-points for points in stream], [0.1] * m
    archive = ParetoArchive(100, ref, maximize=maximize, dtype=F64)
    seen = stream[0][:0]
    for points in stream:
        before = archive.hypervolume()
        gains = archive.add(points)
        seen = torch.cat([seen, points])
        kept = non_dominated(seen, maximize=maximize, deduplicate=True)
        assert rows(archive.points[archive.mask]) == rows(seen[kept])
        after = hypervolume(seen, ref, maximize=maximize)
        torch.testing.assert_close(archive.hypervolume(), after, rtol=1e-12, atol=0)
        torch.testing.assert_close(gains.sum(), after - before, rtol=1e-9, atol=1e-13)
        assert (gains >= 0).all()


def test_each_gain_is_what_the_point_adds_in_turn():
    archive = ParetoArchive(50, [0.0] * 3, dtype=F64)
    archive.add(front("concave", 20, 3) * 0.9)
    old = archive.points[archive.mask]
    points = front("concave", 12, 3, seed=1) * torch.linspace(0.6, 1, 12, dtype=F64)[:, None]
    gains = archive.add(points)
    entered = non_dominated(torch.cat([old, points]))[len(old) :]
    assert entered.any() and not entered.all()
    so_far = old
    for point, gain, inside in zip(points, gains, entered, strict=True):
        grown = torch.cat([so_far, point[None]]) if inside else so_far
        step = hypervolume(grown, [0.0] * 3) - hypervolume(so_far, [0.0] * 3)
        assert gain.item() == pytest.approx(step.item(), abs=1e-14)
        so_far = grown


def test_many_kept_points_take_the_same_road():
    """Past a thousand kept points the leaders are compared first; nothing else changes."""
    base, new = sphere_batch(1500, 3), sphere_batch(200, 3, seed=1)
    new = new * torch.linspace(0.8, 1.02, 200, dtype=F64).unsqueeze(-1)
    archive = ParetoArchive(4000, [0.0] * 3, dtype=F64)
    archive.add(base)
    gains = archive.add(new)
    union = torch.cat([base, new])
    kept = non_dominated(union)
    assert rows(archive.points[archive.mask]) == rows(union[kept])
    assert ((gains > 0) == kept[1500:]).all()
    growth = hypervolume(union, [0.0] * 3) - hypervolume(base, [0.0] * 3)
    torch.testing.assert_close(gains.sum(), growth, rtol=1e-10, atol=1e-14)


def test_copies_dominated_nan_and_masked_points_change_nothing():
    archive = ParetoArchive(8, [0.0, 0.0])
    first = torch.tensor([[1.0, 0.5], [0.5, 1.0], [0.5, 1.0]])
    gains = archive.add(first, ids=torch.tensor([7, 8, 9]))
    assert gains.tolist() == pytest.approx([0.5, 0.25, 0])
    assert archive.ids[archive.mask].tolist() == [7, 8]
    before = archive.state_dict()["points"].clone()
    more = torch.tensor([[1.0, 0.5], [0.2, 0.2], [math.nan, 3.0], [5.0, 5.0]])
    mask = torch.tensor([True, True, True, False])
    assert archive.add(more, mask, ids=torch.arange(4)).tolist() == [0, 0, 0, 0]
    assert torch.equal(archive.points, before)
    assert archive.ids[archive.mask].tolist() == [7, 8]
    assert archive.add(torch.zeros(0, 2)).shape == (0,)


def test_points_beyond_the_reference_are_kept_without_volume():
    archive = ParetoArchive(8, [0.5, 0.5])
    assert archive.add(torch.tensor([[0.4, 2.0], [0.1, 0.1]])).tolist() == [0, 0]
    assert archive.count.item() == 1
    assert archive.hypervolume().item() == 0


@pytest.mark.parametrize("truncate", ["crowding", "contribution"])
def test_capacity_holds_and_ids_follow_their_points(truncate):
    archive = ParetoArchive(16, [-0.1] * 3, truncate=truncate, dtype=F64)
    stream = sphere_batch(6, 30, 3)
    for step, points in enumerate(stream):
        archive.add(points, ids=torch.arange(30) + 30 * step)
        kept = archive.points[archive.mask]
        assert archive.count.item() == min(16, 30 * (step + 1))
        assert non_dominated(kept).all()
        assert torch.equal(stream.view(-1, 3)[archive.ids[archive.mask]], kept)


def test_crowding_keeps_the_ends_and_thins_the_dense_part():
    x = torch.cat([torch.linspace(0, 0.1, 20, dtype=F64), torch.linspace(0.2, 1, 9, dtype=F64)])
    archive = ParetoArchive(10, [-1.0, -1.0], dtype=F64)
    archive.add(torch.stack([x, 1 - x], -1))
    kept = archive.points[archive.mask][:, 0].sort().values
    assert kept[0] == 0 and kept[-1] == 1
    assert (kept > 0.15).sum() >= 7


def test_a_small_archive_drops_points_singly():
    """Of each pair of near-copies one stays, which a single round would not manage."""
    x = torch.linspace(0, 1, 8, dtype=F64)
    x = torch.cat([x, x[1:-1] + 1e-3])
    for truncate in ("crowding", "contribution"):
        archive = ParetoArchive(8, [-1.0, -1.0], truncate=truncate, dtype=F64)
        archive.add(torch.stack([x, 1 - x], -1))
        kept = archive.points[archive.mask][:, 0].sort().values
        torch.testing.assert_close(kept, torch.linspace(0, 1, 8, dtype=F64), atol=2e-3, rtol=0)


def test_contribution_drops_the_least_contributor():
    points = front("concave", 12, 3)
    least = hypervolume_contributions(points, [0.0] * 3).argmin().item()
    archive = ParetoArchive(11, [0.0] * 3, truncate="contribution", dtype=F64)
    archive.add(points, ids=torch.arange(12))
    assert sorted(archive.ids.tolist()) == [i for i in range(12) if i != least]


def test_conditions_are_independent():
    random = torch.Generator().manual_seed(0)
    # New points that dominate each other too, more of them in some fronts than in others.
    lengths = 0.4 + 0.6 * torch.rand(5, 2, 3, 12, 1, generator=random, dtype=F64)
    stream = sphere_batch(5, 2, 3, 12, 3) * lengths
    ref = torch.rand(2, 3, 3, generator=random, dtype=F64) * 0.2
    whole = ParetoArchive(14, ref, batch_shape=(2, 3), dtype=F64)
    parts = {(i, j): ParetoArchive(14, ref[i, j], dtype=F64) for i in range(2) for j in range(3)}
    ids = torch.arange(12).expand(2, 3, 12)
    for points in stream:
        mask = points[..., 0] > 0.3
        gains = whole.add(points, mask, ids)
        volumes = whole.hypervolume()
        for (i, j), part in parts.items():
            alone = part.add(points[i, j], mask[i, j], ids[i, j])
            torch.testing.assert_close(gains[i, j], alone, rtol=1e-9, atol=1e-14)
            torch.testing.assert_close(volumes[i, j], part.hypervolume())
            assert torch.equal(whole.points[i, j], part.points)
            assert torch.equal(whole.ids[i, j], part.ids)


def test_save_and_load():
    archive = ParetoArchive(6, [0.0, 1.0], maximize=(True, False))
    archive.add(torch.tensor([[1.0, 0.5], [0.5, 0.1]]), ids=torch.tensor([3, 4]))
    file = io.BytesIO()
    torch.save(archive.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    twin = ParetoArchive(6, [0.0, 1.0], maximize=[True, False])
    twin.load_state_dict(state)
    point = torch.tensor([[0.7, 0.3]])
    assert torch.equal(twin.add(point), archive.add(point))
    for name in ("points", "mask", "ids"):
        assert torch.equal(getattr(twin, name), getattr(archive, name))
    assert not torch.equal(state["points"], twin.points)
    snapshot = twin.state_dict()
    before = snapshot["points"].clone()
    twin.load_state_dict(state)
    twin.add(point + 1)
    assert torch.equal(snapshot["points"], before)


def test_nan_and_infinite_rows_of_one_condition_do_not_touch_the_others():
    archive = ParetoArchive(8, [0.0, 0.0], batch_shape=(2,))
    points = torch.tensor([[[1.0, 2.0], [2.0, 1.0]], [[math.nan, 1.0], [math.inf, 1.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    assert archive.add(points, mask).tolist() == [[2, 1], [0, 0]]
    assert archive.count.tolist() == [2, 0]
    assert archive.hypervolume().tolist() == [3, 0]
    assert archive.add(points.flip(0), mask.flip(0)).tolist() == [[0, 0], [2, 1]]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (ParetoArchive(7, [0.0, 1.0]), r"points \[6, 2\]"),
        (ParetoArchive(6, [0.0, 1.0], dtype=F64), "float32"),
        (ParetoArchive(6, [0.0, 0.0]), "another reference point"),
        (ParetoArchive(6, [0.0, 1.0], maximize=False), "maximize"),
        (ParetoArchive(6, [0.0, 1.0], truncate="contribution"), "truncate"),
    ],
)
def test_load_refuses_another_archive(other, words):
    with pytest.raises(ValueError, match=words):
        other.load_state_dict(ParetoArchive(6, [0.0, 1.0]).state_dict())


def test_small_gains_keep_their_digits_in_float32():
    archive = ParetoArchive(200, [-3.0] * 3)
    exact = ParetoArchive(200, [-3.0] * 3, dtype=F64)
    for seed in range(3):
        points = (front("clustered", 60, 3, seed=seed)).float()
        wanted = exact.add(points.double())
        torch.testing.assert_close(archive.add(points).double(), wanted, rtol=1e-6, atol=0)


def test_the_reference_is_the_archives_own():
    reference = torch.zeros(2, requires_grad=True)
    archive = ParetoArchive(4, reference)
    with torch.no_grad():
        reference += 5
    archive.add(ONES)
    assert archive.hypervolume() == 1


def test_no_conditions_at_all():
    archive = ParetoArchive(4, [0.0, 0.0], batch_shape=(0,))
    assert archive.add(torch.ones(0, 3, 2)).shape == (0, 3)
    assert archive.hypervolume().shape == (0,)


def test_load_refuses_an_incomplete_state():
    with pytest.raises(ValueError, match=r"lacks \['ids'\]"):
        state = ParetoArchive(6, [0.0]).state_dict()
        del state["ids"]
        ParetoArchive(6, [0.0]).load_state_dict(state)


ARCHIVE = ParetoArchive(4, [0.0, 0.0])
ONES = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ParetoArchive(0, [0.0]), ValueError, "at least 1, not 0"),
        (lambda: ParetoArchive(4.0, [0.0]), ValueError, "whole number of at least 1, not 4.0"),
        (lambda: ParetoArchive(4, 0.0), ValueError, "one number for each objective, not 0.0"),
        (lambda: ParetoArchive(4, None), ValueError, "never guessed"),
        (lambda: ParetoArchive(4, [0.0, math.inf]), ValueError, "NaN or infinite"),
        (lambda: ParetoArchive(4, [0.0], truncate="age"), ValueError, "crowding or contribution"),
        (lambda: ParetoArchive(4, [0.0], dtype=torch.half), TypeError, "float32 or float64"),
        (lambda: ParetoArchive(4, [0.0], maximize=(True, True)), ValueError, "maximize has 2"),
        (lambda: ARCHIVE.add(torch.ones(3, 3)), ValueError, "points has 3 objectives but the"),
        (lambda: ARCHIVE.add(ONES.double()), TypeError, "float64"),
        (lambda: ARCHIVE.add(ONES[None]), ValueError, "leading shape"),
        (lambda: ARCHIVE.add(ONES / 0), ValueError, "infinite"),
        (lambda: ARCHIVE.add(ONES, ids=torch.ones(3)), TypeError, "ids must be an int64"),
        (lambda: ARCHIVE.add(ONES, ids=[1, 2, 3]), TypeError, "ids must be an int64"),
        (lambda: ARCHIVE.add(ONES, ids=torch.arange(2)), ValueError, "ids must have shape"),
        (lambda: ARCHIVE.add(ONES.to("meta")), ValueError, "points is on meta"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
    assert ARCHIVE.count.item() == 0


@pytest.mark.gpu
def test_on_cuda_as_on_cpu():
    here = ParetoArchive(20, [0.0] * 3, batch_shape=(2,), dtype=F64)
    there = ParetoArchive(20, [0.0] * 3, batch_shape=(2,), dtype=F64, device="cuda")
    for points in sphere_batch(4, 2, 15, 3):
        gains = here.add(points)
        torch.testing.assert_close(there.add(points.cuda()).cpu(), gains, rtol=1e-9, atol=1e-13)
        assert torch.equal(there.points.cpu(), here.points)
