"""Two gloo processes under torchrun give the parameters of one process on the joined batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from gflow.conditions import Conditions
from gflow.objectives.balance import DetailedBalance, TrajectoryBalance
from gflow.mdp import concat_trajectories
from gflow.training import Runtime
from tests.problems import grid_trainer

class Stored:
    '''Hands out stored shards: its own to each process, all of them joined to a lonely one.'''
    def __init__(self, rank, world_size):
        shards = [grid_trainer(seed=10 + r, batch_size=6 + 4 * r).sampler for r in range(2)]
        self.batches = [[shard() for shard in shards] for _ in range(4)]
        self.rank, self.world_size, self.step = rank, world_size, -1
    def __call__(self):
        self.step += 1
        shards = self.batches[self.step]
        return concat_trajectories(shards) if self.world_size == 1 else shards[self.rank]

runtime = Runtime.create("cpu")
for objective in (TrajectoryBalance(), DetailedBalance()):
    trainer = grid_trainer(objective=objective, dtype=torch.float64)
    trainer.runtime = runtime
    trainer.sampler = Stored(runtime.rank, runtime.world_size)
    trainer.run(4)
    flat = torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])
    name = f"{{type(objective).__name__}}_{{runtime.world_size}}_{{runtime.rank}}.pt"
    torch.save(flat, f"{{sys.argv[1]}}/{{name}}")
runtime.close()
"""


def run(command, script, folder, environment):
    done = subprocess.run(
        [*command, str(script), str(folder)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("processes", [2])
def test_two_processes_equal_one_on_the_concatenated_batch(tmp_path, processes, monkeypatch):
    import os

    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[2])))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    run([sys.executable], script, tmp_path, environment)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run([*torchrun, f"--nproc-per-node={processes}"], script, tmp_path, environment)
    for name in ("TrajectoryBalance", "DetailedBalance"):
        alone = torch.load(tmp_path / f"{name}_1_0.pt")
        for rank in range(processes):
            together = torch.load(tmp_path / f"{name}_{processes}_{rank}.pt")
            assert torch.allclose(alone, together, atol=1e-10), name
