"""Completions scored by Python functions: missing rewards stay, failures are named."""

import pytest
import torch

from gflow.conditions import PromptConditions
from gflow.envs.grids import HyperGrid
from gflow.envs.language import Completions
from gflow.envs.language.arithmetic import letter_tokenizer, sums
from gflow.envs.language.rewards import RewardFunctionError, TextReward, TextRewards
from gflow.policies.language import LanguagePolicy
from gflow.sampling import OnPolicy, Scorer
from tests.language_models import llama
from tests.problems import CornerOracle


def sampler(**functions):
    env = Completions(letter_tokenizer(), sums(3), 6)
    policy = LanguagePolicy(env, llama(env.vocabulary))
    oracle = TextRewards([TextReward(each, name) for name, each in functions.items()])
    score = Scorer(env, oracle, None)
    conditions = PromptConditions(len(env.prompts), len(functions))
    return OnPolicy(policy, conditions, score, 24, 0, group_size=4, keep_log_pf=True)


def test_groups_share_a_prompt_and_rewards_may_be_missing():
    draw = sampler(
        short=lambda cs: [1 / (1 + len(c.text)) for c in cs],
        digit=lambda cs: [float(c.text[:1].isdigit()) if c.text else None for c in cs],
    )
    batch = draw()
    assert batch.n == 24 and batch.rewards.shape == (24, 2) and batch.log_reward is None
    texts = draw.policy.env.decode(batch.terminal)
    assert batch.rewards[:, 1].isnan().tolist() == [c.text == "" for c in texts]
    assert torch.isfinite(batch.rewards[:, 0]).all()
    prompts = [c.prompt for c in texts]
    assert all(len(set(prompts[i : i + 4])) == 1 for i in range(0, 24, 4))
    assert len(set(prompts)) == 6 and batch.group.tolist() == [i // 4 for i in range(24)]
    assert batch.log_pf_old.shape == batch.valid.shape


def test_rows_without_any_reward_leave_the_batch():
    draw = sampler(digit=lambda cs: [float(c.ended) if len(c.text) > 2 else None for c in cs])
    batch = draw()
    assert 0 < batch.n < 24 and torch.isfinite(batch.rewards).all()


def test_a_failing_reward_function_ends_the_run_in_one_sentence():
    with pytest.raises(RewardFunctionError, match=r"'broken' returned 1 values for 24 completions"):
        sampler(broken=lambda cs: [0.0])()


def test_partial_log_rewards_need_a_scalarization():
    with pytest.raises(ValueError, match="need a scalarization"):
        Scorer(HyperGrid(2, 4), CornerOracle(4), None, partial=True)
