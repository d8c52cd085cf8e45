import dataclasses

import pytest
import torch

from gflow.conditions import Conditions, InverseTemperature
from gflow.envs.grids import HyperGrid
from gflow.envs.sequences import PrependAppendSequences
from gflow.envs.sets import Sets
from gflow.estimators import exact_flows, log_weights
from gflow.objectives.balance import TrajectoryBalance
from gflow.policies import MLPPolicy
from gflow.sampling import FILTERS, LocalSearch, OnPolicy, Scorer, rollout
from gflow.sampling.local_search import log_ratio, propose
from gflow.seeding import generator
from tests.diamond import (
    DiamondOracle,
    close,
    diamond,
    diamond_log_reward,
    diamond_policy,
    set_number,
)
from tests.problems import CornerOracle
from tests.sampling.records import check_record
from tests.tabular import TabularPolicy

TARGET = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
ENVS = {
    "grid": HyperGrid(2, 5),
    "fixed sets": Sets(5, 3),
    "prepend or append": PrependAppendSequences("ab", 4, 1),
}


def moves(env, steps, n=200, seed=0, policy=None):
    policy = policy or MLPPolicy(env, (16,), backward="learned", seed=seed).double()
    condition = Conditions().sample(n, dtype=torch.float64)
    random = generator(seed)
    ends = rollout(policy, env.initial(n), condition, random).terminal
    return policy, ends, propose(policy, ends, condition, steps, random)


def skewed_policy(env=None, base=2, seed=3):
    policy = TabularPolicy(env or diamond(), base, backward="learned")
    for parameter in (policy.logits, policy.back):
        torch.nn.init.normal_(parameter, generator=generator(seed))
    return policy


def search(policy, fresh, score, seed=0, **settings):
    return LocalSearch(fresh, policy, score, seed, **settings)


@pytest.mark.parametrize("name", ENVS)
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_proposals_are_complete_trajectories_that_share_a_beginning(name, steps):
    env = ENVS[name]
    _, ends, move = moves(env, steps)
    check_record(env, move.old)
    check_record(env, move.new)
    assert torch.equal(move.old.terminal.data, ends.data)
    assert torch.equal(move.kept, (move.old.lengths - steps).clamp(min=0))
    for b in range(move.old.n):
        k = int(move.kept[b])
        assert torch.equal(move.old.states[b, : k + 1], move.new.states[b, : k + 1])
        assert torch.equal(move.old.actions[b, :k], move.new.actions[b, :k])
    if steps > 1:
        assert (move.new.terminal.data != ends.data).any()


@pytest.mark.parametrize("name", ENVS)
def test_destroying_nothing_changes_nothing(name):
    _, ends, move = moves(ENVS[name], steps=0)
    assert torch.equal(move.new.terminal.data, ends.data)
    assert torch.equal(move.new.states, move.old.states)


def test_destroying_everything_is_an_independence_sampler():
    """With K = T a proposal does not depend on x, and the ratio is one of importance weights."""
    env = diamond()
    policy, ends, move = moves(env, steps=env.max_steps, n=20_000, policy=skewed_policy())
    assert (move.kept == 0).all()
    for name in ("old", "new"):
        batch = getattr(move, name)
        batch.log_reward = diamond_log_reward(batch.terminal)
    delta = log_ratio(policy, move, move.old.log_reward, move.new.log_reward, env.max_steps)
    close(delta, log_weights(policy, move.new) - log_weights(policy, move.old), 1e-10)
    table = torch.zeros(4, 4).index_put(
        (set_number(ends), set_number(move.new.terminal)), torch.ones(len(delta)), accumulate=True
    )
    table = table / table.sum(1, keepdim=True)
    close(table, table.mean(0).expand(4, 4), 0.04)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_exact_policies_are_always_accepted_where_lengths_agree(steps):
    env = Sets(5, 3)

    def log_reward(states):
        return (states.data * torch.arange(5)).sum(1).double().sin()

    solved = TabularPolicy(env, 2).solve(exact_flows(env, log_reward))
    policy, ends, move = moves(env, steps, policy=solved)
    delta = log_ratio(policy, move, log_reward(ends), log_reward(move.new.terminal), steps)
    close(delta, torch.zeros(200), 1e-10)
    # With another P_F, the same moves are not.
    delta = log_ratio(
        skewed_policy(env), move, log_reward(ends), log_reward(move.new.terminal), steps
    )
    assert delta.abs().max() > 0.1


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_moves_without_a_way_back_have_no_ratio(steps):
    policy, ends, move = moves(diamond(), steps, policy=diamond_policy(solved=True))
    delta = log_ratio(
        policy, move, diamond_log_reward(ends), diamond_log_reward(move.new.terminal), steps
    )
    rebuilt = move.new.lengths - move.kept
    back = (rebuilt == steps) | ((move.kept == 0) & (move.new.lengths <= steps))
    assert torch.equal(torch.isfinite(delta), back)
    close(delta[back], torch.zeros(int(back.sum())), 1e-12)
    assert back.all() == (steps == 3)


def test_filters():
    delta = torch.full((100_000,), 1.0)
    uniform = torch.rand(len(delta), generator=generator(0))
    accepted = {
        name: float(accept(delta, uniform).float().mean())
        for name, accept in FILTERS.items()
        if accept is not None
    }
    assert accepted["metropolis"] == 1
    assert accepted["barker"] == pytest.approx(0.731, abs=0.005)
    for accept in (FILTERS["metropolis"], FILTERS["barker"]):
        assert not accept(torch.tensor([-torch.inf]), torch.tensor([0.0])).any()
    both = (torch.full_like(delta, -1.0), uniform)
    assert float(FILTERS["metropolis"](*both).float().mean()) == pytest.approx(0.368, abs=0.005)
    assert float(FILTERS["barker"](*both).float().mean()) == pytest.approx(0.269, abs=0.005)


def chains(accept, steps, n=40_000, rounds=4, policy=None):
    """Frequencies of the diamond's sets after a chain that starts from the target."""
    env, policy = diamond(), policy or skewed_policy()
    every = env.all_terminal_states()
    row = torch.multinomial(
        diamond_log_reward(every).exp(), n, replacement=True, generator=generator(5)
    )
    condition = Conditions().sample(n, dtype=torch.float64)
    objects = every.rows(row)
    log_reward = diamond_log_reward(objects)
    chain = search(policy, None, Scorer(env, DiamondOracle()), accept=accept, steps=steps)
    for _ in range(rounds):
        _, objects, log_reward = chain.round(objects, log_reward, condition)
        close(log_reward, diamond_log_reward(objects))
    return set_number(objects).bincount(minlength=4) / n


@pytest.mark.parametrize("accept", ["metropolis", "barker"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_stochastic_filters_leave_the_target_as_it_is(accept, steps):
    close(chains(accept, steps), TARGET, 0.01)


def test_moves_without_a_way_back_would_spoil_the_target(monkeypatch):
    """The plain ratio of the rebuilt and destroyed steps is not enough where lengths differ."""

    def plain(policy, proposal, old, new, steps):
        return log_ratio(policy, proposal, old, new, proposal.new.lengths - proposal.kept)

    monkeypatch.setattr("gflow.sampling.local_search.log_ratio", plain)
    assert (chains("metropolis", 1) - TARGET).abs().max() > 0.15


def test_the_greedy_filter_only_climbs():
    found = chains("greedy", 3, n=4000, rounds=12)
    assert found[3] > 0.95


def test_every_proposal_enters_the_batch_on_a_complete_trajectory():
    policy = diamond_policy(solved=True)
    score = Scorer(diamond(), DiamondOracle())
    conditions = Conditions(1, InverseTemperature("uniform", 1, 1.001))
    fresh = OnPolicy(policy, conditions, score, 6, 0, dtype=torch.float64)
    batch = search(policy, fresh, score, rounds=3, steps=2)()
    assert batch.n == 6 * 4
    check_record(diamond(), batch)
    beta = batch.condition.inverse_temperature.view(4, 6)
    assert torch.equal(beta, beta[:1].expand(4, 6)) and len(beta[0].unique()) == 6
    assert torch.equal(batch.group.view(4, 6), torch.arange(6).expand(4, 6))
    close(batch.log_reward, beta.flatten() * diamond_log_reward(batch.terminal))
    # The exact solution has no loss; charging log Z to the rebuilt steps alone would give it one.
    assert TrajectoryBalance()(policy, batch).value < 1e-4


def test_objects_that_cannot_be_scored_leave_the_batch_but_not_the_chain():
    class Failing(DiamondOracle):
        def __call__(self, states):
            rewards = super().__call__(states)
            return rewards.where(set_number(states).unsqueeze(1) != 2, torch.nan)

    env, policy = diamond(), diamond_policy()
    score = Scorer(env, Failing())
    conditions = Conditions(1, InverseTemperature("uniform", 1, 2))
    fresh = OnPolicy(policy, conditions, score, 64, 0, dtype=torch.float64)
    batch = search(policy, fresh, score, rounds=3, steps=3, accept="metropolis")()
    assert 64 < batch.n < 4 * 64
    assert not (set_number(batch.terminal) == 2).any()
    assert torch.isfinite(batch.log_reward).all()
    number = dict(
        zip(batch.group.tolist(), batch.condition.inverse_temperature.tolist(), strict=True)
    )
    assert [number[g] for g in batch.group.tolist()] == batch.condition.inverse_temperature.tolist()


def test_factored_actions_are_spliced_too():
    from gflow.envs.molecules import FragmentMolecules
    from gflow.policies.tree import TreePolicy

    env = FragmentMolecules(max_fragments=4)
    policy = TreePolicy(env, hidden=8, layers=1, trunk="mlp")
    n = 12
    condition, random = Conditions().sample(n), generator(0)
    ends = rollout(policy, env.initial(n), condition, random).terminal
    move = propose(policy, ends, condition, 2, random)
    check_record(env, move.new)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rounds": 0}, "at least 1 round"),
        ({"steps": 0}, "at least 1 round"),
        ({"accept": "always"}, "choose from greedy, metropolis, barker"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        search(None, None, CornerOracle(3), **settings)


def test_the_proposals_of_a_round_are_not_changed_by_later_ones():
    policy, score = diamond_policy(), Scorer(diamond(), DiamondOracle())
    fresh = OnPolicy(policy, Conditions(), score, 16, 0, dtype=torch.float64)
    batch = search(policy, fresh, score, rounds=4, steps=2)()
    close(batch.log_reward, diamond_log_reward(batch.terminal))
    kept = {f.name for f in dataclasses.fields(batch) if getattr(batch, f.name) is not None}
    assert kept == {
        "states", "actions", "backward_actions", "valid", "condition", "rewards", "log_reward",
        "group",
    }  # fmt: skip
