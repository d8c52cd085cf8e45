"""Masked diffusion language models: as policies on unmasking steps, and by their finished rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gflow.estimators.masked import count_masks, elbo_terms, gauss_legendre
from gflow.kernels import Independent
from gflow.mdp import Condition, Evaluation, Heads, States, Trajectories
from gflow.policies.language import PromptLogZ, check_vocabulary, referring
from gflow.sampling.rollout import Exploration, rollout

if TYPE_CHECKING:
    from gflow.envs.language.masked import MaskedCompletions


class MaskedLanguagePolicy(nn.Module):
    """P_F of a masked diffusion model on `MaskedCompletions`, one factor for each place.

    From time t to s < t each masked place is revealed with probability (t - s) / t, to a token of
    the network's distribution given the row. P_B masks it again with probability (t - s) / (1 - s).

    Args:
        env: the prompts and their completions.
        network: scores tokens at all places at once, like `BertForMaskedLM`; it is called with
            `input_ids` and `attention_mask`.
        reference: another network of the same vocabulary, held fixed.

    Raises:
        ValueError: prompts longer than the network's context, or a network or reference that
            scores another vocabulary.
    """

    backward = "fixed"

    def __init__(
        self, env: MaskedCompletions, network: nn.Module, *, reference: nn.Module | None = None
    ):
        super().__init__()
        check_vocabulary(env, network, reference)
        self.env = env
        self.model: Any = network.eval()
        self.fixed = None if reference is None else reference.eval().requires_grad_(False)
        self.log_z = PromptLogZ(len(env.prompts))

    def train(self, mode: bool = True) -> MaskedLanguagePolicy:
        """Nothing changes: log-probabilities with dropout could not be found again."""
        return self

    def log_probs(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """log p(token) at the places behind the prompt, [n, length, V]; -inf for the mask.

        Args:
            tokens: [n, W] numbers, the mask's where the network shall guess.
            attended: [n, W] bool, what the network sees.
        """
        out = self.model(input_ids=tokens, attention_mask=attended.long())
        logits = out.logits[:, self.env.prompt_width :, : self.env.vocabulary]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        is_mask = torch.arange(logits.shape[-1], device=logits.device) == self.env.mask
        return torch.where(is_mask, -torch.inf, logits).log_softmax(-1)

    def forward(self, states: States, condition: Condition, needs: frozenset[str]) -> Heads:
        """Kernels of the next step, and of the step back."""
        env = self.env
        masked = env.masked(states.data).unsqueeze(-1)
        forward = backward = None
        if "log_pf" in needs:
            log_p = self.log_probs(*env.observe(states))
            share = env.reveals(states.step).to(log_p.dtype)[:, None, None]
            stay = (1 - share).log().expand(*log_p.shape[:2], 1)
            opened = torch.cat([log_p + share.log(), stay], -1)
            rest = nn.functional.pad(torch.full_like(log_p, -torch.inf), (0, 1))
            open_places = masked & ~states.done[:, None, None]
            forward = Independent(torch.where(open_places, opened, rest))
        if "log_pb" in needs:
            share = env.remasks(states.step).to(condition.inverse_temperature.dtype)
            back = torch.stack([1 - share, share], -1).log()[:, None]
            again = back.new_tensor([-torch.inf, 0.0])
            backward = Independent(torch.where(masked, again, back))
        return Heads(forward, backward)

    @property
    def reference(self) -> Callable[[], AbstractContextManager[None]]:
        """See `LanguagePolicy.reference`."""
        return referring(self)


class MaskedLikelihood(nn.Module):
    """A masked diffusion model seen through its finished rows: one step for each token.

    The steps of a record are the tokens of its rows, of which those up to the end of a completion
    are `stochastic`. Their log-probabilities add up to an estimate of log p(y), so that whatever
    ratio of sequences an objective takes is that of estimates on the same masks: old, current and
    reference policy read the draws of the batch. What stands behind the end is masked and shown
    like the rest, as in sampling, but adds nothing.

    - "elbo": semi-deterministic Monte Carlo (GDPO, 2025, arXiv 2510.08554), see
      `gflow.estimators.masked`.
    - "one_step": every token from the row with all of them masked, and prompt tokens masked with
      probability `prompt_mask` (diffu-GRPO of d1, 2025, arXiv 2504.12216).

    Args:
        policy: the model, which also samples.
        estimator: "elbo" or "one_step".
        nodes: times of the quadrature. 0 takes every number of masked places once, which leaves no
            error of quadrature, trains all of them, and costs as many passes as there are places.
        masks: masks drawn at each time.
        prompt_mask: see "one_step".

    Raises:
        ValueError: an unknown estimator, or settings out of range.
    """

    backward = "fixed"

    def __init__(
        self,
        policy: MaskedLanguagePolicy,
        estimator: str = "elbo",
        *,
        nodes: int = 2,
        masks: int = 1,
        prompt_mask: float = 0.15,
    ):
        super().__init__()
        if estimator not in ("elbo", "one_step"):
            raise ValueError(f"unknown estimator {estimator!r}: choose elbo or one_step")
        if nodes < 0 or masks < 1 or not 0 <= prompt_mask < 1:
            raise ValueError(
                f"the likelihood needs nodes >= 0, masks >= 1 and 0 <= prompt_mask < 1, "
                f"not {nodes}, {masks} and {prompt_mask}"
            )
        self.policy, self.env = policy, policy.env
        self.estimator, self.prompt_mask = estimator, prompt_mask
        length = policy.env.length
        times = torch.arange(1, length + 1, dtype=torch.float64) / length
        weights = torch.full_like(times, 1 / length)
        if nodes:
            times, weights = gauss_legendre(nodes)
        self.times = times.repeat_interleave(masks).tolist()
        self.shares = (weights / masks).repeat_interleave(masks).tolist()

    def forward(self, states: States, condition: Condition, needs: frozenset[str]) -> Heads:
        """Kernels of the unmasking steps."""
        heads: Heads = self.policy(states, condition, needs)
        return heads

    def log_z(self, condition: Condition) -> Tensor:
        """log Z of each row's prompt, [n]."""
        value: Tensor = self.policy.log_z(condition)
        return value

    def rollout(
        self,
        start: States,
        condition: Condition,
        generator: torch.Generator | None,
        exploration: Exploration,
        keep_log_pf: bool,
    ) -> Trajectories:
        """Completions by unmasking, with the draws that estimate their log-probabilities."""
        env, device = self.env, start.data.device
        ends = rollout(self.policy, start, condition, generator, exploration=exploration).terminal
        batch = env.history(ends.data, condition)
        counted = env.up_to_end(ends.data)[:, env.prompt_width :] >= 0
        if self.estimator == "elbo":
            shape = (batch.n, len(self.times), env.length)
        else:
            shape = (batch.n, 1, env.prompt_width)
        draws = torch.rand(
            shape, generator=generator, dtype=condition.inverse_temperature.dtype, device=device
        )
        batch = replace(batch, draws=draws, stochastic=counted)
        if not keep_log_pf:
            return batch
        with torch.no_grad():
            return replace(batch, log_pf_old=self.evaluate(batch, frozenset()).log_pf)

    def evaluate(self, batch: Trajectories, needs: frozenset[str]) -> Evaluation:
        """The estimate's terms, one for each token, in one pass of the network.

        Raises:
            ValueError: something else is needed, which only unmasking steps have.
        """
        if needs & {"log_pb", "log_pb_total", "log_flow", "entropy"}:
            raise ValueError(
                "finished rows of a masked model have log-probabilities only: train on its "
                "unmasking steps (MaskedLanguagePolicy) for balance objectives and entropy"
            )
        assert batch.draws is not None
        estimate = self._elbo if self.estimator == "elbo" else self._one_step
        terms = estimate(batch.terminal, batch.draws)
        log_z = self.log_z(batch.condition) if "log_z" in needs else None
        log_pf = terms if batch.stochastic is None else terms.where(batch.stochastic, 0.0)
        return Evaluation(log_pf, None, None, log_z, batch.valid)

    def _elbo(self, ends: States, draws: Tensor) -> Tensor:
        env, n_draws = self.env, draws.shape[1]
        valid = ~env.masked(ends.data)
        hidden, weights = count_masks(draws, valid, draws.new_tensor(self.times))
        tokens, attended = env.observe(ends)
        prompt, y = tokens[:, : env.prompt_width], tokens[:, env.prompt_width :]
        shown = torch.where(hidden, env.mask, y.unsqueeze(1))
        rows = torch.cat([prompt.unsqueeze(1).expand(-1, n_draws, -1), shown], -1).flatten(0, 1)
        log_p = self.policy.log_probs(rows, attended.repeat_interleave(n_draws, 0))
        target = y.repeat_interleave(n_draws, 0).unsqueeze(-1)
        # What is said of shown places does not count, and may be impossible.
        found = log_p.gather(-1, target).view(hidden.shape).where(hidden, 0.0)
        return elbo_terms(found, hidden, weights, draws.new_tensor(self.shares))

    def _one_step(self, ends: States, draws: Tensor) -> Tensor:
        env = self.env
        tokens, attended = env.observe(ends)
        prompt, y = tokens[:, : env.prompt_width], tokens[:, env.prompt_width :]
        prompt = torch.where(draws[:, 0] < self.prompt_mask, env.mask, prompt)
        rows = torch.cat([prompt, torch.full_like(y, env.mask)], 1)
        log_p = self.policy.log_probs(rows, attended)
        return log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1).where(~env.masked(ends.data), 0.0)

    @property
    def reference(self) -> Callable[[], AbstractContextManager[None]]:
        """See `LanguagePolicy.reference`."""
        return self.policy.reference
