"""Ask a trained sampler for objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflow.assemble import make_scorer
from gflow.conditions import Conditions, InverseTemperature, simplex_lattice
from gflow.config import ConfigError, RunConfig
from gflow.mdp import Condition, Reward
from gflow.oracles import OracleRunner
from gflow.run import write_json
from gflow.sampling import rollout
from gflow.seeding import generator
from gflow.setup import Setup, prepare
from gflow.store import CandidateStore
from gflow.tasks import near
from gflow.training import CheckpointError, load_checkpoint
from gflow.training.checkpoint import list_checkpoints


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

    Methods on denoising paths learn from steps with noise; what they have learned is drawn along
    the deterministic path, as it is evaluated everywhere, and log_pf is that of its start.

    Args:
        setup: from `prepare` or `load_sampler`.
        preference: weights that sum to one, or None for preferences drawn as in training.
        n: number of objects.
        seed: seeds the draw.
        inverse_temperature: beta; drawn as in training when None.
        store: known outcomes, which are not scored again.

    Raises:
        ConfigError: nothing to draw, or a preference or inverse temperature this sampler was not
            trained for.
    """
    conditions, dtype, device = setup.conditions, setup.dtype, setup.config.device
    if n < 1:
        raise ConfigError(f"the number of objects to draw must be at least 1, not {n}")
    stream = generator(seed, "draw")
    condition = conditions.sample(n, stream, dtype)
    weights, beta = condition.preference, condition.inverse_temperature
    if inverse_temperature is not None:
        _check_inverse_temperature(conditions.inverse_temperature, inverse_temperature)
        beta = torch.full((n,), inverse_temperature, dtype=dtype)
    if preference is not None:
        if not conditions.with_preference:
            raise ConfigError(f"method {setup.method.name!r} was trained without preferences")
        weights = preference.to(dtype).expand(n, -1)
    if isinstance(conditions, Conditions):
        condition = conditions.make(weights, beta)
    else:
        condition = conditions.prefer(condition, weights, beta)
    condition = condition.to(device)
    with _without_noise(setup) as policy:
        batch = rollout(
            policy,
            setup.task.env.begin(condition, device),
            condition,
            generator(seed, "rollout", device=device),
            keep_log_pf=True,
        )
    assert batch.log_pf_old is not None
    objects = setup.task.objects(batch)
    scorer = make_scorer(setup, store)
    if isinstance(scorer.oracle, OracleRunner):
        with scorer.oracle as runner:
            scores = runner.evaluate(objects)
        keys, rewards, reasons = scores.keys, scores.rewards, scores.reasons
    else:
        keys = setup.task.keys(batch)
        rewards, reasons = scorer.rewards(batch)
    return Samples(objects, keys, rewards, reasons, condition, batch.log_pf_old.sum(1))


@contextmanager
def _without_noise(setup: Setup) -> Iterator[Any]:
    """The policy; those of methods on denoising paths on the deterministic schedule."""
    if "paths" not in setup.method.defaults:
        yield setup.policy
        return
    from gflow.policies.denoiser import DenoiserPolicy, on_schedule

    assert isinstance(setup.policy, DenoiserPolicy) and setup.policy.env.quiet is not None
    silent = torch.zeros_like(setup.policy.env.quiet.a, dtype=torch.bool)
    with on_schedule(setup.policy, setup.policy.env.only(silent)) as policy:
        yield policy


def _check_inverse_temperature(trained: InverseTemperature, asked: float) -> None:
    if trained.kind == "constant":
        raise ConfigError("this run has a fixed inverse temperature: train with a range to ask")
    low = trained.a if "uniform" in trained.kind else 0.0
    if not low <= asked <= trained.high or asked <= 0:
        raise ConfigError(
            f"inverse temperature {asked:g}: this run was trained from {low:g} to {trained.high:g}"
        )


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


def write_samples(setup: Setup, folder: Path, store: CandidateStore) -> list[Samples]:
    """Ask the trained sampler for every report preference and write `samples.json`.

    A sampler without preferences is asked once; its objects stand for even weights.
    """
    n_rewards = setup.conditions.n_rewards
    even = torch.full((n_rewards,), 1 / n_rewards)
    wanted: list[Tensor | None] = [None]
    if setup.conditions.with_preference:
        wanted = list(report_preferences(n_rewards))
    drawn, rows = [], []
    for number, preference in enumerate(wanted):
        seed = setup.config.seed + number
        samples = draw(setup, preference, setup.config.samples, seed, store=store)
        drawn.append(samples)
        rows.append(
            {
                "preference": (even if preference is None else preference).tolist(),
                "inverse_temperature": float(samples.condition.inverse_temperature.mean()),
                "objects": samples.objects,
                "keys": samples.keys,
                "rewards": [
                    None if any(value != value for value in row) else row
                    for row in samples.rewards.tolist()
                ],
            }
        )
    write_json(folder / "samples.json", rows)
    return drawn
