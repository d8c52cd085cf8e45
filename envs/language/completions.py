"""Prompts and their completions, one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gflow.envs.common import numbers, with_last
from gflow.mdp import Condition, Environment, States, Trajectories

EMPTY = -1
"""What a place without a token holds: padding before the prompt, and what is still unwritten."""


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers and tokenizers' wrappers have it."""

    eos_token_id: Any

    def __len__(self) -> int: ...

    def encode(self, text: str, **options: Any) -> list[int]:
        """Token numbers of a text."""

    def batch_decode(self, sequences: list[list[int]], **options: Any) -> list[str]:
        """The texts of several rows of token numbers."""


class Prompt(NamedTuple):
    """One prompt.

    Attributes:
        text: its words, or the messages of a conversation, which the tokenizer's chat template
            turns into words.
        target: whatever reward functions compare a completion with.
    """

    text: str | Sequence[Mapping[str, str]]
    target: Any = None


class Completion(NamedTuple):
    """What reward functions and replies are given.

    Attributes:
        prompt: the words before the completion.
        text: all words after it, replies of the environment included, special tokens left out.
        turns: the policy's own words, turn by turn.
        ended: the policy ended its last turn itself; False where it was cut off.
        n_tokens: tokens the policy wrote.
        target: that of the prompt.
    """

    prompt: str
    text: str
    turns: tuple[str, ...]
    ended: bool
    n_tokens: int
    target: Any = None


Reply = Callable[[list[Completion]], list[str | None]]
"""The environment's answers to finished turns; None ends that episode."""


class Completions(Environment):
    """Completions of prompts: an action is a token, and the end-of-text token ends a turn.

    A state is a row of `prompt_width + max_new_tokens` places. The policy's own tokens stand as
    their number v, those of the environment (the prompt, and replies such as the results of
    tools) as -2 - v, and `EMPTY` is a place without a token. So a row alone says which tokens were
    decisions. Behind a turn that may be answered the next transition is the environment's: it
    writes the reply, or ends the episode without one, whatever the action.

    Args:
        tokenizer: text to tokens and back, see `Tokenizer`.
        prompts: the prompts; a condition's encoding [n, 1] is the number of one of them.
        max_new_tokens: places behind the prompt, replies included.
        reply: answers finished turns, called once for all rows whose turn ended; None ends every
            episode with its first turn.
        max_turns: turns of the policy in an episode.

    Raises:
        ValueError: no prompts or an empty one, two prompts that differ only in their target, a
            tokenizer without an end-of-text token, or limits below 1.
    """

    tree = True
    has_stop = False
    n_backward_actions = 1

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        *,
        reply: Reply | None = None,
        max_turns: int = 1,
    ):
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-text token (eos_token)")
        if max_new_tokens < 1 or max_turns < 1:
            raise ValueError(
                f"max_new_tokens and max_turns must be at least 1, not {max_new_tokens} and "
                f"{max_turns}"
            )
        self.tokenizer, self.prompts = tokenizer, tuple(prompts)
        self.end = int(tokenizer.eos_token_id)
        self.max_new_tokens, self.reply = max_new_tokens, reply
        self.max_turns = max_turns if reply is not None else 1
        rows = [self._encoded(prompt, i) for i, prompt in enumerate(self.prompts)]
        if not rows:
            raise ValueError("a language task needs at least one prompt")
        self._number = self._numbered(rows)
        self.prompt_width = max(map(len, rows))
        # Replies and prompts are stored as -2 - v.
        self._starts = torch.tensor(
            [[EMPTY] * (self.prompt_width - len(row)) + [-2 - v for v in row] for row in rows]
        )
        self.vocabulary = len(tokenizer)
        self.state_shape = (self.prompt_width + max_new_tokens,)
        self.action_sizes = (self.vocabulary,)
        self.max_steps = max_new_tokens

    def _encoded(self, prompt: Prompt, i: int) -> list[int]:
        if isinstance(prompt.text, str):
            row = self.tokenizer.encode(prompt.text)
        else:
            row = self.tokenizer.apply_chat_template(  # type: ignore[attr-defined]
                list(prompt.text), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        if not row:
            raise ValueError(f"prompt {i} has no tokens: a language model needs at least one")
        return list(row)

    def _numbered(self, rows: list[list[int]]) -> dict[tuple[int, ...], int]:
        found: dict[tuple[int, ...], int] = {}
        for i, row in enumerate(rows):
            first = found.setdefault(tuple(row), i)
            if self.prompts[first].target != self.prompts[i].target:
                raise ValueError(f"prompts {first} and {i} have the same words but other targets")
        return found

    def check_context(self, context: int) -> None:
        """Refuse prompts that leave no room for a completion.

        Raises:
            ValueError: naming the first prompt that with `max_new_tokens` more tokens is longer
                than `context`.
        """
        lengths = (self._starts != EMPTY).sum(1)
        long = (lengths + self.max_new_tokens > context).nonzero()
        if len(long):
            i = int(long[0])
            raise ValueError(
                f"prompt {i} has {int(lengths[i])} tokens: with {self.max_new_tokens} new ones "
                f"that is more than the model's context of {context}"
            )

    def initial(self, n: int, device: torch.device | str = "cpu") -> States:
        """The prompts in their order, over and over: n copies of s0 where there is one prompt."""
        return self.start(torch.arange(n, device=device) % len(self.prompts))

    def begin(self, condition: Condition, device: torch.device | str = "cpu") -> States:
        """The prompts whose numbers are the conditions' encoding [n, 1]."""
        return self.start(condition.encoding[:, 0].to(device))

    def start(self, prompt: Tensor) -> States:
        """The states that hold nothing but the prompts numbered `prompt` [n] (of any dtype)."""
        starts = self._starts.to(prompt.device)[prompt.long()]
        zeros = torch.zeros(len(starts), dtype=torch.int64, device=prompt.device)
        places = starts.new_full((len(starts), self.max_new_tokens), EMPTY)
        return States(torch.cat([starts, places], 1), zeros, zeros.bool())

    def completed(self, prompt: Tensor, texts: Sequence[str]) -> States:
        """Finished rows of one turn: the prompts numbered `prompt` [n], each with its text.

        Raises:
            ValueError: a text with its end-of-text token is longer than `max_new_tokens`.
        """
        return self._finished(prompt, [[*self._tokens(text), self.end] for text in texts])

    def encode(self, objects: Sequence[Sequence[Any]]) -> States:
        """Finished rows of completions of one turn, by their words (special tokens are lost).

        Raises:
            ValueError: words that are too long, another prompt than the environment's, or several
                turns.
        """
        texts = self.tokenizer.batch_decode(
            [[-2 - v for v in row if v != EMPTY] for row in self._starts.tolist()],
            skip_special_tokens=True,
        )
        number = {text: i for i, text in enumerate(texts)}
        prompts, rows = [], []
        for i, item in enumerate(objects):
            completion = Completion(*item)
            if completion.prompt not in number:
                raise ValueError(f"object {i} completes another prompt: {completion.prompt!r}")
            if len(completion.turns) > 1:
                raise ValueError(f"object {i} has several turns, which words do not tell apart")
            prompts.append(number[completion.prompt])
            rows.append(self._tokens(completion.text) + [self.end] * completion.ended)
        return self._finished(torch.tensor(prompts, dtype=torch.int64), rows)

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _finished(self, prompt: Tensor, rows: Sequence[list[int]]) -> States:
        data = self.start(prompt).data
        for i, tokens in enumerate(rows):
            if len(tokens) > self.max_new_tokens:
                raise ValueError(
                    f"text {i} has {len(tokens)} tokens, more than {self.max_new_tokens}"
                )
            end = self.prompt_width + len(tokens)
            data[i, self.prompt_width : end] = data.new_tensor(tokens)
        done = torch.ones(len(data), dtype=torch.bool, device=data.device)
        return States(data, (data >= 0).sum(1), done)

    def step(self, states: States, actions: Tensor) -> States:
        """Write a token, or the reply to the turn that ended."""
        place = self.next_place(states.data)
        awaiting = self.awaiting(states)
        column = numbers(0, self.state_shape[0], 1, states.data.device)
        writing = ~states.done & ~awaiting
        here = (column == place.unsqueeze(1)) & writing.unsqueeze(1)
        data = torch.where(here, actions.unsqueeze(1), states.data)
        over = (actions == self.end) & ~self._asked(data).gather(
            1, place.clamp(max=self.state_shape[0] - 1).unsqueeze(1)
        ).squeeze(1)
        full = place + 1 >= self.state_shape[0]
        moved = States(data, states.step + ~states.done, states.done | writing & (over | full))
        return moved if self.reply is None else self._answered(moved, awaiting, place)

    def after_turn(self, data: Tensor) -> States:
        """Rows [n, W] whose turns are over, with the replies of the environment."""
        asked = self._asked(data)
        place = self.next_place(data)
        last = (place - 1).unsqueeze(1)
        waiting = asked.gather(1, last).squeeze(1)
        step = (data >= 0).sum(1) + asked.sum(1)
        moved = States(data, step, ~waiting)
        return moved if self.reply is None else self._answered(moved, waiting, place)

    def awaiting(self, states: States) -> Tensor:
        """Rows whose turn is over and may be answered, [n] bool."""
        last = (self.next_place(states.data) - 1).clamp(min=0).unsqueeze(1)
        return (states.data.gather(1, last).squeeze(1) == self.end) & ~states.done

    def _asked(self, data: Tensor) -> Tensor:
        """The ends of turns that may be answered: another turn and room are left, [n, W] bool."""
        ends = data == self.end
        column = numbers(0, self.state_shape[0], 1, data.device)
        return ends & (ends.cumsum(1) < self.max_turns) & (column < self.state_shape[0] - 1)

    def _answered(self, states: States, awaiting: Tensor, places: Tensor) -> States:
        """The rows `awaiting` [n] bool with their replies at `places` [n], or done without."""
        assert self.reply is not None
        rows = awaiting.nonzero().squeeze(1)
        if not len(rows):
            return states
        try:
            replies = self.reply(self.decode(states.rows(rows)))
        except Exception as error:
            raise RuntimeError(
                f"the reply function raised {type(error).__name__}: {error}"
            ) from error
        if len(replies) != len(rows):
            raise RuntimeError(
                f"the reply function returned {len(replies)} replies to {len(rows)} turns"
            )
        data, done = states.data.clone(), states.done | awaiting
        for row, place, text in zip(rows.tolist(), places[rows].tolist(), replies, strict=True):
            tokens = [] if text is None else self._tokens(text)
            # Without a word to answer, or room for one of the policy's own, the episode ends.
            if tokens and place + len(tokens) < self.state_shape[0]:
                data[row, place : place + len(tokens)] = data.new_tensor([-2 - v for v in tokens])
                done[row] = False
        return States(data, states.step, done)

    def backstep(self, states: States, actions: Tensor) -> States:
        """Take back the reply, or else the last token the policy wrote."""
        started = states.step > 0
        own = states.data >= 0
        order = own.long().cumsum(1)
        behind = order >= order[:, -1:]
        # The last own token goes, unless the environment's move came after it.
        taken = behind & (~own | ~self._replied(states).unsqueeze(1)) & started.unsqueeze(1)
        data = torch.where(taken, EMPTY, states.data)
        return States(data, states.step - started.long(), states.done & ~started)

    def _replied(self, states: States) -> Tensor:
        """Rows whose last transition was the environment's, [n] bool."""
        own = (states.data >= 0).sum(1)
        asked = self._asked(states.data)
        last = (states.data >= 0).long().cumsum(1).argmax(1, keepdim=True)
        return asked.gather(1, last).squeeze(1) & (states.step == own + asked.sum(1))

    def forward_mask(self, states: States, *chosen: Tensor) -> Tensor:
        """Every token; in finished and awaiting rows only the last, which then writes nothing."""
        every = torch.ones(states.n, self.vocabulary, dtype=torch.bool, device=states.data.device)
        return with_last(every, states.done | self.awaiting(states))

    def backward_mask(self, states: States) -> Tensor:
        """The one move back, [n, 1]."""
        return torch.ones(states.n, 1, dtype=torch.bool, device=states.data.device)

    def backward_action(self, states: States, actions: Tensor) -> Tensor:
        """Zero: there is one move back."""
        return torch.zeros_like(actions)

    def forward_action(self, states: States, actions: Tensor) -> Tensor:
        """The last token of the policy in the children `states`, or what stands for a reply."""
        place = (states.data >= 0).long().cumsum(1).argmax(1, keepdim=True)
        token = states.data.gather(1, place).squeeze(1).clamp(min=0)
        return torch.where(self._replied(states), self.vocabulary - 1, token)

    def log_n_paths(self, states: States) -> Tensor:
        """Zero: one path leads to each row; [n] float64."""
        return torch.zeros(states.n, dtype=torch.float64, device=states.data.device)

    def observe(self, states: States) -> tuple[Tensor, Tensor]:
        """Token numbers [n, W], 0 where there is none, and where tokens are [n, W] bool."""
        return token_numbers(states.data), states.data != EMPTY

    def next_place(self, data: Tensor) -> Tensor:
        """The first place without a token behind those of rows [n, W], [n]."""
        return self.prompt_width + (data[:, self.prompt_width :] != EMPTY).sum(1)

    def history(self, data: Tensor, condition: Condition) -> Trajectories:
        """The trajectories that led to finished rows [n, W]; only own tokens are `stochastic`."""
        own, asked = data >= 0, self._asked(data)
        # Counted in transitions: own tokens appear with theirs, a reply with the one behind.
        appears = own.long().cumsum(1) + asked.long().cumsum(1) - asked.long()
        lengths = own.sum(1) + asked.sum(1)
        column = torch.arange(int(lengths.max()) + 1, device=data.device)
        states = torch.where(appears.unsqueeze(1) <= column[:, None], data.unsqueeze(1), EMPTY)
        valid = column[:-1] < lengths.unsqueeze(1)
        place = torch.where(own, appears - 1, valid.shape[1])
        wide = data.new_full((len(data), valid.shape[1] + 1), EMPTY).scatter(1, place, data)
        written = wide[:, :-1] >= 0
        actions = torch.where(written, wide[:, :-1], self.vocabulary - 1)
        back = torch.zeros_like(actions)
        return Trajectories(states, actions, back, valid, condition, stochastic=written)

    def decode(self, states: States) -> list[Completion]:
        """The completions so far."""
        texts: list[list[int]] = []
        shapes = []
        for row in states.data.tolist():
            prompt = [-2 - v for v in row[: self.prompt_width] if v != EMPTY]
            rest = [v for v in row[self.prompt_width :] if v != EMPTY]
            own: list[list[int]] = []
            for v in rest:
                if v >= 0:
                    if not own or own[-1][-1] == self.end:
                        own.append([])
                    own[-1].append(v)
            ended = bool(own and own[-1][-1:] == [self.end])
            shapes.append((len(own), ended, sum(map(len, own)), self._number[tuple(prompt)]))
            texts += [prompt, [v if v >= 0 else -2 - v for v in rest], *own]
        decoded = iter(self.tokenizer.batch_decode(texts, skip_special_tokens=True))
        made = []
        for n_turns, ended, n_tokens, number in shapes:
            prompt_text, text = next(decoded), next(decoded)
            turns = tuple(next(decoded) for _ in range(n_turns))
            target = self.prompts[number].target
            made.append(Completion(prompt_text, text, turns, ended, n_tokens, target))
        return made


def token_numbers(data: Tensor) -> Tensor:
    """The numbers of a row's tokens, whoever wrote them; 0 where there is none."""
    return torch.where(data < EMPTY, -2 - data, data.clamp(min=0))
