import math
import subprocess
import sys

import pytest
import torch

import gflow.pareto as pareto
from gflow.pareto import bench
from gflow.pareto._timing import Row, peak_memory, table

from .fronts import sphere_batch


def test_import_is_light():
    code = (
        "import sys, gflow.pareto; "
        "print(sorted({'moocore', 'pymoo', 'botorch', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_documented_and_exist():
    for name in pareto.__all__:
        assert getattr(pareto, name).__doc__


def test_results_stay_beside_the_points_whatever_the_default_device():
    points = sphere_batch(2, 30, 4)
    similarity = points[0] @ points[0].T
    with torch.device("meta"):
        assert pareto.hypervolume(points, [0.0] * 4).device.type == "cpu"
        assert pareto.hypervolume(points, [0.0] * 4, method="slices").device.type == "cpu"
        assert pareto.hypervolume(points, [0.0] * 4, method="polar").device.type == "cpu"
        assert pareto.hypervolume_contributions(points, [0.0] * 4).device.type == "cpu"
        assert pareto.modes(points[0, :, 0], similarity).device.type == "cpu"


def growth(work):
    peak = peak_memory(work)
    if math.isnan(peak):
        pytest.skip("this system does not tell the peak of its memory")
    return peak


def test_memory_of_a_large_front_is_bounded():
    """10,000 points of 6 objectives: volume, estimate, distances, archive under 1 GB."""
    points = sphere_batch(10_000, 6)
    gains = points.clone().requires_grad_()

    def work():
        pareto.hypervolume(points, [0.0] * 6)
        pareto.non_dominated_rank(points)
        pareto.polar_hypervolume(points, [0.0] * 6, n_directions=256)
        pareto.igd_plus(points, points[:3000])
        pareto.spacing(points[:4000])
        archive = pareto.ParetoArchive(10_000, [0.0] * 6, dtype=points.dtype)
        archive.add(points[:300])
        archive.add(points[300:340])
        # The gradient at a few points of the front: many rivals in five dimensions.
        joint = pareto.hypervolume_improvement(gains[:20], points[20:], [0.0] * 6)
        assert joint > 0

    assert growth(work) < 2**30


def test_memory_of_the_tensor_code_is_bounded(monkeypatch):
    monkeypatch.setattr("gflow.pareto._check.moocore", lambda: None)
    points = sphere_batch(10_000, 6)[:, :3].contiguous()
    kept = []
    assert growth(lambda: kept.append(pareto.non_dominated(points[:3000]))) < 2**30
    assert growth(lambda: kept.append(pareto.hypervolume(points[:3000], [0.0] * 3))) < 2**30
    assert torch.isfinite(kept[1])


def test_benchmark_of_the_gradients_and_its_table():
    rows = list(bench._gradients())
    assert [row.met for row in rows] == [True] * 5
    missed = Row("what", "setting", 2.0, "peer", 1.0, float("nan"), 2.0**20, "time x 1", False)
    lines = table([*rows, missed]).splitlines()
    assert len(lines) == 7
    assert lines[1].startswith("gradient") and lines[1].endswith("met")
    assert lines[-1].split() == [
        *("what", "setting", "2e+03", "ms", "peer", "1e+03", "ms", "0.5x", "-", "1", "MB"),
        *("time", "x", "1", "MISSED"),
    ]


def test_peak_memory_sees_a_large_tensor():
    assert growth(lambda: torch.zeros(50 * 2**20, dtype=torch.uint8).add_(1)) > 40 * 2**20
