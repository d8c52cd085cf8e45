"""From settings to a setup: the task, the method, the policy, and what decides between them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from gflow.conditions import Conditions, InverseTemperature, PromptConditions
from gflow.config import ConfigError, RunConfig, SamplingSettings, one_sentence
from gflow.mdp import Objective
from gflow.objectives.catalog import Method, get_method
from gflow.objectives.policy_gradient.paths import scaled_clip
from gflow.policies import Anchored
from gflow.scalarize import SCALARIZATIONS
from gflow.tasks import TASKS, Task, make_task, near

DTYPES = {"float32": torch.float32, "float64": torch.float64}


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
            page = "denoising" if {"prior", "clean rewards"} & set(method.tags) else "objectives"
            raise ConfigError(
                f"method {method.name!r} needs more than settings can say: use "
                f"gflow.objectives from Python, see docs/{page}.md"
            )
        task = make_task(config.task, config.rewards, _task_options(config, method))
        if "paths" in method.defaults and getattr(task.env, "quiet", None) is None:
            raise ConfigError(
                f"method {method.name!r} fine-tunes samplers that start from noise, and task "
                f"{config.task!r} has none: see docs/denoising.md"
            )
        if "paths" in method.defaults:
            method = _on_points(method, task, config)
        scalarization = first_of(
            sampling.scalarization, method, "scalarization", task.scalarization
        )
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
        concentration = first_of(sampling.concentration, method, "concentration", 1.0)
        if task.conditions is not None:
            _refuse(
                sampling,
                f"task {config.task!r} has conditions of its own",
                inverse_temperature=(None, "1"),
                concentration=(None,),
            )
        conditions = task.conditions or Conditions(
            len(task.oracle.rewards),
            InverseTemperature.parse(str(sampling.inverse_temperature or usual)),
            concentration if method.conditional else None,
        )
        backward = first_of(config.policy.backward, method, "backward", None)
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
    replay = first_of(sampling.replay, method, "replay", 0)
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


def _on_points(method: Method, task: Task, config: RunConfig) -> Method:
    """The method with clip bounds for points of the task's size and the user's scalarization."""
    _refuse(
        config.sampling,
        f"method {method.name!r} walks its paths in its own way",
        epsilon=(None, 0.0),
        temperature=(1.0,),
        replay=(None, 0),
        pool=(None, 0),
        redraw=(None, 1),
    )
    if task.env.max_steps < 3:
        raise ConfigError(
            f"method {method.name!r} needs at least 2 steps, since the last one has no noise"
        )
    objective: Any = method.objective
    clip = scaled_clip(objective.clip, math.prod(task.env.state_shape))
    combine = "scalarized" if config.sampling.scalarization else objective.combine
    return replace(method, objective=replace(objective, clip=clip, combine=combine))


def _refuse(settings: SamplingSettings, why: str, **allowed: tuple[Any, ...]) -> None:
    """Refuse settings that would change nothing."""
    for name, values in allowed.items():
        if getattr(settings, name) not in values:
            raise ConfigError(f"sampling.{name} has no effect, since {why}: leave it out")


def first_of(chosen: Any, method: Method, name: str, otherwise: Any) -> Any:
    """What the user chose, else the method's default, else `otherwise`."""
    return method.defaults.get(name, otherwise) if chosen is None else chosen


def fresh_objective(method: Method) -> Objective:
    """The method's objective, with a memory of its own where it has one."""
    fresh = getattr(method.objective, "fresh", None)
    return method.objective if fresh is None else fresh()  # type: ignore[no-any-return]


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
