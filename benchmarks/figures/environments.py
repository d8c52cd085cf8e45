"""The objectives of the two-dimensional grid and a true front: docs/figures/environments.svg."""

import matplotlib.pyplot as plt
from common import picture, save

from gflow.pareto import non_dominated
from gflow.tasks import make_task

SIDE = 32


def main() -> None:
    names = ("branin", "currin", "shubert", "beale")
    task = make_task("grid_objectives", ",".join(names), {"side": SIDE})
    states = task.env.all_terminal_states()
    rewards = task.oracle(states)
    figure, axes = plt.subplots(1, 5, figsize=(10, 2.1), layout="constrained")
    for k, name in enumerate(names):
        axes[k].imshow(picture(states.data, rewards[:, k], SIDE), origin="lower", rasterized=True)
        axes[k].set_title(name)
        axes[k].set_xticks([])
        axes[k].set_yticks([])
    front = non_dominated(rewards[:, :2])
    axes[0].scatter(*states.data[front].T, s=5, facecolors="none", edgecolors="crimson")
    axes[1].scatter(*states.data[front].T, s=5, facecolors="none", edgecolors="crimson")
    axes[4].plot(*rewards[:, :2].T, ",", color="grey", rasterized=True)
    axes[4].scatter(*rewards[front, :2].T, s=6, color="crimson")
    axes[4].set_xlabel("branin")
    axes[4].set_ylabel("currin")
    print(f"{int(front.sum())} of {states.n} objects are on the front of branin and currin")
    save(figure, "environments.svg")


if __name__ == "__main__":
    main()
