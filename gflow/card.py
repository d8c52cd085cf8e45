"""The card of a run: method, paper, task, objectives, seeds, results, limits."""

from __future__ import annotations

from pathlib import Path

import torch

from gflow.draw import Samples
from gflow.mdp import Reward
from gflow.pareto import hypervolume
from gflow.setup import Setup
from gflow.store import CandidateStore


def write_card(setup: Setup, folder: Path, samples: list[Samples], seconds: float) -> Path:
    """Write `CARD.md` from a finished run's store and samples."""
    config, method = setup.config, setup.method
    rewards = setup.task.oracle.rewards
    with CandidateStore(folder / "candidates.sqlite") as store:
        n_candidates, calls, front = len(store), store.oracle_calls, store.front()
        volume = _volume(setup, store)
    lines = [
        f"# {config.task}, {method.name}",
        "",
        f"**Method.** {method.summary}. {method.paper} ({method.year}, arXiv {method.arxiv}).",
        "",
        f"**Task.** `{config.task}`"
        + (f" with options {config.options}" if config.options else "")
        + f"; scalarised by `{setup.scalarization}`, inverse temperature "
        f"{setup.conditions.inverse_temperature}.",
        "",
        "**Rewards** (all maximised):",
        "",
        *[describe_reward(reward) for reward in rewards],
        "",
        f"**Seed** {config.seed}, {config.steps} steps of {config.sampling.batch_size} "
        f"trajectories, {seconds:.0f} s of training, {parameter_count(setup)} parameters.",
        "",
        "**Results**",
        "",
        f"- {calls} objects scored, {n_candidates} distinct candidates, {len(front)} on the front",
        f"- hypervolume {volume:.4f} from {list(setup.task.reference_point)}",
    ]
    baseline = folder / "baseline.sqlite"
    if baseline.is_file():
        with CandidateStore(baseline) as store:
            lines.append(
                f"- random construction, {store.oracle_calls} objects scored: "
                f"hypervolume {_volume(setup, store):.4f}"
            )
    for drawn in samples:
        lines.append(_sample_line(drawn, rewards))
    lines += [
        "",
        "**Limits.** One run with one seed. Rewards are computed, not measured: they are only as "
        "good as the oracles named above. Probabilities refer to construction sequences.",
        "",
    ]
    path = folder / "CARD.md"
    path.write_text("\n".join(lines))
    return path


def describe_reward(reward: Reward) -> str:
    """One line: name, meaning, range, unit, direction."""
    unit = f" {reward.unit}" if reward.unit else ""
    turned = "; turned round, so that more is better" if reward.flipped else ""
    meaning = reward.description or reward.name
    return f"- `{reward.name}`: {meaning}, {reward.low:g} to {reward.high:g}{unit}{turned}"


def parameter_count(setup: Setup) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in setup.policy.parameters() if p.requires_grad)


def _volume(setup: Setup, store: CandidateStore) -> float:
    points = store.rewards_tensor()
    reference = torch.tensor(setup.task.reference_point, dtype=points.dtype)
    inside = (points > reference).all(-1)
    return float(hypervolume(points[inside], reference)) if bool(inside.any()) else 0.0


def _sample_line(drawn: Samples, rewards: tuple[Reward, ...]) -> str:
    good = torch.isfinite(drawn.rewards).all(-1)
    means = drawn.rewards[good].mean(0).tolist()
    asked = "without preference"
    if drawn.condition.preference is not None:
        weights = drawn.condition.preference[0].tolist()
        asked = "asked for " + ", ".join(
            f"{reward.name} {weight:.2g}" for reward, weight in zip(rewards, weights, strict=True)
        )
    got = ", ".join(f"{r.name} {mean:.3f}" for r, mean in zip(rewards, means, strict=True))
    unique = len(set(drawn.keys))
    return (
        f"- {asked}: mean {got}; {int(good.sum())} of {len(good)} samples valid, {unique} distinct"
    )
