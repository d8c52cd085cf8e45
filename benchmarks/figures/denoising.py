"""Figure of docs/denoising.md: a sampler of 25 Gaussians, and what its training met.

    python -m benchmarks.figures.denoising

It takes the sampler that `python -m benchmarks.denoising gmm25` trains, or trains it.
"""

import matplotlib.pyplot as plt
import torch

from benchmarks.denoising import target, train
from benchmarks.figures.common import save
from gflow.conditions import Conditions
from gflow.envs.denoising import denoising_diffusion
from gflow.envs.denoising.energies import gaussians25
from gflow.objectives.balance import VarGrad
from gflow.sampling.rollout import rollout
from gflow.seeding import generator

energy = gaussians25()
env = denoising_diffusion((2,), 40, 50.0)
policy, score, fresh = target(env, energy, 200, 1.5, 300, guide=True)
train("gmm25-VarGrad-600", policy, VarGrad(), fresh, 600)
batch = rollout(policy, env.initial(1500), Conditions().sample(1500), generator(0, "figure"))

columns = {"t = 1": 1, "t = 0.5": 21, "t = 0.2": 33, "t = 0": 41}
figure, axes = plt.subplots(1, 5, figsize=(9, 2), sharex=True, sharey=True)
for axis, (name, column) in zip(axes, columns.items(), strict=False):
    axis.plot(*batch.states[:, column].T, ".", color="#2b6cb0", markersize=1)
    axis.set_title(name)
exact = energy.sample(1500, torch.Generator().manual_seed(0))
axes[4].plot(*exact.T, ".", color="#666666", markersize=1)
axes[4].set_title("target")
for axis in axes:
    axis.set_aspect("equal")
    axis.set_xlim(-18, 18)
    axis.set_ylim(-18, 18)
save(figure, "denoising.png")
