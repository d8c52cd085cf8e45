"""Tasks: grids and sets, where the exact distribution is known."""

from __future__ import annotations

from .registry import Task, flat_policy, names, register


@register
def hypergrid(dim: int = 4, side: int = 8, r0: float = 0.1) -> Task:
    """The standard HyperGrid with 2 ** dim modes near the corners.

    Args:
        dim: number of coordinates.
        side: values of each coordinate.
        r0: reward between the modes; smaller is harder.
    """
    from gflow.envs.grids import CornerReward, HyperGrid

    env, oracle = HyperGrid(dim, side), CornerReward(side, r0)
    # Every point may be the end, so that every point has a reward.
    return Task(env, oracle, flat_policy(env), partial_rewards=True)


@register
def grid_objectives(rewards: str = "branin,currin", side: int = 32, border: bool = True) -> Task:
    """Several objectives on a plane of grid points, small enough to know the true front.

    Args:
        rewards: branin, currin, shubert, beale, sphere, separated by commas.
        side: values of each of the two coordinates.
        border: at the upper border a walker can only stop, as in the published grids.
    """
    from gflow.envs.grids import GridObjectives, HyperGrid

    env = HyperGrid(2, side, stop_at_border=border)
    oracle = GridObjectives(names(rewards), side)
    return Task(env, oracle, flat_policy(env), partial_rewards=True)


@register
def sets(problem: str = "small") -> Task:
    """Sets of items with an energy each; partial sets have a reward too.

    Args:
        problem: small (20 of 30 items), medium (60 of 80) or large (80 of 100).
    """
    from gflow.envs.set_rewards import SetEnergy
    from gflow.envs.sets import Sets

    oracle = SetEnergy.setting(problem)
    env = Sets(len(oracle.energies), oracle.size)
    return Task(env, oracle, flat_policy(env), partial_rewards=True)
