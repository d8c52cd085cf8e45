"""Read a run folder into memory, finished or still running."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gflow.candidates import Candidate, as_text, stack_rewards
from gflow.mdp import Reward
from gflow.pareto import non_dominated
from gflow.store import CandidateStore, StoreError


class ReportError(RuntimeError):
    """A run folder of which no report can be made."""


@dataclass(frozen=True)
class Sample:
    """Objects the trained sampler gave for one preference.

    Attributes:
        preference: K weights.
        n: number of objects drawn, those that failed or came twice included.
        mean: mean reward vector of those that did not fail, None when all failed.
        candidates: the different objects with rewards; those that the search had found too are
            the search's own records.
    """

    preference: tuple[float, ...]
    n: int
    mean: list[float] | None
    candidates: list[Candidate]


@dataclass(frozen=True)
class Run:
    """What a run folder holds; parts that the run did not write are empty.

    Attributes:
        folder: where it lies.
        rewards: meanings of the K rewards.
        candidates: scored candidates in the order of their oracle calls.
        n_failed: unique objects on which the oracle failed.
        oracle_calls: number of objects scored.
        front: the non-dominated ones among the candidates and the samples.
        baseline: candidates of random assembly, with rewards of the same meaning.
        baseline_calls: number of objects scored for it.
        metrics: one dictionary of scalars for each logged step.
        config: settings of the run.
        environment: versions, device, seed.
        samples: one entry for each preference the trained sampler was asked for.
        card: text of CARD.md.
        known: lines of known.smi, objects known before the run.
        counted: what metrics are counted by: "step", or "round" in an active-learning session.
    """

    folder: Path
    rewards: tuple[Reward, ...]
    candidates: list[Candidate]
    n_failed: int
    oracle_calls: int
    front: list[Candidate]
    baseline: list[Candidate] = field(default_factory=list)
    baseline_calls: int = 0
    metrics: list[dict[str, float]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    card: str = ""
    known: list[str] = field(default_factory=list)
    counted: str = "step"


def read_run(folder: Path) -> Run:
    """Read the run in `folder`.

    Raises:
        ReportError: no such folder, no candidates in it, or a damaged file.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder}: there is no such run folder")
    if not (folder / "candidates.sqlite").is_file():
        raise ReportError(f"{folder}: no candidates.sqlite in it, so this is no run folder")
    try:
        with CandidateStore(folder / "candidates.sqlite") as store:
            rewards, candidates = store.rewards, store.candidates()
            n_failed = len(store.candidates("reason IS NOT NULL"))
            oracle_calls = store.oracle_calls
        baseline, baseline_calls = _read_baseline(folder / "baseline.sqlite", rewards)
    except StoreError as error:
        raise ReportError(str(error)) from error
    if not candidates:
        raise ReportError(f"{folder}: no candidate has been scored yet")
    rounds = (folder / "session.yaml").is_file()
    samples = _read_samples(folder / "samples.json", len(rewards), candidates)
    found = {candidate.key: candidate for sample in samples for candidate in sample.candidates}
    found |= {candidate.key: candidate for candidate in candidates}
    return Run(
        folder=folder,
        rewards=rewards,
        candidates=candidates,
        n_failed=n_failed,
        oracle_calls=oracle_calls,
        front=_front(list(found.values()), len(rewards)),
        baseline=baseline,
        baseline_calls=baseline_calls,
        metrics=_read_metrics(folder / "metrics.jsonl"),
        config=_parse(folder / ("session.yaml" if rounds else "config.yaml"), _yaml, dict) or {},
        environment=_parse(folder / "environment.json", json.loads, dict) or {},
        samples=samples,
        card=_parse(folder / "CARD.md", str, str) or "",
        known=(_parse(folder / "known.smi", str, str) or "").splitlines(),
        counted="round" if rounds else "step",
    )


def _parse(path: Path, parse: Callable[[str], Any], kind: type) -> Any:
    """The parsed file, or None where the run has no such file."""
    if not path.is_file():
        return None
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ReportError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if value is not None and not isinstance(value, kind):
        raise ReportError(f"{path}: expected a {kind.__name__}, found a {type(value).__name__}")
    return value


def _yaml(text: str) -> Any:
    import yaml  # type: ignore[import-untyped]

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def _read_baseline(path: Path, rewards: tuple[Reward, ...]) -> tuple[list[Candidate], int]:
    if not path.is_file():
        return [], 0
    with CandidateStore(path) as store:
        if [reward.name for reward in store.rewards] != [reward.name for reward in rewards]:
            raise ReportError(f"{path}: its rewards are not those of candidates.sqlite")
        return store.candidates(), store.oracle_calls


def _read_metrics(path: Path) -> list[dict[str, float]]:
    lines = (_parse(path, str, str) or "").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({k: float(v) for k, v in row.items() if isinstance(v, (int, float))})
        except (ValueError, AttributeError) as error:
            if number == len(lines):
                break  # a run under way, or killed, may have left half a line
            raise ReportError(f"{path}: line {number} is not a JSON object") from error
    return rows


def _front(candidates: list[Candidate], n_rewards: int) -> list[Candidate]:
    keep = non_dominated(stack_rewards(candidates, n_rewards)).tolist()
    return [candidate for candidate, kept in zip(candidates, keep, strict=True) if kept]


def _read_samples(path: Path, n_rewards: int, candidates: list[Candidate]) -> list[Sample]:
    known = {candidate.key: candidate for candidate in candidates}
    samples = []
    for entry in _parse(path, json.loads, list) or []:
        try:
            preference = _row(entry["preference"], n_rewards)
            if preference is None:
                raise ValueError("no preference")
            rows = [_row(values, n_rewards) for values in entry["rewards"]]
            found = {}
            # Folders of earlier versions say no keys.
            keys = entry.get("keys") or [as_text(item) for item in entry["objects"]]
            for key, item, rewards in zip(keys, entry["objects"], rows, strict=True):
                if key not in known and rewards is not None:
                    known[key] = _sampled(item, key, rewards, preference)
                if key in known:
                    found[key] = known[key]
            good = [row for row in rows if row is not None]
            mean = [sum(column) / len(good) for column in zip(*good, strict=True)] or None
            samples.append(Sample(preference, len(rows), mean, list(found.values())))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ReportError(f"{path}: entry {len(samples)} is malformed ({error!r})") from error
    return samples


def _sampled(
    item: Any, key: str, rewards: tuple[float, ...], preference: tuple[float, ...]
) -> Candidate:
    return Candidate(
        key=key, object=item, rewards=rewards, reason=None, oracle_call=None,
        preference=preference, inverse_temperature=None, log_reward=None, log_pf=None,
        source="the trained sampler", step=0, first_seen=0.0, last_seen=0.0, count=1,
    )  # fmt: skip


def _row(values: Sequence[float] | None, n: int) -> tuple[float, ...] | None:
    if values is None or any(value is None or math.isnan(value) for value in values):
        return None
    if len(values) != n:
        raise ValueError(f"{len(values)} numbers where {n} were expected")
    return tuple(float(value) for value in values)
