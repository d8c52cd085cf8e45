"""Baselines that remember conditions: DCPO's cumulative statistics and SPO's value tracker."""

import pytest
import torch

from gflow.objectives.policy_gradient import Groups, Memory, Moments, moments
from gflow.objectives.policy_gradient.advantages import whiten
from gflow.objectives.policy_gradient.tracking import (
    pool_moments,
    priority,
    retention,
    smooth_advantage,
    track,
)
from tests.diamond import close

F64 = torch.float64
ONE = Groups.of(torch.zeros(4, dtype=torch.int64))


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def visits(*rewards, ddof=1):
    """Advantages of one condition, visit by visit, and the pooled moments after each."""
    pooled = Moments(*(torch.zeros(1, dtype=F64) for _ in range(3)))
    found = []
    for visit in rewards:
        values = tensor(*visit)
        new, _ = moments(values, ONE, ddof)
        pooled = pool_moments(pooled, new)
        found.append((smooth_advantage(values, ONE, new, pooled), pooled))
    return found


def test_three_visits_of_one_condition():
    (first, a), (second, b), (third, c) = visits([1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 1])
    close(first, tensor(1.5, -0.5, -0.5, -0.5))
    close(torch.cat(a), tensor(0.25, 0.5, 1))
    # Equal rewards still differ from what was seen before.
    close(second, torch.full((4,), 0.363803))
    close(torch.cat(b), tensor(0.625, 0.515388, 2))
    close(third, tensor(0.549629, -1.365181, 0.549629, 0.549629))
    close(torch.cat(c), tensor(0.666667, 0.513701, 3))


def test_plain_variances_pool_exactly():
    *_, (third, pooled) = visits([1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 1], ddof=0)
    close(pooled.std, tensor(*[1, 0, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1]).std(correction=0).view(1))
    close(third, tensor(0.620602, -1.520159, 0.620602, 0.620602))


def test_equal_rewards_at_a_first_visit_teach_nothing():
    for value in (0.1, 1 / 3):
        close(visits([value] * 4)[0][0], torch.zeros(4), 0)


def test_retention():
    change = tensor(0, 0.003, 0.006, 0.01, 0.03)
    close(retention(change), tensor(0.96, 0.96, 0.933033, 0.890899, 0.875))


@pytest.mark.parametrize("reward, change, value, weight", [
    (1.0, 0.03, 0.659722, 8.0), (0.0, 0.006, 0.538912, 4.561495 + 3.902769),
])  # fmt: skip
def test_a_tracker_counts_with_forgetting(reward, change, value, weight):
    start = tensor(0.611111111111), tensor(8.0)
    group = Groups.of(torch.zeros(1, dtype=torch.int64))
    kept = retention(tensor(change))
    found = track(*start, tensor(reward), group, kept)
    close(found[0], tensor(value))
    close(found[1], tensor(weight))
    # The same as a moving average with rate 1 / (kept weight + 1).
    rate = 1 / (kept * 8 + 1)
    close(found[0], start[0] + rate * (reward - start[0]))


def test_rewards_of_one_batch_enter_one_after_the_other():
    groups = Groups.of(torch.tensor([3, 8, 3, 3, 8]))
    rewards = tensor(1, 0, 0.5, torch.nan, 1)
    kept, value, weight = tensor(0.9, 0.96), tensor(0.2, 0.7), tensor(4, 9)
    found = track(value, weight, rewards, groups, kept)
    for place, sequence in enumerate([(1, 0.5), (0, 1)]):
        v, w = value[place], weight[place]
        for reward in sequence:
            w = kept[place] * w + 1
            v = v + (reward - v) / w
        close(found[0][place], v)
        close(found[1][place], w)


def test_without_forgetting_a_tracker_counts():
    groups = Groups.of(torch.zeros(5, dtype=torch.int64))
    found = track(tensor(0.5), tensor(1.0), tensor(1, 1, 0, 1, 0), groups, tensor(1.0))
    close(found[0], tensor((0.5 + 3) / 6))
    close(found[1], tensor(6))


def test_a_tracker_approaches_a_constant_reward_geometrically():
    value, weight, group = tensor(0.0), tensor(25.0), Groups.of(torch.zeros(1, dtype=torch.int64))
    for _ in range(200):
        value, weight = track(value, weight, tensor(0.8), group, tensor(0.96))
    close(weight, tensor(25))
    close(0.8 - value, tensor(0.8 * 0.96**200), 1e-9)


def test_whitened_distances_from_trackers():
    value, reward = tensor(0.2, 0.5, 0.8, 0.611111), tensor(1, 0, 1, 0)
    raw = reward - value
    close(raw.mean(), -0.027778)
    close(raw.std(), 0.658374)
    close(whiten(raw, torch.ones(4), 1e-8), tensor(1.257306, -0.717255, 0.345970, -0.886021))


def test_priorities():
    weight = priority(tensor(0.2, 0.5, 0.8, 0.611111), torch.ones(4, dtype=F64))
    close(weight, tensor(0.45, 0.55, 0.45, 0.537498))
    close(weight / weight.sum(), tensor(0.226415, 0.276730, 0.226415, 0.270440))
    close(priority(tensor(0, 1), torch.ones(2)), tensor(0.05, 0.05))


def test_a_memory_finds_conditions_again():
    memory = Memory(1.0, 0.5)
    first = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    rows = memory.find(first, F64)
    assert rows[0] == rows[2] != rows[1] and len(memory.keys) == 2
    memory.put(rows[1:2], Moments(tensor(9.0), tensor(2.0), tensor(7.0)))
    again = memory.find(torch.tensor([[5.0, 5.0], [3.0, 4.0]]), F64)
    assert again[1] == rows[1] and len(memory.keys) == 3
    close(memory.rows(again).mean, tensor(0.5, 9.0))
    close(memory.rows(again).seen, tensor(1.0, 7.0))
    copy = Memory()
    copy.load_state_dict(memory.state_dict())
    assert torch.equal(copy.find(first, F64), rows)


def test_without_conditions_everything_is_one_row():
    memory = Memory()
    assert memory.find(torch.zeros(3, 0), F64).tolist() == [0, 0, 0]


def test_a_memory_is_bounded():
    with pytest.raises(ValueError, match="more than 4 different conditions"):
        Memory(capacity=4).find(torch.arange(5.0).unsqueeze(1), F64)
