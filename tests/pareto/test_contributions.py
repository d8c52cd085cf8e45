"""Contributions and improvements against removal, differences and the compiled library."""

import numpy as np
import pytest
import torch

from gflow.pareto import (
    hypervolume,
    hypervolume_contributions,
    hypervolume_improvement,
    hypervolume_improvement_alone,
)

from .fronts import KINDS, by_removal, finite_differences, front, sphere_batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
def test_contributions_by_removal(kind, m):
    points = front(kind, 11, m, seed=3)
    if not (points > 0).all(-1).any():
        return
    ours = hypervolume_contributions(points, [0.0] * m)
    torch.testing.assert_close(ours, by_removal(points), rtol=1e-10, atol=1e-14)
    single = hypervolume_contributions(points.float(), [0.0] * m)
    torch.testing.assert_close(single.double(), ours, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("n", "m"), [(400, 2), (400, 3), (150, 4), (60, 5)])
def test_contributions_agree_with_moocore(n, m):
    import moocore

    for kind in ("concave", "random", "clustered"):
        points = front(kind, n, m)
        wanted = moocore.hv_contributions(points.numpy(), ref=np.zeros(m), maximise=True)
        ours = hypervolume_contributions(points, [0.0] * m).numpy()
        # From four objectives on the library subtracts whole hypervolumes, and gives 0 for
        # contributions below the square root of the rounding error.
        shown = wanted > 0 if m > 3 else np.ones(n, bool)
        assert (ours[~shown] < 2e-8).all()
        total = hypervolume(points, [0.0] * m).item()
        np.testing.assert_allclose(ours[shown], wanted[shown], rtol=1e-12, atol=1e-13 * total)


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("library", [True, False])
def test_tiny_contributions_are_exact(m, library, monkeypatch):
    if not library:
        monkeypatch.setattr("gflow.pareto._check.moocore", lambda: None)
    points = front("clustered", 40, m) if m > 2 else front("concave", 80, 2)
    ours = hypervolume_contributions(points, [0.0] * m)
    assert ((ours > 0) & (ours < (1e-5 if m == 2 else 1e-7))).any()
    torch.testing.assert_close(ours, by_removal(points), rtol=1e-9, atol=1e-18)


def test_contributions_of_a_front_with_many_rivals():
    points = sphere_batch(2100, 3)
    ours = hypervolume_contributions(points, [0.0] * 3)
    total = hypervolume(points, [0.0] * 3)
    for i in (0, 700, 2099):
        mask = torch.ones(2100, dtype=torch.bool)
        mask[i] = False
        rest = hypervolume(points, [0.0] * 3, mask)
        assert abs((total - rest - ours[i]).item()) < 1e-13


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_improvement_is_the_difference(m):
    new, archive = front("random", 8, m, seed=7).view(2, 4, m), front("random", 12, m, seed=8)
    archive = archive.view(2, 6, m)
    mask, archive_mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1]]).bool(), torch.ones(2, 6).bool()
    archive_mask[0, 2] = False
    both = torch.cat([new, archive], 1)
    both_mask = torch.cat([mask, archive_mask], 1)
    origin = [0.0] * m

    def difference(y):
        joint = torch.cat([y, archive], 1)
        before = hypervolume(archive, origin, archive_mask)
        return hypervolume(joint, origin, both_mask) - before

    leaf = new.clone().requires_grad_()
    value = hypervolume_improvement(leaf, archive, origin, mask, archive_mask)
    torch.testing.assert_close(value, difference(new), rtol=1e-12, atol=1e-15)
    value.sum().backward()
    wanted = finite_differences(difference, new)
    torch.testing.assert_close(leaf.grad, wanted, rtol=1e-6, atol=1e-7)
    assert torch.equal(hypervolume(both, origin, both_mask).isnan(), torch.zeros(2).bool())


@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["random", "concave"])
def test_improvement_of_each_point_alone(m, kind):
    new, archive = front(kind, 8, m, seed=9).view(2, 4, m), front(kind, 12, m, seed=10)
    new[0, 3] = archive[1]  # adds nothing
    archive = archive.view(2, 6, m)
    mask, archive_mask = torch.ones(2, 4).bool(), torch.ones(2, 6).bool()
    mask[1, 2], archive_mask[1, 0] = False, False
    origin = [0.05] * m
    found = hypervolume_improvement_alone(new, archive, origin, mask, archive_mask)
    for i in range(4):
        one = slice(i, i + 1)
        wanted = hypervolume_improvement(new[:, one], archive, origin, mask[:, one], archive_mask)
        torch.testing.assert_close(found[:, i], wanted, rtol=1e-12, atol=1e-15)
    assert found[0, 3] == found[1, 2] == 0 and (m == 1 or bool((found > 0).any()))
    costs = hypervolume_improvement_alone(
        -new, -archive, [-0.05] * m, mask, archive_mask, maximize=False
    )
    assert torch.equal(costs, found)
    nobody = new[:, :0]
    alone = hypervolume_improvement_alone(new, nobody, [0.0] * m)
    torch.testing.assert_close(alone, new.prod(-1))
