"""Tasks: language models small enough to be trained on one core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gflow.conditions import PromptConditions
from gflow.config import ConfigError, PolicySettings
from gflow.mdp import Trajectories
from gflow.seeding import generator

from .registry import MakePolicy, Task, names, near, register

if TYPE_CHECKING:
    from gflow.envs.language import Completion, Completions


@register
def arithmetic(
    rewards: str = "format,correct", largest: int = 9, tokens: int = 8, warm_start: int = 150
) -> Task:
    """Sums answered by a small causal language model, one token a letter.

    Args:
        rewards: format (a number in parentheses, nothing else), correct, brief.
        largest: largest summand.
        tokens: tokens of an answer at most.
        warm_start: supervised steps on answers that are seldom well written and often wrong.
    """
    from gflow.envs.language import Completions
    from gflow.envs.language.arithmetic import letter_tokenizer, sums

    env = Completions(letter_tokenizer(), sums(largest), tokens)

    def make_policy(
        settings: PolicySettings, condition_size: int, flow: bool, energy: bool, seed: int
    ) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        from gflow.policies.common import seeded_weights
        from gflow.policies.language import LanguagePolicy

        config = LlamaConfig(
            **_shape(env, settings, energy), num_key_value_heads=4, tie_word_embeddings=True
        )
        with seeded_weights(seed):
            model = LlamaForCausalLM(config)
        policy = LanguagePolicy(env, model, flow=flow, seed=seed)
        _imitate(policy, Demonstrations(env, seed), warm_start)
        return policy

    return _task(env, rewards, make_policy)


@register
def arithmetic_masked(
    rewards: str = "format,correct",
    largest: int = 9,
    tokens: int = 6,
    steps: int = 6,
    warm_start: int = 300,
    likelihood: str = "path",
) -> Task:
    """Sums answered by a small masked diffusion language model.

    Args:
        rewards: format (a number in parentheses, nothing else), correct, brief.
        largest: largest summand.
        tokens: tokens of an answer.
        steps: steps from all masked to none.
        warm_start: supervised steps on answers that are seldom well written and often wrong.
        likelihood: path (unmasking steps, for balance objectives), elbo or one_step (finished rows,
            for gdpo_elbo and diffu_grpo).
    """
    from gflow.envs.language.arithmetic import letter_tokenizer, sums
    from gflow.envs.language.masked import MaskedCompletions

    if likelihood not in ("elbo", "one_step", "path"):
        hint = near(likelihood, ("elbo", "one_step", "path"))
        raise ConfigError(f"there is no likelihood {likelihood!r}: {hint}")
    env = MaskedCompletions(letter_tokenizer(), sums(largest), tokens, steps)

    def make_policy(
        settings: PolicySettings, condition_size: int, flow: bool, energy: bool, seed: int
    ) -> nn.Module:
        from transformers import BertConfig, BertForMaskedLM

        from gflow.policies.common import seeded_weights
        from gflow.policies.masked_language import MaskedLanguagePolicy, MaskedLikelihood

        if flow:
            raise ValueError("masked language models have no head for log F(s) or values")
        with seeded_weights(seed):
            model = BertForMaskedLM(BertConfig(**_shape(env, settings, energy)))
        policy = MaskedLanguagePolicy(env, model)
        _imitate(
            MaskedLikelihood(policy, nodes=0), Demonstrations(env, seed, tokens, 32), warm_start
        )
        return policy if likelihood == "path" else MaskedLikelihood(policy, likelihood)

    return _task(env, rewards, make_policy)


class Demonstrations:
    """Batches of `demonstrations` as trajectories, with `draws` for masked models.

    Args:
        env: prompts and their completions.
        seed: seeds the answers.
        n_draws: random numbers for each place; 0 for none.
        batch_size: answers in a batch.
    """

    def __init__(self, env: Completions, seed: int, n_draws: int = 0, batch_size: int = 64):
        self.env, self.n_draws, self.batch_size = env, n_draws, batch_size
        self.generator = generator(seed, "demonstrations")

    def __call__(self) -> Trajectories:
        """The next batch."""
        from gflow.envs.language.arithmetic import demonstrations

        env, n = self.env, self.batch_size
        prompt, answers = demonstrations(list(env.prompts), n, self.generator)
        condition = PromptConditions(len(env.prompts)).make(prompt, torch.float32)
        batch = env.history(env.completed(prompt, answers).data, condition)
        if self.n_draws:
            shape = (n, self.n_draws, env.max_new_tokens)
            batch.draws = torch.rand(shape, generator=self.generator)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.generator.set_state(state["generator"])


def _imitate(policy: nn.Module, demonstrations: Demonstrations, steps: int) -> None:
    from gflow.objectives.likelihood import Likelihood
    from gflow.training import Trainer, TrainerSettings

    settings = TrainerSettings(learning_rate=3e-3, clip_norm=1.0, log_every=0)
    Trainer(policy, Likelihood(), demonstrations, settings).run(steps)


def _shape(env: Completions, settings: PolicySettings, energy: bool) -> dict[str, int]:
    """Settings of a transformer for an environment's rows."""
    if energy:
        raise ValueError("language models have no network for learned energies")
    width = settings.hidden or 64
    if width % 4:
        raise ValueError(f"the width of a language model must be a multiple of 4, not {width}")
    return {
        "vocab_size": env.vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": settings.layers or 2,
        "num_attention_heads": 4,
        "max_position_embeddings": env.state_shape[0],
    }


def _task(env: Completions, rewards: str, make_policy: MakePolicy) -> Task:
    from gflow.envs.language.arithmetic import arithmetic_rewards

    oracle = arithmetic_rewards(names(rewards))
    conditions = PromptConditions(len(env.prompts), len(oracle.rewards))
    return Task(env, oracle, make_policy, key=_key, conditions=conditions)


def _key(completion: Completion) -> str:
    """The words, and whether the policy ended them."""
    return f"{completion.prompt}{completion.text}{'' if completion.ended else '...'}"
