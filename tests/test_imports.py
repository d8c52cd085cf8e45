"""Importing gflow is light and changes nothing in the user's process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch_geometric rdkit botorch gpytorch transformers diffusers plotly scipy.stats pymoo "
    "moocore pyarrow ray rich jsonargparse RNA vina"
).split()


def python(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["gflow", "gflow.envs", "gflow.objectives", "gflow.pareto"])
def test_imports_are_light(module):
    found = python(f"import sys, {module}; print(' '.join(sys.modules))").split()
    assert "torch" in found
    assert not set(HEAVY) & set(found)


def test_import_changes_nothing():
    code = """
import multiprocessing, random, signal, torch, numpy
def state():
    return (multiprocessing.get_start_method(allow_none=True), torch.get_default_dtype(),
            torch.get_num_threads(), torch.initial_seed(), random.getstate()[1][:3],
            signal.getsignal(signal.SIGINT), torch.is_grad_enabled(),
            bytes(torch.get_rng_state().numpy()), numpy.random.get_state()[1][:3].tolist())
before = state()
import gflow, gflow.envs, gflow.objectives, gflow.pareto, gflow.policies, gflow.sampling, gflow.cli
assert state() == before
"""
    python(code)


def test_rooms_have_one_name():
    for name in ("envs", "objectives"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd=ROOT
        )
        assert f"import gflow.{name}, not {name}" in done.stderr


def test_rooms_do_not_look_into_each_other():
    allowed = {"envs": ("mdp", "kernels", "envs"), "objectives": ("mdp", "kernels", "objectives")}
    for room, names in allowed.items():
        for path in (ROOT / room).rglob("*.py"):
            for line in path.read_text().splitlines():
                words = line.split()
                if words[:1] in (["from"], ["import"]) and words[1].startswith("gflow"):
                    assert words[1].split(".")[1] in names, f"{path.name}: {line}"
    for path in (ROOT / "gflow" / "pareto").rglob("*.py"):
        for line in path.read_text().splitlines():
            if line.strip().startswith(("from gflow", "import gflow")):
                assert line.split()[1].startswith("gflow.pareto"), f"{path.name}: {line}"
