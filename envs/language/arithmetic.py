"""Sums to be answered in a given format: a verifiable task small enough for one core."""

from __future__ import annotations

import re
from typing import Any

import torch

from gflow.envs.language.completions import Completion, Prompt
from gflow.envs.language.rewards import TextReward, TextRewards

FORMAT = re.compile(r"\(\d+\)")
"""What an answer should look like: a number in parentheses, and nothing else."""

ALPHABET = "0123456789+=()? "


def sums(largest: int) -> list[Prompt]:
    """Every a + b with 0 <= a, b <= `largest`; the target is the sum."""
    numbers = range(largest + 1)
    return [Prompt(f"{a}+{b}=", a + b) for a in numbers for b in numbers]


def formatted(completions: list[Completion]) -> list[float]:
    """1 where the policy ended a completion that is a number in parentheses, else 0."""
    return [float(c.ended and FORMAT.fullmatch(c.text) is not None) for c in completions]


def correct(completions: list[Completion]) -> list[float]:
    """1 where the first number of a completion is the target, else 0."""
    return [float(_first_number(c.text) == c.target) for c in completions]


def brief(completions: list[Completion]) -> list[float]:
    """1 for an empty completion down to 0 for one of 16 tokens or more."""
    return [max(0.0, 1 - c.n_tokens / 16) for c in completions]


REWARDS = {"format": formatted, "correct": correct, "brief": brief}


def arithmetic_rewards(names: list[str]) -> TextRewards:
    """The rewards called `names`, as an oracle.

    Raises:
        ValueError: an unknown name.
    """
    for name in names:
        if name not in REWARDS:
            raise ValueError(f"there is no reward {name!r}: choose from {', '.join(REWARDS)}")
    return TextRewards([TextReward(REWARDS[name], name) for name in names])


def demonstrations(
    prompts: list[Prompt], n: int, generator: torch.Generator, sloppy: float = 0.7
) -> tuple[torch.Tensor, list[str]]:
    """Numbers of `n` prompts, and answers of which some are wrong and most are badly written.

    Args:
        prompts: sums with their targets.
        n: how many.
        generator: source of randomness.
        sloppy: share of answers without their parentheses, and again of those that are wrong.
    """
    chosen = torch.randint(len(prompts), (n,), generator=generator)
    bad_form, bad_sum = (torch.rand(2, n, generator=generator) < sloppy).tolist()
    shift = torch.randint(1, 4, (n,), generator=generator).tolist()
    answers = []
    for i, number in enumerate(chosen.tolist()):
        value = prompts[number].target + (shift[i] if bad_sum[i] else 0)
        answers.append(str(value) if bad_form[i] else f"({value})")
    return chosen, answers


def letter_tokenizer(alphabet: str = ALPHABET) -> Any:
    """A tokenizer of transformers with one token for each letter, an end and a mask.

    Raises:
        ImportError: the extra for language models is missing.
    """
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise ImportError("language models need the extra gflow[llm]") from error
    special = ["<end>", "<mask>"]
    words = {word: number for number, word in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(words))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", mask_token="<mask>"
    )


def _first_number(text: str) -> int | None:
    found = re.search(r"\d+", text)
    return None if found is None else int(found[0])
