"""A causal language model as a policy over tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gflow.kernels import Categorical
from gflow.mdp import Condition, Evaluation, Heads, States, Trajectories
from gflow.policies.common import seeded_weights
from gflow.sampling.rollout import BLOCK, Exploration, behaviour_log_prob

if TYPE_CHECKING:
    from gflow.envs.language import Completions, Prompt
    from gflow.envs.language.completions import Reply


class PromptLogZ(nn.Module):
    """log Z of each prompt, a table of zeros to begin with."""

    def __init__(self, n_prompts: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_prompts))

    def forward(self, condition: Condition) -> Tensor:
        """log Z of each row's prompt, [n]."""
        return self.bias[condition.encoding[:, 0].long()]


class LanguagePolicy(nn.Module):
    """P_F of a causal language model of transformers on `Completions`.

    Sampling keeps the model's cache; a batch is scored in one pass over its finished rows, with
    the same positions and in float32 at least, so that an unchanged model finds the
    log-probabilities it sampled with. Dropout stays off throughout.

    Args:
        env: the prompts and their completions.
        model: a causal language model of transformers, or such a model with adapters of peft.
        reference: another model of the same vocabulary, held fixed, see `reference`.
        flow: add a head on the last hidden states, for log F(s) or a value.
        seed: seeds that head.

    Raises:
        ValueError: prompts longer than the model's context, or a model or reference that scores
            another vocabulary.
    """

    backward = "tree"

    def __init__(
        self,
        env: Completions,
        model: nn.Module,
        *,
        reference: nn.Module | None = None,
        flow: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        check_vocabulary(env, model, reference)
        self.env, self.flow = env, flow
        self.model: Any = model.eval()
        self.fixed = None if reference is None else reference.eval().requires_grad_(False)
        self.log_z = PromptLogZ(len(env.prompts))
        if flow:
            with seeded_weights(seed):
                self.flow_head = nn.Linear(int(self.model.config.hidden_size), 1)  # type: ignore[union-attr, arg-type]

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        *,
        lora: int = 0,
        reference: str | Path | None = None,
        reply: Reply | None = None,
        max_turns: int = 1,
        flow: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> LanguagePolicy:
        """A model and its tokenizer from a folder or a hub.

        Args:
            name: as transformers' `from_pretrained` takes it.
            prompts: see `Completions`, like `max_new_tokens`, `reply` and `max_turns`.
            max_new_tokens: places behind the prompt.
            lora: rank of adapters on all linear layers; 0 trains the whole model.
            reference: another model to be the reference.
            reply: answers finished turns.
            max_turns: turns in an episode.
            flow: add a head for log F(s) or a value.
            seed: seeds that head and the adapters.
            options: for transformers' `from_pretrained`, such as dtype.

        Raises:
            ImportError: the extra for language models is missing.
            ValueError: the reference has another tokenizer; and see the class.
        """
        from gflow.envs.language import Completions

        try:
            import peft
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise ImportError("language models need the extra gflow[llm]") from error
        tokenizer = AutoTokenizer.from_pretrained(name)
        fixed = None
        if reference is not None:
            if AutoTokenizer.from_pretrained(reference).get_vocab() != tokenizer.get_vocab():
                raise ValueError(
                    f"the tokenizer of the reference {reference} is another than that of {name}"
                )
            fixed = AutoModelForCausalLM.from_pretrained(reference, **options)
        model = AutoModelForCausalLM.from_pretrained(name, **options)
        if lora:
            with seeded_weights(seed):
                model = peft.get_peft_model(
                    model, peft.LoraConfig(r=lora, target_modules="all-linear")
                )
        env = Completions(tokenizer, prompts, max_new_tokens, reply=reply, max_turns=max_turns)
        return cls(env, model, reference=fixed, flow=flow, seed=seed)

    def train(self, mode: bool = True) -> LanguagePolicy:
        """Nothing changes: log-probabilities with dropout could not be found again."""
        return self

    def forward(self, states: States, condition: Condition, needs: frozenset[str]) -> Heads:
        """Heads for each row, from one pass over its tokens."""
        tokens, attended = self.env.observe(states)
        logits, hidden = self._read(tokens, attended, tokens.shape[1], "log_flow" in needs)
        row = torch.arange(states.n, device=tokens.device)
        last = self.env.next_place(states.data) - 1
        forward = Categorical(logits[row, last], self.env.forward_mask(states))
        flow = None if hidden is None else self.flow_head(hidden[row, last]).squeeze(-1)
        return Heads(forward, None, flow)

    def evaluate(self, batch: Trajectories, needs: frozenset[str]) -> Evaluation:
        """All steps of all rows in one pass over the finished rows, see `gflow.mdp.evaluate`."""
        ends, valid = batch.terminal, batch.valid
        decided = valid if batch.stochastic is None else valid & batch.stochastic
        tokens, attended = self.env.observe(ends)
        used = attended.any(0).nonzero()
        shown = slice(int(used[0]), int(used[-1]) + 1)
        own = ends.data[:, shown] >= 0
        row, column = own.nonzero(as_tuple=True)
        # The logits of a token stand at the one before it.
        first = int(column.min()) - 1
        logits, hidden = self._read(
            tokens[:, shown], attended[:, shown], own.shape[1] - first, "log_flow" in needs
        )
        chosen = logits[row, column - 1 - first]

        def steps(values: Tensor) -> Tensor:
            return values.new_zeros(valid.shape).masked_scatter(decided, values)

        taken = tokens[:, shown][row, column]
        log_pf = steps(-nn.functional.cross_entropy(chosen, taken, reduction="none"))
        flow = entropy = None
        if hidden is not None:
            flow = steps(self.flow_head(hidden[row, column - 1 - first]).squeeze(-1))
        if "entropy" in needs:
            entropy = steps(Categorical(chosen).entropy())
        return Evaluation(
            log_pf=log_pf,
            log_pb=torch.zeros_like(log_pf) if needs & {"log_pb", "log_pb_total"} else None,
            log_flow=flow,
            log_z=self.log_z(batch.condition) if "log_z" in needs else None,
            construction=valid,
            entropy=entropy,
        )

    def rollout(
        self,
        start: States,
        condition: Condition,
        generator: torch.Generator | None,
        exploration: Exploration,
        keep_log_pf: bool,
    ) -> Trajectories:
        """Completions of the rows in `start`, turn by turn; see `gflow.sampling.rollout`."""
        env, states = self.env, start
        log_p = torch.zeros(
            states.data.shape, dtype=condition.inverse_temperature.dtype, device=start.data.device
        )
        for _ in range(env.max_turns):
            going = (~states.done).nonzero().squeeze(1)
            if not len(going):
                break
            data = states.data[going]
            place = env.next_place(data)
            written, scores = self._generate(
                data, place, generator, exploration, log_p.dtype, keep_log_pf
            )
            column = place.unsqueeze(1) + torch.arange(written.shape[1], device=place.device)
            # Behind the end of a turn nothing is written: such tokens go to one column too many.
            column = torch.where(written >= 0, column, data.shape[1])
            wide = nn.functional.pad(data, (0, 1)).scatter(1, column, written)[:, :-1]
            rows = states.data.index_copy(0, going, wide)
            log_p[going] = nn.functional.pad(log_p[going], (0, 1)).scatter(1, column, scores)[
                :, :-1
            ]
            states = env.after_turn(rows)
        batch = env.history(states.data, condition)
        if not keep_log_pf:
            return batch
        assert batch.stochastic is not None
        kept = log_p.new_zeros(batch.valid.shape)
        return replace(
            batch, log_pf_old=kept.masked_scatter(batch.stochastic, log_p[states.data >= 0])
        )

    def _generate(
        self,
        data: Tensor,
        place: Tensor,
        generator: torch.Generator | None,
        exploration: Exploration,
        dtype: torch.dtype,
        keep_log_p: bool,
    ) -> tuple[Tensor, Tensor]:
        """One turn of rows [n, W] whose next places are `place` [n].

        Returns:
            The tokens [n, k], -1 behind the end of a turn, and their log-probabilities [n, k].
        """
        env, (n, width) = self.env, data.shape
        room = width - place
        # Right-aligned, so that all rows go on in the same column.
        source = torch.arange(width, device=data.device) - room.unsqueeze(1)
        data = torch.where(source >= 0, data.gather(1, source.clamp(min=0)), -1)
        zeros = torch.zeros_like(place)
        ids, attended = env.observe(States(data, zeros, zeros.bool()))
        first = int(attended.any(0).nonzero()[0])
        ids, mask = ids[:, first:], attended[:, first:].long()
        position = (mask.cumsum(1) - 1).clamp(min=0)
        done, cache = zeros.bool(), None
        tokens, log_ps = [], []
        epsilon, temperature = exploration.epsilon, exploration.temperature
        limit = int(room.max())
        for k in range(limit):
            out = self.model(
                input_ids=ids, attention_mask=mask, position_ids=position,
                past_key_values=cache, use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            kernel = Categorical(self._wide(out.logits[:, -1]))
            noise = env.noise(1, n, generator, dtype, data.device)[0]
            uniform = None
            if epsilon > 0:
                drawn = torch.empty(n, device=data.device).uniform_(generator=generator)
                uniform = drawn < epsilon
            token = kernel.explore(uniform, temperature).sample(noise)
            tokens.append(torch.where(done, -1, token))
            if keep_log_p:
                log_ps.append(behaviour_log_prob(kernel, token, epsilon, temperature))
            done = done | (token == env.end) | (k + 1 >= room)
            look = data.device.type == "cpu" or (k + 1) % BLOCK == 0
            if k + 1 == limit or (look and bool(done.all())):
                break
            cache, ids = out.past_key_values, token.unsqueeze(1)
            mask = nn.functional.pad(mask, (0, 1), value=1)
            position = (position[:, -1:] + 1).clamp(max=width - 1)
        written = torch.stack(tokens, 1)
        scores = torch.stack(log_ps, 1) if keep_log_p else torch.zeros_like(written)
        return written, scores.to(dtype)

    def _read(
        self, tokens: Tensor, attended: Tensor, keep: int, with_hidden: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [n, keep, V] of the last `keep` places, and hidden states there if asked."""
        position = (attended.long().cumsum(1) - 1).clamp(min=0)
        out = self.model(
            input_ids=tokens, attention_mask=attended.long(), position_ids=position,
            use_cache=False, logits_to_keep=keep, output_hidden_states=with_hidden,
        )  # fmt: skip
        hidden = None
        if with_hidden:
            if not self.flow:
                raise ValueError("the objective needs log F(s): build the policy with flow=True")
            hidden = out.hidden_states[-1][:, -keep:].to(self.flow_head.weight.dtype)
        return self._wide(out.logits), hidden

    def _wide(self, logits: Tensor) -> Tensor:
        """Logits of the tokenizer's tokens, in float32 at least."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return logits[..., : self.env.vocabulary].to(dtype)

    @property
    def reference(self) -> Callable[[], AbstractContextManager[None]]:
        """Within `reference()` the policy is its reference: adapters off, or the fixed model.

        A policy without both has no such attribute; `gflow.policies.Anchored` gives it one.
        """
        return referring(self)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Everything; of a model with adapters only what is trained, for its base is known."""
        state = super().state_dict(*args, **kwargs)
        frozen = self._frozen()
        return {name: value for name, value in state.items() if name not in frozen}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The inverse of `state_dict`."""
        rest = {
            name: value for name, value in super().state_dict().items() if name in self._frozen()
        }
        return super().load_state_dict({**rest, **state_dict}, *args, **kwargs)

    def _frozen(self) -> set[str]:
        if not hasattr(self.model, "disable_adapter"):
            return set()
        return {name for name, value in self.named_parameters() if not value.requires_grad}


def check_vocabulary(env: Completions, model: Any, reference: Any) -> None:
    """Refuse models that cannot serve an environment's prompts and tokens.

    Raises:
        ValueError: fewer tokens scored than the tokenizer has, a reference that scores another
            number of them, or prompts longer than the context.
    """
    n_scored = model.config.vocab_size
    if n_scored < env.vocabulary:
        raise ValueError(
            f"the tokenizer has {env.vocabulary} tokens and the model scores only {n_scored}: "
            "both must belong together"
        )
    if reference is not None and reference.config.vocab_size != n_scored:
        raise ValueError(
            f"the reference scores {reference.config.vocab_size} tokens and the policy "
            f"{n_scored}: both must use one tokenizer"
        )
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None:
        env.check_context(int(context))


def referring(policy: Any) -> Callable[[], AbstractContextManager[None]]:
    """What exchanges a policy's model for its fixed one, or switches its adapters off, for a while.

    Raises:
        AttributeError: it has neither.
    """
    if policy.fixed is not None:
        return partial(_exchanged, policy)
    switch: Callable[[], AbstractContextManager[None]] = policy.model.disable_adapter
    return switch


@contextmanager
def _exchanged(policy: Any) -> Iterator[None]:
    model, policy.model = policy.model, policy.fixed
    try:
        yield
    finally:
        policy.model = model
