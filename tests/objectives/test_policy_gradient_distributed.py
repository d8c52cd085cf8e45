"""Two gloo processes give the parameters of one process on the joined batch."""

import os
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import sys, warnings, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
warnings.simplefilter("ignore")
from dataclasses import replace
from gflow.conditions import Conditions, PooledConditions, PromptConditions
from gflow.envs.grids import HyperGrid
from gflow.mdp import concat_trajectories
from gflow.objectives.policy_gradient import Advantage, PolicyGradient
from gflow.objectives.catalog import METHODS
from gflow.policies import Anchored, MLPPolicy
from gflow.sampling import OnPolicy, Scorer
from gflow.sampling.paths import OnPaths
from gflow.seeding import generator
from gflow.training import Runtime, Trainer, TrainerSettings
from tests import gauss1d
from tests.objectives.oracles import Oracle

env, conditions = HyperGrid(2, 6), Conditions(2, concentration=1.0)
pool = PooledConditions(conditions, conditions.sample(5, generator(3), torch.float64))

def policy(seed):
    return MLPPolicy(env, (16,), conditions.encoding_size, flow=True, seed=seed).double()

def denoiser():
    made = gauss1d.make()
    made.network = Anchored(made.network)
    return made

def score(batch):
    batch.rewards = batch.terminal.data[:, :1] + batch.condition.encoding
    return batch

class Stored:
    '''Stored shards: its own to each process, all of them joined to a lonely one.'''
    def __init__(self, rank, world_size, paths):
        oracle = Oracle(lambda states: states.data.double() / 5, 2)
        shards = [
            OnPolicy(policy(0), pool, Scorer(env, oracle), 8 + 8 * r, 10 + r, group_size=4,
                     keep_log_pf=True, dtype=torch.float64)
            if not paths else
            OnPaths(denoiser(), PromptConditions(3), score, 8 + 8 * r, 10 + r, group_size=4,
                    dtype=torch.float64)
            for r in range(2)
        ]
        self.batches = [[shard() for shard in shards] for _ in range(4)]
        for batches in self.batches:
            # Groups are told apart within a process; joined, their numbers must differ too.
            batches[1].group += 1000
        self.rank, self.world_size, self.step = rank, world_size, -1
    def __call__(self):
        self.step += 1
        shards = self.batches[self.step]
        return concat_trajectories(shards) if self.world_size == 1 else shards[self.rank]

runtime = Runtime.create("cpu")
names = "gdpo dapo ppo reinforce_pp reinforce_pp_baseline dcpo spo disco"
objectives = {{name: METHODS[name].objective for name in names.split()}}
objectives["entropy"] = PolicyGradient(Advantage(scale="batch_std"), entropy_weight=0.1)
objectives |= {{name: METHODS[name].objective for name in ("flow_grpo", "ddpo")}}
for name, objective in objectives.items():
    paths = "paths" in getattr(METHODS.get(name), "defaults", ())
    trainer = Trainer(
        denoiser() if paths else Anchored(policy(1)), objective.fresh(),
        Stored(runtime.rank, runtime.world_size, paths),
        TrainerSettings(learning_rate=1e-3, log_every=0, updates=2), runtime=runtime,
    )
    trainer.run(4)
    flat = torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])
    torch.save(flat, f"{{sys.argv[1]}}/{{name}}_{{runtime.world_size}}_{{runtime.rank}}.pt")
runtime.close()
"""


def run(command, script, folder, environment):
    done = subprocess.run(
        [*command, str(script), str(folder)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_processes_equal_one_on_the_joined_batch(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[2])))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    run([sys.executable], script, tmp_path, environment)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run([*torchrun, "--nproc-per-node=2"], script, tmp_path, environment)
    alone = {path.name[: -len("_1_0.pt")]: torch.load(path) for path in tmp_path.glob("*_1_0.pt")}
    assert len(alone) == 11
    apart = {}
    for name, expected in alone.items():
        together = [torch.load(tmp_path / f"{name}_2_{rank}.pt") for rank in range(2)]
        assert torch.equal(*together), name
        apart[name] = float((together[0] - expected).abs().max())
    assert max(apart.values()) < 1e-9, apart
