"""Policies of denoising environments: any network x, t, condition -> prediction, as a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gflow.kernels import AffineGaussian
from gflow.mdp import (
    Condition,
    Evaluation,
    Heads,
    States,
    Trajectories,
    evaluate_steps,
    shared,
)
from gflow.policies.columns import BY_COLUMNS, evaluate_columns, walk_columns
from gflow.policies.common import seeded_weights
from gflow.policies.log_z import LogZ
from gflow.policies.networks import time_features
from gflow.sampling.rollout import Block, step_block

if TYPE_CHECKING:
    from gflow.envs.denoising import Denoising

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class DenoiserPolicy(nn.Module):
    """The steps of a denoising environment by a network's predictions.

    P_F of a step is N(A x + B prediction, s^2), with the environment's A, B, s; P_B is its noising
    process. Nothing is computed in less than float32, whatever the network's own precision.

    Args:
        env: the schedule; `only` makes schedules with noise in fewer steps, and the attribute may
            be set to another schedule of the same points.
        network: called as `network(x, t, encoding)` with points [n, *state_shape], the clock [n]
            and encodings [n, C]; returns predictions of the points' shape, or twice as many
            channels (first dimension) where it also gives the noise, see `log_variance_range`.
        condition_size: width C of the condition's encoding, 0 without conditions.
        flow: log F(x, t) as a network of the same arguments that returns [n, 1].
        guidance: gamma of classifier-free guidance, prediction = u + gamma (c - u), in rollouts
            and log-probabilities alike; 1 asks the network once.
        null: [C], the encoding that asks for nothing; zeros by default.
        log_variance_range: largest change of a step's log-variance that the network may make.
        reduction: "sum" or "mean" of log-densities over coordinates, see `AffineGaussian`.
        recompute: rows whose activations are kept at a time when gradients are taken; the others
            are computed again in the backward pass. 0 keeps all.

    Raises:
        ValueError: guidance without conditions, or a setting below 0.
    """

    backward = "fixed"
    null: Tensor

    def __init__(
        self,
        env: Denoising,
        network: nn.Module,
        *,
        condition_size: int = 0,
        flow: nn.Module | None = None,
        guidance: float = 1.0,
        null: Tensor | None = None,
        log_variance_range: float = 0.0,
        reduction: str = "sum",
        recompute: int = 0,
    ):
        super().__init__()
        if guidance != 1 and not condition_size:
            raise ValueError("guidance needs a network that sees conditions: set condition_size")
        if log_variance_range < 0 or recompute < 0:
            raise ValueError("log_variance_range and recompute must not be below 0")
        self.env, self.network, self.flow_network = env, network, flow
        self.guidance, self.reduction, self.recompute = guidance, reduction, recompute
        self.log_variance_range = log_variance_range
        self.log_z = LogZ(condition_size)
        empty = torch.zeros(condition_size) if null is None else null.clone()
        self.register_buffer("null", empty, persistent=False)
        # A look at one parameter tells the network's precision; looking for it takes its time.
        self._first = tuple(network.parameters())[:1]

    def forward(self, states: States, condition: Condition, needs: frozenset[str]) -> Heads:
        """Heads for each row; P_B costs no call of the network."""
        forward = backward = flow = None
        if "log_pf" in needs:
            forward = self.step(states, condition)
        if "log_pb" in needs:
            backward = self.env.noising(states, self.reduction)
        if "log_flow" in needs and self.flow_network is not None:
            x, *_, clock = self._inputs(states)
            flow = self.flow_network(x, clock, condition.encoding.to(x.dtype))
            if flow.shape not in ((len(x), 1), (len(x),)):
                raise ValueError(
                    f"the flow network returned {list(flow.shape)} for points {list(x.shape)}: it "
                    f"must return {[len(x), 1]}"
                )
            flow = flow.reshape(len(x))
        return Heads(forward, backward, flow)

    def step(self, states: States, condition: Condition) -> AffineGaussian:
        """P_F of each row."""
        x, a, b, s, *_, clock = self._inputs(states)
        output = self._after_source(states, x, clock, condition.encoding)
        if self.log_variance_range:
            output, spread = output.chunk(2, 1)
            s = s * (0.5 * self.log_variance_range * spread.tanh()).exp()
        # Not fused: rounded as published schedulers round, to the last bit.
        return AffineGaussian(a * x + b * output, s, self.reduction)

    def evaluate(self, batch: Trajectories, needs: frozenset[str]) -> Evaluation:
        """`gflow.mdp.evaluate`, by columns where that will do."""
        fits = needs <= BY_COLUMNS and not self.log_variance_range and batch.valid.shape[1] > 1
        by_columns = fits and bool(batch.valid.all())
        return (evaluate_columns if by_columns else evaluate_steps)(self, batch, needs)

    def step_block(
        self,
        states: States,
        condition: Condition,
        noise: Tensor,
        uniform: Tensor | None,
        epsilon: float,
        temperature: float,
        backward: bool,
        keep_log_p: bool,
        stop_early: bool,
    ) -> Block:
        """`step_block` of rollouts; by columns where all rows are at one step."""
        here = shared(states.step)
        by_row = len(here) > 1 or backward or uniform is not None or self.log_variance_range > 0
        if by_row or here.is_cuda or (first := int(here)) + len(noise) > self.env.max_steps:
            return step_block(
                self, states, condition, noise, uniform, epsilon, temperature, backward,
                keep_log_p, stop_early,
            )  # fmt: skip
        return walk_columns(self, states, first, condition, noise, temperature, keep_log_p)

    def clean(self, states: States, condition: Condition) -> Tensor:
        """x0_hat, the data that each row's prediction expects, [n, *state_shape].

        Raises:
            ValueError: the schedule's predictions give no such estimate.
        """
        x, _, _, _, *clean, clock = self._inputs(states)
        if not clean:
            raise ValueError("this schedule's predictions do not estimate the clean point")
        alpha, beta = clean
        output = self.predict(x, clock, condition.encoding)
        if self.log_variance_range:
            output = output.chunk(2, 1)[0]
        return torch.addcmul(alpha * x, beta, output)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the network's own reference predicts (frozen copy, or adapters off).

        Raises:
            ValueError: the network has none.
        """
        inner = getattr(self.network, "reference", None)
        if inner is None:
            raise ValueError(
                "this network has no reference: wrap it in Anchored, or give it adapters"
            )
        with inner():
            yield

    def predict(self, x: Tensor, clock: Tensor, encoding: Tensor) -> Tensor:
        """The network's prediction with guidance, in at least float32.

        Raises:
            ValueError: the network returns another shape than that of the points.
        """
        encoding = encoding.to(x.dtype)
        if self.guidance == 1:
            return self._called(x, clock, encoding)
        null = self.null.to(x.dtype).expand_as(encoding)
        both = self._called(
            torch.cat([x, x]), torch.cat([clock, clock]), torch.cat([encoding, null])
        )
        asked, plain = both.chunk(2)
        return torch.lerp(plain, asked, self.guidance)

    def along(self, clock: Tensor, encoding: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """`predict` at each of the times [k]; of its points alone."""
        along = getattr(self.network, "along", None)
        if along is None or self.guidance != 1 or self._first[0].dtype != encoding.dtype:
            n = len(encoding)
            return [partial(self.predict, clock=t.expand(n), encoding=encoding) for t in clock]
        return [partial(self._checked, network, encoding) for network in along(clock)]

    def _checked(
        self, network: Callable[[Tensor, Tensor], Tensor], encoding: Tensor, x: Tensor
    ) -> Tensor:
        return self._shaped(network(x, encoding), x)

    def _after_source(self, states: States, x: Tensor, clock: Tensor, encoding: Tensor) -> Tensor:
        """`predict`, without asking of blank states where a look at the rows is cheap."""
        looking_waits = x.is_cuda or torch.compiler.is_compiling()
        if not self.env.source or (looking_waits and not torch.is_grad_enabled()):
            return self.predict(x, clock, encoding)
        step = shared(states.step)
        rows = step.nonzero().squeeze(1)
        if len(rows) == len(step):
            return self.predict(x, clock, encoding)
        output = x.new_zeros(self._wanted(x))
        if len(rows):
            some = self.predict(x[rows], clock[rows], encoding[rows])
            output = output.index_copy(0, rows, some)
        return output

    def _wanted(self, x: Tensor) -> torch.Size:
        """Shape of the network's output."""
        if not self.log_variance_range:
            return x.shape
        return torch.Size([len(x), 2 * x.shape[1], *x.shape[2:]])

    def _called(self, x: Tensor, clock: Tensor, encoding: Tensor) -> Tensor:
        # Models with a precision of their own convert what they must, and never the clock.
        dtype = getattr(self.network, "input_dtype", None)
        if dtype is None:
            dtype = self._first[0].dtype if self._first else x.dtype
        inputs = tuple(value.to(dtype) for value in (x, clock, encoding))
        if self.recompute and torch.is_grad_enabled() and len(x) > self.recompute:
            parts = zip(*(value.split(self.recompute) for value in inputs), strict=True)
            outputs = [checkpoint(self.network, *part, use_reentrant=False) for part in parts]
            output = torch.cat(outputs)
        else:
            output = self.network(*inputs)
        return self._shaped(output, x).to(x.dtype)

    def _shaped(self, output: Tensor, x: Tensor) -> Tensor:
        wanted, tensor = self._wanted(x), isinstance(output, Tensor)
        if not tensor or output.shape != wanted:
            found = list(output.shape) if tensor else f"a {type(output).__name__}"
            raise ValueError(
                f"the network returned {found} for points {list(x.shape)}: it must return "
                f"{list(wanted)}"
            )
        return output

    def _inputs(self, states: States) -> tuple[Tensor, ...]:
        """Points, then what `Denoising.coefficients` gives, in one precision."""
        x = self.points(states.data)
        return x, *self.env.coefficients(states, x.dtype)

    def points(self, x: Tensor) -> Tensor:
        """Points in the precision of log-densities.

        Raises:
            ValueError: half precision.
        """
        if x.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(f"denoising needs points in float32 or float64, not {x.dtype}")
        if self.log_z.bias.dtype == torch.float64:
            x = x.double()
        return x


@contextmanager
def on_schedule(policy: DenoiserPolicy, env: Denoising) -> Iterator[DenoiserPolicy]:
    """The policy on another schedule of the same points, for the time of a `with` block."""
    before, policy.env = policy.env, env
    try:
        yield policy
    finally:
        policy.env = before


class TimeMLP(nn.Module):
    """A perceptron of a flat point, its time and a condition; the last layer starts at 0.

    Args:
        size: numbers in a point.
        outputs: numbers returned; 1 for a flow, `size` for a prediction.
        condition_size: width of the condition's encoding.
        hidden: width of the layers.
        layers: number of hidden layers behind the sum of point and time features.
        seed: seeds the initial weights.
    """

    def __init__(
        self,
        size: int,
        outputs: int,
        condition_size: int = 0,
        hidden: int = 64,
        layers: int = 2,
        seed: int = 0,
    ):
        super().__init__()
        with seeded_weights(seed):
            self.point = nn.Linear(size + condition_size, hidden)
            self.time = nn.Sequential(nn.Linear(64, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
            behind = [m for _ in range(layers) for m in (nn.SiLU(), nn.Linear(hidden, hidden))]
            last = nn.Linear(hidden, outputs)
        self.trunk = nn.Sequential(*behind, nn.SiLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, t: Tensor, encoding: Tensor) -> Tensor:
        """[n, outputs]."""
        biases = self.point.bias + self._timed(t)
        hidden = nn.functional.linear(_joined(x, encoding), self.point.weight)
        output: Tensor = self.trunk((hidden.view(-1, *biases.shape) + biases).flatten(0, 1))
        return output

    def along(self, times: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The network at each of the times [k], as functions of points and encodings."""
        biases = self.point.bias + self.time(time_features(times, 64))
        # Weights at hand: looking them up in modules takes a fifth of a small step.
        first = self.point.weight
        behind = [(m.weight, m.bias) for m in self.trunk if isinstance(m, nn.Linear)]

        def at_time(bias: Tensor, x: Tensor, encoding: Tensor) -> Tensor:
            hidden = nn.functional.linear(_joined(x, encoding), first, bias)
            for weight, shift in behind:
                hidden = nn.functional.linear(nn.functional.silu(hidden), weight, shift)
            return hidden

        return [partial(at_time, bias) for bias in biases.unbind()]

    def _timed(self, t: Tensor) -> Tensor:
        """What the network makes of times [n], [p, hidden]; they repeat with period p."""
        if t.stride(0) == 0:
            t = t[:1]
        elif not (t.is_cuda or torch.compiler.is_compiling()):
            # A schedule has few times: each is worked out once, where finding them costs no wait.
            again = (t == t[0]).nonzero()
            period = int(again[1]) if len(again) > 1 else len(t)
            if len(t) % period or not bool((t.view(-1, period) == t[:period]).all()):
                times, place = t.unique(return_inverse=True)
                return nn.functional.embedding(place, self.time(time_features(times, 64)))
            t = t[:period]
        timed: Tensor = self.time(time_features(t, 64))
        return timed


def _joined(x: Tensor, encoding: Tensor) -> Tensor:
    return torch.cat([x, encoding], 1) if encoding.shape[1] else x


class GradientGuided(nn.Module):
    """A network's drift plus the target's gradient at a learned scale (PIS, 2111.15141).

    prediction = network(x, t) + scale(t) clip(grad log R(x)); the scale starts at `scale`, by
    default at 0, so that training starts from the reference process.

    Args:
        network: the network.
        log_reward: differentiable log R of points [n, *state_shape], [n].
        clip: largest absolute entry of the gradient.
        scale: first value of the learned scale.
        hidden: width of the scale's network.
        seed: seeds its weights.
    """

    def __init__(
        self,
        network: nn.Module,
        log_reward: Callable[[Tensor], Tensor],
        clip: float = 100.0,
        scale: float = 0.0,
        hidden: int = 64,
        seed: int = 0,
    ):
        super().__init__()
        self.network, self.log_reward, self.clip = network, log_reward, clip
        with seeded_weights(seed):
            first, last = nn.Linear(64, hidden), nn.Linear(hidden, 1)
        self.scale = nn.Sequential(first, nn.GELU(), last)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, scale)

    def forward(self, x: Tensor, t: Tensor, encoding: Tensor) -> Tensor:
        """Predictions; the gradient of the target is a constant for training."""
        score = gradient(self.log_reward, x).clamp(-self.clip, self.clip)
        scale = self.scale(time_features(t, 64)).view(-1, *[1] * (x.ndim - 1))
        output: Tensor = self.network(x, t, encoding) + scale * score
        return output


def gradient(log_reward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """grad log R at each of the points x [n, ...], detached."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        (value,) = torch.autograd.grad(log_reward(x).sum(), x)
    return value.detach()
