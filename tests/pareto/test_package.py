import subprocess
import sys

import torch

import gflow.pareto as pareto
from gflow.pareto.bench import peak_memory

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


def test_memory_of_a_large_front_is_bounded():
    """10,000 points of 6 objectives: volume, estimate, distances, archive under 1 GB."""
    points = sphere_batch(10_000, 6)
    gains = points.clone().requires_grad_()

    def work():
        pareto.hypervolume(points, [0.0] * 6)
        pareto.non_dominated_rank(points)
        pareto.polar_hypervolume(points, [0.0] * 6, n_directions=256)
        pareto.igd_plus(points, points[:500])
        pareto.spacing(points[:4000])
        archive = pareto.ParetoArchive(10_000, [0.0] * 6, dtype=points.dtype)
        archive.add(points[:300])
        archive.add(points[300:340])
        # The gradient at a few points of the front: many rivals in five dimensions.
        joint = pareto.hypervolume_improvement(gains[:20], points[20:], [0.0] * 6)
        assert joint > 0

    assert peak_memory(work) < 2**30


def test_memory_of_the_tensor_code_is_bounded(monkeypatch):
    monkeypatch.setattr("gflow.pareto._check.moocore", lambda: None)
    points = sphere_batch(10_000, 6)[:, :3].contiguous()
    kept = []
    assert peak_memory(lambda: kept.append(pareto.non_dominated(points[:3000]))) < 2**30
    assert peak_memory(lambda: kept.append(pareto.hypervolume(points[:3000], [0.0] * 3))) < 2**30
    assert torch.isfinite(kept[1])
