"""Thompson sampling: one head of an ensemble explores per trajectory (2023, arXiv 2306.17693).

The head is part of a trajectory's condition: the last column of its encoding is the head's number.
Everything that carries conditions (rollouts, replay, local search) so carries heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gflow.conditions import Conditions
from gflow.mdp import Condition, Environment, States, Trajectories
from gflow.policies import BackwardKind, LogZ, MLPPolicy, seeded_weights
from gflow.policies.linear import Linear
from gflow.sampling.strategies import Resumable, Strategy
from gflow.seeding import generator


class EnsemblePolicy(MLPPolicy):
    """A perceptron policy with m heads for P_F; trunk, P_B, log F and log Z are shared.

    Each head adds a frozen random one of its own, its prior, so that heads disagree where they
    have seen no data. Conditions without a head's number get the mean of all heads' logits, which
    is what to evaluate.

    Args:
        env: as in `MLPPolicy`.
        n_heads: number of heads m.
        hidden: widths of the hidden layers.
        condition_size: width of the condition's encoding without the head's number.
        backward: as in `MLPPolicy`.
        flow: add a head for log F(s).
        seed: seeds the initial weights and the priors.

    Raises:
        ValueError: fewer than one head, or what `MLPPolicy` refuses.
    """

    def __init__(
        self,
        env: Environment,
        n_heads: int,
        hidden: tuple[int, ...] = (256, 256),
        condition_size: int = 0,
        backward: BackwardKind = "uniform",
        flow: bool = False,
        seed: int = 0,
    ):
        if n_heads < 1:
            raise ValueError(f"an ensemble needs at least one head, not {n_heads}")
        super().__init__(env, hidden, condition_size, backward, flow, seed=seed)
        self.n_heads, self.condition_size = n_heads, condition_size
        width, n_actions = hidden[-1], n_heads * env.action_sizes[0]
        with seeded_weights(seed):
            self.forward_head = Linear(width, n_actions)
            self.prior_head = nn.Linear(width, n_actions).requires_grad_(False)
            self.log_z = _PlainLogZ(condition_size)

    def features(self, states: States, condition: Condition) -> Tensor:
        """What the trunk says about each row, whatever its head."""
        return super().features(states, _plain(condition, self.condition_size))

    def logits(self, features: Tensor, condition: Condition) -> Tensor:
        """Logits of each row's head, or their mean, [n, A]."""
        both = self.forward_head(features) + self.prior_head(features)
        heads: Tensor = both.view(len(features), self.n_heads, -1)
        if condition.encoding.shape[1] > self.condition_size:
            head = condition.encoding[:, -1].long()
            return heads[torch.arange(len(head), device=head.device), head]
        return heads.mean(1)


class _PlainLogZ(LogZ):
    """log Z of the condition without the head's number."""

    def __init__(self, condition_size: int):
        super().__init__(condition_size)
        self.condition_size = condition_size

    def forward(self, condition: Condition) -> Tensor:
        return super().forward(_plain(condition, self.condition_size))


def _plain(condition: Condition, size: int) -> Condition:
    return condition._replace(encoding=condition.encoding[:, :size])


@dataclass(frozen=True)
class EnsembleConditions(Conditions):
    """Conditions that also draw a head for each row; `encoding_size` does not count it.

    Attributes:
        n_heads: number of heads.
    """

    n_heads: int = 1

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Condition:
        """n independent conditions, each with the number of a head behind its encoding."""
        condition = super().sample(n, generator, dtype)
        head = torch.randint(self.n_heads, (n,), generator=generator)
        return _with_head(condition, head, self.encoding_size)


def _with_head(condition: Condition, head: Tensor, size: int) -> Condition:
    encoding = condition.encoding[:, :size]
    return condition._replace(encoding=torch.cat([encoding, head.unsqueeze(1).to(encoding)], 1))


class Bootstrap(Resumable):
    """Every trajectory of a batch for each head that learns from it.

    A head learns from a trajectory with probability `share`, so that heads see different data; any
    objective on the batch that comes back is then the mean over heads and their trajectories.

    Args:
        fresh: strategy of the trajectories, usually `OnPolicy` with `EnsembleConditions`.
        policy: the ensemble.
        seed: seeds the choice.
        share: probability that a head learns from a trajectory, above 0.

    Raises:
        ValueError: a share outside (0, 1].
    """

    saved = ("fresh", "generator")

    def __init__(self, fresh: Strategy, policy: EnsemblePolicy, seed: int, share: float = 0.5):
        if not 0 < share <= 1:
            raise ValueError(f"heads learn from a share of trajectories in (0, 1], not {share}")
        self.fresh, self.policy, self.share = fresh, policy, share
        self.generator = generator(seed, "bootstrap")

    def __call__(self) -> Trajectories:
        """The fresh trajectories, repeated for the heads that learn from them."""
        batch = self.fresh()
        drawn = torch.rand(batch.n, self.policy.n_heads, generator=self.generator)
        # At least one pair, since a batch is never empty.
        learns = drawn <= drawn.min().clamp(min=self.share)
        row, head = learns.to(batch.valid.device).nonzero(as_tuple=True)
        repeated = batch.rows(row)
        condition = _with_head(repeated.condition, head, self.policy.condition_size)
        return replace(repeated, condition=condition)
