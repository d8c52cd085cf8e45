"""A run from settings to results: build it, train it, resume it, sample from it."""

from __future__ import annotations

import json
import math
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gflow.conditions import Conditions, InverseTemperature, PooledConditions, PromptConditions
from gflow.config import ConfigError, RunConfig, one_sentence
from gflow.estimators import log_z_bounds
from gflow.export import read_objects
from gflow.mdp import Objective, Trajectories
from gflow.objectives.catalog import Method, get_method
from gflow.objectives.policy_gradient import PolicyGradient
from gflow.oracles import OracleRunner
from gflow.policies import Anchored
from gflow.sampling import (
    Exploration,
    Hindsight,
    Informative,
    OnPolicy,
    Replay,
    Scorer,
    Strategy,
    WithReplay,
    compile_block,
    step_block,
)
from gflow.scalarize import SCALARIZATIONS
from gflow.seeding import generator
from gflow.store import CandidateStore
from gflow.tasks import TASKS, Task, make_task, near
from gflow.training import Events, Runtime, Trainer, TrainerSettings
from gflow.training.checkpoint import list_checkpoints, write_atomically
from gflow.training.recorder import Recorder
from gflow.training.watch import LogZWatch

DTYPES = {"float32": torch.float32, "float64": torch.float64}
SLOW_ORACLE = 1e-3
"""Seconds per object from which worker processes pay."""
WATCHED = 512
"""Samples that bounds of log Z are taken from."""


@dataclass(frozen=True)
class Setup:
    """What training and sampling share.

    Attributes:
        config: the run's settings.
        task: the problem.
        method: the method.
        objective: the method's objective, with a memory of its own where it has one.
        conditions: what preferences and inverse temperatures are drawn from.
        policy: the network.
        scalarization: key of `SCALARIZATIONS`.
        replay: replayed trajectories added to each batch.
    """

    config: RunConfig
    task: Task
    method: Method
    objective: Objective
    conditions: Conditions | PromptConditions
    policy: nn.Module
    scalarization: str
    replay: int

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of parameters, conditions and noise."""
        return DTYPES[self.config.dtype]


def prepare(config: RunConfig) -> Setup:
    """Build task, method, conditions and policy, checking every setting.

    Raises:
        ConfigError: a setting is unknown or does not fit the others.
    """
    sampling = config.sampling
    if config.dtype not in DTYPES:
        raise ConfigError(f"dtype {config.dtype!r}: {near(config.dtype, DTYPES)}")
    _check_device(config.device)
    try:
        method = get_method(config.method)
        if method.requires or {"outcome-conditional", "clean rewards"} & set(method.tags):
            raise ConfigError(
                f"method {method.name!r} needs more than settings can say: use "
                "gflow.objectives from Python, see docs/objectives.md"
            )
        task = make_task(config.task, config.rewards, _task_options(config, method))
        if "paths" in method.defaults and getattr(task.env, "quiet", None) is None:
            raise ConfigError(
                f"method {method.name!r} fine-tunes samplers that start from noise, and task "
                f"{config.task!r} has none: see docs/denoising.md"
            )
        scalarization = _first(sampling.scalarization, method, "scalarization", task.scalarization)
        if scalarization not in SCALARIZATIONS:
            raise ConfigError(
                f"scalarization {scalarization!r}: {near(scalarization, SCALARIZATIONS)}"
            )
        if method.needs_partial_rewards and not task.partial_rewards:
            raise ConfigError(
                f"method {method.name!r} needs rewards of unfinished objects, "
                f"which task {config.task!r} does not have"
            )
        _check_ranges(task, scalarization)
        # An order of rewards does not change with their exponent.
        usual = "1" if "order" in method.tags else task.inverse_temperature
        usual = usual or str(method.defaults.get("inverse_temperature", "1"))
        concentration = _first(sampling.concentration, method, "concentration", 1.0)
        conditions = task.conditions or Conditions(
            len(task.oracle.rewards),
            InverseTemperature.parse(str(sampling.inverse_temperature or usual)),
            concentration if method.conditional else None,
        )
        backward = _first(config.policy.backward, method, "backward", None)
        if backward == "tree" and not task.env.tree:
            raise ConfigError(f"backward 'tree': objects of task {config.task!r} have many parents")
        policy = task.make_policy(
            replace(config.policy, backward=backward),
            conditions.encoding_size,
            method.needs_flow,
            method.needs_energy,
            config.seed,
        )
    except ConfigError:
        raise
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(one_sentence(error)) from error
    if getattr(method.objective, "needs_reference", False) and not hasattr(policy, "reference"):
        policy = Anchored(policy)
    policy = policy.to(device=config.device, dtype=DTYPES[config.dtype])
    replay = _first(sampling.replay, method, "replay", 0)
    objective = fresh_objective(method)
    return Setup(config, task, method, objective, conditions, policy, scalarization, replay)


def _task_options(config: RunConfig, method: Method) -> dict[str, Any]:
    """The task's options; the method's step sampler and likelihood unless the user chose them."""
    known = getattr(TASKS.get(config.task), "__annotations__", {})
    options, usual = dict(config.options), method.defaults
    schedule, likelihood = usual.get("schedule"), usual.get("likelihood")
    if isinstance(schedule, dict) and "sampler" in known and "sampler" not in options:
        options = {**schedule, **options}
    if likelihood is not None and "likelihood" in known:
        options.setdefault("likelihood", likelihood)
    return options


def _first(chosen: Any, method: Method, name: str, otherwise: Any) -> Any:
    """What the user chose, else the method's default, else `otherwise`."""
    return method.defaults.get(name, otherwise) if chosen is None else chosen


def _check_ranges(task: Task, scalarization: str) -> None:
    if scalarization == "log_linear":
        return
    highest = 1.0 if scalarization == "tchebycheff" else math.inf
    for reward in task.oracle.rewards:
        if reward.low < 0 or reward.high > highest + 1e-6:
            raise ConfigError(
                f"scalarization {scalarization!r} takes rewards from 0 to {highest:g}, and "
                f"{reward.name!r} ranges from {reward.low:g} to {reward.high:g}"
            )


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r}: choose cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: this machine has no CUDA device")


def try_out(setup: Setup) -> None:
    """Call the method on one batch with made-up rewards, before anything is written.

    Raises:
        ConfigError: the method refuses the task or the settings.
    """

    def made_up(batch: Trajectories) -> Trajectories:
        zeros = torch.zeros(batch.states.shape[:2], dtype=setup.dtype, device=setup.config.device)
        batch.rewards = zeros[:, :1].expand(-1, setup.conditions.n_rewards)
        batch.log_reward = zeros[:, 0]
        batch.partial_log_reward = zeros if setup.method.needs_partial_rewards else None
        return batch

    try:
        draw = _on_paths if "paths" in setup.method.defaults else _fresh
        batch = draw(setup, made_up, setup.config.seed)()
        with warnings.catch_warnings():
            # The made-up rewards are all equal, which says nothing about the real ones.
            warnings.simplefilter("ignore", RuntimeWarning)
            fresh_objective(setup.method)(setup.policy, batch)  # type: ignore[arg-type]
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"method {setup.method.name!r}: {one_sentence(error)}") from error


def fresh_objective(method: Method) -> Objective:
    """The method's objective, with a memory of its own where it has one."""
    fresh = getattr(method.objective, "fresh", None)
    return method.objective if fresh is None else fresh()  # type: ignore[no-any-return]


def trainer_settings(setup: Setup) -> TrainerSettings:
    """The run's settings, with the method's own where none are given."""
    given, method = setup.config.trainer, setup.method
    return replace(
        given,
        updates=_first(given.updates, method, "updates", 1),
        minibatches=_first(given.minibatches, method, "minibatches", 1),
    )


def _pooled(setup: Setup) -> Conditions | PromptConditions | PooledConditions:
    """What conditions are drawn from: all of them, or a pool that is the same in every process."""
    conditions = setup.conditions
    size = _first(setup.config.sampling.pool, setup.method, "pool", 0)
    if not size or not isinstance(conditions, Conditions) or not conditions.encoding_size:
        return conditions
    drawn = conditions.sample(size, generator(setup.config.seed, "pool"), setup.dtype)
    return PooledConditions(conditions, drawn, getattr(setup.objective, "priority", None))


def _fresh(
    setup: Setup, score: Callable[[Trajectories], Trajectories], seed: int, block: Any = step_block
) -> OnPolicy:
    """The current policy's trajectories."""
    sampling, method = setup.config.sampling, setup.method
    usual = 0.0 if setup.task.env.continuous else 0.1
    epsilon = _first(sampling.epsilon, method, "epsilon", usual)
    # A default need not divide the batch.
    group_size = math.gcd(_first(sampling.group_size, method, "group_size", 1), sampling.batch_size)
    return OnPolicy(
        setup.policy,  # type: ignore[arg-type]
        _pooled(setup),
        score,
        sampling.batch_size,
        seed,
        exploration=Exploration(epsilon, sampling.temperature),
        cooling=sampling.cooling,
        group_size=group_size,
        keep_log_pf=True,
        device=setup.config.device,
        dtype=setup.dtype,
        block=block,
    )


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


def make_sampler(setup: Setup, scorer: Scorer, seed: int) -> Strategy:
    """Where the batches of a run come from: fresh, relabelled and replayed as the settings say."""
    config = setup.config
    if "paths" in setup.method.defaults:
        return _on_paths(setup, scorer, seed)
    block = compile_block() if config.compile else step_block
    sampler: Strategy = _fresh(setup, scorer, seed, block)
    sampler = _redrawn(setup, sampler)
    conditions = setup.conditions
    directed = setup.scalarization == "focus" and conditions.with_preference
    if directed and isinstance(conditions, Conditions):
        sampler = Hindsight(sampler, conditions, config.seed)
    if not setup.replay:
        return sampler
    capacity = config.sampling.replay_capacity
    replay = Replay(capacity)
    return WithReplay(sampler, replay, setup.replay, config.seed, min(setup.replay, capacity))


def _on_paths(setup: Setup, score: Callable[[Trajectories], Trajectories], seed: int) -> Strategy:
    """Denoising paths with noise where the method wants it."""
    from gflow.sampling.paths import OnPaths

    sampling, paths = setup.config.sampling, setup.method.defaults["paths"]
    group_size = _first(sampling.group_size, setup.method, "group_size", 1)
    return OnPaths(
        setup.policy,  # type: ignore[arg-type]
        setup.conditions,
        score,
        sampling.batch_size,
        seed,
        group_size=math.gcd(group_size, sampling.batch_size),
        device=setup.config.device,
        dtype=setup.dtype,
        **paths,  # type: ignore[arg-type]
    )


def _redrawn(setup: Setup, sampler: Strategy) -> Strategy:
    """The strategy, redrawing groups without signal where the settings say so."""
    rounds = _first(setup.config.sampling.redraw, setup.method, "redraw", 1)
    objective = setup.method.objective
    if rounds == 1:
        return sampler
    if not isinstance(objective, PolicyGradient):
        raise ConfigError(f"method {setup.method.name!r} has no groups to draw again")
    teaches = objective.advantage.informative
    return Informative(sampler, lambda batch: teaches(setup.policy, batch), rounds)  # type: ignore[arg-type]


def start_log_z(setup: Setup, sampler: Strategy) -> None:
    """Start log Z where a first batch puts it: far off, it would rule the first gradients."""
    if "log_z" in setup.method.objective.needs:
        bounds = log_z_bounds(setup.policy, sampler())  # type: ignore[arg-type]
        torch.nn.init.constant_(setup.policy.log_z.bias, float(bounds.elbo))  # type: ignore[union-attr, arg-type]


def make_scorer(setup: Setup, cache: CandidateStore | None, *listeners: Any) -> Scorer:
    """The scorer of a task: oracles on objects behind a runner with cache and workers."""
    oracle = setup.task.oracle
    settings = setup.config.oracle
    scalarization = SCALARIZATIONS[setup.scalarization]
    if oracle.on_states:
        partial = setup.method.needs_partial_rewards
        return Scorer(setup.task.env, oracle, scalarization, listeners, partial)
    workers = settings.workers
    if workers < 0:
        slow = oracle.seconds >= SLOW_ORACLE and settings.cluster is None
        workers = available_processors() if slow else 0
    runner = OracleRunner(
        oracle,
        setup.task.key,
        workers=workers,
        timeout=settings.timeout,
        cache=cache,
        max_failed=settings.max_failed,
        cluster=settings.cluster,
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
