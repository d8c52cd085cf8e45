"""Evaluation by columns is evaluation."""

from dataclasses import replace

import pytest
import torch

from gflow.conditions import Conditions, InverseTemperature
from gflow.mdp import evaluate, evaluate_steps
from gflow.policies.columns import BY_COLUMNS
from gflow.policies.denoiser import DenoiserPolicy, TimeMLP
from gflow.sampling import rollout
from tests.denoisers import SCHEDULES, make_policy, sample


def same(policy, batch, needs=BY_COLUMNS):
    """Both evaluations agree, and so do their gradients."""
    found, wanted = (way(policy, batch, needs) for way in (evaluate, evaluate_steps))
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (
            one.shape == other.shape and torch.allclose(one.double(), other.double())
        )
    parameters = [p for p in policy.network.parameters() if p.requires_grad]
    one, other = (
        torch.autograd.grad(way.log_pf.square().sum(), parameters) for way in (found, wanted)
    )
    assert all(torch.allclose(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", SCHEDULES)
def test_columns_are_evaluated_as_steps_one_by_one(name):
    policy = make_policy(SCHEDULES[name]((3,)))
    same(policy, sample(policy))
    same(policy, sample(policy), frozenset())


def test_conditions_and_guidance_reach_every_column():
    env = SCHEDULES["flow_sde"]((2,))
    conditions = Conditions(inverse_temperature=InverseTemperature("uniform", 1.0, 9.0))
    network = TimeMLP(2, 2, condition_size=32, seed=1)
    torch.nn.init.normal_(network.trunk[-1].weight, generator=torch.Generator().manual_seed(2))
    policy = DenoiserPolicy(
        env, network, condition_size=32, guidance=2.0, reduction="mean"
    ).double()
    source = torch.Generator().manual_seed(0)
    condition = conditions.sample(5, source, torch.float64)
    same(policy, rollout(policy, env.initial(5), condition, source))


def test_paths_with_padding_are_left_to_steps():
    policy = make_policy(SCHEDULES["brownian"]((3,)))
    batch = sample(policy)
    valid = batch.valid.clone()
    valid[2:, 4:] = False
    same(policy, replace(batch, valid=valid, stochastic=batch.stochastic & valid))
