"""Log-rewards of states on the way by the clean point that a denoiser expects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gflow.mdp import Condition, States, Trajectories
from gflow.policies.denoiser import DenoiserPolicy
from gflow.sampling.strategies import Resumable, Strategy


class WithCleanRewards(Resumable):
    """Batches whose `partial_log_reward` is log R(x0_hat) of the current denoiser.

    With a forward-looking potential this is DAG: log F(x_k) = f(x_k) + log R(x0_hat(x_k))
    (Improving GFlowNets for Text-to-Image Diffusion Alignment, 2024, arXiv 2406.00633). The
    blank state before the starting noise gets 0.

    Args:
        fresh: strategy of scored batches.
        policy: the denoiser.
        log_reward: log R of points [n, *state_shape] under n conditions, [n].
    """

    saved = ("fresh",)

    def __init__(
        self,
        fresh: Strategy,
        policy: DenoiserPolicy,
        log_reward: Callable[[Tensor, Condition], Tensor],
    ):
        self.fresh, self.policy, self.log_reward = fresh, policy, log_reward

    @torch.no_grad()
    def __call__(self) -> Trajectories:
        """The next batch."""
        batch = self.fresh()
        assert batch.log_reward is not None
        n, horizon = batch.valid.shape
        first = int(self.policy.env.source > 0)
        steps = torch.arange(first, horizon, device=batch.valid.device)
        states = States(
            batch.states[:, first:horizon].flatten(0, 1),
            steps.repeat(n),
            torch.zeros(n * len(steps), dtype=torch.bool, device=steps.device),
        )
        row = torch.arange(n, device=steps.device).repeat_interleave(len(steps))
        condition = batch.condition.rows(row)
        guessed = self.log_reward(self.policy.clean(states, condition), condition)
        partial = batch.log_reward.new_zeros(n, horizon + 1)
        partial[:, first:horizon] = guessed.view(n, -1)
        partial[:, -1] = batch.log_reward
        return replace(batch, partial_log_reward=partial)
