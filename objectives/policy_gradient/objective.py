"""Policy optimisation as settings: advantage x ratio x surrogate x aggregation x regulariser."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gflow.mdp import (
    Condition,
    Deferred,
    Evaluation,
    Loss,
    Policy,
    Trajectories,
    decisions,
    evaluate,
)
from gflow.mdp.collective import gather
from gflow.objectives.policy_gradient import surrogates
from gflow.objectives.policy_gradient.advantage import Advantage
from gflow.objectives.policy_gradient.aggregation import AGGREGATIONS, aggregate, step_weights
from gflow.objectives.policy_gradient.groups import Groups
from gflow.objectives.policy_gradient.memory import Memory
from gflow.objectives.policy_gradient.ratios import RATIOS
from gflow.objectives.policy_gradient.regularizers import (
    KL_ESTIMATES,
    constraint,
    k1,
    log_ratio,
    value_loss,
)
from gflow.objectives.policy_gradient.tracking import priority
from gflow.objectives.term import check_choice, check_range

SURROGATES = {"reinforce": 0, "ppo_clip": 2, "dyn_clip": 2, "is_clip": 2, "is_clip4": 4,
              "score_diff": 0}  # fmt: skip
"""Surrogates, and how many bounds each takes."""

KL_PLACES = ("none", *KL_ESTIMATES, "in_reward", "constraint")


@dataclass(frozen=True)
class PolicyGradient:
    """A policy-optimisation objective.

    Minimises -Agg[S(ratio, A, log p)] + kl_weight KL - entropy_weight entropy (+ value_weight times
    the value loss, under the baseline "value"). Steps outside `Trajectories.stochastic` count
    nowhere. Methods are rows of settings, see `gflow.objectives.catalog`.

    Attributes:
        advantage: from reward vectors to advantages.
        ratio: level of the importance ratio, a key of `RATIOS`. Under "elbo", where steps are
            terms of bounds on log p, surrogates of trajectories are divided by their lengths, and
            so is the log-ratio to the reference, of which there is one for each trajectory (GDPO
            for diffusion language models, 2025, arXiv 2510.08554).
        surrogate: key of `SURROGATES`.
        clip: absolute bounds of the ratio, low then high; for "is_clip4" those of positive, then
            of negative advantages; for "dyn_clip" the two epsilons of `dynamic_bounds`.
        dual_clip: bound on rho where A < 0, 0 for none.
        aggregation: one of `AGGREGATIONS`; "score_diff" brings its own.
        longest: what "const_norm" divides by; 0 takes the environment's `max_steps`.
        kl: "none"; an estimate towards the reference as a loss (a key of `KL_ESTIMATES`);
            "in_reward", k1 subtracted from rewards; or "constraint", towards the policy that
            sampled.
        kl_weight: its coefficient.
        kl_bound: KL per step that "constraint" allows.
        entropy_weight: coefficient of the exact entropy over legal actions, mean over steps.
        value_weight: coefficient of the value loss.
        value_clip: how far a value may move from the old one in its loss, 0 for any way.
        score_temperature: "score_diff" presses on the hardest negatives, 0 for on all alike.
        memory: what the baselines "cumulative" and "tracker" remember; see `fresh`.
    """

    advantage: Advantage = Advantage()  # noqa: RUF009  (frozen)
    ratio: str = "token"
    surrogate: str = "ppo_clip"
    clip: tuple[float, ...] = (0.8, 1.2)
    dual_clip: float = 0.0
    aggregation: str = "seq_mean_token_mean"
    longest: int = 0
    kl: str = "none"
    kl_weight: float = 0.0
    kl_bound: float = 0.0
    entropy_weight: float = 0.0
    value_weight: float = 0.5
    value_clip: float = 0.0
    score_temperature: float = 0.0
    memory: Memory | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choice("ratio", self.ratio, RATIOS)
        check_choice("surrogate", self.surrogate, SURROGATES)
        check_choice("aggregation", self.aggregation, AGGREGATIONS)
        check_choice("kl", self.kl, KL_PLACES)
        self._check_bounds()
        check_range(
            self, 0.0, math.inf, "longest", "kl_weight", "kl_bound", "entropy_weight",
            "value_weight", "value_clip", "score_temperature",
        )  # fmt: skip
        if self.surrogate in ("ppo_clip", "dyn_clip", "is_clip", "is_clip4") and (
            self.ratio == "none"
        ):
            raise ValueError(f"{self.surrogate} clips a ratio: choose one, not 'none'")
        if self.surrogate in ("is_clip", "is_clip4", "dyn_clip") and "token" not in self.ratio:
            raise ValueError(f"{self.surrogate} needs a ratio of every step, not {self.ratio!r}")
        if (self.surrogate == "score_diff") != (self.advantage.labels is not None):
            raise ValueError("score_diff and only score_diff needs labels in place of advantages")
        if self.kl == "in_reward" and self.advantage.combine == "norm_then_sum":
            raise ValueError(
                "rewards that are normalised apart leave no place for a penalty: put the KL into "
                "the loss"
            )

    def _check_bounds(self) -> None:
        wanted = SURROGATES[self.surrogate]
        if self.dual_clip and not self.dual_clip > 1:
            raise ValueError(
                f"dual_clip {self.dual_clip} bounds ratios from above: more than 1, or 0"
            )
        pairs = list(zip(self.clip[::2], self.clip[1::2], strict=False))
        if wanted and len(self.clip) != wanted:
            raise ValueError(f"{self.surrogate} takes {wanted} bounds, not {len(self.clip)}")
        if self.surrogate == "dyn_clip":
            if min(self.clip) < 0:
                raise ValueError(f"the epsilons {self.clip} of dyn_clip must not be negative")
        elif wanted and not all(0 <= low <= 1 <= high for low, high in pairs):
            raise ValueError(
                f"clip bounds {self.clip} are absolute ratios, low before high, around 1: for "
                "example (0.8, 1.2)"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Entropies and values, where they enter the loss."""
        more = {"entropy"} if self.entropy_weight else set()
        return frozenset(more | ({"log_flow"} if self.advantage.baseline == "value" else set()))

    @property
    def needs_reference(self) -> bool:
        """The policy needs a `reference()` to be compared with."""
        return self.kl in (*KL_ESTIMATES, "in_reward")

    def fresh(self) -> PolicyGradient:
        """This objective with an empty memory of its own, or itself where it needs none."""
        return replace(self, memory=self.advantage.memory()) if self.advantage.remembers else self

    @property
    def priority(self) -> Callable[[Condition], Tensor] | None:
        """Weights by which a tracker would have the conditions of a pool drawn, if there is one."""
        memory = self.memory
        if memory is None or self.advantage.baseline != "tracker":
            return None

        def weights(pool: Condition) -> Tensor:
            if memory.keys is None:
                return torch.ones(len(pool.encoding))
            row = memory.find(pool.encoding.to(memory.keys.device), memory.table.mean.dtype)
            found = memory.rows(row)
            return priority(found.mean, found.seen)

        return weights

    def state_dict(self) -> dict[str, Any]:
        """What the memory holds."""
        return {} if self.memory is None else self.memory.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        if self.memory is not None:
            self.memory.load_state_dict(state)

    def mask(self, batch: Trajectories) -> Tensor:
        """Steps that were decisions of the policy, [B, T] bool."""
        return batch.valid if batch.stochastic is None else batch.valid & batch.stochastic

    @torch.no_grad()
    def prepare(self, policy: Policy, batch: Trajectories) -> Trajectories:
        """The batch with its advantages and, where needed, reference log-probabilities.

        Raises:
            ValueError: what the settings need is missing: rewards, sampled log-probabilities, a
                reference, or a memory.
        """
        if self.advantage.remembers and self.memory is None:
            raise ValueError(
                f"the baseline {self.advantage.baseline!r} remembers conditions: use the objective "
                "that fresh() returns"
            )
        if batch.stochastic is None and getattr(policy, "evaluate", None) is None:
            if not policy.env.continuous:
                batch = replace(batch, stochastic=decisions(policy.env, batch))
        if batch.log_pf_old is None and (self._compares or self.kl == "in_reward"):
            raise ValueError(
                "importance ratios need the log-probabilities of the sampled actions: sample with "
                "keep_log_pf=True"
            )
        mask, penalty = self.mask(batch), None
        if self.needs_reference:
            batch = replace(batch, log_pf_ref=self._reference(policy, batch))
        if self.kl == "in_reward":
            assert batch.log_pf_old is not None and batch.log_pf_ref is not None
            penalty = self.kl_weight * log_ratio(batch.log_pf_old, batch.log_pf_ref, mask)
        batch = self.advantage.of(policy, batch, mask, penalty, self.memory)
        assert batch.advantage is not None
        if not bool(batch.advantage.any()):
            warnings.warn(
                "rewards are equal within every group of a batch: it has nothing to teach",
                RuntimeWarning,
                stacklevel=3,
            )
        return batch

    @property
    def _compares(self) -> bool:
        return (
            self.ratio != "none"
            or self.kl == "constraint"
            or (self.advantage.baseline == "tracker")
        )

    def _reference(self, policy: Policy, batch: Trajectories) -> Tensor:
        reference = getattr(policy, "reference", None)
        if reference is None:
            raise ValueError(
                f"the KL of {type(policy).__name__} needs a reference: wrap the policy in "
                "gflow.policies.Anchored"
            )
        with reference():
            return evaluate(policy, batch, frozenset()).log_pf

    def __call__(self, policy: Policy, batch: Trajectories) -> Loss:
        """The loss of a batch, which is prepared first where that was not done."""
        if batch.advantage is None:
            batch = self.prepare(policy, batch)
        found = evaluate(policy, batch, self.needs)
        return self.loss(found, batch, self.longest or policy.env.max_steps)

    def loss(self, found: Evaluation, batch: Trajectories, longest: int) -> Loss:
        """The loss from re-evaluated, prepared trajectories."""
        mask, log_p = self.mask(batch), found.log_pf
        assert batch.advantage is not None
        advantage = batch.advantage.to(log_p.dtype)
        old = log_p.detach() if batch.log_pf_old is None else batch.log_pf_old
        ratio = RATIOS[self.ratio](log_p, old, mask)
        metrics: dict[str, Callable[[], Tensor]] = {}
        weight: Tensor | int
        if self.surrogate == "score_diff":
            value, weight = self._scores(log_p, ratio, advantage, mask, batch)
        else:
            value, weight, metrics = self._surrogate(log_p, old, ratio, advantage, mask, longest)
        value = -value
        if self.kl in KL_ESTIMATES:
            assert batch.log_pf_ref is not None
            x, counted = log_ratio(log_p, batch.log_pf_ref, mask), mask
            if self.ratio == "elbo":
                x = x.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
                counted = mask.any(1, keepdim=True)
            weights = self._weights(counted, log_p.dtype, longest)
            penalty = aggregate(KL_ESTIMATES[self.kl](x), weights)
            value = value + self.kl_weight * penalty
            metrics["kl"] = lambda: mean_of(KL_ESTIMATES["k3"](x.detach()), counted)
        if self.kl == "constraint":
            each = k1(log_ratio(old, log_p, mask))
            divergence = self._mean(each, mask, weight)
            # Whether the bound is met is for all processes to decide together.
            level = gather(each.detach()[mask])[0].mean()
            value = value + constraint(divergence, level, self.kl_bound, self.kl_weight)
            metrics["kl"] = lambda: level
        if (entropy := found.entropy) is not None:
            value = value - self.entropy_weight * self._mean(entropy, mask, weight)
            metrics["entropy"] = lambda: mean_of(entropy, mask)
        if self.advantage.baseline == "value":
            assert found.log_flow is not None and batch.value_target is not None
            assert batch.value_old is not None
            errors = value_loss(
                found.log_flow, batch.value_old, batch.value_target, self.value_clip
            )
            value = value + self.value_weight * self._mean(errors, mask, weight)
            metrics["value_loss"] = lambda: mean_of(errors, mask)
        if batch.log_pf_old is not None:
            metrics["ratio"] = lambda: mean_of(RATIOS["token"](log_p.detach(), old, mask), mask)
        metrics["zero_advantage"] = lambda: (
            1 - (mask & (advantage != 0)).any(1).to(log_p.dtype).mean()
        )
        return Loss(value, Deferred(metrics), weight)

    def _weights(self, mask: Tensor, dtype: torch.dtype, longest: int) -> Tensor:
        return step_weights(mask, self.aggregation, dtype, longest)

    def _mean(self, values: Tensor, mask: Tensor, weight: Tensor | int) -> Tensor:
        """Mean over the steps of all processes, given that losses are averaged by `weight`."""
        steps = mask.sum().to(values.dtype)
        own = torch.as_tensor(weight, device=values.device).to(values.dtype)
        everyone, _ = gather(torch.stack([steps, own]).unsqueeze(0))
        share = everyone[:, 1].sum() / (everyone[:, 0].sum().clamp(min=1) * own.clamp(min=1))
        return torch.where(mask, values, 0.0).sum() * share

    def _surrogate(
        self, log_p: Tensor, old: Tensor, ratio: Tensor, advantage: Tensor, mask: Tensor,
        longest: int,
    ) -> tuple[Tensor, Tensor | int, dict[str, Callable[[], Tensor]]]:  # fmt: skip
        """The aggregated surrogate, what parallel processes weigh it by, and what was clipped."""
        if ratio.shape[1] == 1 < mask.shape[1]:
            # One ratio for a whole trajectory, whose advantage is the same at every step.
            length = mask.sum(1, keepdim=True).clamp(min=1)
            advantage = torch.where(mask, advantage, 0.0).sum(1, keepdim=True) / length
            if self.ratio == "elbo":
                advantage = advantage / length
            mask = mask.any(1, keepdim=True)
        low: surrogates.Bound = 0.0
        high: surrogates.Bound = torch.inf
        if self.surrogate == "reinforce":
            each = surrogates.reinforce(advantage, log_p)
        elif self.surrogate == "is_clip":
            low, high = self.clip
            bounds = (low, high)
            each = surrogates.clipped_weight(ratio, advantage, log_p, bounds, bounds)
        elif self.surrogate == "is_clip4":
            positive, negative = (self.clip[0], self.clip[1]), (self.clip[2], self.clip[3])
            each = surrogates.clipped_weight(ratio, advantage, log_p, positive, negative)
            low = torch.where(advantage > 0, positive[0], negative[0])
            high = torch.where(advantage > 0, positive[1], negative[1])
        else:
            low, high = self.clip
            if self.surrogate == "dyn_clip":
                low, high = surrogates.dynamic_bounds(torch.where(mask, old, 0.0), low, high)
            each = surrogates.ppo_clip(ratio, advantage, low, high, self.dual_clip)
        clipped: dict[str, Callable[[], Tensor]] = {}
        if self.surrogate != "reinforce":
            clipped["clip_low"] = lambda: mean_of(ratio < low, mask)
            clipped["clip_high"] = lambda: mean_of(ratio > high, mask)
        value = aggregate(each, self._weights(mask, log_p.dtype, longest))
        by_steps = self.aggregation == "token_mean"
        return value, mask.sum() if by_steps else len(mask), clipped

    def _scores(
        self, log_p: Tensor, ratio: Tensor, label: Tensor, mask: Tensor, batch: Trajectories
    ) -> tuple[Tensor, Tensor]:
        """Difference of the scores of positive and negative trajectories of each group."""
        of_steps = torch.where(mask, log_p if self.ratio == "none" else ratio, 0.0)
        score = of_steps.sum(1) / mask.sum(1).clamp(min=1)
        group = batch.group if batch.group is not None else torch.zeros_like(batch.lengths)
        groups = Groups.of(group)
        sign = torch.where(mask, label, 0.0).sum(1)
        return surrogates.score_difference(score, sign, groups, self.score_temperature)


def mean_of(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` over the steps in `mask`, both [B, T]; without gradient."""
    return (values.detach() * (mask / mask.sum().clamp(min=1))).sum()
