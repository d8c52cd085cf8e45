"""Bounds of log Z while a sampler of points trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gflow.conditions import Conditions
from gflow.estimators import eubo, log_z_bounds
from gflow.mdp import Policy
from gflow.sampling import Scorer
from gflow.sampling.rollout import rollout
from gflow.seeding import generator
from gflow.training.trainer import Trainer


class LogZWatch:
    """An `on_eval` event: ELBO, importance estimate, and EUBO where exact samples are known.

    It draws from generators of its own, made from the seed and the step.

    Args:
        policy: the policy.
        conditions: conditions that are all alike.
        score: sets log-rewards.
        n: samples drawn at a time.
        seed: seeds the draws.
        energy: the target, see `gflow.envs.denoising.energies.Energy`.
        device: where to roll out.
        dtype: dtype of noise.

    Raises:
        ValueError: conditions that differ, which have no common log Z.
    """

    def __init__(
        self,
        policy: Policy,
        conditions: Conditions,
        score: Scorer,
        n: int,
        seed: int,
        energy: Any,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if conditions.encoding_size:
            raise ValueError("log Z is watched where all conditions are alike")
        self.policy, self.conditions, self.score, self.n = policy, conditions, score, n
        self.seed, self.energy, self.device, self.dtype = seed, energy, device, dtype

    def __call__(self, trainer: Trainer, info: dict[str, float]) -> None:
        """Adds elbo, log_z_estimate, effective_samples (a share), eubo and log_z_error."""
        random = generator(self.seed, "watch", trainer.step, device=self.device)
        condition = self.conditions.sample(self.n, None, self.dtype).to(self.device)
        start = self.policy.env.initial(self.n, self.device)
        batch = self.score(rollout(self.policy, start, condition, random))
        bounds = log_z_bounds(self.policy, batch)
        info["elbo"], info["log_z_estimate"] = float(bounds.elbo), float(bounds.log_z)
        info["effective_samples"] = float(bounds.effective_sample_size) / self.n
        if self.energy.log_z is None or float(condition.inverse_temperature[0]) != 1:
            return
        info["log_z_error"] = info["log_z_estimate"] - self.energy.log_z
        ends = self.policy.env.encode(self._exact(trainer.step))
        back = rollout(self.policy, ends, condition, random, backward=True)
        info["eubo"] = float(eubo(self.policy, self.score(back)))

    def _exact(self, step: int) -> list[Tensor]:
        points = self.energy.sample(self.n, generator(self.seed, "exact", step))
        return list(points.to(self.device, self.dtype))
