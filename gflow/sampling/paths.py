"""Where policy gradients on denoising paths get their batches: which steps are drawn with noise,
what the members of a group share, and how the rest of the way is walked.

A path has N steps from t = 1 to t = 0 behind the draw of its starting noise. Steps with noise are
the ones to learn from; the others follow the ODE. The last step never has noise: nothing could
correct it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gflow.conditions import Conditions, PromptConditions
from gflow.envs.denoising.environment import Denoising
from gflow.envs.denoising.schedules import at_times, on_linear_path
from gflow.envs.denoising.steps import dpm_multistep
from gflow.mdp import Condition, States, Trajectories, concat_trajectories
from gflow.policies.denoiser import DenoiserPolicy, on_schedule
from gflow.sampling.rollout import rollout
from gflow.sampling.strategies import ConditionStream, Resumable
from gflow.seeding import generator

SHARED = ("nothing", "noise", "prefix")


@dataclass(frozen=True)
class Window:
    """Which of N steps have noise in one update.

    Attributes:
        kind: "all" (all but the last), "random" (`size` consecutive ones) or "sliding" (`size`
            consecutive ones, moving from noise to data).
        size: steps with noise at a time.
        before: "random" windows end before this step; 0 for the last one.
        every: updates that a "sliding" window stays.
        stride: steps that it then moves.
        least: updates that it stays at its last place, if not `every`; linear in between.
        decay: or else it stays every exp(-decay k) updates, rounded up, k places behind `after`.
        after: place from which on it stays less.

    The schedules are MixGRPO's (2025, arXiv 2507.21802), but for its last places, where the
    released window is cut down until no step of a path has noise. A frozen window is a "random"
    one that ends `before` its own size.
    """

    kind: str = "all"
    size: int = 0
    before: int = 0
    every: int = 25
    stride: int = 1
    least: int = 0
    decay: float = 0.0
    after: int = 13

    def __post_init__(self) -> None:
        if self.kind not in ("all", "random", "sliding"):
            raise ValueError(f"unknown window {self.kind!r}: choose all, random or sliding")
        if self.kind != "all" and (self.size < 1 or self.every < 1 or self.stride < 1):
            raise ValueError(f"a {self.kind} window needs size, every and stride of at least 1")
        if self.before < 0:
            raise ValueError(f"a window cannot end before step {self.before}")
        if not 0 <= self.least <= self.every or not self.decay >= 0:
            raise ValueError("a window's stay must fall, to `least` updates of `every` or by decay")
        if self.least and self.decay:
            raise ValueError("a window's stay falls linearly to `least` or by decay, not both")

    def stays(self, places: int) -> list[int]:
        """Updates that a sliding window stays at each of so many places."""
        if self.decay:
            behind = [max(0, place - self.after) for place in range(places)]
            return [math.ceil(self.every * math.exp(-self.decay * k)) for k in behind]
        least, last = self.least or self.every, max(places - 1, 1)
        return [(self.every * (last - k) + least * k) // last for k in range(places)]

    def mask(self, steps: int, update: int, random: torch.Generator) -> Tensor:
        """[steps] bool.

        Raises:
            ValueError: a window larger than the path, or a path without a step to learn from.
        """
        number = torch.arange(steps)
        last = min(self.before or steps - 1, steps - 1)
        if last < 1:
            raise ValueError(
                f"no step of {steps} can be learned from: a path needs at least 2, the last of "
                "which never has noise"
            )
        if self.kind == "all":
            return number < last
        starts = last - self.size + 1
        if starts < 1:
            raise ValueError(f"a window of {self.size} steps does not fit into the first {last}")
        if self.kind == "random":
            start = int(torch.randint(starts, (), generator=random))
        else:
            order = [self.stride * move % starts for move in range(starts)]
            stays = self.stays(starts)
            ends = list(accumulate(stays[start] for start in order))
            start = order[bisect_right(ends, update % ends[-1])]
        return (number >= start) & (number < start + self.size)


@dataclass(frozen=True)
class Compression:
    """The rest of a path in fewer steps of DPM-Solver++ 2M (MixGRPO-Flash, 2507.21802).

    Attributes:
        share: points kept of the steps that are left, at least 2.
    """

    share: float = 0.4

    def times(self, grid: Tensor, first: int) -> Tensor:
        """Times from grid[first] down to the grid's last one, even before the grid's shift.

        The shift is read off the grid's steps and interpolated between them, so that it is the
        grid's own on every `time_grid`.

        Args:
            grid: [N + 1] float64, times falling from 1.
            first: step that the rest begins with.
        """
        steps = len(grid) - 1
        points = max(int((steps - first + 1) * self.share), 2)
        u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:-1]
        inside = grid[1:-1]
        shifts = inside * (1 - u) / (u * (1 - inside))
        wanted = torch.linspace(1 - first / steps, 0, points, dtype=torch.float64)[1:-1]
        shift = torch.from_numpy(np.interp(wanted, u.flip(0), shifts.flip(0)))
        between = shift * wanted / (1 + (shift - 1) * wanted)
        return torch.cat([grid[first : first + 1], between, grid[-1:]])


class OnPaths(Resumable):
    """Fresh denoising paths, `group_size` for each condition.

    Args:
        policy: a denoiser on a schedule with noise in every step.
        conditions: draws conditions.
        score: sets rewards and log-rewards, see `Scorer`.
        batch_size: paths per batch, a multiple of `group_size`.
        seed: seeds this strategy's own generators.
        group_size: paths that share a condition.
        window: which steps have noise; a `Window` or its settings.
        shared: what a group shares: "nothing", its starting "noise", or the "prefix", a
            deterministic path up to the first step with noise.
        trunks: deterministic paths of a group with a shared prefix; branches spread evenly.
        separate: each step of the window has branches of its own, and its own group: its reward
            is the credit of that step alone (TempFlow-GRPO, 2508.04324). A batch is as many times
            larger as the window has steps.
        share: share of the steps with noise, drawn for each path, that it learns from.
        compression: how to walk what follows the window; a `Compression` or its settings.
        device: where to roll out.
        dtype: dtype of conditions and noise.

    Raises:
        ValueError: sizes that do not divide one another, settings that exclude one another, or a
            compression of a schedule that is no flow.
    """

    saved = ("stream", "rollout_generator", "choice_generator")

    def __init__(
        self,
        policy: DenoiserPolicy,
        conditions: Conditions | PromptConditions,
        score: Callable[[Trajectories], Trajectories],
        batch_size: int,
        seed: int,
        *,
        group_size: int = 1,
        window: Window = Window(),
        shared: str = "nothing",
        trunks: int = 1,
        separate: bool = False,
        share: float = 1.0,
        compression: Compression | Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if shared not in SHARED:
            raise ValueError(f"unknown share {shared!r}: choose from {', '.join(SHARED)}")
        if separate and shared != "prefix":
            raise ValueError("steps have branches of their own only on a shared prefix")
        if shared == "prefix" and (trunks < 1 or group_size % trunks):
            raise ValueError(f"{group_size} paths cannot branch evenly from {trunks} trunks")
        if not 0 < share <= 1:
            raise ValueError(f"the share of steps to learn from must lie in (0, 1], not {share}")
        if policy.env.quiet is None or not policy.env.source:
            raise ValueError("paths need a schedule from noise with deterministic steps beside it")
        self.stream = ConditionStream(conditions, batch_size, group_size, seed, dtype)
        self.policy, self.env, self.score = policy, policy.env, score
        # Settings of the catalog are plain values.
        window = Window(**window) if isinstance(window, Mapping) else window
        if isinstance(compression, Mapping):
            compression = Compression(**compression)
        if compression is not None:
            # Refused here rather than behind the first window.
            at_times(policy.env, on_linear_path(policy.env)[0])
        self.group_size, self.window, self.shared = group_size, window, shared
        self.trunks, self.separate, self.share = trunks, separate, share
        self.compression, self.device = compression, device
        self.steps = policy.env.max_steps - 1
        self.updates = 0
        self.rollout_generator = generator(seed, "rollout", device=device)
        self.choice_generator = generator(seed, "window")

    def __call__(self) -> Trajectories:
        """Sample conditions and paths, and score them."""
        condition, group = self.stream()
        condition, group = condition.to(self.device), group.to(self.device)
        mask = self.window.mask(self.steps, self.updates, self.choice_generator)
        self.updates += 1
        masks = [mask]
        if self.separate:
            masks = list(torch.eye(self.steps, dtype=torch.bool)[mask])
            group = group * self.steps
        heads = self._heads(condition)
        parts = []
        for number, mask in enumerate(masks):
            batch = self._walk(heads, condition, mask)
            batch.group = group + number
            parts.append(batch)
        batch = parts[0] if len(parts) == 1 else concat_trajectories(parts)
        return self.score(self._thinned(batch))

    def _heads(self, condition: Condition) -> Tensor | None:
        """What paths start from, [B, k, *shape]: all that the members of a group may share."""
        members = self.group_size // (self.trunks if self.shared == "prefix" else 1)
        if self.shared == "nothing":
            return None
        leaders = condition.rows(torch.arange(0, len(condition.encoding), members))
        start = self.env.initial(len(leaders.encoding), self.device)
        silent = self.env.only(torch.zeros(self.steps, dtype=torch.bool))
        steps = 1 if self.shared == "noise" else None
        with on_schedule(self.policy, silent):
            trunk = rollout(self.policy, start, leaders, self.rollout_generator, steps=steps)
        return trunk.states.repeat_interleave(members, 0)

    def _walk(self, heads: Tensor | None, condition: Condition, mask: Tensor) -> Trajectories:
        """Paths with noise in the steps of `mask`, from where they part."""
        first, last = int(mask.nonzero()[0]), int(mask.nonzero()[-1])
        env = self.env.only(mask)
        # Column 0 is the blank state before the starting noise.
        kept = 0 if heads is None else 1 if self.shared == "noise" else first + 1
        start = env.initial(len(condition.encoding), self.device)
        if heads is not None:
            data = heads[:, kept]
            start = States(data, (start.step[:1] + kept).expand(len(data)), start.done)
        limit = (self.steps + 1 if self.compression is None else last + 2) - kept
        with on_schedule(self.policy, env):
            batch = rollout(
                self.policy, start, condition, self.rollout_generator,
                keep_log_pf=True, steps=limit,
            )  # fmt: skip
        if self.compression is not None:
            batch = self._finished(batch, last, kept)
        return env.record(_put_before(heads, kept, batch))

    def _finished(self, batch: Trajectories, last: int, kept: int) -> Trajectories:
        """The batch with the rest of the way, which counts as one long wait at its end."""
        assert self.compression is not None
        grid, _ = on_linear_path(self.env)
        rest = at_times(self.env, self.compression.times(grid, last + 1))
        before = (last + 1, batch.states[:, last + 1 - kept])
        end = self.solve(batch.states[:, -1], rest, batch.condition, before)
        missing = self.steps + 1 - kept - batch.valid.shape[1]
        wait = end.unsqueeze(1).expand(-1, missing, *end.shape[1:])
        assert batch.log_pf_old is not None
        pad = torch.nn.functional.pad
        empty = batch.actions.new_zeros(batch.n, self.steps + 1 - kept, 0)
        return replace(
            batch,
            states=torch.cat([batch.states, wait], 1),
            actions=empty,
            backward_actions=empty,
            valid=pad(batch.valid, (0, missing), value=True),
            log_pf_old=pad(batch.log_pf_old, (0, missing)),
            clock=None,
            stochastic=None,
        )

    @torch.no_grad()
    def solve(
        self, x: Tensor, rest: Denoising, condition: Condition, before: tuple[int, Tensor]
    ) -> Tensor:
        """Data from points `x` by DPM-Solver++ 2M, which remembers the estimate before.

        Args:
            x: [B, *shape], points where `rest` begins.
            rest: the steps to take, see `at_times`.
            condition: B conditions.
            before: the step before and the points [B, *shape] it left.
        """
        column, earlier = before
        start = self.env.initial(len(x), x.device)

        def clean(points: Tensor, step: int) -> Tensor:
            at = (start.step[:1] + step).expand(len(x))
            return self.policy.clean(States(points, at, start.done), condition)

        memory = clean(earlier, column)
        (grid, _), (times, _) = on_linear_path(self.env), on_linear_path(rest)
        # Step k is column k + 1, behind the draw of the noise.
        t_before = torch.cat([grid[column - 1 : column], times[:-2]])
        table = dpm_multistep(times[:-1], times[1:], t_before)
        with on_schedule(self.policy, rest):
            for k, (a, b, c) in enumerate(zip(*(v.tolist() for v in table), strict=True)):
                estimate = clean(x, k + 1)
                x, memory = a * x + b * estimate + c * memory, estimate
        return x

    def _thinned(self, batch: Trajectories) -> Trajectories:
        """Only a share of the steps with noise stays to learn from, other ones in each path."""
        if self.share == 1:
            return batch
        assert batch.stochastic is not None
        key = torch.rand(batch.stochastic.shape, generator=self.choice_generator).to(self.device)
        rank = key.where(batch.stochastic, 2.0).argsort(1).argsort(1)
        kept = (batch.stochastic.sum(1, keepdim=True) * self.share).floor().clamp(min=1)
        batch.stochastic = batch.stochastic & (rank < kept)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The generators and the number of updates."""
        return {**super().state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        super().load_state_dict(state)
        self.updates = state["updates"]


def _put_before(heads: Tensor | None, kept: int, batch: Trajectories) -> Trajectories:
    """The batch behind the first `kept` states of `heads`."""
    if heads is None:
        return batch
    length = kept + batch.valid.shape[1]
    empty = batch.actions.new_zeros(batch.n, length, 0)
    pad = torch.nn.functional.pad
    assert batch.log_pf_old is not None
    return replace(
        batch,
        states=torch.cat([heads[:, :kept], batch.states], 1),
        actions=empty,
        backward_actions=empty,
        valid=pad(batch.valid, (kept, 0), value=True),
        log_pf_old=pad(batch.log_pf_old, (kept, 0)),
        clock=None,
        stochastic=None,
    )
