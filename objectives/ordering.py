"""Order-preserving objectives: train towards an order of candidates instead of a scalar reward.

The flow's own terminal value r^(x), its implied log-reward, is trained to rank the best members
of a set X of candidates highest: L_OP(X) = KL(P_y(. | X) || softmax r^), P_y even over the
members that no other one dominates (Order-Preserving GFlowNets, 2023, arXiv 2310.00386). X is a
whole batch, or every pair of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gflow.mdp import Evaluation, Loss, Trajectories
from gflow.objectives.balance.functions import potentials
from gflow.objectives.balance.potential import complete_log_rewards
from gflow.objectives.term import Term, check_choice


def dominance(values: Tensor, tie: float = 0.0) -> Tensor:
    """dominance[i, j]: candidate i dominates j, [N, N] bool.

    At least as good in every column of `values` [N, K] (maximised), better in one; differences up
    to `tie` do not count. For K = 1 this is the total order.
    """
    lead = values.unsqueeze(1) - values
    return (lead >= -tie).all(-1) & (lead > tie).any(-1)


def set_cross_entropy(log_value: Tensor, dominated_by: Tensor, together: Tensor) -> Tensor:
    """-sum_b (y_b / sum y) log softmax(r^)_b, averaged over the sets of candidates, [...].

    y marks the members that no other one of their set dominates; equal ones all count. The
    smallest value is the entropy log |ND| of the target, reached where the divergence is 0.

    Args:
        log_value: [..., N], implied log-rewards r^.
        dominated_by: [N, N] bool, entry [i, j]: j dominates i.
        together: [..., N, N] bool, both are members of one set; False on the diagonal for rows
            that belong to none.
    """
    member = together.diagonal(dim1=-2, dim2=-1)
    best = (member & ~(dominated_by & together).any(-1)).to(log_value.dtype)
    eye = torch.eye(member.shape[-1], dtype=torch.bool, device=member.device)
    rivals = torch.where(together | eye, log_value.unsqueeze(-2), -torch.inf)
    log_share = log_value - rivals.logsumexp(-1)
    links = together.to(log_value.dtype)
    n_best = (links @ best.unsqueeze(-1)).squeeze(-1).clamp(min=1)
    # Each of a set's n members counts 1 / n, so this is the number of sets.
    n_sets = (member / links.sum(-1).clamp(min=1)).sum(-1).clamp(min=1)
    return -(best / n_best * log_share).sum(-1) / n_sets


def pair_cross_entropy(log_value: Tensor, dominated_by: Tensor, together: Tensor) -> Tensor:
    """Cross-entropy of who wins each pair, averaged over all pairs of a set, [...].

    Target 1 for a candidate that dominates its partner, 0 for one that is dominated, 1/2 else;
    prediction sigmoid(r^_i - r^_j). Pairing the batch with a random permutation of itself, as
    published, has exactly this value in expectation (a candidate meets itself too: log 2).

    Args:
        log_value: [..., N], implied log-rewards r^.
        dominated_by: [N, N] bool, entry [i, j]: j dominates i.
        together: [..., N, N] bool, both are members of one set.
    """
    wins = 0.5 + 0.5 * (dominated_by.T.to(log_value.dtype) - dominated_by.to(log_value.dtype))
    gap = log_value.unsqueeze(-1) - log_value.unsqueeze(-2)
    loss = torch.nn.functional.softplus(gap) - wins * gap
    weight = together.to(log_value.dtype)
    return (weight * loss).sum((-2, -1)) / weight.sum((-2, -1)).clamp(min=1)


CANDIDATES = {"batch": set_cross_entropy, "pairs": pair_cross_entropy}
ORDERS = ("partial", "total")
STARTS = ("first", "last", "all")


@dataclass(frozen=True)
class Ordering(Term):
    """L_OP on implied log-rewards; alone it is OP-TB.

    Trajectories of different groups (conditions) are never compared. log Z has no place in the
    implied reward: softmax does not see a constant, and so OP-TB cannot identify log Z.

    Attributes:
        order: "partial" compares the raw reward vectors by dominance, "total" the log-rewards.
        candidates: "batch" takes the whole group as one set, "pairs" every pair of it. Pairs suit
            total orders: they hold incomparable candidates level, dominated ones among them.
        starts: where the sub-trajectories begin whose implied log-reward
            r^ = log F(s_i) + sum_{k>=i} (log P_F - log P_B) is ranked: the "first" state (whole
            trajectories, without a flow), the "last" (the terminal value log F(x) + log P_F(stop)
            of detailed balance and flow matching), or "all", ranked against those of equal length
            and weighted lam^length.
        lam: geometric factor of "all".
        tie: smallest difference of log-rewards that counts in a total order.
    """

    order: str = "partial"
    candidates: str = "batch"
    starts: str = "first"
    lam: float = 0.9
    tie: float = 1e-6

    def __post_init__(self) -> None:
        for name, choices in (("order", ORDERS), ("candidates", CANDIDATES), ("starts", STARTS)):
            check_choice(name, getattr(self, name), choices)
        if not self.lam > 0:
            raise ValueError(f"ordering needs lam > 0, not {self.lam}")

    @property
    def needs(self) -> frozenset[str]:
        """log P_B, and log F where sub-trajectories are ranked."""
        return frozenset({"log_pb_total"} if self.starts == "first" else {"log_pb", "log_flow"})

    @property
    def batch_needs(self) -> frozenset[str]:
        """Reward vectors, for a partial order."""
        return frozenset({"rewards"} if self.order == "partial" else ())

    def loss(self, evaluation: Evaluation, batch: Trajectories) -> Loss:
        """Mean over sets of candidates, weighted mean over lengths of sub-trajectories."""
        values = self._values(evaluation, batch)
        dominated_by = dominance(values, self.tie if self.order == "total" else 0.0).T
        together = _together(batch)
        log_value, length_weight, member = self._implied(evaluation, batch)
        together = together & member.unsqueeze(-1) & member.unsqueeze(-2)
        per_length = CANDIDATES[self.candidates](log_value, dominated_by, together)
        value = (length_weight * per_length).sum()
        best = ~(dominated_by & _together(batch)).any(-1)
        metrics = {"ordering": value.detach(), "best_share": best.to(value.dtype).mean()}
        return Loss(value, metrics, batch.n)

    def _values(self, evaluation: Evaluation, batch: Trajectories) -> Tensor:
        """What is compared, [B, K]."""
        log_r = complete_log_rewards(batch, evaluation.log_pf, "an ordering")
        if self.order == "total":
            return log_r.unsqueeze(1)
        if batch.rewards is None:
            raise ValueError("a partial order compares raw reward vectors: set the batch's rewards")
        return batch.rewards

    def _implied(
        self, evaluation: Evaluation, batch: Trajectories
    ) -> tuple[Tensor, Tensor, Tensor]:
        """r^ [S, B] of S kinds of sub-trajectories, their weights [S], who has one [S, B]."""
        log_pf, log_pb, lengths = evaluation.log_pf, evaluation.log_pb, batch.lengths
        assert log_pb is not None
        whole = torch.ones(1, batch.n, dtype=torch.bool, device=log_pf.device)
        one = log_pf.new_ones(1)
        if self.starts == "first":
            return (log_pf - log_pb).sum(1).unsqueeze(0), one, whole
        assert evaluation.log_flow is not None
        # With a terminal potential of 0, u_i - u_T is the value of the piece from s_i on.
        phi = torch.nn.functional.pad(evaluation.log_flow, (0, 1))
        u = potentials(phi, log_pf, log_pb, lengths)
        value = u - u.gather(1, lengths.unsqueeze(1))
        if self.starts == "last":
            return value.gather(1, lengths.unsqueeze(1) - 1).T, one, whole
        size = torch.arange(1, int(lengths.max()) + 1, device=log_pf.device).unsqueeze(1)
        start = lengths - size
        exists = start >= 0
        pieces = value.T.gather(0, start.clamp(min=0))
        weight = (size.squeeze(1).to(value.dtype) * math.log(self.lam)).softmax(0)
        return pieces, weight, exists


def _together(batch: Trajectories) -> Tensor:
    """Same group, [B, B] bool; the whole batch is one group by default."""
    if batch.group is None:
        return torch.ones(batch.n, batch.n, dtype=torch.bool, device=batch.valid.device)
    same = batch.group.unsqueeze(1) == batch.group
    if not bool((same.sum(1) > 1).any()):
        raise ValueError("an ordering needs groups of at least two trajectories per condition")
    return same
