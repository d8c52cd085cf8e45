"""Three samplers for two objectives, exactly: docs/figures/multi_objective.png.

Branin and Currin on the 32 x 32 grid, `--steps 800` of 128 trajectories by default.
"""

import argparse

import matplotlib.pyplot as plt
import torch
from common import picture, save
from torch import Tensor

import gflow
from gflow.conditions import InverseTemperature
from gflow.estimators import terminating_distribution
from gflow.objectives.catalog import get_method
from gflow.pareto import non_dominated
from gflow.sampling import Exploration, Hindsight, Strategy
from gflow.scalarize import SCALARIZATIONS, focus

SIDE, BATCH = 32, 128
TASK = gflow.make_task("grid_objectives", "branin,currin", {"side": SIDE})
STATES = TASK.env.all_terminal_states()
REWARDS = TASK.oracle(STATES)
FRONT = non_dominated(REWARDS)
TITLES = {
    "mogfn_pc": "preference-conditional",
    "goal_conditioned": "goal-conditioned",
    "op_tb": "order-preserving",
}
ASKED = {
    "mogfn_pc": ((0.9, 0.1), (0.5, 0.5), (0.1, 0.9)),
    "goal_conditioned": ((0.7, 0.3), (0.5, 0.5), (0.4, 0.6)),
    "op_tb": (None,),
}


def near_focus(rewards: Tensor, goals: Tensor) -> Tensor:
    """`focus` with a floor, so that the many objects out of focus do not drown the few in it."""
    return focus(rewards, goals).clamp(min=-1.25)


def train(name: str, steps: int) -> tuple[gflow.MLPPolicy, gflow.Conditions]:
    """The sampler of a catalog row, with the row's own settings."""
    method = get_method(name)
    beta = InverseTemperature.parse(str(method.defaults.get("inverse_temperature", "1")))
    concentration = float(str(method.defaults["concentration"])) if method.conditional else None
    conditions = gflow.Conditions(2, beta, concentration)
    policy = gflow.MLPPolicy(TASK.env, (256, 256), conditions.encoding_size)
    scalarization = str(method.defaults.get("scalarization", "weighted_sum"))
    function = near_focus if scalarization == "focus" else SCALARIZATIONS[scalarization]
    score = gflow.Scorer(TASK.env, TASK.oracle, function)
    sampler: Strategy = gflow.OnPolicy(
        policy, conditions, score, BATCH, 0, exploration=Exploration(epsilon=0.05)
    )
    if scalarization == "focus":
        sampler = Hindsight(sampler, conditions, 0)
    settings = gflow.TrainerSettings(clip_norm=10.0, log_every=0)
    gflow.Trainer(policy, method.objective, sampler, settings).run(steps)
    return policy, conditions


def exact(
    policy: gflow.MLPPolicy, conditions: gflow.Conditions, asked: tuple[float, ...] | None
) -> Tensor:
    """Probability of every object of `STATES` under one condition, [n]."""
    beta = torch.tensor([conditions.inverse_temperature.a])
    condition = conditions.make(None if asked is None else torch.tensor([asked]), beta)
    found = terminating_distribution(policy, condition)
    image = picture(found.states.data, found.probability, SIDE)
    return image[STATES.data[:, 1], STATES.data[:, 0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    steps = parser.parse_args().steps
    figure, axes = plt.subplots(2, len(TITLES), figsize=(8.4, 5.4), sharex="row", sharey="row")
    front = STATES.data[FRONT]
    for (name, title), (above, below) in zip(TITLES.items(), axes.T, strict=True):
        policy, conditions = train(name, steps)
        found = [exact(policy, conditions, weights) for weights in ASKED[name]]
        mean = torch.stack(found).mean(0)
        print(f"{title:24} probability of the true front: {float(mean[FRONT].sum()):.3f}")
        image = picture(STATES.data, mean, SIDE)
        above.imshow(image.clamp(min=1e-5).log(), origin="lower", cmap="Greys")
        above.scatter(front[:, 0], front[:, 1], s=7, facecolors="none", edgecolors="crimson")
        above.set_title(title)
        below.plot(*REWARDS.T, ",", color="lightgrey")
        below.scatter(*REWARDS[FRONT].T, s=7, facecolors="none", edgecolors="crimson")
        for weights, probability in zip(ASKED[name], found, strict=True):
            likely = probability > 2e-3
            label = None if weights is None else "{:.1f}, {:.1f}".format(*weights)
            below.scatter(*REWARDS[likely].T, s=600 * probability[likely], alpha=0.6, label=label)
        if len(found) > 1:
            below.legend(title="asked for", markerscale=0.5, loc="lower left")
        below.set_xlabel("branin")
    axes[1, 0].set_ylabel("currin")
    axes[0, 0].set_ylabel("the grid; the true front in red")
    save(figure, "multi_objective.png")


if __name__ == "__main__":
    main()
