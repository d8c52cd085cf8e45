"""Denoising as an MDP: a walk from noise to data in a fixed number of affine-Gaussian steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from gflow.envs.denoising.steps import Steps
from gflow.kernels import AffineGaussian
from gflow.mdp import Environment, States, Trajectories, shared


class Denoising(Environment):
    """Points that a sampler moves from noise at t = 1 to data at t = 0.

    An action is the next point, so a trajectory's states say everything and its `actions` are
    empty. With a `source` the first transition draws the starting noise, from one blank state, by
    a kernel without parameters; without one every walk starts at the origin. The backward kernel
    is a fixed noising process. Times, tables and what a network is fed come from one place, so
    that sampling and replay cannot disagree.

    Args:
        state_shape: shape of a point.
        forward: N steps as (A, B, s), see `gflow.envs.denoising.steps`.
        backward: N steps x_k = a x_{k+1} + s eps of the noising process; b is not used.
        clock: [N + 1], the times fed to the network; those of data come last.
        source: standard deviation of the starting noise; 0 starts at the origin.
        clean: alpha and beta [N] of the estimate x0_hat = alpha x + beta prediction, if the
            prediction gives one.
        quiet: deterministic steps that can take the place of `forward`, see `only`.
        lengths: [N], how long each step is in time; differences of the clock by default.
        linear: times [N + 1] on the path x_t = (1 - t) x_0 + t eps and what the network predicts
            there, one of `PREDICTIONS`; None for a walk that is not on it.

    Raises:
        ValueError: tables of other lengths, entries that are no numbers, or a standard deviation
            below 0.
    """

    continuous = True
    has_stop = False
    fixed_length = True
    action_sizes = ()
    n_backward_actions = 0

    def __init__(
        self,
        state_shape: Sequence[int],
        forward: Steps,
        backward: Steps,
        clock: Tensor,
        *,
        source: float = 0.0,
        clean: tuple[Tensor, Tensor] | None = None,
        quiet: Steps | None = None,
        lengths: Tensor | None = None,
        linear: tuple[Tensor, str] | None = None,
    ):
        steps = len(clock) - 1
        self.lengths = -clock.diff() if lengths is None else lengths
        tables = [*forward, *backward, *(clean or ()), *(quiet or ()), self.lengths]
        if steps < 1 or any(table.shape != (steps,) for table in tables):
            shapes = sorted({tuple(table.shape) for table in tables})
            raise ValueError(f"{len(clock)} times need tables of {steps} steps, not {shapes}")
        if not all(bool(torch.isfinite(table).all()) for table in (*tables, clock)):
            raise ValueError("a table of the schedule holds entries that are no finite numbers")
        if not source >= 0 or bool((forward.s < 0).any()) or bool((backward.s < 0).any()):
            raise ValueError("a standard deviation of the schedule is below 0")
        self.state_shape = tuple(state_shape)
        self.source = source
        self.quiet, self.linear = quiet, linear
        blank = int(source > 0)
        self.max_steps = steps + blank
        first = clock.new_zeros(1)
        if blank:
            forward = Steps(*(torch.cat([first, table]) for table in forward))
            forward.s[0] = source
            backward = Steps(*(torch.cat([first, table]) for table in backward))
            clean = clean and (torch.cat([first, clean[0]]), torch.cat([first, clean[1]]))
            clock = torch.cat([clock[:1], clock])
        self.forward, self.backward, self.clean = forward, backward, clean
        # Of terminal states nothing is asked, but tables are read in every row of a batch.
        self.tables = torch.stack(
            [
                *(torch.cat([table, table[-1:]]) for table in (*forward, *(clean or ()))),
                clock,
            ]
        ).double()
        self.undoing = torch.stack([torch.cat([first, t]) for t in (backward.a, backward.s)])
        # Where a walk starts is certain, so the first transition needs no noise to be undone.
        self.deterministic = bool((forward.s == 0).any() or (backward.s[1:] == 0).any())
        drawn = forward.s > 0
        drawn[:blank] = False
        self.drawn = drawn
        self.spread = _spread(forward)
        self._kept: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def only(self, stochastic: Tensor) -> Denoising:
        """The same schedule with noise in some steps only; the others follow the ODE.

        Args:
            stochastic: [N] bool.

        Raises:
            ValueError: the schedule has no deterministic steps to take, or another length.
        """
        blank = int(self.source > 0)
        if self.quiet is None or stochastic.shape != self.quiet.a.shape:
            raise ValueError(
                f"noise in {tuple(stochastic.shape)} steps only needs as many deterministic steps "
                "in the schedule"
            )
        pairs = zip(self.forward, self.quiet, strict=True)
        forward = Steps(*(torch.where(stochastic, a[blank:], b) for a, b in pairs))
        return Denoising(
            self.state_shape,
            forward,
            Steps(*(table[blank:] for table in self.backward)),
            self.tables[-1][blank:],
            source=self.source,
            clean=self.clean and (self.clean[0][blank:], self.clean[1][blank:]),
            quiet=self.quiet,
            lengths=self.lengths,
            linear=self.linear,
        )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": {}}

    def __deepcopy__(self, memo: dict[int, object]) -> Denoising:
        other = copy.copy(self)
        other._kept = {}
        return other

    def initial(self, n: int, device: torch.device | str = "cpu") -> States:
        """`n` times the origin, or the blank state before the starting noise."""
        step = torch.zeros(1, dtype=torch.int64, device=device)
        data = torch.zeros(n, *self.state_shape, device=device)
        return States(data, step.expand(n), step.bool().expand(n))

    def step(self, states: States, actions: Tensor) -> States:
        """Move to the points `actions` [n, *state_shape]."""
        done = shared(states.done)
        step = shared(states.step) + ~done
        data = torch.where(self.wide(done), states.data, actions)
        return States(data, step.expand(states.n), (step == self.max_steps).expand(states.n))

    def backstep(self, states: States, actions: Tensor) -> States:
        """Move back to the points `actions` [n, *state_shape]."""
        step = shared(states.step)
        data = torch.where(self.wide(step > 0), actions, states.data)
        done = torch.zeros_like(step, dtype=torch.bool)
        return States(data, (step - 1).clamp(min=0).expand(states.n), done.expand(states.n))

    def forward_mask(self, states: States, *chosen: Tensor) -> Tensor:
        """Refused: points have no list of legal moves."""
        raise NotImplementedError("a denoising step has no list of legal actions")

    def backward_mask(self, states: States) -> Tensor:
        """Refused: points have no list of parents."""
        raise NotImplementedError("a denoising step has no list of legal actions")

    def observe(self, states: States) -> Tensor:
        """The points themselves."""
        return states.data

    def decode(self, states: States) -> list[Tensor]:
        """Points as tensors on the CPU, of shape `state_shape`."""
        return list(states.data.cpu().unbind())

    def encode(self, objects: Sequence[Tensor | Sequence[float]]) -> States:
        """Terminal states of the given points.

        Raises:
            ValueError: a point of another shape.
        """
        points = [torch.as_tensor(point) for point in objects]
        for i, point in enumerate(points):
            if tuple(point.shape) != self.state_shape:
                raise ValueError(
                    f"object {i} has shape {tuple(point.shape)}, not {self.state_shape}"
                )
        return self.terminal(torch.stack(points))

    def terminal(self, data: Tensor) -> States:
        """Terminal states of the points `data` [n, *state_shape]."""
        step = torch.full((1,), self.max_steps, device=data.device)
        done = torch.ones_like(step, dtype=torch.bool)
        return States(data, step.expand(len(data)), done.expand(len(data)))

    def noise(
        self,
        steps: int,
        n: int,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str,
        backward: bool = False,
    ) -> Tensor:
        """Standard normal numbers, [steps, n, *state_shape]."""
        shape = (steps, n, *self.state_shape)
        return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)

    def record(self, batch: Trajectories) -> Trajectories:
        """Sets `clock` and `stochastic`."""
        batch.clock, batch.stochastic = self._marks(batch.valid)
        return batch

    def check(self, batch: Trajectories, windowed: bool = False) -> None:
        """Refuse a batch that was sampled with another clock, or with noise in other steps.

        Args:
            batch: the batch.
            windowed: whichever steps had noise is fine, as after `only`.

        Raises:
            ValueError: which of the two.
        """
        clock, stochastic = self._marks(batch.valid)
        theirs = None if batch.stochastic is None else batch.stochastic & batch.valid
        for name, mine, other in (
            ("clock", clock, batch.clock),
            ("choice of stochastic steps", stochastic, theirs),
        ):
            if windowed and mine is stochastic:
                continue
            # One comparison, and none of a clock that still is this environment's own.
            if other is None or not torch.equal(mine, other.to(mine)):
                raise ValueError(
                    f"the batch was sampled with another {name} than this environment's: evaluate "
                    "it with the schedule that sampled it"
                )

    def _marks(self, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Clock [B, T + 1] and stochastic steps [B, T] of a batch."""
        n, horizon = valid.shape
        clock = self.table("tables", valid.device, torch.float32)[-1]
        drawn = self.table("drawn", valid.device, torch.bool)
        if (behind := horizon - self.max_steps) > 0:
            # Columns of padding repeat the end.
            clock = torch.cat([clock, clock[-1:].expand(behind)])
            drawn = torch.cat([drawn, drawn[-1:].expand(behind)])
        return clock[: horizon + 1].expand(n, -1), drawn[:horizon] & valid

    def coefficients(self, states: States, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """A, B, s, then alpha and beta of the clean estimate if there is one, then the clock.

        Each of shape [n, 1, ...] against points, or [1, 1, ...] of `shared` steps; the clock [n].
        """
        rows = self.table("tables", states.step.device, dtype)[:, shared(states.step)]
        wide = rows.view(*rows.shape, *[1] * len(self.state_shape)).unbind()
        return *wide[:-1], rows[-1].expand(states.n)

    def noising(self, states: States, reduction: str = "sum") -> AffineGaussian:
        """P_B: the state before each of `states`; where a walk starts, that is certain."""
        x = states.data
        a, s = self.table("undoing", x.device, x.dtype)[:, shared(states.step)].unbind()
        return AffineGaussian(self.wide(a) * x, self.wide(s), reduction)

    def wide(self, values: Tensor) -> Tensor:
        """[n] against [n, *state_shape]."""
        return values.view(-1, *[1] * len(self.state_shape))

    def table(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A table on a device, copied there once."""
        key = (name, device, dtype)
        if key not in self._kept:
            self._kept[key] = getattr(self, name).to(device, dtype)
        return self._kept[key]


def _spread(forward: Steps) -> Tensor:
    """Standard deviation in each state of walks whose predictions are 0, [T + 1]."""
    variance = [forward.s.new_zeros(())]
    for a, s in zip(forward.a, forward.s, strict=True):
        variance.append(a.square() * variance[-1] + s.square())
    return torch.stack(variance).sqrt()
