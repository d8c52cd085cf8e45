"""The diamond: subsets of {a, b}, stop allowed everywhere, with rewards 1, 2, 3, 4.

Every number that tests compare against follows from it by hand or by enumeration: Z = 10, exact
flows F(empty, a, b, ab) = (10, 4, 5, 4) under uniform P_B.
"""

import torch

from gflow.conditions import Conditions
from gflow.envs.sets import Sets
from gflow.estimators import exact_flows, terminating_distribution
from gflow.mdp import Reward, States, Trajectories
from tests.tabular import TabularPolicy

A, B, STOP = 0, 1, 2
PATHS = ([STOP], [A, STOP], [B, STOP], [A, B, STOP], [B, A, STOP])
"""The five trajectories, in the order the empty set, a, b, a -> ab, b -> ab."""


def diamond():
    return Sets(2, 2, stop=True)


def diamond_log_reward(states):
    """log (1, 2, 3, 4) for the empty set, a, b, ab."""
    return torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).log()[set_number(states)]


def set_number(states):
    """0 for the empty set, 1 for a, 2 for b, 3 for ab; the same bits for larger sets."""
    return states.data @ (2 ** torch.arange(states.data.shape[-1]))


class DiamondOracle:
    """The rewards 1, 2, 3, 4, read from states."""

    rewards = (Reward("diamond", low=1.0, high=4.0),)
    version = "1"
    on_states = True
    seconds = 0.0

    def __call__(self, states):
        return diamond_log_reward(states).exp().unsqueeze(-1)


def walk(env, paths, log_reward=None, dtype=torch.float64, complete=None):
    """The trajectories that take the given actions, scored, with partial log-rewards.

    Rows with `complete` False may end anywhere.
    """
    n, horizon = len(paths), max(map(len, paths))
    actions = torch.tensor([[*path, *[path[-1]] * (horizon - len(path))] for path in paths])
    lengths = torch.tensor([len(path) for path in paths])
    states = env.initial(n)
    columns = [states]
    for t in range(horizon):
        moved = env.step(states, actions[:, t])
        going = t < lengths
        data = torch.where(going[:, None], moved.data, states.data)
        states = States(data, states.step + going, torch.where(going, moved.done, states.done))
        columns.append(states)
    if complete is None:
        assert bool(states.done.all())
    batch = Trajectories(
        states=torch.stack([column.data for column in columns], 1),
        actions=actions,
        backward_actions=torch.stack(
            [env.backward_action(columns[t], actions[:, t]) for t in range(horizon)], 1
        ),
        valid=torch.arange(horizon) < lengths[:, None],
        condition=Conditions().sample(n, dtype=dtype),
        complete=None if complete is None else torch.tensor(complete),
    )
    if log_reward is not None:
        batch.log_reward = log_reward(batch.terminal).to(dtype)
        flat = batch.states.flatten(0, 1)
        zeros = torch.zeros(len(flat), dtype=torch.int64)
        partial = log_reward(States(flat, zeros, zeros.bool()))
        batch.partial_log_reward = partial.view(n, horizon + 1).to(dtype)
    return batch


def diamond_batch(paths=PATHS, dtype=torch.float64, log_reward=diamond_log_reward):
    return walk(diamond(), paths, log_reward, dtype)


def diamond_policy(solved=False, **settings):
    policy = TabularPolicy(diamond(), 2, **settings)
    return policy.solve(exact_flows(diamond(), diamond_log_reward)) if solved else policy


def distribution(policy, condition=None, count=4):
    """Exact P_T of a policy on sets, by set number."""
    found = terminating_distribution(policy, condition or Conditions().sample(1))
    spread = torch.zeros(count, dtype=torch.float64)
    return spread.index_add(0, set_number(found.states), found.probability)


def close(value, expected, tolerance=1e-6):
    """Assert that tensors (or numbers) agree within `tolerance`."""
    value = torch.as_tensor(value, dtype=torch.float64).detach()
    expected = torch.as_tensor(expected, dtype=torch.float64).detach()
    assert value.shape == expected.shape, (value.shape, expected.shape)
    assert torch.isfinite(value).all()
    assert float((value - expected).abs().max()) <= tolerance, (value, expected)
