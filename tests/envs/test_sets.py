"""Sets with and without a stop, and their energies."""

import itertools
import math

import pytest
import torch

from gflow.envs.set_rewards import SETTINGS, SetEnergy
from gflow.envs.sets import Sets
from gflow.estimators import exact_flows
from tests.envs.conformance import Conformance, keys


class TestSets(Conformance):
    size, stop = 3, False
    make = staticmethod(lambda: Sets(5, 3))

    def model_children(self, data):
        done = sum(data) + 1 == self.size and not self.stop
        children = {(data, True)} if self.stop else set()
        if sum(data) < self.size:
            absent = [i for i, x in enumerate(data) if not x]
            children |= {((*data[:i], 1, *data[i + 1 :]), done) for i in absent}
        return children


class TestSetsWithStop(TestSets):
    stop = True
    make = staticmethod(lambda: Sets(5, 3, stop=True))


class TestFullSets(TestSets):
    size = 4
    make = staticmethod(lambda: Sets(4, 4))


def flows_of(env, rewards):
    oracle = SetEnergy([-math.log(r) for r in rewards], env.size, stop=env.has_stop)
    return exact_flows(env, lambda states: oracle(states).squeeze(1).log()), oracle


def test_flows_of_a_small_set_by_hand():
    """Items (1, 2, 3, 1), two at a time: Z = 17, and future flows (3, 2.5, 2, 3)."""
    flows, oracle = flows_of(Sets(4, 2), (1, 2, 3, 1))
    future = (flows.log_flow - oracle.partial_log_reward(flows.states)).exp()
    by_set = dict(zip(keys(flows.states), future.tolist(), strict=True))
    assert by_set[(0, 0, 0, 0), False] == pytest.approx(17)
    singles = [by_set[tuple(int(i == j) for j in range(4)), False] for i in range(4)]
    assert singles == pytest.approx([3, 2.5, 2, 3])
    first = flows.log_pf[flows.parent == 0].exp() * 34
    assert first.tolist() == pytest.approx([6, 10, 12, 6])
    done = future[flows.states.done]
    assert torch.allclose(done, torch.ones_like(done))


def test_the_diamond_is_a_set_with_a_stop():
    reward = {(0, 0): 1.0, (1, 0): 2.0, (0, 1): 3.0, (1, 1): 4.0}

    def log_reward(states):
        return torch.tensor([reward[key] for key, _ in keys(states)]).double().log()

    flows = exact_flows(Sets(2, 2, stop=True), log_reward)
    going = ~flows.states.done
    found = dict(zip(keys(flows.states), flows.log_flow.exp().tolist(), strict=True))
    expected = {(0, 0): 10, (1, 0): 4, (0, 1): 5, (1, 1): 4}
    assert {key: found[key, False] for key in expected} == pytest.approx(expected)
    assert int(going.sum()) == 4
    assert flows.log_pf[flows.parent == 0].exp().tolist() == pytest.approx([0.4, 0.5, 0.1])


@pytest.mark.parametrize("stop", [False, True])
def test_partition_function_by_enumeration(stop):
    energies = torch.randn(7, generator=torch.Generator().manual_seed(3)).tolist()
    env, oracle = Sets(7, 4, stop=stop), SetEnergy(energies, 4, stop=stop)
    values = oracle(env.all_terminal_states())
    assert float(values.sum().log()) == pytest.approx(float(oracle.log_partition()), abs=1e-10)
    (reward,) = oracle.rewards
    assert reward.low == pytest.approx(float(values.min()))
    assert reward.high == pytest.approx(float(values.max()))
    sizes = range(5) if stop else [4]
    by_hand = [
        math.exp(-sum(items)) for k in sizes for items in itertools.combinations(energies, k)
    ]
    assert sum(by_hand) == pytest.approx(float(values.sum()))


@pytest.mark.parametrize(
    ("name", "log_z", "best", "ways"),
    [
        ("small", 11.892389, -1.204099, 3),
        ("medium", 45.378950, 13.823057, 70),
        ("large", 48.391947, 13.719885, 1),
    ],
)
def test_published_problems(name, log_z, best, ways):
    oracle = SetEnergy.setting(name)
    n_items, size, distinct = SETTINGS[name]
    assert float(oracle.log_partition()) == pytest.approx(log_z, abs=1e-4)
    assert math.log(oracle.rewards[0].high) == pytest.approx(best, abs=1e-4)
    copies = n_items // len(distinct)
    assert math.comb(copies, size % copies or copies) == ways
    assert oracle.energies.unique(return_counts=True)[1].tolist() == [copies] * 10


def test_partial_rewards_telescope():
    env, oracle = Sets(6, 4), SetEnergy([0.5, -1.0, 0.25, 2.0, -0.5, 0.0], 4)
    states = env.initial(1)
    assert float(oracle.partial_log_reward(states)) == 0
    steps = []
    for item in (3, 0, 5, 1):
        following = env.step(states, torch.tensor([item]))
        steps.append(
            float(oracle.partial_log_reward(following) - oracle.partial_log_reward(states))
        )
        states = following
    assert steps == pytest.approx([-2.0, -0.5, 0.0, 1.0])
    assert bool(states.done) and math.log(float(oracle(states))) == pytest.approx(sum(steps))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([(0, 1, 2), (0, 1)], "set 1 has 2 items, not exactly 3"),
        ([(0, 1, 5)], "set 0: item 5"),
        ([(0, 1, 1)], "set 0: item 1 is repeated"),
    ],
)
def test_bad_sets(items, message):
    with pytest.raises(ValueError, match=message):
        Sets(5, 3).encode(items)


def test_bad_settings():
    with pytest.raises(ValueError, match="size=6"):
        Sets(5, 6)
    with pytest.raises(ValueError, match="at most 3"):
        Sets(5, 3, stop=True).encode([(0, 1, 2, 3)])
    with pytest.raises(ValueError, match=r"'tiny'.*small"):
        SetEnergy.setting("tiny")
    with pytest.raises(ValueError, match=r"1\.\.2, not 3"):
        SetEnergy([0.0, 1.0], 3)
    large = Sets(100, 80)
    assert not large.enumerable
    with pytest.raises(NotImplementedError, match="80 of 100 items are too many"):
        large.all_terminal_states()


def test_the_large_problem_walks():
    env = Sets(100, 80)
    states = env.initial(2)
    for _ in range(80):
        states = env.step(states, env.forward_mask(states).long().argmax(1))
    assert states.done.all() and states.data.sum(1).tolist() == [80, 80]
    assert env.forward_mask(states).sum(1).tolist() == [1, 1]
