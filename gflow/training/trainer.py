"""The one training loop."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from gflow.mdp import Loss, Objective, Trajectories
from gflow.sampling.strategies import Strategy
from gflow.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from gflow.training.runtime import Runtime


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says why and from where to resume."""


@dataclass(frozen=True)
class TrainerSettings:
    """How a Trainer steps.

    Attributes:
        learning_rate: Adam's rate for the policy.
        log_z_learning_rate: Adam's rate for the log Z parameter, usually 100 times larger; a
            network for log Z(c) takes a tenth of it.
        weight_decay: decoupled weight decay of the policy's parameters.
        clip_norm: largest gradient norm; 0 does not clip.
        updates: passes over each fresh batch, none for the method's default or 1. More than one
            reuses it, which only objectives with importance ratios correct for.
        minibatches: parts of a pass, each with an optimiser step of its own, none for the method's
            default or 1. Groups stay whole, unless there are fewer of them than parts.
        log_every: steps between two `on_log` events (and looks at the loss value).
        eval_every: steps between two `on_eval` events; 0 never.
        checkpoint_every: steps between two checkpoints; 0 only at the end.
        keep_checkpoints: newest checkpoints that are kept.
        max_skipped: consecutive steps with a non-finite loss or gradient before stopping.
    """

    learning_rate: float = 1e-3
    log_z_learning_rate: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    updates: int | None = None
    minibatches: int | None = None
    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int = 3
    max_skipped: int = 20

    def __post_init__(self) -> None:
        if any(count is not None and count < 1 for count in (self.updates, self.minibatches)):
            raise ValueError(
                f"a trainer takes at least one pass over at least one part of a batch, not "
                f"{self.updates} and {self.minibatches}"
            )


Event = Callable[["Trainer", dict[str, float]], None]


@dataclass
class Events:
    """Plain functions called with the trainer and a dictionary of scalars, which they may extend.

    Attributes:
        on_step: after every step, with nothing read from the device.
        on_log: every `log_every` steps, with the step's scalars.
        on_eval: every `eval_every` steps and at the end, before the same step's `on_log`.
        on_checkpoint: after a checkpoint was written.
        on_end: once, however the run ends.
    """

    on_step: list[Event] = field(default_factory=list)
    on_log: list[Event] = field(default_factory=list)
    on_eval: list[Event] = field(default_factory=list)
    on_checkpoint: list[Event] = field(default_factory=list)
    on_end: list[Event] = field(default_factory=list)


class Trainer:
    """Sample, evaluate, step; with events, checkpoints and exact resumption.

    Args:
        policy: an `nn.Module` satisfying `gflow.mdp.Policy`.
        objective: what to minimise. Its optional `prepare(policy, batch)` completes every fresh
            batch once; its optional `state_dict` and `load_state_dict` go into checkpoints.
        sampler: where batches come from.
        settings: learning rates and intervals.
        runtime: device and process group; this process alone on the CPU by default.
        folder: run folder for checkpoints; None writes none.
        events: functions to call on the way.
        extra_state: further objects with `state_dict` / `load_state_dict` that a resumed run
            needs, by name.
    """

    def __init__(
        self,
        policy: nn.Module,
        objective: Objective,
        sampler: Strategy,
        settings: TrainerSettings | None = None,
        *,
        runtime: Runtime | None = None,
        folder: Path | None = None,
        events: Events | None = None,
        extra_state: dict[str, Any] | None = None,
    ):
        self.policy, self.objective, self.sampler = policy, objective, sampler
        self.settings = settings or TrainerSettings()
        self.runtime = runtime or Runtime(torch.device("cpu"))
        self.folder, self.events = folder, events or Events()
        self.extra_state = extra_state or {}
        self.prepare = getattr(objective, "prepare", None)
        if hasattr(objective, "state_dict"):
            self.extra_state = {**self.extra_state, "objective": objective}
        self.optimizer = _optimizer(policy, self.settings)
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.step = self.goal = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.stop_requested = False
        self.batch: Trajectories | None = None

    def run(self, steps: int) -> None:
        """Train until `steps` steps have been taken in all, counting those before a resume.

        The first Ctrl-C (or SIGTERM) finishes the step, saves and returns; a second one
        interrupts at once.

        Raises:
            TrainingError: too many consecutive non-finite steps.
        """
        self.stop_requested, self.goal = False, steps
        with _graceful_stop(self):
            try:
                while self.step < steps and not self.runtime.any(self.stop_requested):
                    self._one_step(last=self.step + 1 == steps)
            finally:
                self._call(self.events.on_end, {})
        if self.folder is not None:
            self.save()

    def _one_step(self, last: bool) -> None:
        started = time.perf_counter()
        batch = self.sampler()
        if self.prepare is not None:
            with torch.no_grad():
                batch = self.prepare(self.policy, batch)
        self.batch = batch
        parts = split_groups(batch, self.settings.minibatches or 1)
        done = [self._update(part) for _ in range(self.settings.updates or 1) for part in parts]
        self.step += 1

        info: dict[str, float] = {}
        self._call(self.events.on_step, info)
        if self._due(self.settings.eval_every, last):
            self._call(self.events.on_eval, info)
        if self._due(self.settings.log_every, last) or info:
            losses = [loss for loss, _ in done]
            info["loss"] = _mean([loss.value.detach() for loss in losses])
            info["grad_norm"] = _mean([norm for _, norm in done])
            info["skipped"] = float(self.skipped)
            info["step_seconds"] = time.perf_counter() - started
            names = losses[0].metrics
            info.update({name: _mean([loss.metrics[name] for loss in losses]) for name in names})
            self._call(self.events.on_log, info)
        if self._due(self.settings.checkpoint_every, False) and self.folder is not None:
            self.save()

    def _update(self, part: Trajectories) -> tuple[Loss, Tensor]:
        """One optimiser step; the loss and the norm of its gradient."""
        loss = self.objective(self.policy, part)  # type: ignore[arg-type]
        # What `zero_grad` does, without its hooks: a fiftieth of a small iteration.
        for parameter in self.parameters:
            parameter.grad = None
        loss.value.backward()  # type: ignore[no-untyped-call]
        self.runtime.average_gradients(self.parameters, loss.weight)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        finite = math.isfinite(norm + loss.value.detach())
        if self.runtime.any(not finite):
            self._skip()
        else:
            self.skipped_in_a_row = 0
            if self.settings.clip_norm > 0:
                nn.utils.clip_grads_with_norm_(self.parameters, self.settings.clip_norm, norm)
            self.optimizer.step()
        return loss, norm

    def _due(self, every: int, last: bool) -> bool:
        return every > 0 and (last or self.step % every == 0)

    def _skip(self) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.settings.max_skipped:
            where = f"; the last checkpoint is in {self.folder}" if self.folder else ""
            raise TrainingError(
                f"the loss or its gradient was not finite in {self.skipped_in_a_row} consecutive "
                f"steps up to step {self.step}: lower the learning rate or bound the "
                f"log-rewards{where}"
            )

    def _call(self, functions: list[Event], info: dict[str, float]) -> None:
        for function in functions:
            function(self, info)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to go on exactly."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(),
            "extra": {name: item.state_dict() for name, item in self.extra_state.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.load_state_dict(state["sampler"])
        for name, item in self.extra_state.items():
            item.load_state_dict(state["extra"][name])
        self.step, self.skipped = state["step"], state["skipped"]

    def save(self) -> Path | None:
        """Write a checkpoint of the current step (main process only)."""
        if self.folder is None:
            raise ValueError("this trainer has no run folder to save in")
        path = None
        if self.runtime.is_main:
            path = save_checkpoint(
                self.folder / "checkpoints",
                self.step,
                self.state_dict(),
                self.settings.keep_checkpoints,
            )
            self._call(self.events.on_checkpoint, {})
        self.runtime.barrier()
        return path

    def load(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: unreadable, or of a run with other settings.
        """
        state = load_checkpoint(path, self.runtime.device)
        try:
            self.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint {path} does not fit this run's settings: {error}"
            ) from error


def split_groups(batch: Trajectories, parts: int) -> list[Trajectories]:
    """The batch in `parts` parts of whole groups; by rows where there are fewer groups than parts.

    Raises:
        ValueError: fewer trajectories than parts.
    """
    if parts == 1:
        return [batch]
    if batch.n < parts:
        raise ValueError(f"a batch of {batch.n} trajectories cannot be split into {parts} parts")
    unit = torch.arange(batch.n, device=batch.valid.device)
    count = batch.n
    if batch.group is not None:
        known, member = batch.group.unique(return_inverse=True)
        if len(known) >= parts:
            unit, count = member, len(known)
    part_of = unit * parts // count
    return [batch.rows(part_of == part) for part in range(parts)]


def _mean(values: list[Tensor]) -> float:
    return float(values[0] if len(values) == 1 else torch.stack(values).mean())


def _optimizer(policy: nn.Module, settings: TrainerSettings) -> torch.optim.Optimizer:
    """AdamW with a rate of its own for log Z; fused, since small networks pay per kernel."""
    rates = {
        "log_z.network": 0.1 * settings.log_z_learning_rate,
        "log_z": settings.log_z_learning_rate,
        "": settings.learning_rate,
    }
    members: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in rates}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            members[next(part for part in rates if part in name)].append(parameter)
    groups = [
        {
            "params": parameters,
            "lr": rates[prefix],
            "weight_decay": 0.0 if prefix else settings.weight_decay,
        }
        for prefix, parameters in members.items()
        if parameters
    ]
    return torch.optim.AdamW(groups, fused=True)


@contextmanager
def _graceful_stop(trainer: Trainer) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request to stop after the current step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
