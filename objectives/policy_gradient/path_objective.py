"""Policy optimisation on denoising paths as one objective with a few settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gflow.kernels import AffineGaussian
from gflow.mdp import Loss, Policy, States, Trajectories
from gflow.objectives.policy_gradient.paths import (
    POWERS,
    WEIGHTS,
    StepTable,
    clipped,
    mean_shift,
    ratio_powers,
    step_weights,
)
from gflow.objectives.term import check_choice


@dataclass(frozen=True)
class PathGradient:
    """Clipped policy gradient over the steps that were drawn with noise.

    Loss: mean over these steps of w_k max(-A rho, -A clip(rho)) + kl_weight KL_k, with
    rho = exp(kappa_k (log p - log p_old + centering)). The expectation of its gradient is that of
    the mean reward when advantages are centered rewards, at the policy that sampled.

    Attributes:
        spread: what centered rewards are divided by: the standard deviation of the "group", of the
            "batch", or "none".
        ddof: 1 for the unbiased standard deviation, else 0.
        epsilon: added to it.
        combine: several rewards are "summed" before they are standardized, or their "advantages"
            are.
        bound: largest advantage, either sign.
        baseline: "group" mean, or "value": the policy's log F head as V(x_t, t, c), regressed on
            the reward.
        value_weight: weight of that regression.
        clip: smallest and largest ratio.
        pessimistic: see `clipped`.
        power: see `ratio_powers`.
        centered: correct the log-ratio's mean, see `mean_shift`.
        weight: see `step_weights`.
        kl_weight: weight of the divergence to the policy's reference; 0 for none.
        kl_scale: "exact", or "time" to multiply it by the step's length, as Flow-GRPO's release.
    """

    spread: str = "group"
    ddof: int = 1
    epsilon: float = 1e-8
    combine: str = "sum"
    bound: float = 5.0
    baseline: str = "group"
    value_weight: float = 0.5
    clip: tuple[float, float] = (1 - 1e-4, 1 + 1e-4)
    pessimistic: bool = True
    power: str = "one"
    centered: bool = False
    weight: str = "even"
    kl_weight: float = 0.0
    kl_scale: str = "exact"

    def __post_init__(self) -> None:
        check_choice("spread", self.spread, ("group", "batch", "none"))
        check_choice("combine", self.combine, ("sum", "advantages"))
        check_choice("baseline", self.baseline, ("group", "value"))
        check_choice("power", self.power, POWERS)
        check_choice("weight", self.weight, WEIGHTS)
        check_choice("kl_scale", self.kl_scale, ("exact", "time"))
        low, high = self.clip
        if not 0 <= low <= 1 <= high:
            raise ValueError(f"clip bounds must hold 1 between them, not {low} and {high}")

    @property
    def needs(self) -> frozenset[str]:
        """A value head, where it is the baseline."""
        return frozenset({"log_flow"} if self.baseline == "value" else ())

    def prepare(self, policy: Policy, batch: Trajectories) -> Trajectories:
        """Set advantages, and the old means where ratios are centered."""
        reward, advantage = self.advantages(batch)
        spread = batch.valid.to(advantage.dtype)
        batch = replace(batch, advantage=advantage.unsqueeze(1) * spread)
        batch.value_target = reward.unsqueeze(1) * spread
        if self.centered:
            row, column = _trained(batch)
            means = torch.zeros_like(batch.states[:, 1:])
            means[row, column] = _kernel(policy, batch, row, column).mean
            batch.mean_old = means
        return batch

    def __call__(self, policy: Policy, batch: Trajectories) -> Loss:
        """The loss of a batch with advantages and the log-probabilities it was drawn with."""
        row, column = _trained(batch)
        table, trained = step_table(policy), torch.zeros_like(batch.valid[0])
        trained[column] = True
        kernel = _kernel(policy, batch, row, column)
        target = batch.states[row, column + 1]
        assert batch.advantage is not None and batch.log_pf_old is not None
        like = kernel.mean
        table = StepTable(*(value.to(like) for value in table))
        log_ratio = kernel.log_prob(target) - batch.log_pf_old[row, column]
        if self.centered:
            assert batch.mean_old is not None
            std = table.s[column].view(-1, *[1] * (like.ndim - 1))
            log_ratio = log_ratio + mean_shift(like, batch.mean_old[row, column], std)
        log_ratio = log_ratio * ratio_powers(self.power, table)[column]
        advantage = batch.advantage[row, column].to(like.dtype)
        metrics: dict[str, Tensor] = {}
        value_loss: Tensor | float = 0.0
        if self.baseline == "value":
            assert batch.value_target is not None
            value = _heads(policy, batch, row, column, "log_flow").log_flow
            if value is None:
                raise ValueError("the baseline needs V(x, t, c): build the policy with flow=")
            error = batch.value_target[row, column].to(like.dtype) - value
            advantage = error.detach()
            value_loss = self.value_weight * error.square().mean()
            metrics["value_error"] = error.detach().square().mean()
        weight = step_weights(self.weight, table, trained)[column]
        advantage = advantage.clamp(-self.bound, self.bound)
        terms = weight * clipped(log_ratio, advantage, *self.clip, self.pessimistic)
        loss = terms.mean() + value_loss
        with torch.no_grad():
            ratio = log_ratio.exp()
            metrics["clipped"] = ((ratio < self.clip[0]) | (ratio > self.clip[1])).to(like).mean()
            metrics["log_ratio_spread"] = log_ratio.std()
        if batch.rewards is not None:
            metrics["reward"] = _scalar(batch).mean()
        if self.kl_weight:
            divergence = self._divergence(policy, batch, row, column, kernel, table)
            loss = loss + self.kl_weight * divergence
            metrics["kl"] = divergence.detach()
        return Loss(loss, metrics, len(terms))

    def _divergence(
        self,
        policy: Policy,
        batch: Trajectories,
        row: Tensor,
        column: Tensor,
        kernel: AffineGaussian,
        table: StepTable,
    ) -> Tensor:
        """Mean divergence of the trained steps to the reference's."""
        with torch.no_grad(), policy.reference():  # type: ignore[attr-defined]
            reference = _kernel(policy, batch, row, column)
        divergence = kernel.kl(reference)
        if self.kl_scale == "time":
            divergence = divergence * table.h[column]
        return divergence.mean()

    def advantages(self, batch: Trajectories) -> tuple[Tensor, Tensor]:
        """Scalar rewards [B], and what is better than expected, [B]."""
        assert batch.rewards is not None and batch.group is not None
        weights = _weights(batch)
        reward = _scalar(batch)
        if self.combine == "sum":
            return reward, self._standardized(reward, batch.group)
        parts = [self._standardized(column, batch.group) for column in batch.rewards.unbind(1)]
        return reward, (weights * torch.stack(parts, 1)).sum(1)

    def _standardized(self, reward: Tensor, group: Tensor) -> Tensor:
        return standardized(reward, group, self.spread, self.ddof, self.epsilon)


def standardized(
    reward: Tensor, group: Tensor, spread: str = "group", ddof: int = 1, epsilon: float = 1e-8
) -> Tensor:
    """Rewards [B] less their group's mean, over a standard deviation plus epsilon."""
    _, member, count = group.unique(return_inverse=True, return_counts=True)
    size = count.to(reward.dtype)
    mean = torch.zeros_like(size).index_add_(0, member, reward) / size
    centered = reward - mean[member]
    if spread == "none":
        return centered
    if spread == "batch":
        return centered / (reward.std(correction=ddof) + epsilon)
    square = torch.zeros_like(size).index_add_(0, member, centered.square())
    return centered / ((square / (size - ddof).clamp(min=1)).sqrt() + epsilon)[member]


def step_table(policy: Policy) -> StepTable:
    """The steps of a denoiser's schedule, [T].

    Raises:
        ValueError: the policy takes no Gaussian steps, or some of them without noise.
    """
    env: Any = policy.env
    if not env.continuous or env.quiet is None:
        raise ValueError("policy gradients on paths need a denoiser from noise to data")
    h = env.quiet.b.abs()
    blank = env.max_steps - len(h)
    return StepTable(env.forward.b, env.forward.s, torch.nn.functional.pad(h, (blank, 0)))


def _trained(batch: Trajectories) -> tuple[Tensor, Tensor]:
    """Row and column of the steps to learn from."""
    if batch.stochastic is None:
        raise ValueError("paths must say which steps had noise: sample them with OnPaths")
    row, column = (batch.valid & batch.stochastic).nonzero(as_tuple=True)
    if not len(row):
        raise ValueError("no step of the batch was drawn with noise, so there is nothing to learn")
    return row, column


def _heads(policy: Policy, batch: Trajectories, row: Tensor, column: Tensor, need: str) -> Any:
    states = States(batch.states[row, column], column, torch.zeros_like(row, dtype=torch.bool))
    return policy(states, batch.condition.rows(row), frozenset({need}))


def _kernel(policy: Policy, batch: Trajectories, row: Tensor, column: Tensor) -> AffineGaussian:
    kernel = _heads(policy, batch, row, column, "log_pf").forward
    if not isinstance(kernel, AffineGaussian) or kernel.reduction != "mean":
        raise ValueError(
            "ratios of denoising steps take means over coordinates: build the policy with "
            'reduction="mean"'
        )
    return kernel


def _weights(batch: Trajectories) -> Tensor:
    assert batch.rewards is not None
    if batch.condition.preference is not None:
        return batch.condition.preference.to(batch.rewards)
    return torch.full_like(batch.rewards, 1 / batch.rewards.shape[1])


def _scalar(batch: Trajectories) -> Tensor:
    assert batch.rewards is not None
    return (_weights(batch) * batch.rewards).sum(1)
