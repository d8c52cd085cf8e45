"""Small problems shared by the tests."""

import torch

from gflow.conditions import Conditions
from gflow.envs.grids import HyperGrid, corner_reward
from gflow.estimators import terminating_distribution, total_variation
from gflow.mdp import Reward
from gflow.objectives.balance import TrajectoryBalance
from gflow.policies import MLPPolicy
from gflow.sampling import OnPolicy, Scorer
from gflow.training import Trainer, TrainerSettings


class CornerOracle:
    """The standard HyperGrid reward, read from states."""

    rewards = (Reward("corner", high=2.6),)
    version = "1"
    on_states = True
    seconds = 0.0

    def __init__(self, side):
        self.side = side

    def __call__(self, states):
        return corner_reward(states.data, self.side).unsqueeze(-1)


def grid_trainer(
    dim=2,
    side=8,
    *,
    objective=None,
    batch_size=16,
    seed=0,
    hidden=(64, 64),
    wrap=lambda sampler: sampler,
    dtype=torch.float32,
    folder=None,
    settings=None,
    events=None,
    conditions=None,
    exploration=None,
    **policy,
):
    """A Trainer on a grid with the standard reward."""
    env = HyperGrid(dim, side)
    conditions = conditions or Conditions()
    net = MLPPolicy(env, hidden, conditions.encoding_size, flow=True, seed=seed, **policy).to(dtype)
    extra = {} if exploration is None else {"exploration": exploration}
    sampler = OnPolicy(
        net, conditions, Scorer(env, CornerOracle(side)), batch_size, seed, dtype=dtype, **extra
    )
    return Trainer(
        net,
        objective or TrajectoryBalance(),
        wrap(sampler),
        settings or TrainerSettings(),
        folder=folder,
        events=events,
    )


def grid_distance(trainer):
    """Total variation between the policy's exact distribution and R / Z."""
    env = trainer.policy.env
    found = terminating_distribution(trainer.policy, Conditions().sample(1))
    target = corner_reward(found.states.data, env.side)
    assert len(target) == env.side**env.dim
    return float(total_variation(found.probability, target / target.sum()))
