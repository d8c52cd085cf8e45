"""Maximum likelihood: imitate given trajectories."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gflow.mdp import Loss, Policy, Trajectories, evaluate


@dataclass(frozen=True)
class Likelihood:
    """-log P_F of a batch, averaged over its steps: supervised training.

    Where log P_F is a sum of Monte-Carlo terms it is a bound on the likelihood (masked diffusion).
    """

    needs: frozenset[str] = frozenset()

    def __call__(self, policy: Policy, batch: Trajectories) -> Loss:
        """The loss of a batch; rewards are not asked for."""
        log_pf = evaluate(policy, batch, self.needs).log_pf
        made = batch.valid if batch.stochastic is None else batch.valid & batch.stochastic
        n_steps = made.sum()
        value = -torch.where(made, log_pf, 0.0).sum() / n_steps.clamp(min=1)
        return Loss(value, {"nats_per_step": value.detach()}, n_steps)
