"""What a run writes down: candidates, the Pareto archive, metrics, progress."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gflow.pareto import ParetoArchive
from gflow.sampling.scoring import Scored
from gflow.store import CandidateStore
from gflow.training.checkpoint import write_atomically
from gflow.training.trainer import Event, Events, Trainer

ARCHIVE_CAPACITY = 2000


class Recorder:
    """Listens to a scorer and to a trainer's events.

    Args:
        task: the task, for keys and the reference point.
        store: where candidates go.
        folder: where `metrics.jsonl` goes; None writes no metrics.
        source: how the store calls this sampler.
    """

    def __init__(
        self, task: Any, store: CandidateStore, folder: Path | None, source: str = "policy"
    ):
        self.task, self.store, self.source = task, store, source
        self.path = None if folder is None else folder / "metrics.jsonl"
        self.archive = ParetoArchive(ARCHIVE_CAPACITY, task.reference_point, dtype=torch.float64)
        self.step = 0
        self.started = time.perf_counter()
        self.sampled = self.failed = self.new = 0

    def __call__(self, scored: Scored) -> None:
        """Store one scored batch, or every `record_every`-th where the task asks for fewer."""
        batch = scored.batch
        if self.step % self.task.record_every:
            self.store.skip(batch.n)
            return
        objects, scores = scored.objects, scored.scores
        if objects is None:
            objects = self.task.objects(batch)
        keys = scores.keys if scores is not None else self.task.keys(batch)
        assert batch.rewards is not None
        rewards = batch.rewards.double().cpu()
        good = torch.isfinite(rewards).all(-1)
        condition = batch.condition
        new = self.store.add(
            objects,
            keys,
            rewards,
            scored.reasons,
            preference=condition.preference,
            inverse_temperature=condition.inverse_temperature,
            log_pf=None if batch.log_pf_old is None else batch.log_pf_old.sum(1),
            source=self.source,
            step=self.step,
        )
        self.archive.add(rewards, good)
        self.sampled += batch.n
        self.failed += int((~good).sum())
        self.new += new

    def events(self, tensorboard: bool) -> Events:
        """The trainer's events this recorder wants."""
        events = Events(on_step=[self._count], on_eval=[self._evaluate], on_log=[self._write])
        if tensorboard:
            events.on_log.append(_tensorboard(self.path))
        if sys.stdout.isatty():
            return _with_progress(events)
        events.on_eval.append(_print_line)
        return events

    def _count(self, trainer: Trainer, info: dict[str, float]) -> None:
        self.step = trainer.step

    def _evaluate(self, trainer: Trainer, info: dict[str, float]) -> None:
        info["hypervolume"] = float(self.archive.hypervolume())
        info["front"] = float(self.archive.count)
        info["oracle_calls"] = float(self.store.oracle_calls)
        info["unique"] = self.new / max(self.sampled, 1)
        info["valid"] = 1 - self.failed / max(self.sampled, 1)
        batch = trainer.batch
        if batch is not None and batch.rewards is not None:
            for reward, mean in zip(
                self.task.oracle.rewards, batch.rewards.mean(0).tolist(), strict=True
            ):
                info[f"mean_{reward.name}"] = mean
            info["length"] = float(batch.lengths.double().mean())
        self.sampled = self.failed = self.new = 0

    def _write(self, trainer: Trainer, info: dict[str, float]) -> None:
        if self.path is None or not trainer.runtime.is_main:
            return
        seconds = time.perf_counter() - self.started
        row = {"step": trainer.step, "seconds": round(seconds, 3), **info}
        with open(self.path, "a") as file:
            file.write(json.dumps({k: _short(v) for k, v in row.items()}) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that a resumed run will take again."""
        self.step = step
        if self.path is None or not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                # A killed run may leave half a line at the end.
                continue
        text = "".join(kept)
        write_atomically(self.path, lambda file: file.write(text.encode()))


def _short(value: float) -> float | None:
    """Six digits; JSON knows no NaN."""
    return float(f"{value:.6g}") if abs(value) < float("inf") else None


def _print_line(trainer: Trainer, info: dict[str, float]) -> None:
    if trainer.runtime.is_main:
        means = [name for name in info if name.startswith("mean_")]
        shown = ["hypervolume", "front", "oracle_calls", "valid"]
        if "elbo" in info:
            shown = ["elbo", "log_z_estimate", "eubo", "effective_samples"]
        elif len(means) == 1:
            # The front is the best object, and the hypervolume how far it is from the reference.
            shown = [*means, "hypervolume", "oracle_calls", "valid"]
        text = "  ".join(f"{name} {info[name]:.6g}" for name in shown if name in info)
        print(f"step {trainer.step}  {text}", flush=True)


def _with_progress(events: Events) -> Events:
    """A progress bar that shows the latest evaluation."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    task = bar.add_task("training", note="")

    def advance(trainer: Trainer, info: dict[str, float]) -> None:
        if not bar.live.is_started:
            bar.start()
        bar.update(task, completed=trainer.step, total=trainer.goal)

    def note(trainer: Trainer, info: dict[str, float]) -> None:
        text = f"hypervolume {info['hypervolume']:.4f}  candidates {info['oracle_calls']:.0f}"
        bar.update(task, note=text)

    events.on_step.append(advance)
    events.on_eval.append(note)
    events.on_end.append(lambda trainer, info: bar.stop())
    return events


def _tensorboard(path: Path | None) -> Event:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard files need the extra gflow[log]") from error
    assert path is not None
    writer = SummaryWriter(str(path.parent / "tensorboard"))

    def write(trainer: Trainer, info: dict[str, float]) -> None:
        for name, value in info.items():
            writer.add_scalar(name, value, trainer.step)
        writer.flush()

    return write
