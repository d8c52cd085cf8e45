"""A run from settings to results: build it, train it, resume it."""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gflow.assemble import (
    make_sampler,
    make_scorer,
    start_log_z,
    trainer_settings,
    try_out,
)
from gflow.conditions import Conditions
from gflow.config import ConfigError, RunConfig
from gflow.export import read_objects
from gflow.oracles import OracleRunner
from gflow.sampling import (
    Exploration,
    OnPolicy,
)
from gflow.seeding import generator
from gflow.setup import Setup, prepare
from gflow.store import CandidateStore
from gflow.training import Events, Runtime, Trainer
from gflow.training.checkpoint import list_checkpoints, write_atomically
from gflow.training.recorder import Recorder
from gflow.training.watch import LogZWatch

WATCHED = 512
"""Samples that bounds of log Z are taken from."""


class Run:
    """A run folder being trained.

    Args:
        config: the run's settings.
        resume: continue the run in `config.out` instead of starting one there.

    Raises:
        ConfigError: bad settings, or the folder already holds a run.
        CheckpointError: the newest checkpoint cannot be used.
        StoreError: the file of known objects cannot be read.
    """

    def __init__(self, config: RunConfig, resume: bool = False):
        torch.set_num_threads(config.threads)
        self.folder = Path(config.out)
        if not resume and (self.folder / "config.yaml").exists():
            raise ConfigError(
                f"{self.folder} already holds a run: go on with `gflow resume {self.folder}`, "
                "or choose another --out"
            )
        self.setup = setup = prepare(config)
        if config.known is not None:
            read_objects(config.known)
        try_out(setup)
        self.runtime = Runtime.create(config.device)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store = CandidateStore(
            self.folder / "candidates.sqlite", setup.task.oracle.rewards, setup.task.oracle.version
        )
        self.recorder = Recorder(setup.task, self.store, self.folder)
        self.scorer = make_scorer(setup, self.store, self.recorder)
        self.trainer = Trainer(
            setup.policy,
            setup.objective,
            make_sampler(setup, self.scorer, self._seed()),
            trainer_settings(setup),
            runtime=self.runtime,
            folder=self.folder,
            events=self._events(),
            extra_state={"archive": self.recorder.archive},
        )
        if not resume:
            config.save(self.folder / "config.yaml")
            write_json(self.folder / "environment.json", describe_environment(config))
        if found := list_checkpoints(self.folder / "checkpoints"):
            self.trainer.load(found[-1])
        else:
            # A run that was stopped before its first checkpoint starts again.
            start_log_z(setup, self.trainer.sampler)
        self.recorder.forget_after(self.trainer.step)

    def _events(self) -> Events:
        """What listens to the trainer; bounds of log Z come before what prints or writes them."""
        config, setup = self.setup.config, self.setup
        events = self.recorder.events(config.tensorboard)
        energy = getattr(setup.task.oracle, "energy", None)
        conditions = setup.conditions
        watched = energy is not None and not conditions.encoding_size
        if watched and isinstance(conditions, Conditions):
            watch = LogZWatch(
                setup.policy,  # type: ignore[arg-type]
                conditions,
                make_scorer(setup, None),
                WATCHED,
                config.seed,
                energy,
                device=config.device,
                dtype=setup.dtype,
            )
            events.on_eval.insert(0, watch)
        return events

    def _end_workers(self) -> None:
        if isinstance(self.scorer.oracle, OracleRunner):
            self.scorer.oracle.close()

    def _seed(self) -> int:
        return generator(self.setup.config.seed, "rank", self.runtime.rank).initial_seed()

    def train(self, steps: int) -> None:
        """Train up to `steps` steps in all."""
        self.trainer.run(steps)
        # What follows has workers of its own, and a cluster may have no room for both.
        self._end_workers()

    def close(self) -> None:
        """End worker processes, close the store and leave the process group."""
        self._end_workers()
        self.store.close()
        self.runtime.close()


def run_baseline(setup: Setup, folder: Path, calls: int) -> None:
    """Random construction until `calls` distinct objects are scored, in `baseline.sqlite`."""
    task, config = setup.task, setup.config
    rewards, oracle_version = task.oracle.rewards, task.oracle.version
    with CandidateStore(folder / "baseline.sqlite", rewards, oracle_version) as store:
        recorder = Recorder(task, store, None, source="random")
        scorer = make_scorer(setup, store, recorder)
        n = max(config.sampling.batch_size, 256)
        sampler = OnPolicy(
            setup.policy,  # type: ignore[arg-type]
            setup.conditions,
            scorer,
            n,
            generator(config.seed, "baseline").initial_seed(),
            exploration=Exploration(epsilon=1.0),
            device=config.device,
            dtype=setup.dtype,
        )
        stalled = 0
        while store.oracle_calls < calls and stalled < 20:
            before = store.oracle_calls
            sampler()
            stalled = stalled + 1 if store.oracle_calls == before else 0
        if isinstance(scorer.oracle, OracleRunner):
            scorer.oracle.close()


def describe_environment(config: RunConfig) -> dict[str, Any]:
    """Versions, device and seed of this run."""
    packages = {}
    for name in ("gflow", "torch", "numpy", "rdkit", "moocore"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "device": config.device,
        "dtype": config.dtype,
        "threads": config.threads,
        "seed": config.seed,
    }


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically."""
    write_atomically(
        path, lambda file: file.write(json.dumps(value, indent=1, default=_as_list).encode())
    )


def _as_list(value: Any) -> Any:
    return value.tolist()
