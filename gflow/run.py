"""A run from settings to results: build it, train it, resume it, sample from it."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gflow.conditions import Conditions, InverseTemperature, simplex_lattice
from gflow.config import ConfigError, RunConfig, one_sentence
from gflow.estimators import log_z_bounds
from gflow.mdp import Condition, Reward
from gflow.objectives.catalog import Method, get_method
from gflow.oracles import OracleRunner
from gflow.sampling import (
    Exploration,
    OnPolicy,
    Replay,
    Scorer,
    Strategy,
    WithReplay,
    compile_block,
    rollout,
    step_block,
)
from gflow.scalarize import SCALARIZATIONS
from gflow.seeding import generator
from gflow.store import CandidateStore
from gflow.tasks import Task, make_task, near
from gflow.training import Runtime, Trainer
from gflow.training.checkpoint import CheckpointError, list_checkpoints, write_atomically
from gflow.training.recorder import Recorder

DTYPES = {"float32": torch.float32, "float64": torch.float64}
SLOW_ORACLE = 1e-3
"""Seconds per object from which worker processes pay."""


@dataclass(frozen=True)
class Setup:
    """What training and sampling share."""

    config: RunConfig
    task: Task
    method: Method
    conditions: Conditions
    policy: nn.Module

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of parameters, conditions and noise."""
        return DTYPES[self.config.dtype]


def prepare(config: RunConfig) -> Setup:
    """Build task, method, conditions and policy, checking every setting.

    Raises:
        ConfigError: a setting is unknown or does not fit the others.
    """
    for name, value, known in (
        ("dtype", config.dtype, DTYPES),
        ("scalarization", config.sampling.scalarization, SCALARIZATIONS),
    ):
        if value not in known:
            raise ConfigError(f"{name} {value!r}: {near(value, known)}")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {config.device!r}: this machine has no CUDA device")
    try:
        method = get_method(config.method)
        task = make_task(config.task, config.rewards, config.options)
        beta = (
            config.sampling.inverse_temperature
            or task.inverse_temperature
            or method.defaults.get("inverse_temperature", "1")
        )
        concentration = config.sampling.concentration
        if method.conditional and concentration is None:
            concentration = float(str(method.defaults.get("concentration", 1.0)))
        conditions = Conditions(
            len(task.oracle.rewards),
            InverseTemperature.parse(str(beta)),
            concentration if method.conditional else None,
        )
        policy = task.make_policy(
            config.policy, conditions.encoding_size, method.needs_flow, config.seed
        )
    except ConfigError:
        raise
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(one_sentence(error)) from error
    policy = policy.to(device=config.device, dtype=DTYPES[config.dtype])
    return Setup(config, task, method, conditions, policy)


class Run:
    """A run folder being trained.

    Args:
        config: the run's settings.
        resume: continue the run in `config.out` instead of starting one there.

    Raises:
        ConfigError: bad settings, or the folder already holds a run.
        CheckpointError: nothing to resume from.
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
        self.runtime = Runtime.create(config.device)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store = CandidateStore(
            self.folder / "candidates.sqlite", setup.task.oracle.rewards, setup.task.oracle.version
        )
        self.recorder = Recorder(setup.task, self.store, self.folder)
        self.scorer = make_scorer(setup, self.store, self.recorder)
        self.trainer = Trainer(
            setup.policy,
            setup.method.objective,
            self._sampler(),
            config.trainer,
            runtime=self.runtime,
            folder=self.folder,
            events=self.recorder.events(config.tensorboard),
            extra_state={"archive": self.recorder.archive},
        )
        if resume:
            found = list_checkpoints(self.folder / "checkpoints")
            if not found:
                raise CheckpointError(f"{self.folder} has no checkpoint to resume from")
            self.trainer.load(found[-1])
            self.recorder.forget_after(self.trainer.step)
        else:
            config.save(self.folder / "config.yaml")
            write_json(self.folder / "environment.json", describe_environment(config))
            self._start_log_z()

    def _sampler(self) -> Strategy:
        config, setup = self.setup.config, self.setup
        sampling = config.sampling
        fresh = OnPolicy(
            setup.policy,  # type: ignore[arg-type]
            setup.conditions,
            self.scorer,
            sampling.batch_size,
            generator(config.seed, "rank", self.runtime.rank).initial_seed(),
            exploration=Exploration(sampling.epsilon, sampling.temperature),
            keep_log_pf=True,
            device=self.runtime.device,
            dtype=setup.dtype,
            block=compile_block() if config.compile else step_block,
        )
        if not sampling.replay:
            return fresh
        replay = Replay(sampling.replay_capacity)
        warm_up = min(1000, sampling.replay_capacity)
        return WithReplay(fresh, replay, sampling.replay, config.seed, warm_up)

    def _start_log_z(self) -> None:
        """Start log Z where a first batch puts it: far off, it would rule the first gradients."""
        if "log_z" in self.setup.method.objective.needs:
            bounds = log_z_bounds(self.setup.policy, self.trainer.sampler())  # type: ignore[arg-type]
            torch.nn.init.constant_(self.setup.policy.log_z.bias, float(bounds.elbo))  # type: ignore[union-attr, arg-type]

    def train(self, steps: int) -> None:
        """Train up to `steps` steps in all."""
        self.trainer.run(steps)

    def close(self) -> None:
        """End worker processes, close the store and leave the process group."""
        if isinstance(self.scorer.oracle, OracleRunner):
            self.scorer.oracle.close()
        self.store.close()
        self.runtime.close()


def make_scorer(setup: Setup, cache: CandidateStore | None, *listeners: Any) -> Scorer:
    """The scorer of a task: oracles on objects behind a runner with cache and workers."""
    oracle = setup.task.oracle
    settings = setup.config.oracle
    scalarization = SCALARIZATIONS[setup.config.sampling.scalarization]
    if oracle.on_states:
        return Scorer(setup.task.env, oracle, scalarization, listeners)
    workers = settings.workers
    if workers < 0:
        workers = available_processors() if oracle.seconds >= SLOW_ORACLE else 0
    runner = OracleRunner(
        oracle,
        setup.task.key,
        workers=workers,
        timeout=settings.timeout,
        cache=cache,
        max_failed=settings.max_failed,
    )
    return Scorer(setup.task.env, runner, scalarization, listeners)


def available_processors() -> int:
    """Processors this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


class Samples(NamedTuple):
    """Objects drawn from a trained sampler.

    Attributes:
        objects: n decoded objects.
        keys: n canonical keys.
        rewards: [n, K], NaN where the oracle failed.
        reasons: n reasons of failure, or None.
        condition: the n conditions asked for.
        log_pf: [n], log-probability of each trajectory.
    """

    objects: list[Any]
    keys: list[str]
    rewards: Tensor
    reasons: list[str | None]
    condition: Condition
    log_pf: Tensor


def load_sampler(folder: Path) -> Setup:
    """The trained policy of a finished or running run, from its newest checkpoint.

    Raises:
        ConfigError: no run folder.
        CheckpointError: no usable checkpoint yet.
    """
    from gflow.training import load_checkpoint

    setup = prepare(RunConfig.load(folder / "config.yaml"))
    found = list_checkpoints(folder / "checkpoints")
    if not found:
        raise CheckpointError(f"{folder} has no checkpoint yet: wait for the run's first one")
    state = load_checkpoint(found[-1], setup.config.device)
    try:
        setup.policy.load_state_dict(state["policy"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{found[-1]} does not fit {folder}/config.yaml: {error}") from error
    return setup


def draw(
    setup: Setup,
    preference: Tensor | None,
    n: int,
    seed: int,
    inverse_temperature: float | None = None,
    store: CandidateStore | None = None,
) -> Samples:
    """n objects for one preference [K] (none without preferences), scored.

    Args:
        setup: from `prepare` or `load_sampler`.
        preference: weights that sum to one, or None for preferences drawn as in training.
        n: number of objects.
        seed: seeds the draw.
        inverse_temperature: beta; drawn as in training when None.
        store: known outcomes, which are not scored again.
    """
    conditions, dtype, device = setup.conditions, setup.dtype, setup.config.device
    stream = generator(seed, "draw")
    condition = conditions.sample(n, stream, dtype)
    weights, beta = condition.preference, condition.inverse_temperature
    if inverse_temperature is not None:
        if conditions.inverse_temperature.kind == "constant":
            raise ConfigError("this run has a fixed inverse temperature: train with a range to ask")
        beta = torch.full((n,), inverse_temperature, dtype=dtype)
    if preference is not None:
        if not conditions.with_preference:
            raise ConfigError(f"method {setup.method.name!r} was trained without preferences")
        weights = preference.to(dtype).expand(n, -1)
    condition = conditions.make(weights, beta).to(device)
    batch = rollout(
        setup.policy,  # type: ignore[arg-type]
        setup.task.env.initial(n, device),
        condition,
        generator(seed, "rollout", device=device),
        keep_log_pf=True,
    )
    assert batch.log_pf_old is not None
    objects = setup.task.env.decode(batch.terminal)
    keys = [setup.task.key(item) for item in objects]
    scorer = make_scorer(setup, store)
    reasons: list[str | None] = [None] * n
    if isinstance(scorer.oracle, OracleRunner):
        with scorer.oracle as runner:
            scores = runner.evaluate(objects)
        rewards, reasons = scores.rewards, scores.reasons
    else:
        rewards = scorer.oracle(batch.terminal)
    return Samples(objects, keys, rewards, reasons, condition, batch.log_pf_old.sum(1))


def parse_preference(text: str, rewards: Sequence[Reward]) -> Tensor:
    """[K] weights from "qed=0.7,sa=0.3" or "0.7,0.3"; unnamed rewards get 0.

    Raises:
        ConfigError: unknown name, no number, negative, or not summing to one.
    """
    names = [reward.name for reward in rewards]
    parts = [part.strip() for part in text.split(",") if part.strip()]
    values = [0.0] * len(names)
    for position, part in enumerate(parts):
        name, _, number = part.rpartition("=")
        if not name and len(parts) != len(names):
            raise ConfigError(f"preference {text!r}: write name=weight for {', '.join(names)}")
        if name and name not in names:
            raise ConfigError(f"preference {text!r}: no reward {name!r}, {near(name, names)}")
        try:
            values[names.index(name) if name else position] = float(number)
        except ValueError:
            raise ConfigError(f"preference {text!r}: {number!r} is no number") from None
    if min(values) < 0 or abs(sum(values) - 1) > 1e-4:
        raise ConfigError(f"preference {text!r}: weights must not be negative and must sum to 1")
    return torch.tensor(values, dtype=torch.float64)


def report_preferences(n_rewards: int) -> Tensor:
    """Preferences the report asks the trained sampler for, [P, K]."""
    if n_rewards == 2:
        return simplex_lattice(2, 5)
    corners = torch.eye(n_rewards, dtype=torch.float64)
    middle = torch.full((1, n_rewards), 1 / n_rewards, dtype=torch.float64)
    halves = 0.5 * (corners + corners.roll(1, 0)) if n_rewards > 2 else corners[:0]
    return torch.cat([corners, halves, middle])


def write_samples(setup: Setup, folder: Path, n: int, store: CandidateStore) -> list[Samples]:
    """Ask the trained sampler for every report preference and write `samples.json`."""
    wanted: list[Tensor | None] = [None]
    if setup.conditions.with_preference:
        wanted = list(report_preferences(setup.conditions.n_rewards))
    drawn, rows = [], []
    for number, preference in enumerate(wanted):
        samples = draw(setup, preference, n, setup.config.seed + number, store=store)
        drawn.append(samples)
        rows.append(
            {
                "preference": [] if preference is None else preference.tolist(),
                "inverse_temperature": float(samples.condition.inverse_temperature.mean()),
                "objects": samples.objects,
                "rewards": [
                    None if any(value != value for value in row) else row
                    for row in samples.rewards.tolist()
                ],
            }
        )
    write_json(folder / "samples.json", rows)
    return drawn


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
    write_atomically(path, lambda file: file.write(json.dumps(value, indent=1).encode()))
