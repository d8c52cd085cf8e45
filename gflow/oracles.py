"""Run a reward function well: cache, worker processes, timeouts, and failures as data.

An oracle maps objects to reward vectors and may be slow, crash, hang or return nonsense. The
runner turns every such accident into a recorded failure of the one object that caused it.
"""

from __future__ import annotations

import difflib
import importlib
import pickle
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from gflow.mdp import Oracle, Reward
from gflow.workers import ProcessWorker, Worker, WorkerError

Outcome = tuple[float, ...] | str
"""Rewards of one object, or the reason why it has none."""

# A chunk is long enough to hide the round trip to a worker, short enough to balance the load.
_CHUNK_SECONDS = 0.1


class OracleError(RuntimeError):
    """An oracle that cannot be used, or that failed on too much of a batch.

    Attributes:
        scores: the scores of that batch, to be stored before the run stops; None where the
            oracle could not be started at all.
    """

    def __init__(self, message: str, scores: Scores | None = None) -> None:
        super().__init__(message)
        self.scores = scores


class Cache(Protocol):
    """Outcomes known from earlier; `gflow.store.CandidateStore` is one."""

    def lookup(self, keys: Sequence[str]) -> Mapping[str, Outcome]:
        """The known outcomes among `keys`; keys never scored are left out."""


@dataclass(frozen=True)
class Scores:
    """What a runner says about n objects, in their order.

    Attributes:
        rewards: [n, K] float64, a row of NaN where the object could not be scored.
        reasons: [n], why a row failed, None where it did not.
        keys: [n], canonical keys.
        fresh: number of distinct objects that were really scored, not found in the cache.
    """

    rewards: Tensor
    reasons: list[str | None]
    keys: list[str]
    fresh: int


class OracleRunner:
    """Scores batches of objects, each distinct object once.

    Args:
        oracle: the reward function on decoded objects.
        key: canonical key of an object; an object whose key raises is recorded as failed.
        workers: number of worker processes; 0 scores in this process. An oracle that takes
            less than about 10 ms per object gains nothing from workers.
        timeout: seconds one object may take; a worker that hangs is killed and replaced.
            Needs a process to kill, so it implies one worker. None waits for ever.
        cache: outcomes of earlier batches and runs; None remembers nothing between batches.
        max_failed: largest tolerated share, in (0, 1], of failed distinct objects in a batch.
            A single failure is always tolerated.
        cluster: a Ray cluster to run the workers on: "auto" for the one this machine belongs to,
            "local", or an address (extra gflow[distributed]); the oracle must be importable there.
            With workers=0 it takes one worker for each of its processors.

    Raises:
        ValueError: a setting is out of range, or the oracle scores states.
        OracleError: the oracle cannot be sent to worker processes, or there is no such cluster.
    """

    def __init__(
        self,
        oracle: Oracle,
        key: Callable[[object], str],
        *,
        workers: int = 0,
        timeout: float | None = None,
        cache: Cache | None = None,
        max_failed: float = 0.5,
        cluster: str | None = None,
    ) -> None:
        if oracle.on_states:
            raise ValueError(f"{oracle_name(oracle)} scores states, not objects: call it directly")
        if not oracle.rewards:
            raise ValueError(f"{oracle_name(oracle)} declares no rewards")
        if workers < 0:
            raise ValueError(f"workers must be 0 or more, not {workers}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout}")
        if not 0 < max_failed <= 1:
            raise ValueError(f"max_failed must lie in (0, 1], not {max_failed}")
        self.oracle = oracle
        self.key = key
        self.timeout = timeout
        self.cache = cache
        self.max_failed = max_failed
        self._new_worker: Callable[[Any, bytes], Worker] = ProcessWorker
        if cluster is not None:
            workers = self._join(cluster, workers)
        self._n_workers = workers if timeout is None else max(workers, 1)
        self._workers: list[Worker] = []
        self._seconds = max(oracle.seconds, 1e-6)
        self._pickled = _pickled(oracle) if self._n_workers else b""

    def evaluate(self, objects: Sequence[Any]) -> Scores:
        """Score a batch.

        Raises:
            OracleError: more than `max_failed` of the distinct objects failed (the scores are
                in its `scores`), or worker processes cannot load the oracle.
        """
        outcomes: dict[str, Outcome] = {}
        distinct: dict[str, Any] = {}
        keys: list[str] = []
        for item in objects:
            try:
                key = self.key(item)
            except Exception as error:
                key = f"invalid: {item!r}"
                outcomes[key] = _reason(error)
            keys.append(key)
            distinct.setdefault(key, item)
        if self.cache is not None:
            outcomes.update(self.cache.lookup([key for key in distinct if key not in outcomes]))
        fresh = [key for key in distinct if key not in outcomes]
        if fresh:
            score = self._score_in_workers if self._n_workers else self._score_here
            answers = score([distinct[key] for key in fresh])
            outcomes.update(zip(fresh, answers, strict=True))
        scores = self._collect(keys, outcomes, len(fresh))
        self._check_share([outcomes[key] for key in distinct], scores)
        return scores

    def close(self) -> None:
        """End the worker processes; the next batch starts new ones."""
        while self._workers:
            self._workers.pop().kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _join(self, cluster: str, workers: int) -> int:
        from gflow.cluster import RayWorker, connect

        try:
            processors = connect(cluster)
        except (ImportError, ConnectionError, ValueError, RuntimeError) as error:
            raise OracleError(f"cluster {cluster!r}: {_reason(error)}") from error
        self._new_worker = RayWorker
        return workers or processors

    def _score_here(self, objects: list[Any]) -> list[Outcome]:
        answer = attempt(self.oracle, objects)
        if isinstance(answer, str):
            if len(objects) == 1:
                return [answer]
            return [outcome for item in objects for outcome in self._score_here([item])]
        return answer

    def _score_in_workers(self, objects: list[Any]) -> list[Outcome]:
        outcomes: list[Outcome] = [""] * len(objects)
        # Members of a chunk that failed as a whole come back singly, to find the culprit.
        pending, singles = deque(range(len(objects))), deque[int]()
        try:
            while len(self._workers) < self._n_workers:
                self._workers.append(self._new_worker(attempt, self._pickled))
            while True:
                for place, worker in enumerate(self._workers):
                    if worker.dead:
                        worker = self._new_worker(attempt, self._pickled)
                        self._workers[place] = worker
                    if worker.chunk or not (pending or singles):
                        continue
                    source = singles or pending
                    size = 1 if singles else self._chunk_size(len(pending))
                    chunk = [source.popleft() for _ in range(size)]
                    worker.send(chunk, [objects[index] for index in chunk], self.timeout)
                busy = [worker for worker in self._workers if worker.chunk]
                if not busy:
                    return outcomes
                for chunk, answer, seconds in type(busy[0]).answers(busy):
                    self._seconds = max(seconds / len(chunk), 1e-6)
                    if not isinstance(answer, str):
                        for index, outcome in zip(chunk, answer, strict=True):
                            outcomes[index] = outcome
                    elif len(chunk) == 1:
                        outcomes[chunk[0]] = answer
                    else:
                        singles.extend(chunk)
        except BaseException as error:
            self.close()  # answers still under way must not meet the next batch
            if isinstance(error, WorkerError):
                raise OracleError(f"{oracle_name(self.oracle)}: {error}") from error
            raise

    def _chunk_size(self, waiting: int) -> int:
        share = waiting // (2 * self._n_workers)
        return max(1, min(share, int(_CHUNK_SECONDS / self._seconds)))

    def _collect(self, keys: list[str], outcomes: dict[str, Outcome], fresh: int) -> Scores:
        failed = (float("nan"),) * len(self.oracle.rewards)
        found = [outcomes[key] for key in keys]
        rows = [failed if isinstance(outcome, str) else outcome for outcome in found]
        rewards = torch.tensor(rows, dtype=torch.float64).view(len(keys), len(failed))
        reasons = [outcome if isinstance(outcome, str) else None for outcome in found]
        return Scores(rewards, reasons, keys, fresh)

    def _check_share(self, outcomes: list[Outcome], scores: Scores) -> None:
        reasons = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if len(reasons) < 2 or len(reasons) <= self.max_failed * len(outcomes):
            return
        raise OracleError(
            f"{oracle_name(self.oracle)} failed on {len(reasons)} of {len(outcomes)} objects of a "
            f"batch, most often: {commonest(reasons)}",
            scores,
        )


def commonest(reasons: Sequence[str]) -> str:
    """An example of the most frequent kind of failure."""
    # Reasons may quote the object after the colon; what stands before it is the kind.
    kind = Counter(reason.partition(":")[0] for reason in reasons).most_common(1)[0][0]
    return next(reason for reason in reasons if reason.partition(":")[0] == kind)


def attempt(oracle: Oracle, objects: list[Any]) -> list[Outcome] | str:
    """Call `oracle` once on `objects`: an outcome for each, or why the whole call failed."""
    try:
        answer: Any = oracle(objects)
        if isinstance(answer, (list, tuple)):
            return _outcomes_of_list(answer, len(objects), oracle.rewards)
        if answer is None:
            return "the oracle returned None"
        return _outcomes(torch.as_tensor(answer, dtype=torch.float64), len(objects), oracle.rewards)
    except Exception as error:
        return _reason(error)


def _outcomes_of_list(
    answer: Sequence[Any], n: int, rewards: tuple[Reward, ...]
) -> list[Outcome] | str:
    if len(answer) != n:
        return f"wrong shape: the oracle returned {len(answer)} rows for {n} objects"
    if all(row is not None for row in answer):
        return _outcomes(torch.as_tensor(answer, dtype=torch.float64), n, rewards)
    outcomes: list[Outcome] = []
    for row in answer:
        one = (
            "no value"
            if row is None
            else _outcomes(torch.as_tensor([row], dtype=torch.float64), 1, rewards)
        )
        outcomes.extend([one] if isinstance(one, str) else one)
    return outcomes


def _outcomes(answer: Tensor, n: int, rewards: tuple[Reward, ...]) -> list[Outcome] | str:
    if tuple(answer.shape) != (n, len(rewards)):
        expected = (n, len(rewards))
        return f"wrong shape: the oracle returned {tuple(answer.shape)} instead of {expected}"
    values, reasons = checked(answer.detach().cpu(), rewards)
    return [why or tuple(row) for why, row in zip(reasons, values.tolist(), strict=True)]


def checked(values: Tensor, rewards: Sequence[Reward]) -> tuple[Tensor, list[str | None]]:
    """Rewards [n, K] without rows that leave the declared ranges, and why a row has none.

    Returns:
        The rewards, NaN in all columns of such rows; n reasons, None for rows without NaN.
    """
    reasons: list[str | None] = [None] * len(values)
    if len(values):
        least, most = (ends.tolist() for ends in values.aminmax(dim=0))
        inside = zip(rewards, least, most, strict=True)
        # Nearly always; false where there is a NaN.
        if all(reward.low <= a and b <= reward.high for reward, a, b in inside):
            return values, reasons
    low, high = (
        torch.tensor(ends, dtype=torch.float64, device=values.device)
        for ends in zip(*((reward.low, reward.high) for reward in rewards), strict=True)
    )
    # float32 rounding at the ends of a range is no failure, and is taken back
    slack = 1e-6 * torch.where((high - low).isfinite(), high - low, 0.0)
    outside = ((values < low - slack) | (values > high + slack)).any(1)
    for index in (outside | values.isnan().any(1)).nonzero()[:, 0].tolist():
        reasons[index] = _what_is_wrong(values[index].tolist(), rewards)
    within = values.clamp(low.to(values), high.to(values))
    return within.masked_fill(outside.unsqueeze(1), float("nan")), reasons


def _what_is_wrong(row: list[float], rewards: Sequence[Reward]) -> str:
    for value, reward in zip(row, rewards, strict=True):
        if value != value:
            return f"{reward.name} is NaN"
    for value, reward in zip(row, rewards, strict=True):
        if not reward.low <= value <= reward.high:
            return f"{reward.name} outside its range [{reward.low:g}, {reward.high:g}]: {value:g}"
    raise AssertionError(row)


def _reason(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:297] + "..."


def oracle_name(oracle: Oracle) -> str:
    """What messages call an oracle."""
    return f"oracle {getattr(oracle, '__name__', type(oracle).__name__)}"


def _pickled(oracle: Oracle) -> bytes:
    try:
        return pickle.dumps(oracle)
    except Exception as error:
        raise OracleError(
            f"{oracle_name(oracle)} cannot be sent to worker processes ({_reason(error)}): define "
            "it at the top level of an importable module, or use workers=0 without a timeout"
        ) from error


def load_callable(path: str) -> Callable[..., Any]:
    """The callable named `package.module:function`.

    Raises:
        ValueError: `path` has another form, or nothing callable of that name can be found; the
            message lists near names.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{path!r} is not of the form package.module:function")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(f"cannot import {module_name!r}: {_reason(error)}") from error
    try:
        found = getattr(module, attribute)
    except AttributeError:
        near = difflib.get_close_matches(attribute, dir(module))
        hint = f"; near names: {', '.join(near)}" if near else ""
        raise ValueError(f"module {module_name!r} has no {attribute!r}{hint}") from None
    if not callable(found):
        raise ValueError(f"{path} is a {type(found).__name__}, not something to call")
    return found  # type: ignore[no-any-return]
