"""Oracles, pools and prepared batches for tests of policy optimisation."""

from dataclasses import replace

import torch

from gflow.conditions import Conditions, PooledConditions
from gflow.envs.grids import HyperGrid
from gflow.mdp import Reward
from gflow.objectives.catalog import METHODS
from gflow.objectives.policy_gradient import PolicyGradient
from gflow.policies import Anchored, MLPPolicy
from gflow.sampling import OnPolicy, Scorer
from gflow.seeding import generator
from gflow.training import Trainer, TrainerSettings
from tests.diamond import diamond, diamond_policy

F64 = torch.float64


class Oracle:
    """Rewards computed from terminal states by a function."""

    version = "1"
    on_states = True
    seconds = 0.0

    def __init__(self, function, k=1):
        self.function = function
        self.rewards = tuple(Reward(f"r{i}", low=-10.0, high=10.0) for i in range(k))

    def __call__(self, states):
        return self.function(states)


def prepared(objective=None, n=32, k=2, seed=0, **changes):
    policy = diamond_policy()
    oracle = Oracle(lambda states: (states.data.double() @ torch.eye(2, k, dtype=F64)) + 0.1, k)
    score = Scorer(diamond(), oracle, scalarization=None)
    sampler = OnPolicy(policy, Conditions(k), score, n, seed, keep_log_pf=True, dtype=F64)
    batch = replace(sampler(), group=torch.arange(n) // 4, **changes)
    return policy, (objective or PolicyGradient()).prepare(policy, batch)


def pooled_trainer(name, folder=None, seed=0):
    """A grid with preferences from a pool of five."""
    env = HyperGrid(2, 6)
    conditions = Conditions(2, concentration=1.0)
    pool = PooledConditions(conditions, conditions.sample(5, generator(3)))
    row = METHODS[name]
    net = MLPPolicy(env, (16,), conditions.encoding_size, flow=row.needs_flow, seed=seed)
    policy = Anchored(net) if row.objective.needs_reference else net
    oracle = Oracle(lambda states: states.data.float() / 5, 2)
    sampler = OnPolicy(
        policy, pool, Scorer(env, oracle), 16, seed, group_size=4 if "group" in row.tags else 1,
        keep_log_pf=True,
    )  # fmt: skip
    objective = row.objective.fresh()
    return Trainer(
        policy, objective, sampler,
        TrainerSettings(learning_rate=3e-3, log_every=1, updates=2, minibatches=2), folder=folder,
    )  # fmt: skip
