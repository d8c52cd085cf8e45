"""Gradient balance: the derivative of detailed balance along a denoising step (2412.07775)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from gflow.kernels import AffineGaussian
from gflow.mdp import Condition, Environment, Loss, States, Trajectories

LogReward = Callable[[Tensor, Condition], Tensor]


class Denoiser(Protocol):
    """What gradient balance asks of a policy, beside being one."""

    env: Any
    flow_network: Any

    def step(self, states: States, condition: Condition) -> AffineGaussian:
        """P_F of each row."""

    def clean(self, states: States, condition: Condition) -> Tensor:
        """x0_hat of each row."""


def forward_score(x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Gradient of log N(x'; mean, std^2) with respect to x'."""
    return (mean - x_next) / std.square()


def forward_residual(score: Tensor, reference: Tensor, flow: Tensor, reward: Tensor) -> Tensor:
    """Derivative of residual detailed balance by the next state x', of the states' shape.

    log p(x' | x) - log p_ref(x' | x) = log F~(x') - log F~(x) with log F~ = flow + reward part;
    `flow` and `reward` are the gradients of those parts at x'.
    """
    return score - (reference + flow + reward)


def backward_residual(score: Tensor, reference: Tensor, flow: Tensor, reward: Tensor) -> Tensor:
    """The same by the state x that the step leaves; gradients are taken at x."""
    return score - (reference - flow - reward)


@dataclass(frozen=True)
class GradientBalance:
    """Residual nabla-DB: fine-tune a denoiser to prior(x) R(x) by gradients of log R (2412.07775).

    The reward part of log F~ is log R(x0_hat), whose gradient runs through the estimate but not to
    its parameters; the rest is the policy's `flow` network, which must return gradients of the
    points' shape and vanishes at the end. Nothing is learned about log Z, and adding a constant to
    log R changes nothing. Every stochastic step counts alike.

    Attributes:
        log_reward: differentiable log R of points under conditions, [n]; give it by
            `dataclasses.replace`.
        reference: the frozen denoiser; likewise.
        backward_weight: weight of the residual by the state a step leaves, which takes second
            derivatives of the network; 0 leaves it out.
        flow: learn the rest of log F~; without it only the forward residual is used.
    """

    log_reward: LogReward | None = field(default=None, repr=False)
    reference: Denoiser | None = field(default=None, repr=False)
    backward_weight: float = 1.0
    flow: bool = True

    def __post_init__(self) -> None:
        if self.backward_weight < 0 or (self.backward_weight and not self.flow):
            raise ValueError("a backward residual needs a flow, and a weight that is not below 0")

    @property
    def needs(self) -> frozenset[str]:
        """Nothing of `evaluate`."""
        return frozenset()

    def check(self, env: Environment) -> None:
        """Refuse states that are no points."""
        if not env.continuous:
            raise ValueError(
                f"gradient balance needs points, and states of {type(env).__name__} are none"
            )

    def __call__(self, policy: Any, batch: Trajectories) -> Loss:
        """Mean squared residual over steps and coordinates."""
        if self.log_reward is None or self.reference is None:
            raise ValueError(
                "gradient balance needs a log_reward and a reference: use dataclasses.replace"
            )
        self.check(policy.env)
        policy.env.check(batch)
        self.reference.env.check(batch)
        assert batch.stochastic is not None
        row, column = (batch.stochastic & batch.valid).nonzero(as_tuple=True)
        if not len(row):
            raise ValueError("no step of the batch was drawn with noise, so there is no score")
        condition = batch.condition.rows(row)
        last = column + 1 == batch.lengths[row]
        here = States(batch.states[row, column], column, torch.zeros_like(last))
        there = States(batch.states[row, column + 1], column + 1, last)

        by_next = self._reward_gradient(policy, there, condition)
        x = here.data.requires_grad_(self.backward_weight > 0)
        kernel = policy.step(here._replace(data=x), condition)
        score = forward_score(there.data, kernel.mean, kernel.std)
        with torch.no_grad():
            frozen = self.reference.step(here, condition)
            reference = forward_score(there.data, frozen.mean, frozen.std)
        wide = last.view(-1, *[1] * (score.ndim - 1))
        flow = torch.zeros_like(score)
        if self.flow:
            learned = self._flow(policy, there, condition)
            flow = torch.where(wide, 0.0, learned)
        residual = forward_residual(score, reference, flow, by_next)
        value = residual.square().mean()
        metrics = {"residual": residual.detach().abs().mean()}
        if self.flow:
            value = value + torch.where(wide, learned, 0.0).square().mean()
        if self.backward_weight:
            by_here = self._reward_gradient(policy, here, condition)
            (score,) = torch.autograd.grad(kernel.log_prob(there.data).sum(), x, create_graph=True)
            reference = self._reference_backward(here, there, condition)
            flow = self._flow(policy, here, condition)
            residual = backward_residual(score, reference, flow, by_here)
            value = value + self.backward_weight * residual.square().mean()
            metrics["backward_residual"] = residual.detach().abs().mean()
        return Loss(value, metrics, len(row))

    def _flow(self, policy: Denoiser, states: States, condition: Condition) -> Tensor:
        """The learned part of grad log F~ at each state."""
        if policy.flow_network is None:
            raise ValueError("gradient balance needs a flow network, or flow=False")
        x = states.data.detach()
        *_, clock = policy.env.coefficients(states, x.dtype)
        flow: Tensor = policy.flow_network(x, clock, condition.encoding.to(x.dtype))
        if flow.shape != x.shape:
            raise ValueError(
                f"the flow network returned {list(flow.shape)} for points {list(x.shape)}: "
                "gradient balance needs gradients"
            )
        return flow

    def _reward_gradient(self, policy: Denoiser, states: States, condition: Condition) -> Tensor:
        """grad of log R(x0_hat(x)) by x, of log R(x) itself at terminal states; no gradient."""
        assert self.log_reward is not None
        with torch.enable_grad():
            x = states.data.detach().requires_grad_(True)
            # A network is not asked at the end, where its predictions may say nothing.
            going = (~states.done).nonzero().squeeze(1)
            guessed = policy.clean(states._replace(data=x).rows(going), condition.rows(going))
            clean = x.index_copy(0, going, guessed)
            (slope,) = torch.autograd.grad(self.log_reward(clean, condition).sum(), x)
        return slope.detach()

    def _reference_backward(self, here: States, there: States, condition: Condition) -> Tensor:
        assert self.reference is not None
        with torch.enable_grad():
            x = here.data.detach().requires_grad_(True)
            kernel = self.reference.step(here._replace(data=x), condition)
            (slope,) = torch.autograd.grad(kernel.log_prob(there.data).sum(), x)
        return slope.detach()
