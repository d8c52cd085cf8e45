"""Language: prompts and completions, token by token or by unmasking, and rewards on their words."""

from gflow.envs.language.completions import Completion, Completions, Prompt

__all__ = ["Completion", "Completions", "Prompt"]
