"""Completions by unmasking: every place is masked at first, and steps reveal several at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from gflow.envs.language.completions import EMPTY, Completion, Completions, Prompt, Tokenizer
from gflow.mdp import States


class MaskedCompletions(Completions):
    """Completions of `length` places, revealed step by step.

    Time, the share of places that are masked on average, falls from 1 to 0 (Simple and Effective
    Masked Diffusion Language Models, 2024, arXiv 2406.07524; Large Language Diffusion Models, 2025,
    arXiv 2502.09992). A state is a row as in `Completions`, where `EMPTY` behind the prompt is a
    mask. An action holds for each place a token to reveal, or V to leave it; a move back holds 1
    for each place to mask again, and 0 elsewhere. A completion ends with its first end-of-text
    token; what stands behind that is not part of it.

    Args:
        tokenizer: text to tokens and back.
        prompts: the prompts.
        length: places behind the prompt.
        times: falling from 1 to 0, a step leads from each to the next; a number of equal steps
            will do.
        mask: number of the token the network reads at masked places; that of the tokenizer by
            default.

    Raises:
        ValueError: times that do not fall from 1 to 0, no mask token; and see `Completions`.
    """

    tree = False
    fixed_length = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        length: int,
        times: int | Sequence[float],
        *,
        mask: int | None = None,
    ):
        super().__init__(tokenizer, prompts, length)
        found = getattr(tokenizer, "mask_token_id", None) if mask is None else mask
        if found is None:
            raise ValueError("the tokenizer has no mask token: give its number as mask")
        if isinstance(times, int):
            times = torch.linspace(1, 0, times + 1, dtype=torch.float64).tolist()
        falling = all(s < t for t, s in itertools.pairwise(times))
        if len(times) < 2 or times[0] != 1 or times[-1] != 0 or not falling:
            raise ValueError(f"times of unmasking must fall from 1 to 0, not {list(times)}")
        self.times, self.max_steps = tuple(times), len(times) - 1
        self.mask, self.length = int(found), length
        self.action_sizes = (self.vocabulary + 1,) * length
        self.n_backward_actions = 2

    def reveals(self, step: Tensor) -> Tensor:
        """Probability (t - s) / t that the step from t to s reveals a masked place, of `step`."""
        t = torch.tensor(self.times, dtype=torch.float64, device=step.device)
        return torch.nn.functional.pad(1 - t[1:] / t[:-1], (0, 1), value=1.0)[step]

    def remasks(self, step: Tensor) -> Tensor:
        """Probability (t - s) / (1 - s) that the step back from s to t masks a token, of s's step.

        1 in initial states, which have no step back.
        """
        t = torch.tensor(self.times, dtype=torch.float64, device=step.device)
        return torch.nn.functional.pad((t[:-1] - t[1:]) / (1 - t[1:]), (1, 0), value=1.0)[step]

    def masked(self, data: Tensor) -> Tensor:
        """Masked places of rows [n, W], [n, length] bool."""
        return data[:, self.prompt_width :] == EMPTY

    def observe(self, states: States) -> tuple[Tensor, Tensor]:
        """Token numbers [n, W], the mask's where it stands, and where tokens are, [n, W] bool."""
        tokens, attended = super().observe(states)
        behind = torch.arange(tokens.shape[1], device=tokens.device) >= self.prompt_width
        return torch.where(behind & ~attended, self.mask, tokens), attended | behind

    def step(self, states: States, actions: Tensor) -> States:
        """Reveal tokens at masked places."""
        revealed = self.masked(states.data) & (actions < self.vocabulary)
        going = ~states.done
        step = states.step + going
        data = self._changed(states.data, revealed & going.unsqueeze(1), actions)
        return States(data, step, step == self.max_steps)

    def backstep(self, states: States, actions: Tensor) -> States:
        """Mask places again."""
        started = states.step > 0
        remasked = (actions == 1) & started.unsqueeze(1)
        data = self._changed(states.data, remasked, torch.full_like(actions, EMPTY))
        return States(data, states.step - started.long(), states.done & ~started)

    def backward_action(self, states: States, actions: Tensor) -> Tensor:
        """Where `actions` reveal a token, [n, length] of 0 and 1; masked places stay masked."""
        return self.masked(states.data).long()

    def forward_action(self, states: States, actions: Tensor) -> Tensor:
        """What reveals in the parents what moves back mask in the children `states`."""
        tokens = states.data[:, self.prompt_width :]
        return torch.where((actions == 1) & (tokens != EMPTY), tokens, self.vocabulary)

    def forward_mask(self, states: States, *chosen: Tensor) -> Tensor:
        """What may happen at place `len(chosen)`, [n, V + 1]: rest, or any token but the mask."""
        place = len(chosen)
        token = torch.arange(self.vocabulary + 1, device=states.data.device)
        open_places = self.masked(states.data)[:, place : place + 1] & ~states.done.unsqueeze(1)
        legal = open_places & (token != self.mask)
        last = (states.step == self.max_steps - 1).unsqueeze(1) & open_places
        # The last step leaves nothing masked.
        return torch.where(token == self.vocabulary, ~last, legal)

    def backward_mask(self, states: States) -> Tensor:
        """Refused: a move back is a set of places, see the policy's backward kernel."""
        raise NotImplementedError("moves back mask any set of places: they are not listed")

    def log_n_paths(self, states: States) -> Tensor:
        """Refused: steps of several places make uncounted paths."""
        raise NotImplementedError("paths of unmasking are not counted")

    def _finished(self, prompt: Tensor, rows: Sequence[list[int]]) -> States:
        # Behind a text every place holds the end-of-text token.
        data = super()._finished(prompt, rows).data
        behind = torch.arange(data.shape[1], device=data.device) >= self.prompt_width
        data = torch.where(behind & (data == EMPTY), self.end, data)
        step = torch.full_like(prompt.long(), self.max_steps)
        return States(data, step, torch.ones_like(step, dtype=torch.bool))

    def up_to_end(self, data: Tensor) -> Tensor:
        """Rows [n, W] with what stands behind the first end-of-text token masked."""
        ends = (data == self.end).long().cumsum(1)
        behind = (ends - (data == self.end).long()) > 0
        return torch.where(behind, EMPTY, data)

    def decode(self, states: States) -> list[Completion]:
        """The completions, up to their first end-of-text token."""
        return super().decode(states._replace(data=self.up_to_end(states.data)))

    def _changed(self, data: Tensor, places: Tensor, values: Tensor) -> Tensor:
        prompt, tokens = data[:, : self.prompt_width], data[:, self.prompt_width :]
        return torch.cat([prompt, torch.where(places, values, tokens)], 1)
