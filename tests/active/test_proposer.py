"""The sampler of a round: fresh objects, and edits of the active set."""

from dataclasses import replace

import torch

from gflow.active.proposer import Proposer, WithEdits
from gflow.active.rounds import active_set
from gflow.sampling import Exploration, OnPolicy
from tests.sampling.records import check_record

from .small import CONFIG, task

LENGTH = 12
FAR = "ACGTACGTACGT"


def proposer(seed=0):
    config = replace(CONFIG, steps=8, batch_size=64, epsilon=1.0, seed=seed)
    return Proposer(task(LENGTH), 2, config, str)


def flat(objects):
    return torch.zeros(len(objects), 1, dtype=torch.float64)


def alike(met):
    """How many begin as FAR does, so far that a random word seldom would."""
    return sum(text.startswith(FAR[: LENGTH // 2]) for text in met)


def test_half_of_what_is_met_are_edits():
    from_start, from_nothing = (proposer().search(flat, 1, starts) for starts in ([FAR], []))
    # 8 batches of 32 edits each, some of which are the same object.
    assert 60 < alike(from_start) <= 8 * 32 and alike(from_nothing) <= 2


def test_objects_out_of_reach_are_left_out():
    met = [
        proposer().search(flat, 1, starts).keys() for starts in ([FAR, "no word"], [FAR], ["no"])
    ]
    assert met[0] == met[1]
    assert met[2] == proposer().search(flat, 1).keys()


def test_a_batch_with_edits_is_a_batch_of_whole_trajectories():
    one = proposer()

    def score(batch):
        batch.log_reward = torch.zeros(batch.n)
        batch.rewards = torch.zeros(batch.n, 1)
        return batch

    explore = Exploration(epsilon=1.0)
    fresh = OnPolicy(one.policy, one.conditions, score, 8, 3, exploration=explore)
    batch = WithEdits(fresh, one.policy, score, one.task.env.encode([FAR] * 3), 3)()
    assert batch.n == 16
    check_record(one.task.env, batch)
    common = [
        next((i for i, (a, b) in enumerate(zip(text, FAR, strict=False)) if a != b), len(text))
        for text in one.task.env.decode(batch.terminal)[8:]
    ]
    assert all(kept >= LENGTH - one.task.env.max_steps // 2 for kept in common)


def test_the_active_set_is_the_front_and_the_next_ranks():
    line = torch.linspace(0, 1, 10, dtype=torch.float64)
    front = torch.stack([line, 1 - line], 1)
    rewards = torch.cat([front - 0.5, front - 0.2, front])
    chosen = active_set(rewards)
    assert set(chosen[:10]) == set(range(20, 30)) and len(chosen) == 16
    assert set(chosen[10:]) < set(range(10, 20))
    assert sorted(active_set(rewards[:3])) == [0, 1, 2]
    many = torch.stack([torch.arange(40.0), -torch.arange(40.0)], 1)
    assert len(active_set(many)) == 40
