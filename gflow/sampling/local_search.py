"""Local search back and forth: destroy the end of an object, rebuild it (LS-GFN, 2310.02710)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from gflow.mdp import Condition, Policy, States, Trajectories, evaluate
from gflow.sampling.combine import join
from gflow.sampling.rollout import put_states, rollout
from gflow.sampling.strategies import Resumable, Strategy
from gflow.seeding import generator


class Proposal(NamedTuple):
    """One move of n chains.

    Attributes:
        old: trajectories to the present objects, sampled backward by P_B.
        new: trajectories to the proposed objects: the same prefixes, then rebuilt by P_F.
        kept: [n], transitions that both share.
    """

    old: Trajectories
    new: Trajectories
    kept: Tensor

    def rows(self, index: Tensor) -> Proposal:
        """The moves at `index`."""
        return Proposal(self.old.rows(index), self.new.rows(index), self.kept[index])


def propose(
    policy: Policy,
    objects: States,
    condition: Condition,
    steps: int,
    random: torch.Generator | None,
) -> Proposal:
    """Destroy `steps` transitions of each object by P_B, then rebuild to the end by P_F.

    One backward walk to s0 both destroys and completes: its first part is the trajectory to where
    rebuilding starts, as P_B draws it.

    Args:
        policy: the policy.
        objects: n terminal states.
        condition: n conditions.
        steps: transitions to destroy, those of a stop included; all of shorter trajectories.
        random: source of randomness, on the states' device.
    """
    old = rollout(policy, objects, condition, random, backward=True)
    kept = (old.lengths - steps).clamp(min=0)
    row = torch.arange(old.n, device=kept.device)
    middle = States(old.states[row, kept], kept, kept == old.lengths)
    fixed = max(steps, 1) if policy.env.fixed_length else None
    rebuilt = rollout(policy, middle, condition, random, steps=fixed)
    return Proposal(old, policy.env.record(_splice(old, kept, rebuilt)), kept)


def _splice(first: Trajectories, kept: Tensor, second: Trajectories) -> Trajectories:
    """The first `kept` [n] transitions of one batch, followed by all of another."""
    lengths = kept + second.lengths
    here, there = first.valid.shape[1], second.valid.shape[1]
    row = torch.arange(len(kept), device=kept.device).unsqueeze(1)
    column = torch.arange(int(lengths.max()) + 1, device=kept.device)
    past = column - kept.unsqueeze(1)
    state = torch.where(past < 0, column, here + 1 + past.clamp(max=there))
    step = torch.where(past < 0, column, here + past.clamp(max=there - 1))[:, :-1]

    def pick(name: str, at: Tensor) -> Tensor:
        both: Tensor = torch.cat([getattr(first, name), getattr(second, name)], 1)
        return both[row, at]

    return Trajectories(
        pick("states", state),
        pick("actions", step),
        pick("backward_actions", step),
        column[:-1] < lengths.unsqueeze(1),
        first.condition,
    )


def log_ratio(
    policy: Policy, proposal: Proposal, old_log_reward: Tensor, new_log_reward: Tensor, steps: int
) -> Tensor:
    """log of R(x') q(x | x') / (R(x) q(x' | x)), [n]; the q of a move is that of its very steps.

    Where lengths differ, destroying `steps` transitions of x' may end elsewhere than where it was
    rebuilt from. Such a move has no way back: q(x | x') = 0.
    """
    shares = []
    for batch in (proposal.old, proposal.new):
        evaluation = evaluate(policy, batch, frozenset({"log_pb"}))
        assert evaluation.log_pb is not None
        step = evaluation.log_pf - evaluation.log_pb
        column = torch.arange(step.shape[1], device=step.device)
        shares.append(step.where(column >= proposal.kept.unsqueeze(1), 0.0).sum(1))
    delta = new_log_reward - old_log_reward + shares[0] - shares[1]
    way_back = (proposal.new.lengths - steps).clamp(min=0) == proposal.kept
    return delta.where(way_back, -torch.inf)


def metropolis(delta: Tensor, uniform: Tensor) -> Tensor:
    """Accept with probability min(1, e^delta), [n] bool."""
    return uniform.log() < delta


def barker(delta: Tensor, uniform: Tensor) -> Tensor:
    """Accept with probability sigmoid(delta), as the published code does, [n] bool."""
    return uniform < delta.sigmoid()


FILTERS: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "greedy": None,
    "metropolis": metropolis,
    "barker": barker,
}
"""How moves are accepted: "greedy" where R(x') > R(x), the others so that R / Z is invariant."""


class LocalSearch(Resumable):
    """Fresh trajectories, and `rounds` rounds of local search from their objects.

    Every proposal enters the batch, accepted or not, on a complete trajectory: n fresh ones make a
    batch of n (rounds + 1). The published code trains on the rebuilt steps alone, as if they were
    all; here log Z is never charged to a part. (Local Search GFlowNets, 2023, arXiv 2310.02710.)

    Args:
        fresh: strategy of the trajectories to start from.
        policy: destroys by its P_B and rebuilds by its P_F.
        score: sets rewards and log-rewards, see `Scorer`.
        seed: seeds the moves.
        rounds: moves from each object.
        steps: transitions destroyed by a move.
        accept: a key of `FILTERS`.
        device: where to roll out.

    Raises:
        ValueError: fewer than one round or step, or an unknown filter.
    """

    saved = ("fresh", "generator")

    def __init__(
        self,
        fresh: Strategy,
        policy: Policy,
        score: Callable[[Trajectories], Trajectories],
        seed: int,
        *,
        rounds: int = 7,
        steps: int = 4,
        accept: str = "greedy",
        device: torch.device | str = "cpu",
    ):
        if rounds < 1 or steps < 1:
            raise ValueError(
                f"local search needs at least 1 round and step, not {rounds} and {steps}"
            )
        if accept not in FILTERS:
            raise ValueError(f"unknown filter {accept!r}: choose from {', '.join(FILTERS)}")
        self.fresh, self.policy, self.score = fresh, policy, score
        self.rounds, self.steps, self.accept = rounds, steps, FILTERS[accept]
        self.generator = generator(seed, "local search", device=device)

    @torch.no_grad()
    def __call__(self) -> Trajectories:
        """The fresh batch and every proposal."""
        batch = self.fresh()
        assert batch.log_reward is not None
        parts, objects, log_r = [batch], batch.terminal, batch.log_reward
        for _ in range(self.rounds):
            scored, objects, log_r = self.round(objects, log_r, batch.condition, batch.group)
            parts.append(scored)
        return join(parts)

    def round(
        self,
        objects: States,
        log_reward: Tensor,
        condition: Condition,
        group: Tensor | None = None,
    ) -> tuple[Trajectories, States, Tensor]:
        """One move of n chains: the proposals that could be scored, and the objects after it.

        Args:
            objects: n terminal states.
            log_reward: [n], their log-rewards.
            condition: n conditions.
            group: [n], passed on to the proposals.

        Returns:
            Scored proposals, n objects and their log-rewards.
        """
        move = propose(self.policy, objects, condition, self.steps, self.generator)
        # Rows that cannot be scored leave the batch; group says which ones are left.
        move.new.group = torch.arange(objects.n, device=log_reward.device)
        scored = self.score(move.new)
        assert scored.group is not None and scored.log_reward is not None
        row, new = scored.group, scored.log_reward.to(log_reward.dtype)
        moved = self._accepted(move.rows(row), log_reward[row], new)
        objects = put_states(objects, row[moved], scored.terminal.rows(moved))
        log_reward = log_reward.index_copy(0, row[moved], new[moved])
        scored = replace(scored, group=None if group is None else group[row])
        return scored, objects, log_reward

    def _accepted(self, move: Proposal, old: Tensor, new: Tensor) -> Tensor:
        if self.accept is None:
            return new > old
        delta = log_ratio(self.policy, move, old, new, self.steps)
        uniform = torch.empty_like(delta).uniform_(generator=self.generator)
        return self.accept(delta, uniform)
