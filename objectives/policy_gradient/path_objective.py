"""Policy optimisation on denoising paths as one objective with a few settings."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gflow.kernels import AffineGaussian
from gflow.mdp import Loss, Policy, States, Trajectories
from gflow.mdp.collective import gather
from gflow.objectives.policy_gradient.advantage import all_groups
from gflow.objectives.policy_gradient.advantages import advantage, weighted_total
from gflow.objectives.policy_gradient.buffer import RewardBuffer
from gflow.objectives.policy_gradient.groups import Groups
from gflow.objectives.policy_gradient.paths import (
    POWERS,
    WEIGHTS,
    StepTable,
    mean_shift,
    path_weights,
    ratio_powers,
)
from gflow.objectives.policy_gradient.surrogates import ppo_clip
from gflow.objectives.term import check_choice


@dataclass(frozen=True)
class PathGradient:
    """Clipped policy gradient over the steps that were drawn with noise.

    Loss: mean over these steps of -w_k min(A rho, A clip(rho)) + kl_weight KL_k, with
    rho = exp(kappa_k (log p - log p_old + centering)). The expectation of its gradient is that of
    the mean reward when advantages are centered rewards, at the policy that sampled.

    Attributes:
        combine: see `advantages.advantage`; weights are the condition's preference, or even. Or
            "scalarized": the log-reward is the only reward, so that fronts of any shape can be
            reached by the scalarization of the `Scorer`.
        baseline: likewise, or "value": the policy's log F head as V(x_t, t, c), which is regressed
            on the reward.
        scale: likewise.
        eps: added to the standard deviation.
        buffer: take mean and standard deviation over so many last rewards of a condition, earlier
            batches included, instead of the group; 0 for none. Train what `fresh` returns then.
        least: rewards below which a condition takes those of the batch.
        ddof: 1 for the unbiased one, else 0.
        bound: largest advantage, either sign.
        value_weight: weight of that regression.
        clip: smallest and largest ratio.
        pessimistic: the smaller of the clipped and the plain gain counts, as in PPO; otherwise only
            the clipped one, which has no gradient outside the bounds in either direction.
        power: see `ratio_powers`.
        centered: correct the log-ratio's mean, see `mean_shift`.
        weight: see `path_weights`.
        kl_weight: weight of the divergence to the policy's reference; 0 for none.
        kl_scale: "exact", or "time" to multiply it by the step's length, as Flow-GRPO's release.
        best_of: learn from so many paths of each group only, half of them the best and half the
            worst; advantages are those among all. 0 for all (DanceGRPO takes 8 of 24 videos).
        drop_even: leave out paths with advantage 0, such as groups of equal rewards, which cost
            as much as others and teach nothing.
    """

    combine: str = "sum_then_norm"
    baseline: str = "group_mean"
    scale: str = "group_std"
    eps: float = 1e-8
    ddof: int = 1
    bound: float = 5.0
    value_weight: float = 0.5
    clip: tuple[float, float] = (1 - 1e-4, 1 + 1e-4)
    pessimistic: bool = True
    power: str = "one"
    centered: bool = False
    weight: str = "even"
    kl_weight: float = 0.0
    kl_scale: str = "exact"
    buffer: int = 0
    least: int = 16
    best_of: int = 0
    drop_even: bool = False
    memory: RewardBuffer | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choice("combine", self.combine, ("sum_then_norm", "norm_then_sum", "scalarized"))
        check_choice("baseline", self.baseline, ("none", "group_mean", "leave_one_out", "value"))
        check_choice("scale", self.scale, ("none", "group_std", "batch_std"))
        check_choice("power", self.power, POWERS)
        check_choice("weight", self.weight, WEIGHTS)
        check_choice("kl_scale", self.kl_scale, ("exact", "time"))
        low, high = self.clip
        if not 0 <= low <= 1 <= high:
            raise ValueError(f"clip bounds must hold 1 between them, not {low} and {high}")
        if self.best_of < 0 or self.best_of % 2:
            raise ValueError(f"best_of takes as many good paths as bad ones, not {self.best_of}")
        if self.drop_even and self.baseline == "value":
            raise ValueError(
                "a value baseline leaves no advantage at 0, so drop_even has no effect"
            )

    def fresh(self) -> PathGradient:
        """This objective with an empty memory of its own, or itself where it needs none."""
        return replace(self, memory=RewardBuffer(self.buffer, self.least)) if self.buffer else self

    def state_dict(self) -> dict[str, Any]:
        """What the memory holds."""
        return {} if self.memory is None else self.memory.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        if self.memory is not None:
            self.memory.load_state_dict(state)

    @property
    def needs(self) -> frozenset[str]:
        """A value head, where it is the baseline."""
        return frozenset({"log_flow"} if self.baseline == "value" else ())

    def prepare(self, policy: Policy, batch: Trajectories) -> Trajectories:
        """Set advantages, and the old means where ratios are centered."""
        better = self._advantages(batch)
        if self.baseline != "value" and not bool(better.any()):
            warnings.warn(
                "rewards are equal within every group of a batch: it has nothing to teach",
                RuntimeWarning,
                stacklevel=2,
            )
        if self.best_of or self.drop_even:
            kept = self._kept(batch, better)
            batch, better = batch.rows(kept), better[kept]
        spread = batch.valid.to(better.dtype)
        batch = replace(batch, advantage=better.unsqueeze(1) * spread)
        if self.baseline == "value":
            batch.value_target = self._rewards(batch)[1].unsqueeze(1) * spread
        if self.centered:
            row, column = _trained(batch)
            means = torch.zeros_like(batch.states[:, 1:])
            means[row, column] = _kernel(policy, batch, row, column).mean
            batch.mean_old = means
        return batch

    def __call__(self, policy: Policy, batch: Trajectories) -> Loss:
        """The loss of a batch with advantages and the log-probabilities it was drawn with."""
        if batch.advantage is None:
            with torch.no_grad():
                batch = self.prepare(policy, batch)
        row, column = _trained(batch)
        table, trained = step_table(policy), torch.zeros_like(batch.valid[0])
        env: Any = policy.env
        env.check(batch, windowed=True)
        trained[column] = True
        kernel = _kernel(policy, batch, row, column)
        target = batch.states[row, column + 1]
        assert batch.advantage is not None and batch.log_pf_old is not None
        like = kernel.mean
        table = StepTable(*(value.to(like) for value in table))
        old = batch.log_pf_old[row, column]
        if getattr(policy, "reduction", "sum") == "sum":
            old = old / target[0].numel()
        log_ratio = kernel.log_prob(target) - old
        if self.centered:
            assert batch.mean_old is not None
            std = table.s[column].view(-1, *[1] * (like.ndim - 1))
            log_ratio = log_ratio + mean_shift(like, batch.mean_old[row, column], std)
        log_ratio = log_ratio * ratio_powers(self.power, table)[column]
        better = batch.advantage[row, column].to(like.dtype)
        metrics: dict[str, Tensor] = {}
        value_loss: Tensor | float = 0.0
        if self.baseline == "value":
            assert batch.value_target is not None
            value = _heads(policy, batch, row, column, "log_flow").log_flow
            if value is None:
                raise ValueError("the baseline needs V(x, t, c): build the policy with flow=")
            error = batch.value_target[row, column].to(like.dtype) - value
            better = error.detach()
            value_loss = self.value_weight * error.square().mean()
            metrics["value_error"] = error.detach().square().mean()
        weight = path_weights(self.weight, table, trained)[column]
        better = better.clamp(-self.bound, self.bound)
        ratio, (low, high) = log_ratio.exp(), self.clip
        if self.pessimistic:
            gain = ppo_clip(ratio, better, low, high)
        else:
            gain = ratio.clamp(low, high) * better
        loss = value_loss - (weight * gain).mean()
        outside = (ratio.detach() < low) | (ratio.detach() > high)
        metrics["clipped"] = outside.to(like).mean()
        metrics["log_ratio_spread"] = log_ratio.detach().std()
        if batch.rewards is not None:
            metrics["reward"] = self._rewards(batch)[1].mean()
        if self.kl_weight:
            divergence = self._divergence(policy, batch, row, column, kernel, table)
            loss = loss + self.kl_weight * divergence
            metrics["kl"] = divergence.detach()
        return Loss(loss, metrics, len(row))

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

    def _rewards(self, batch: Trajectories) -> tuple[Tensor, Tensor, Tensor]:
        """Rewards [B, K], their weighted sum [B], and the weights [B, K]."""
        rewards, preference = batch.rewards, batch.condition.preference
        if self.combine == "scalarized" and batch.log_reward is not None:
            rewards, preference = batch.log_reward.unsqueeze(1), None
        if rewards is None or batch.group is None:
            raise ValueError("policy gradients need rewards and groups: score the batch first")
        if preference is None:
            preference = torch.full_like(rewards, 1 / rewards.shape[1])
        weights = preference.to(rewards)
        return rewards, weighted_total(rewards, weights), weights

    def _kept(self, batch: Trajectories, better: Tensor) -> Tensor:
        """The paths to learn from, all of them where none would be left, [B] bool."""
        kept = torch.ones_like(better, dtype=torch.bool)
        if self.drop_even and bool(better.any()):
            kept = better != 0
        if self.best_of:
            assert batch.group is not None
            groups = Groups.of(batch.group)
            # By group, and within each from worst to best.
            order = better.argsort(stable=True)
            order = order[groups.member[order].argsort(stable=True)]
            rank = torch.empty_like(order)
            rank[order] = torch.arange(len(order), device=order.device)
            rank -= groups.spread(groups.starts)
            half = self.best_of // 2
            kept &= (rank < half) | (rank >= groups.spread(groups.sizes) - half)
        return kept

    def _advantages(self, batch: Trajectories) -> Tensor:
        """What is better than expected in each path, [B], among those of all processes."""
        rewards, total, weights = self._rewards(batch)
        total, mine = gather(total)
        if self.buffer:
            if self.memory is None:
                raise ValueError("a buffer of rewards needs a memory: train what fresh() returns")
            encoding = gather(batch.condition.encoding)[0]
            return self.memory.standardized(encoding, total, self.eps)[mine]
        groups = all_groups(batch)
        if self.baseline in ("group_mean", "leave_one_out") and int(groups.sizes.max()) < 2:
            raise ValueError(
                "a group of one has nothing to be compared with: the baseline "
                f"{self.baseline!r} needs at least two paths for each condition"
            )
        better = advantage(
            gather(rewards)[0],
            groups,
            gather(batch.lengths)[0],
            combine="norm_then_sum" if self.combine == "norm_then_sum" else "sum_then_norm",
            baseline="none" if self.baseline == "value" else self.baseline,
            scale=self.scale,
            weights=gather(weights)[0],
            eps=self.eps,
            ddof=self.ddof,
        )
        return better[mine]


def step_table(policy: Policy) -> StepTable:
    """The steps of a denoiser's schedule, [T].

    Raises:
        ValueError: the policy takes no Gaussian steps, or some of them without noise.
    """
    env: Any = policy.env
    if not env.continuous or env.quiet is None:
        raise ValueError("policy gradients on paths need a denoiser from noise to data")
    h = env.lengths
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
    """P_F of the steps; ratios take means over coordinates, whatever the policy's densities do."""
    kernel = _heads(policy, batch, row, column, "log_pf").forward
    assert isinstance(kernel, AffineGaussian)
    return AffineGaussian(kernel.mean, kernel.std, "mean")
