"""Objectives of masked diffusion language models: ratios of bounds, and rows of the catalog."""

from dataclasses import replace

import pytest
import torch

from gflow.conditions import PromptConditions
from gflow.mdp import Condition, Evaluation, Trajectories
from gflow.objectives.balance import TrajectoryBalance
from gflow.objectives.catalog import get_method, policy_gradient
from gflow.objectives.catalog.language import ROWS
from gflow.objectives.policy_gradient import PolicyGradient
from gflow.policies.masked_language import MaskedLikelihood
from gflow.sampling.rollout import rollout
from tests.policies.test_language import MODELS, adder, make
from tests.policies.test_masked_language import draw, letters

F64 = torch.float64
LENGTHS = torch.tensor([3, 1, 2, 3])
ADVANTAGE = torch.tensor([1.0, -1.0, 0.5, -0.5], dtype=F64)


def batch_of(old, reference=None):
    valid = torch.arange(3) < LENGTHS.unsqueeze(1)
    condition = Condition(torch.zeros(4, 0), None, torch.ones(4, dtype=F64))
    zeros = torch.zeros(4, 3, dtype=torch.int64)
    return Trajectories(
        torch.zeros(4, 4, 1, dtype=torch.int64), zeros, zeros, valid, condition,
        log_pf_old=old, log_pf_ref=reference, rewards=ADVANTAGE.unsqueeze(1),
        advantage=ADVANTAGE.unsqueeze(1) * valid,
    )  # fmt: skip


def loss_of(objective, log_pf, batch):
    return objective.loss(Evaluation(log_pf, None, None, None, batch.valid), batch, 3)


def terms(seed):
    valid = torch.arange(3) < LENGTHS.unsqueeze(1)
    drawn = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return torch.where(valid, drawn - 3, 0.0)


def test_the_first_step_follows_the_bound_over_the_length():
    old = terms(0)
    log_pf = old.clone().requires_grad_()
    objective = PolicyGradient(ratio="elbo", clip=(0.8, 1.2))
    loss = loss_of(objective, log_pf, batch_of(old))
    assert torch.isclose(loss.value, -(ADVANTAGE / LENGTHS).mean())
    loss.value.backward()
    valid = torch.arange(3) < LENGTHS.unsqueeze(1)
    expected = -(ADVANTAGE / LENGTHS / 4).unsqueeze(1) * valid
    assert torch.allclose(log_pf.grad, expected)


def test_the_clipped_surrogate_of_bounds():
    old, new = terms(0), terms(1)
    ratio = (new - old).sum(1).exp()
    assert (ratio > 1.2).any() and (ratio < 0.8).any()
    surrogate = torch.minimum(ratio * ADVANTAGE, ratio.clamp(0.8, 1.2) * ADVANTAGE)
    objective = PolicyGradient(ratio="elbo", clip=(0.8, 1.2))
    found = loss_of(objective, new, batch_of(old)).value
    assert torch.isclose(found, -(surrogate / LENGTHS).mean())


def test_the_divergence_compares_bounds_per_token():
    old, new, reference = terms(0), terms(1), terms(2)
    objective = PolicyGradient(ratio="elbo", kl="k2", kl_weight=0.3)
    with_kl = loss_of(objective, new, batch_of(old, reference)).value
    without = loss_of(replace(objective, kl="none"), new, batch_of(old)).value
    d = (new - reference).sum(1) / LENGTHS
    assert torch.isclose(with_kl - without, 0.3 * (d.square() / 2).mean())


@pytest.mark.parametrize(("name", "estimator"), [("gdpo_elbo", "elbo"), ("diffu_grpo", "one_step")])
def test_the_rows_of_the_catalog_at_the_first_step(name, estimator):
    method = {row.name: row for row in ROWS}[name]
    policy = MaskedLikelihood(letters(reference=letters().model), estimator)
    batch = draw(policy)
    batch.group = torch.arange(24) // 6
    generator = torch.Generator().manual_seed(0)
    batch.rewards = torch.rand(24, 2, generator=generator, dtype=F64)
    batch = method.objective.prepare(policy, batch)
    # Group means only: no standard deviations.
    total = batch.rewards.mean(1).view(4, 6)
    better = (total - total.mean(1, keepdim=True)).flatten()
    assert torch.allclose(batch.advantage[:, 0], better)  # the first token always counts
    assert (batch.log_pf_ref - batch.log_pf_old).abs().max() < 1e-4
    loss = method.objective(policy, batch)
    length = batch.stochastic.sum(1)
    each = better / length if estimator == "elbo" else better * length
    norm = 24 if estimator == "elbo" else length.sum()
    assert torch.isclose(loss.value.double(), -each.sum() / norm, atol=1e-4)
    loss.value.backward()
    assert all(torch.isfinite(w.grad).all() for w in policy.parameters() if w.grad is not None)


def test_several_turns_are_averaged_turn_by_turn_without_the_tools_words():
    policy = make(new=30, reply=adder, max_turns=4)
    batch = draw(policy, 40)
    batch.group = torch.arange(40) // 8
    batch.rewards = batch.lengths.to(F64).unsqueeze(1)
    objective = PolicyGradient(aggregation="rollout_turn_token", clip=(0.8, 1.3))
    batch = objective.prepare(policy, batch)
    loss = objective(policy, batch)
    better = (batch.advantage * (batch.valid & batch.stochastic)).amax(1)
    better = torch.where(better > 0, better, batch.advantage.amin(1))
    assert torch.isclose(loss.value.double(), -better.mean(), atol=1e-5)
    loss.value.backward()
    assert all(torch.isfinite(w.grad).all() for w in policy.parameters() if w.grad is not None)
    # The gradient at a token is the advantage over its turn's length and the number of turns.
    log_pf = batch.log_pf_old.double().requires_grad_()
    found = Evaluation(log_pf, None, None, None, batch.valid)
    (grad,) = torch.autograd.grad(objective.loss(found, batch, 30).value, log_pf)
    for i, completion in enumerate(policy.env.decode(batch.terminal)):
        own = batch.stochastic[i] & batch.valid[i]
        number = torch.nn.functional.pad(own[:-1], (1, 0)).logical_not() & own
        turn = number.cumsum(0)
        lengths = [int(((turn == k) & own).sum()) for k in range(1, len(completion.turns) + 1)]
        assert sum(lengths) == completion.n_tokens
        expected = -better[i] / 40 / len(lengths) / torch.tensor(lengths)[turn - 1]
        assert torch.allclose(grad[i], torch.where(own, expected, 0.0), atol=1e-9)


@pytest.mark.parametrize("name", [row.name for row in policy_gradient.ROWS])
def test_every_policy_gradient_trains_a_language_model(name):
    policy = make(MODELS["lora"])
    group = torch.arange(32) // 8
    condition = PromptConditions(len(policy.env.prompts)).make(group, torch.float32)
    batch = rollout(
        policy, policy.env.begin(condition), condition, torch.Generator().manual_seed(0),
        keep_log_pf=True,
    )  # fmt: skip
    batch.group = group
    texts = policy.env.decode(batch.terminal)
    batch.rewards = torch.tensor([[c.ended, len(set(c.text)) / 8] for c in texts], dtype=F64)
    batch.log_reward = batch.rewards.mean(1).log1p()
    objective = get_method(name).objective.fresh()
    loss = objective(policy, objective.prepare(policy, batch))
    loss.value.backward()
    trained = [w.grad for n, w in policy.named_parameters() if "lora" in n]
    assert torch.isfinite(loss.value) and all(torch.isfinite(g).all() for g in trained)
    assert max(float(g.abs().max()) for g in trained) > 0


def test_trajectory_balance_trains_a_language_model():
    policy = make(MODELS["lora"])
    batch = draw(policy, 32)
    batch.log_reward = -batch.lengths.float()
    loss = TrajectoryBalance()(policy, batch)
    residual = batch.log_pf_old.sum(1) - batch.log_reward
    assert torch.isclose(loss.value, residual.square().mean(), rtol=1e-4)
    loss.value.backward()
    asked = batch.condition.encoding[:, 0].long()
    assert (policy.log_z.bias.grad[asked] != 0).all()
    assert int((policy.log_z.bias.grad != 0).sum()) == len(asked.unique())
