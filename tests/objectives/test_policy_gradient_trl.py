"""Losses, gradients and advantages equal to TRL's own on the same tensors."""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gflow.conditions import Conditions
from gflow.mdp import Evaluation, Trajectories
from gflow.objectives.catalog import METHODS
from gflow.objectives.policy_gradient import Advantage, PolicyGradient, advantage
from tests.diamond import close

pytestmark = pytest.mark.trl
F64 = torch.float64
N, T, LONGEST = 8, 6, 10


def tensors(seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, T + 1, (N,), generator=g)
    mask = torch.arange(T) < lengths[:, None]
    old = -3 * torch.rand(N, T, generator=g, dtype=F64)
    log_p = (old + 0.4 * torch.randn(N, T, generator=g, dtype=F64)).requires_grad_()
    ref = old + 0.3 * torch.randn(N, T, generator=g, dtype=F64)
    entropy = torch.rand(N, T, generator=g, dtype=F64)
    a = torch.randn(N, generator=g, dtype=F64)
    return mask, old, log_p, ref, entropy, a


def ours(objective, seed=0):
    mask, old, log_p, ref, entropy, a = tensors(seed)
    zeros = torch.zeros(N, T, dtype=torch.int64)
    batch = Trajectories(
        torch.zeros(N, T + 1, 1), zeros, zeros, mask, Conditions().sample(N), old,
        log_pf_ref=ref, advantage=torch.where(mask, a[:, None], 0.0),
    )  # fmt: skip
    more = entropy if objective.entropy_weight else None
    found = Evaluation(log_p, None, None, None, mask, entropy=more)
    value = objective.loss(found, batch, LONGEST).value
    value.backward()
    return value, log_p.grad


def theirs(trainer, seed=0, **settings):
    """TRL's loss of the same tensors: its own method on a stand-in for the trainer."""
    mask, old, log_p, ref, entropy, a = tensors(seed)
    settings = {
        "loss_type": "grpo", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "delta": None,
        "importance_sampling_level": "token", "entropy_coef": 0.0, **settings,
    }  # fmt: skip
    accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=False,
        gather_for_metrics=lambda x: x,
    )  # fmt: skip
    args = SimpleNamespace(
        delta=settings["delta"], use_bias_correction_kl=False, steps_per_generation=1
    )
    stand_in = SimpleNamespace(
        **settings, args=args, accelerator=accelerator, aux_loss_enabled=False,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        use_adaptive_entropy=False, _entropy_bonus_enabled=bool(settings["entropy_coef"]),
        max_completion_length=LONGEST, current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True), _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_p, entropy, None),
    )  # fmt: skip
    ids = torch.zeros(N, T, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids,
        "completion_mask": mask.long(), "advantages": a, "old_per_token_logps": old,
        "old_logps": torch.where(mask, old, 0.0).sum(1), "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    value = trainer._compute_loss(stand_in, None, inputs)
    value.backward()
    return value, log_p.grad


def compare(objective, trainer, seed, **settings):
    (a, da), (b, db) = ours(objective, seed), theirs(trainer, seed, **settings)
    close(a, b, 1e-12)
    close(da, db, 1e-12)


CASES = {
    "grpo": (PolicyGradient(), {}),
    "grpo with kl": (METHODS["grpo"].objective, {"beta": 0.04}),
    "dr_grpo": (METHODS["dr_grpo"].objective, {"loss_type": "dr_grpo"}),
    "dapo": (METHODS["dapo"].objective, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "bnpo": (PolicyGradient(aggregation="token_mean"), {"loss_type": "bnpo"}),
    "cispo": (METHODS["cispo"].objective, {"loss_type": "cispo", "epsilon_high": 5.0}),
    "gspo": (
        replace(METHODS["gspo"].objective, clip=(0.9, 1.1)),
        {"importance_sampling_level": "sequence", "epsilon_low": 0.1, "epsilon_high": 0.1},
    ),
    "entropy": (PolicyGradient(entropy_weight=0.3), {"entropy_coef": 0.3}),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_grpo_trainer(name, seed):
    from trl import GRPOTrainer

    objective, settings = CASES[name]
    compare(objective, GRPOTrainer, seed, **settings)


@pytest.mark.parametrize("seed", range(3))
def test_rloo_trainer(seed):
    """TRL clips the ratio of whole sequences."""
    from trl import RLOOTrainer

    objective = PolicyGradient(Advantage(baseline="leave_one_out", scale="none"), ratio="seq_prod")
    compare(objective, RLOOTrainer, seed)


@pytest.mark.parametrize("seed", range(3))
def test_advantages_as_trl_normalises_them(seed):
    """Groups of four, epsilon 1e-4; what its generation step computes in place."""
    g = torch.Generator().manual_seed(seed)
    rewards = torch.rand(12, 3, generator=g, dtype=F64)
    weights = torch.tensor([1.0, 0.5, 2.0], dtype=F64)
    group = torch.arange(3).repeat_interleave(4)
    total = (rewards * weights).sum(1).view(3, 4)
    grpo = ((total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + 1e-4)).flatten()
    close(advantage(rewards, group, group, weights=weights, eps=1e-4), grpo, 1e-12)
    each = rewards.view(3, 4, 3)
    each = (each - each.mean(1, keepdim=True)) / (each.std(1, keepdim=True) + 1e-4)
    summed = (each.flatten(0, 1) * weights).sum(1)
    gdpo = (summed - summed.mean()) / (summed.std() + 1e-4)
    found = advantage(
        rewards, group, group, weights=weights, eps=1e-4, combine="norm_then_sum",
        whitening="sequence",
    )  # fmt: skip
    close(found, gdpo, 1e-12)
    rloo = (total - (total.sum(1, keepdim=True) - total) / 3).flatten()
    found = advantage(
        rewards, group, group, weights=weights, baseline="leave_one_out", scale="none"
    )
    close(found, rloo, 1e-12)
