"""The advantage switches as settings, applied to a batch of trajectories."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gflow.mdp import Policy, Trajectories, evaluate
from gflow.mdp.collective import gather
from gflow.objectives.policy_gradient import advantages, tracking
from gflow.objectives.policy_gradient.advantages import EPSILON, Gate, Moments
from gflow.objectives.policy_gradient.groups import Groups
from gflow.objectives.policy_gradient.memory import Memory
from gflow.objectives.policy_gradient.ratios import LIMIT
from gflow.objectives.term import check_choice, check_range

COMBINE = ("sum_then_norm", "norm_then_sum")
BASELINES = ("none", "group_mean", "leave_one_out", "cumulative", "tracker", "value")
SCALES = ("none", "group_std", "batch_std")
WHITENINGS = ("none", "sequence", "token")
BY_STEPS = ("none", "value")
"""Baselines under which every step has an advantage of its own: what is still to come."""

_STEP_WISE = (("none", "none"), ("none", "token"))


@dataclass(frozen=True)
class Advantage:
    """How reward vectors become advantages.

    Attributes:
        combine: sum rewards, then normalise ("sum_then_norm"), or the other way round.
        baseline: "none", "group_mean", "leave_one_out"; "cumulative" and "tracker" remember each
            condition; "value" takes the policy's value head, with generalised advantages.
        scale: "none", "group_std" or "batch_std"; "cumulative" brings its own.
        whitening: "none", over trajectories ("sequence") or over their steps ("token").
        weights: weight of each reward; by default the condition's preference, or even weights
            that sum to 1 where there is none.
        gates: rewards that count only where others are high.
        sample: reward log R(x given c) + log P_B - log P_F in place of the reward vector. Its
            optimum samples x in proportion to R instead of maximising R.
        overlong: share of the longest trajectory's steps over which a penalty for length ramps up
            from 0 to -1 (DAPO's soft overlong punishment); 0 for none.
        labels: 1 above this weighted reward, -1 below, in place of an advantage; None for none.
        eps: added to standard deviations.
        ddof: 1 for unbiased variances, 0 for plain ones.
        min_std: standard deviations of a group up to this one count as 0.
        discount: of later rewards, for the baselines "none" and "value".
        lam: of generalised advantages.
    """

    combine: str = "sum_then_norm"
    baseline: str = "group_mean"
    scale: str = "group_std"
    whitening: str = "none"
    weights: tuple[float, ...] | None = None
    gates: tuple[Gate, ...] = ()
    sample: bool = False
    overlong: float = 0.0
    labels: float | None = None
    eps: float = EPSILON
    ddof: int = 1
    min_std: float = 0.0
    discount: float = 1.0
    lam: float = 0.95

    def __post_init__(self) -> None:
        check_choice("combine", self.combine, COMBINE)
        check_choice("baseline", self.baseline, BASELINES)
        check_choice("scale", self.scale, SCALES)
        check_choice("whitening", self.whitening, WHITENINGS)
        if self.combine == "norm_then_sum":
            if self.baseline not in ("group_mean", "leave_one_out"):
                raise ValueError(
                    f"norm_then_sum needs a baseline of the group, not {self.baseline}"
                )
            if self.sample:
                raise ValueError("norm_then_sum has no single reward to sample in proportion to")
        if self.baseline in BY_STEPS and (self.scale, self.whitening) not in _STEP_WISE:
            raise ValueError(
                f"the baseline {self.baseline!r} goes with no scale, and whitening by steps at most"
            )
        check_range(self, 0.0, 1.0, "overlong", "discount", "lam", "ddof")
        check_range(self, 0.0, math.inf, "eps", "min_std")
        if self.weights is not None and not all(map(math.isfinite, self.weights)):
            raise ValueError(f"weights {self.weights} must be finite numbers")

    @property
    def remembers(self) -> bool:
        """The baseline needs a memory."""
        return self.baseline in ("cumulative", "tracker")

    def memory(self) -> Memory:
        """An empty memory of the kind the baseline needs."""
        # A tracker without samples starts from half a success and half a failure.
        return Memory(1.0, 0.5) if self.baseline == "tracker" else Memory()

    def of(
        self,
        policy: Policy,
        batch: Trajectories,
        mask: Tensor,
        penalty: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Trajectories:
        """The batch with advantages, and with values where those are the baseline.

        Args:
            policy: evaluated for values and for log-probabilities.
            batch: scored trajectories.
            mask: [B, T] bool, the steps that were decisions.
            penalty: [B, T], subtracted from the rewards of single steps, if any.
            memory: of a baseline that remembers.
        """
        rewards, weights = self.rewards(policy, batch)
        if self.baseline in BY_STEPS:
            return self._by_steps(policy, batch, mask, _total(rewards, weights), penalty)
        if penalty is not None:
            # The penalty's weight is 1, whatever the preference among the rewards.
            paid = torch.where(mask, penalty, 0.0).sum(1, keepdim=True).to(rewards.dtype)
            rewards = torch.cat([rewards, -paid], 1)
            weights = torch.nn.functional.pad(weights, (0, 1), value=1.0)
        lengths, mine = gather(mask.sum(1))
        rewards, weights = gather(rewards)[0], gather(weights)[0]
        if self.labels is not None:
            total = _total(rewards, weights)
            found = torch.where(total > self.labels, 1.0, -1.0).to(total.dtype)
            found = found.masked_fill(total.isnan(), 0.0)
        elif memory is None:
            groups = all_groups(batch)
            if int(groups.sizes.max()) < 2:
                raise ValueError(
                    "a group of one has nothing to be compared with: the baseline "
                    f"{self.baseline!r} needs at least two trajectories for each condition"
                )
            found = advantages.advantage(
                rewards, groups, lengths, combine=self.combine, baseline=self.baseline,
                scale=self.scale, whitening=self.whitening, weights=weights, eps=self.eps,
                ddof=self.ddof, min_std=self.min_std,
            )  # fmt: skip
        else:
            total = _total(rewards, weights)
            remember = self._cumulative if self.baseline == "cumulative" else self._tracked
            found = remember(policy, batch, memory, total)
            if self.whitening != "none":
                known = (~total.isnan()).to(total.dtype)
                weight = known if self.whitening == "sequence" else known * lengths
                found = advantages.whiten(found, weight, self.eps, self.ddof)
        return replace(batch, advantage=torch.where(mask, found[mine].unsqueeze(1), 0.0))

    def _by_steps(
        self,
        policy: Policy,
        batch: Trajectories,
        mask: Tensor,
        total: Tensor,
        penalty: Tensor | None,
    ) -> Trajectories:
        """Rewards still to come, less the value of the state where there is one."""
        known = mask & ~total.isnan().unsqueeze(1)
        steps = torch.where(_last(mask), total.nan_to_num(nan=0.0).unsqueeze(1), 0.0)
        if penalty is not None:
            steps = steps - torch.where(mask, penalty, 0.0).to(steps.dtype)
        value, lam = torch.zeros_like(steps), 1.0
        if self.baseline == "value":
            found = evaluate(policy, batch, frozenset({"log_flow"}))
            assert found.log_flow is not None
            value, lam = found.log_flow.detach().to(steps.dtype), self.lam
        gained, target = advantages.generalized_advantage(steps, value, known, self.discount, lam)
        if self.whitening == "token":
            everyone, mine = gather(gained[known])
            white = advantages.whiten(everyone, torch.ones_like(everyone), self.eps, self.ddof)
            gained = torch.zeros_like(gained).masked_scatter(known, white[mine])
        if self.baseline == "none":
            return replace(batch, advantage=gained)
        return replace(batch, advantage=gained, value_old=value, value_target=target)

    def rewards(self, policy: Policy, batch: Trajectories) -> tuple[Tensor, Tensor]:
        """Reward vectors [B, K] and their weights [B, K].

        Raises:
            ValueError: the batch has no rewards, or other numbers of them than weights.
        """
        if self.sample:
            if batch.log_reward is None:
                raise ValueError("sampling in proportion to R needs a batch with log-rewards")
            found = evaluate(policy, batch, frozenset({"log_pb_total"}))
            assert found.log_pb is not None
            rewards = batch.log_reward + (found.log_pb - found.log_pf).sum(1)
            rewards = rewards.detach().unsqueeze(1)
            return rewards, torch.ones_like(rewards)
        if batch.rewards is None:
            raise ValueError("policy optimisation needs a batch with reward vectors")
        rewards, asked = batch.rewards, batch.condition.preference
        if self.weights is not None:
            if len(self.weights) != rewards.shape[1]:
                raise ValueError(
                    f"{len(self.weights)} weights do not fit {rewards.shape[1]} rewards"
                )
            weights = rewards.new_tensor(self.weights).expand_as(rewards)
        elif asked is not None:
            weights = asked.to(rewards.dtype)
        else:
            weights = torch.full_like(rewards, 1 / rewards.shape[1])
        if self.gates:
            last = max(max(gate.reward, gate.on) for gate in self.gates)
            if last >= rewards.shape[1]:
                raise ValueError(
                    f"a gate names reward {last} of {rewards.shape[1]}, counted from 0"
                )
            rewards = advantages.apply_gates(rewards, self.gates)
        if self.overlong:
            longest = policy.env.max_steps
            soft = max(round(self.overlong * longest), 1)
            penalty = advantages.overlong_penalty(batch.lengths, longest, soft)
            rewards = torch.cat([rewards, penalty.to(rewards.dtype).unsqueeze(1)], 1)
            weights = torch.nn.functional.pad(weights, (0, 1), value=1.0)
        return rewards, weights

    def informative(self, policy: Policy, batch: Trajectories) -> Tensor:
        """Trajectories whose group has a spread of rewards, so that it teaches something, [B]."""
        total = _total(*self.rewards(policy, batch))
        groups = Groups.of(torch.zeros_like(batch.lengths) if batch.group is None else batch.group)
        return groups.spread(advantages.moments(total, groups)[0].std) > self.min_std

    def _cumulative(
        self, policy: Policy, batch: Trajectories, memory: Memory, total: Tensor
    ) -> Tensor:
        """DCPO's advantages of all processes' trajectories, and the memory after this visit."""
        row = memory.find(gather(batch.condition.encoding)[0], total.dtype)
        groups = Groups.of(row)
        place = row[groups.order[groups.starts]]
        new, _ = advantages.moments(total, groups, self.ddof)
        old = memory.rows(place)
        pooled = tracking.pool_moments(old, new)
        # A visit without a known reward is none.
        seen = new.seen > 0
        pooled = Moments(*(torch.where(seen, a, b) for a, b in zip(pooled, old, strict=True)))
        memory.put(place, pooled)
        pooled = pooled._replace(seen=pooled.seen.clamp(min=1))
        return tracking.smooth_advantage(total, groups, new, pooled)

    def _tracked(
        self, policy: Policy, batch: Trajectories, memory: Memory, total: Tensor
    ) -> Tensor:
        """r - v of all processes' trajectories, v as it was before their rewards."""
        if memory.pending is not None:
            self._settle(policy, memory, memory.pending)
        row = memory.find(gather(batch.condition.encoding)[0], total.dtype)
        memory.pending = batch
        return (total - memory.rows(row).mean).nan_to_num(nan=0.0)

    def _settle(self, policy: Policy, memory: Memory, batch: Trajectories) -> None:
        """Enter the last batch's rewards, under the policy that its update has made."""
        total = gather(_total(*self.rewards(policy, batch)))[0]
        encoding, mine = gather(batch.condition.encoding)
        row = memory.find(encoding, total.dtype)
        groups = Groups.of(row)
        place = row[groups.order[groups.starts]]
        kept = tracking.retention(_changes(policy, memory)[place])
        old = memory.rows(place)
        mean, seen = tracking.track(old.mean, old.seen, total, groups, kept)
        memory.put(place, Moments(mean, old.std, seen))
        # Of every condition the last trajectory is kept, by the process that has it.
        number = torch.arange(len(row), device=row.device)
        last = number.new_zeros(int(row.max()) + 1).scatter_reduce(0, row, number, "amax")
        memory.remember(batch.rows(last[row][mine] == number[mine]), row)
        memory.pending = None


def _total(rewards: Tensor, weights: Tensor) -> Tensor:
    return advantages.weighted_total(rewards, weights)


def _last(mask: Tensor) -> Tensor:
    """The last step of each row that is in `mask`, [B, T] bool."""
    return mask & (mask.long().flip(1).cumsum(1).flip(1) == 1)


def _changes(policy: Policy, memory: Memory) -> Tensor:
    """Mean change of log P_F on the last trajectory of each condition, [P]; 0 without one."""
    change = torch.zeros_like(memory.table.mean)
    last = memory.last
    if last is None:
        return change
    mean = change[:0]
    if last.n:
        assert last.log_pf_old is not None
        now = evaluate(policy, last, frozenset()).log_pf
        moved = (now - last.log_pf_old).abs().clamp(max=LIMIT)
        mean = torch.where(last.valid, moved, 0.0).sum(1) / last.lengths.clamp(min=1)
    number, _ = gather(memory.number(last))
    return change.index_copy(0, number, gather(mean)[0].to(change.dtype))


def all_groups(batch: Trajectories) -> Groups:
    """The groups of all processes: whole groups live in one process."""
    valid = batch.valid
    group = torch.arange(batch.n, device=valid.device) if batch.group is None else batch.group
    local = Groups.of(group)
    member, _ = gather(local.member)
    if member is local.member:
        return local
    sizes = torch.tensor([[len(local.sizes), batch.n]], device=valid.device)
    n_groups, n_rows = gather(sizes)[0].unbind(1)
    return Groups.of(member + (n_groups.cumsum(0) - n_groups).repeat_interleave(n_rows))
