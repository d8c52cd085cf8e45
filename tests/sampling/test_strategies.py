import copy
import math

import pytest
import torch

from gflow.conditions import Conditions, InverseTemperature
from gflow.envs.grids import GridObjectives, HyperGrid
from gflow.mdp import evaluate
from gflow.policies import MLPPolicy
from gflow.sampling import (
    Averaged,
    FromData,
    Hindsight,
    Joined,
    OnPolicy,
    Replay,
    Scorer,
    WithReplay,
    join,
    retrace,
)
from gflow.sampling.strategies import Cooling, Exploration
from gflow.scalarize import focus, log_reward, weighted_log_sum
from gflow.seeding import generator
from tests.diamond import DiamondOracle, close, diamond, diamond_log_reward, diamond_policy
from tests.problems import CornerOracle
from tests.sampling.records import Fixed, check_record, parameters, same_batches

TWO = Conditions(2, InverseTemperature("uniform", 1, 4), concentration=1.0)


def grid(side=6, condition_size=0, dtype=torch.float64):
    env = HyperGrid(2, side)
    policy = MLPPolicy(env, (16,), condition_size, backward="learned").to(dtype)
    return env, policy


def on_policy(n=16, seed=0, conditions=None, **options):
    conditions = conditions or Conditions()
    env, policy = grid(condition_size=conditions.encoding_size)
    oracle = CornerOracle(6) if conditions.n_rewards == 1 else GridObjectives(side=6)
    options = {"dtype": torch.float64, **options}
    return OnPolicy(policy, conditions, Scorer(env, oracle), n, seed, **options)


def from_data(conditions=None, n_objects=20, batch_size=12, seed=0, **options):
    conditions = conditions or Conditions()
    env, policy = grid(condition_size=conditions.encoding_size)
    states = env.all_terminal_states().rows(torch.arange(n_objects))
    rewards = torch.rand(n_objects, conditions.n_rewards, generator=generator(9)).double() + 0.1
    options = {"dtype": torch.float64, **options}
    return FromData(policy, conditions, states, rewards, batch_size, seed, **options)


# From data


def test_data_come_on_complete_trajectories_with_their_rewards():
    data = from_data(TWO, scalarization=weighted_log_sum)
    seen = set()
    for _ in range(10):
        batch = data()
        check_record(data.policy.env, batch)
        at = (batch.terminal.data[:, None] == data.states.data).all(-1).int().argmax(1)
        seen |= set(at.tolist())
        close(batch.rewards, data.rewards[at], 0)
        close(batch.log_reward, log_reward(data.rewards[at], batch.condition, weighted_log_sum))
        assert batch.log_reward.dtype == torch.float64
    assert seen == set(range(20))


def test_data_follow_the_policys_backward_probabilities():
    """All paths to one point of the grid come as often as P_B says."""
    env, policy = grid()
    point = env.encode([(2, 2)])
    batch = FromData(policy, Conditions(), point, torch.ones(1, 1), 4000, 0, dtype=torch.float64)()
    log_pb = evaluate(policy, batch, frozenset({"log_pb"})).log_pb.sum(1).exp().detach()
    paths, member, count = batch.actions.unique(dim=0, return_inverse=True, return_counts=True)
    assert len(paths) == 6
    expected = torch.stack([log_pb[member == i][0] for i in range(6)])
    close(count / 4000, expected, 0.03)


def test_groups_of_data_share_a_condition_and_meet_no_others():
    first, second = from_data(TWO, group_size=4), from_data(TWO, group_size=4, seed=1)
    fresh = on_policy(12, conditions=TWO, group_size=4)
    groups = []
    for strategy in (first, second, fresh):
        for _ in range(2):
            batch = strategy()
            groups.append(set(batch.group.tolist()))
            assert len(groups[-1]) == 3
            for g in groups[-1]:
                assert len(batch.condition.encoding[batch.group == g].unique(dim=0)) == 1
    assert len(set().union(*groups)) == sum(map(len, groups))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s, r: (s.rows(torch.arange(0)), r[:0]), "at least one"),
        (lambda s, r: (s._replace(done=~s.done), r), "finished objects"),
        (lambda s, r: (s, r[:, 0]), r"must be \[36, 1\], not \[36\]"),
        (lambda s, r: (s, r[:-1]), r"must be \[36, 1\], not \[35, 1\]"),
        (lambda s, r: (s, r.index_fill(0, torch.tensor([7]), torch.nan)), "object 7 is not finite"),
    ],
)
def test_bad_data_are_refused(change, message):
    env, policy = grid()
    states = env.all_terminal_states()
    states, rewards = change(states, torch.ones(36, 1))
    with pytest.raises(ValueError, match=message):
        FromData(policy, Conditions(), states, rewards, 4, 0)


def test_preferences_need_as_many_rewards():
    env, policy = grid(condition_size=TWO.encoding_size)
    with pytest.raises(ValueError, match=r"must be \[36, 2\], not \[36, 1\]"):
        FromData(policy, TWO, env.all_terminal_states(), torch.ones(36, 1), 4, 0)


def test_batches_are_whole_groups():
    for make in (on_policy, lambda n, **options: from_data(batch_size=n, **options)):
        with pytest.raises(ValueError, match="no multiple of group size 5"):
            make(12, group_size=5)


# Joining and replaying


def test_joined_batches_keep_every_row():
    parts = [on_policy(8, keep_log_pf=True), from_data(n_objects=1)]
    alone = [part() for part in parts]
    batch = Joined(on_policy(8, keep_log_pf=True), from_data(n_objects=1))()
    assert batch.n == 20 and batch.log_pf_old is None
    close(batch.log_reward, torch.cat([part.log_reward for part in alone]))
    assert torch.equal(batch.terminal.data, torch.cat([part.terminal.data for part in alone]))
    check_record(parts[0].policy.env, batch)
    assert join([on_policy(8, keep_log_pf=True)()] * 2).log_pf_old is not None
    with pytest.raises(ValueError, match="no strategies"):
        Joined()


def test_retraced_objects_keep_all_but_their_path():
    strategy = on_policy(200, conditions=TWO)
    batch = strategy()
    again = retrace(strategy.policy, batch, generator(3))
    check_record(strategy.policy.env, again)
    assert torch.equal(again.terminal.data, batch.terminal.data)
    for name in ("log_reward", "rewards", "group"):
        assert torch.equal(getattr(again, name), getattr(batch, name))
    assert torch.equal(again.condition.encoding, batch.condition.encoding)
    assert not torch.equal(again.states, batch.states)


def test_replayed_objects_are_retraced_and_the_buffer_is_not():
    strategy = on_policy(50)
    replay = Replay(200)
    mixed = WithReplay(strategy, replay, 80, seed=0, retrace_by=strategy.policy)
    first = mixed()
    assert first.n == 50
    second = mixed()
    assert second.n == 130 and len(replay) == 100
    paths = {str(row) for row in replay.kept.states.tolist()}
    width = replay.kept.states.shape[1]
    replayed = second.rows(torch.arange(50, 130))
    objects = {tuple(point) for point in first.terminal.data.tolist()}
    assert {tuple(point) for point in replayed.terminal.data.tolist()} <= objects
    known = [str(row[:width].tolist()) in paths for row in replayed.states]
    assert not all(known)


def test_ties_with_the_best_tenth_are_in_both_halves():
    """Nine in ten objects share the threshold: neither half may leave any of them out."""
    policy = diamond_policy()
    batch = OnPolicy(policy, Conditions(), Scorer(diamond(), DiamondOracle()), 100, 0)()
    batch.log_reward = torch.cat([torch.full((8,), -1.0), torch.zeros(90), torch.ones(2)])
    batch.group = torch.arange(100)
    replay = Replay(100, prioritized=True)
    replay.add(batch)
    drawn = replay.sample(40_000, generator(0))
    best, rest = drawn.group[:20_000], drawn.group[20_000:]
    assert set(best.tolist()) == set(range(8, 100))
    assert set(rest.tolist()) == set(range(98))


# Hindsight


def aimed(n=64, fraction=1.0, seed=0):
    env, policy = grid(condition_size=TWO.encoding_size)
    score = Scorer(env, GridObjectives(side=6), focus)
    return Hindsight(
        OnPolicy(policy, TWO, score, n, seed, dtype=torch.float64), TWO, seed, fraction
    )


def test_relabelled_trajectories_reach_their_goal():
    plain, new = aimed(fraction=0.0)(), aimed()()
    lost = plain.log_reward <= -400
    assert 10 < lost.sum() < 64
    assert torch.equal(new.terminal.data, plain.terminal.data)
    # Straight ahead, so alpha = 1: the log-reward is beta log(r_1 + r_2).
    beta = new.condition.inverse_temperature
    close(new.log_reward[lost], (beta * new.rewards.sum(1).log())[lost], 1e-6)
    close(new.condition.preference.sum(1), torch.ones(64), 1e-9)
    # What hit its cone keeps its goal, reward and group.
    for name in ("log_reward", "group"):
        assert torch.equal(getattr(new, name)[~lost], getattr(plain, name)[~lost])
    assert torch.equal(new.condition.encoding[~lost], plain.condition.encoding[~lost])
    assert (new.condition.encoding[lost] != plain.condition.encoding[lost]).any(1).all()
    assert torch.equal(new.condition.encoding, TWO.make(new.condition.preference, beta).encoding)
    assert len(new.group.unique()) == 64


def test_a_fraction_is_relabelled_and_nothing_is_no_goal():
    batch = aimed(2000, fraction=0.0)()
    lost = batch.log_reward <= -400
    changed = (aimed(2000, fraction=0.3)().log_reward > -400) & lost
    assert float(changed.sum() / lost.sum()) == pytest.approx(0.3, abs=0.05)
    batch.rewards = torch.zeros_like(batch.rewards)
    again = Hindsight(Fixed(batch), TWO, 0, 1.0)()
    assert torch.equal(again.log_reward, batch.log_reward)
    assert torch.isfinite(again.condition.encoding).all()


def test_hindsight_needs_goals():
    with pytest.raises(ValueError, match="concentration"):
        Hindsight(on_policy(), Conditions(), 0)
    with pytest.raises(ValueError, match="fraction"):
        Hindsight(on_policy(conditions=TWO), TWO, 0, 1.5)


# Moving average


def test_the_average_follows_the_policy():
    strategy = on_policy()
    policy, average = strategy.policy, copy.deepcopy(strategy.policy)
    strategy.policy = average
    averaged = Averaged(strategy, average, policy, decay=0.75)
    old = parameters(average).clone()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    averaged()
    close(parameters(average), old + 0.25)
    averaged()
    close(parameters(average), old + 0.25 + 0.75 * 0.25)
    assert not any(p.requires_grad for p in average.parameters())
    with pytest.raises(ValueError, match="decay"):
        Averaged(strategy, average, policy, decay=1.0)


# State


@pytest.mark.parametrize(
    "make",
    [
        lambda: on_policy(conditions=TWO),
        lambda: from_data(TWO),
        lambda: Joined(on_policy(), from_data()),
        lambda: WithReplay(f := on_policy(), Replay(40, True), 8, 0, 20, retrace_by=f.policy),
        lambda: aimed(fraction=0.5),
    ],
)
def test_a_strategy_goes_on_from_its_state(make):
    one, other = make(), make()
    for _ in range(3):
        one()
    other.load_state_dict(one.state_dict())
    for _ in range(3):
        assert same_batches(one(), other())


def test_log_rewards_of_data_agree_with_those_of_an_oracle():
    env, policy = diamond(), diamond_policy()
    every = env.all_terminal_states()
    data = FromData(
        policy, Conditions(), every, DiamondOracle()(every), 50, 0, dtype=torch.float64
    )()
    close(data.log_reward, diamond_log_reward(data.terminal))
    assert math.isclose(float(data.log_reward.exp().max()), 4.0)


def test_exploration_cools_down_and_resumes():
    cooling = Cooling(Exploration(0.2, 3.0), 4)
    seen = [cooling() for _ in range(6)]
    assert [e.epsilon for e in seen] == pytest.approx([0.2, 0.15, 0.1, 0.05, 0.0, 0.0])
    assert [e.temperature for e in seen] == pytest.approx([3.0, 2.5, 2.0, 1.5, 1.0, 1.0])
    again = Cooling(Exploration(0.2, 3.0), 4)
    again.load_state_dict({"drawn": 2})
    assert again() == seen[2]
    assert Cooling(Exploration(0.2))() == Cooling(Exploration(0.2), 0)() == Exploration(0.2)
    with pytest.raises(ValueError, match="cool down"):
        Cooling(Exploration(), -1)
