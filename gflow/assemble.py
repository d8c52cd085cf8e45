"""From a setup to the parts of a run: scorer, sampler, objective, trainer settings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from gflow.conditions import Conditions, PooledConditions, PromptConditions
from gflow.config import ConfigError, one_sentence
from gflow.estimators import log_z_bounds
from gflow.mdp import Trajectories
from gflow.objectives.policy_gradient import PolicyGradient
from gflow.oracles import OracleRunner
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
from gflow.setup import Setup, first_of, fresh_objective
from gflow.store import CandidateStore
from gflow.training import TrainerSettings

SLOW_ORACLE = 1e-3
"""Seconds per object from which worker processes pay."""


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


def trainer_settings(setup: Setup) -> TrainerSettings:
    """The run's settings, with the method's own where none are given."""
    given, method = setup.config.trainer, setup.method
    return replace(
        given,
        updates=first_of(given.updates, method, "updates", 1),
        minibatches=first_of(given.minibatches, method, "minibatches", 1),
    )


def _pooled(setup: Setup) -> Conditions | PromptConditions | PooledConditions:
    """What conditions are drawn from: all of them, or a pool that is the same in every process."""
    conditions = setup.conditions
    size = first_of(setup.config.sampling.pool, setup.method, "pool", 0)
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
    epsilon = first_of(sampling.epsilon, method, "epsilon", usual)
    # A default need not divide the batch.
    group_size = math.gcd(
        first_of(sampling.group_size, method, "group_size", 1), sampling.batch_size
    )
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
    group_size = first_of(sampling.group_size, setup.method, "group_size", 1)
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
    rounds = first_of(setup.config.sampling.redraw, setup.method, "redraw", 1)
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
