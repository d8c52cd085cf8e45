"""Entropy, real decisions, policies that evaluate themselves, and optional fields of a batch."""

import math
from dataclasses import replace

import torch

from gflow.conditions import Conditions
from gflow.envs.molecules import FragmentMolecules
from gflow.envs.sets import Sets
from gflow.mdp import (
    Evaluation,
    States,
    Trajectories,
    concat_trajectories,
    decisions,
    evaluate,
    pad_trajectories,
    trim_trajectories,
)
from gflow.policies.tree import TreePolicy
from gflow.sampling import rollout
from gflow.seeding import generator
from tests.diamond import close, diamond_batch, diamond_policy, walk


def test_entropy_of_the_legal_actions():
    policy = diamond_policy()
    with torch.no_grad():
        policy.logits[0, 0] = torch.tensor([0.2, 0.3, 0.5]).log()
    batch = diamond_batch()
    found = evaluate(policy, batch, frozenset({"entropy"})).entropy
    start = -sum(p * math.log(p) for p in (0.2, 0.3, 0.5))
    # After one element: the other one or the stop, evenly; after both only the stop.
    expected = [[start, 0, 0], [start, math.log(2), 0], [start, math.log(2), 0]]
    expected += [[start, math.log(2), 0]] * 2
    close(found, expected)
    assert evaluate(policy, batch, frozenset()).entropy is None


def test_decisions_are_the_steps_with_a_choice():
    env = Sets(4, 2, stop=False)
    batch = walk(env, [[0, 1], [2, 3]])
    assert decisions(env, batch).tolist() == [[True, True], [True, True]]
    assert decisions(diamond_policy().env, diamond_batch()).tolist() == [
        [True, False, False], [True, True, False], [True, True, False],
        [True, True, False], [True, True, False],
    ]  # fmt: skip


def test_decisions_of_factored_actions_agree_with_the_policy():
    env = FragmentMolecules(max_fragments=3)
    policy = TreePolicy(env, hidden=16, layers=1).double()
    condition = Conditions().sample(32, dtype=torch.float64)
    batch = rollout(policy, env.initial(32), condition, generator(0), keep_log_pf=True)
    free = decisions(env, batch)
    assert torch.equal(free, batch.valid & (batch.log_pf_old != 0))
    assert bool(free.any()) and bool((batch.valid & ~free).any())


def test_a_policy_may_evaluate_itself():
    class Own:
        def evaluate(self, batch, needs):
            return Evaluation(batch.log_pf_old, None, None, None, batch.valid)

    batch = replace(diamond_batch(), log_pf_old=torch.ones(5, 3))
    assert evaluate(Own(), batch, frozenset()).log_pf is batch.log_pf_old


def test_optional_fields_survive_every_operation_on_batches():
    batch = diamond_batch()
    steps = batch.valid.double() * torch.arange(1.0, 4.0)
    batch = replace(
        batch, advantage=steps, log_pf_ref=steps, value_old=steps, value_target=steps,
        stochastic=batch.valid, clock=torch.ones(5, 4),
    )  # fmt: skip
    longer = pad_trajectories(batch, 5)
    joined = concat_trajectories([longer, batch])
    for field in ("advantage", "log_pf_ref", "value_old", "value_target", "stochastic"):
        assert getattr(joined, field).shape == (10, 5), field
        assert torch.equal(getattr(trim_trajectories(longer), field), getattr(batch, field)), field
    assert joined.clock.shape == (10, 6)
    back = Trajectories.from_state_dict(joined.rows(torch.tensor([1, 6])).state_dict())
    close(back.advantage[0] * back.valid[0], back.advantage[1] * back.valid[1])
    assert isinstance(back.terminal, States)


def test_a_batch_without_rows():
    policy = diamond_policy()
    nothing = diamond_batch().rows(torch.zeros(5, dtype=torch.bool))
    found = evaluate(policy, nothing, frozenset({"log_pb"}))
    assert found.log_pf.shape == found.log_pb.shape == nothing.valid.shape
