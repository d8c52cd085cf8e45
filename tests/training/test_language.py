"""Language models trained from end to end: exact resumption, and both rewards rise."""

import pytest
import torch

from gflow.config import PolicySettings
from gflow.objectives.catalog import get_method
from gflow.policies import Anchored
from gflow.policies.language import LanguagePolicy
from gflow.sampling import OnPolicy, Scorer
from gflow.tasks import make_task
from gflow.training import Trainer, TrainerSettings
from tests.language_models import llama, with_lora

CELLS = {
    "grpo": ("arithmetic", {}),
    "gdpo": ("arithmetic", {}),
    "diffu_grpo": ("arithmetic_masked", {"likelihood": "one_step"}),
    "gdpo_elbo": ("arithmetic_masked", {"likelihood": "elbo"}),
}


def trainer(
    name, folder=None, lora=False, batch_size=16, seed=0, rewards="format,correct", **settings
):
    task_name, options = CELLS[name]
    task = make_task(task_name, rewards, {"largest": 4, **options, **settings})
    if lora:
        policy = LanguagePolicy(task.env, with_lora(llama(task.env.vocabulary)))
    else:
        policy = task.make_policy(PolicySettings(), 0, False, False, seed)
    objective = get_method(name).objective
    if objective.needs_reference and not hasattr(policy, "reference"):
        policy = Anchored(policy)
    sampler = OnPolicy(
        policy, task.conditions, Scorer(task.env, task.oracle, None), batch_size, seed,
        group_size=8, keep_log_pf=True,
    )  # fmt: skip
    steps = TrainerSettings(
        learning_rate=1e-3, clip_norm=1.0, log_every=0, updates=2, minibatches=2
    )
    return Trainer(policy, objective, sampler, steps, folder=folder)


@pytest.mark.parametrize(
    ("name", "lora"), [("grpo", False), ("grpo", True), ("diffu_grpo", False), ("gdpo_elbo", False)]
)
def test_a_resumed_run_is_an_uninterrupted_one(name, lora, tmp_path):
    settings = {"lora": lora, "rewards": "brief", "warm_start": 1}
    whole = trainer(name, **settings)
    whole.run(3)
    first = trainer(name, tmp_path, **settings)
    first.run(2)
    second = trainer(name, tmp_path, **settings)
    second.load(next((tmp_path / "checkpoints").iterdir()))
    second.run(3)
    one, other = whole.policy.state_dict(), second.policy.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    start = trainer(name, **settings).policy.state_dict()
    assert any(not torch.equal(one[key], start[key]) for key in one)


def test_the_warm_start_is_the_same_for_one_seed_and_leaves_the_global_generator():
    before = torch.get_rng_state()
    one, same, other = (
        trainer("gdpo", seed=seed, warm_start=3).policy.state_dict() for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gdpo", "gdpo_elbo"])
def test_both_rewards_rise(name):
    training = trainer(name, batch_size=96)

    def means():
        drawn = OnPolicy(
            training.policy, training.sampler.stream.conditions, training.sampler.score, 512, 99
        )()
        return drawn.rewards.mean(0)

    before = means()
    training.run(60)
    assert (means() - before > torch.tensor([0.4, 0.05])).all()
