"""Masked diffusion models learn what is known exactly: a joint distribution, and a tilted one."""

import copy

import pytest
import torch
from torch import nn

from gflow.conditions import PromptConditions
from gflow.objectives.balance import TrajectoryBalance
from gflow.objectives.likelihood import Likelihood
from gflow.policies.masked_language import MaskedLanguagePolicy, MaskedLikelihood
from gflow.sampling import OnPolicy
from gflow.training import Trainer, TrainerSettings
from tests.policies.test_masked_language import END, F64, MASK, Table, bits, exact_distribution

SEEN = [0, 1]


def joint_of(length, seed):
    joint = torch.rand(length * [2], generator=torch.Generator().manual_seed(seed), dtype=F64) ** 3
    return joint / joint.sum()


def learnable(policy):
    """The same policy with the table's logits as parameters."""
    table = policy.model.table
    policy.model.table = None
    policy.model.table = nn.Parameter(table)
    return policy


def distance(found, target):
    return sum(abs(float(p.detach()) - float(target[row])) for row, p in found.items()) / 2


def test_relative_balance_tilts_a_prior_by_a_reward():
    joint, times = joint_of(3, 0), 24
    prior = bits(joint, times)
    policy = learnable(bits(joint, times))
    # Rows with an odd number of ones are e^3 times as good.
    reward = torch.tensor([[[3.0 * ((i + j + k) % 2) for k in SEEN] for j in SEEN] for i in SEEN])
    before = exact_distribution(prior)
    target = torch.zeros(2, 2, 2, dtype=F64)
    for row, p in before.items():
        target[row] = p * reward[row].exp()
    target = target / target.sum()

    def score(batch):
        batch.log_reward = reward[batch.terminal.data[:, 1:].unbind(1)].double()
        return batch

    sampler = OnPolicy(policy, PromptConditions(1), score, 64, 0, dtype=F64)
    objective = TrajectoryBalance(relative=True, prior=prior)
    settings = TrainerSettings(learning_rate=0.03, log_z_learning_rate=0.1, log_every=0)
    Trainer(policy, objective, sampler, settings).run(250)
    assert distance(before, target) > 0.2
    tilted = {row: p for row, p in exact_distribution(policy).items() if max(row) < END}
    assert distance(tilted, target) < 0.05


@pytest.mark.slow
def test_a_model_trained_on_the_bound_samples_the_data():
    joint = joint_of(4, 1)
    data = torch.distributions.Categorical(joint.flatten())

    class Data:
        """Finished rows of the joint distribution."""

        def __init__(self, env):
            self.env, self.generator = env, torch.Generator().manual_seed(0)

        def __call__(self):
            rows = torch.multinomial(data.probs, 256, True, generator=self.generator)
            text = [f"{int(r):04b}" for r in rows]
            condition = PromptConditions(1).make(torch.zeros(256), F64)
            ends = self.env.encode([["1", t, [t], False, 4, None] for t in text])
            batch = self.env.history(ends.data, condition)
            batch.draws = torch.rand(256, 4, 4, generator=self.generator, dtype=F64)
            return batch

        def state_dict(self):
            return {}

    distances = []
    policy = None
    for times in (1, 2, 16):
        fresh = bits(joint, times)
        if policy is None:
            policy = learnable(fresh)
            with torch.no_grad():
                policy.model.table.zero_()
            settings = TrainerSettings(learning_rate=0.05, log_every=0)
            likelihood = MaskedLikelihood(policy, nodes=0)
            Trainer(likelihood, Likelihood(), Data(policy.env), settings).run(400)
        sampler = MaskedLanguagePolicy(fresh.env, copy.deepcopy(policy.model))
        found = exact_distribution(sampler)
        distances.append(distance({r: p for r, p in found.items() if max(r) < END}, joint))
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.05 < distances[0]


def test_the_mask_is_never_revealed():
    policy = learnable(bits(joint_of(2, 0), 4))
    with torch.no_grad():
        policy.model.table[..., MASK] = 30.0
    assert all(MASK not in row for row in exact_distribution(policy))
    assert isinstance(policy.model, Table)
