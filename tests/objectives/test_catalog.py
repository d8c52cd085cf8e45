"""The catalog: rows are complete, findable, and callable."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gflow.objectives.catalog import METHODS, get_method
from tests.diamond import diamond_batch, diamond_policy
from tests.objectives.test_ordering import ordered_batch

COMPLETE = [name for name, row in METHODS.items() if not row.requires and "gflownet" in row.tags]


@pytest.mark.parametrize("name", METHODS)
def test_rows_are_complete(name):
    row = get_method(name)
    assert row.name == name
    assert re.fullmatch(r"\d{4}\.\d{5}", row.arxiv) and row.arxiv[:2] == str(row.year)[2:]
    assert row.summary and not row.summary.endswith(".") and len(row.summary) < 100
    assert len(row.paper) > 10 and row.tags and len(set(row.tags)) == len(row.tags)
    hash(row.objective)


@pytest.mark.parametrize("name", COMPLETE)
def test_every_row_gives_a_loss_with_gradient(name):
    row = METHODS[name]
    policy = diamond_policy(backward=str(row.defaults.get("backward", "uniform")))
    loss = row.objective(policy, ordered_batch())
    assert torch.isfinite(loss.value) and loss.value.ndim == 0
    loss.value.backward()
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
    assert policy.logits.grad is not None and policy.logits.grad.abs().max() > 0
    assert float(loss.weight) > 0
    for value in loss.metrics.values():
        assert not value.requires_grad and value.ndim == 0


@pytest.mark.parametrize(
    "name", [name for name, row in METHODS.items() if row.requires and "gflownet" in row.tags]
)
def test_rows_that_need_more_say_so(name):
    row = METHODS[name]
    with pytest.raises(ValueError, match=r"dataclasses\.replace"):
        row.objective(diamond_policy(), diamond_batch())
    filled = replace(row.objective, **dict.fromkeys(row.requires, diamond_policy()))
    assert filled != row.objective


@pytest.mark.parametrize("name", COMPLETE)
def test_declared_needs_are_all_that_is_used(name):
    """A row that says it needs no flow (energies, partial rewards) works without them."""
    row = METHODS[name]
    policy = diamond_policy(backward=str(row.defaults.get("backward", "uniform")))

    class Bare:
        env, backward, log_z = policy.env, policy.backward, policy.log_z

        def __call__(self, states, condition, needs):
            heads = policy(states, condition, needs)
            if not row.needs_flow:
                heads = heads._replace(log_flow=None)
            return heads if row.needs_energy else heads._replace(energy=None)

    batch = ordered_batch()
    if not row.needs_partial_rewards:
        batch.partial_log_reward = None
    assert torch.isfinite(row.objective(Bare(), batch).value)


def test_unknown_names_list_near_ones():
    with pytest.raises(ValueError, match="did you mean subtb"):
        get_method("sub_tb")
    with pytest.raises(ValueError, match="choose from tb, subtb"):
        get_method("zzzz")


def test_published_settings():
    assert METHODS["subtb"].objective.lam == 0.9
    assert METHODS["munchausen_dqn"].objective.munchausen == 0.15
    assert METHODS["mdb"].objective.regression == "huber"
    assert METHODS["mogfn_pc"].conditional and METHODS["goal_conditioned"].conditional
    assert METHODS["goal_conditioned"].defaults["scalarization"] == "focus"
    assert METHODS["fm"].needs_flow and not METHODS["tb"].needs_flow


def test_the_pages_list_every_method_once():
    listed = []
    for page in sorted((Path(__file__).parents[2] / "docs").glob("*.md")):
        rows = re.findall(r"^\| `(\w+)` \| .* \| .*arxiv", page.read_text(), re.MULTILINE)
        listed += [name for name in rows if name in METHODS]
    assert sorted(listed) == sorted(METHODS)
