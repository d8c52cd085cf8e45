"""One worker process that can be killed: the building block of the oracle runner's pool.

The standard executor gives up every pending task when one process dies. Here each worker has a
pipe of its own, so killing one that hangs disturbs no other.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch

# A worker has loaded its oracle (imports included) within this time, or something is wrong.
_START_SECONDS = 300.0


class WorkerError(RuntimeError):
    """A worker process could not be started."""


class Answer(NamedTuple):
    """What came of a chunk: a result, or in one line why there is none."""

    chunk: list[int]
    result: Any
    seconds: float


class Worker:
    """A process that holds a payload and applies `function(payload, items)` to lists of items.

    Attributes:
        chunk: the indices of the items being worked on, empty when idle.
    """

    def __init__(self, function: Callable[[Any, list[Any]], Any], pickled: bytes) -> None:
        method = "forkserver" if os.name == "posix" else "spawn"
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            # Imports torch once for all workers; without effect once the server runs.
            context.set_forkserver_preload([__name__])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(function, pickled, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.chunk: list[int] = []
        self._timeout: float | None = None
        self._loaded = False
        self._restart_clock(_START_SECONDS)

    @property
    def dead(self) -> bool:
        """The process has ended."""
        return not self._process.is_alive()

    def send(self, chunk: list[int], items: list[Any], timeout: float | None) -> None:
        """Start work on `items`, whose indices are `chunk`, for at most `timeout` seconds."""
        self.chunk, self._timeout = chunk, timeout
        self._restart_clock(timeout if self._loaded else _START_SECONDS)
        try:
            # Plain pickle: the pipe's own pickler would pass tensors by file descriptor.
            self._pipe.send_bytes(pickle.dumps(items))
        except OSError:
            pass  # died just now: the closed pipe is noticed when its answer is read

    @staticmethod
    def answers(busy: Sequence[Worker]) -> list[Answer]:
        """Wait until one of the `busy` workers answers, dies or times out; what is there then.

        Raises:
            WorkerError: a process could not load its payload.
        """
        pipes: dict[Any, Worker] = {worker._pipe: worker for worker in busy}
        first = min(worker._deadline for worker in busy)
        patience = None if first == float("inf") else max(0.0, first - time.monotonic())
        answers = [pipes[pipe]._read() for pipe in wait(list(pipes), patience)]
        now = time.monotonic()
        answers += [worker._expire() for worker in busy if worker._deadline <= now]
        return [answer for answer in answers if answer is not None]

    def kill(self) -> None:
        """End the process and whatever it started."""
        self._pipe.close()
        if os.name == "posix":
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.kill()
        self._process.join()

    def _restart_clock(self, seconds: float | None) -> None:
        self._started = time.monotonic()
        self._deadline = float("inf") if seconds is None else self._started + seconds

    def _read(self) -> Answer | None:
        try:
            result = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            if not self._loaded:
                raise WorkerError(
                    "a worker process ended before it was ready; a script needs the guard "
                    "`if __name__ == '__main__':`, and what is typed into a session belongs in "
                    "a module"
                ) from None
            self._process.join(1.0)
            code = self._process.exitcode
            return self._answer(f"the worker process died (exit code {code})", alive=False)
        if self._loaded:
            return self._answer(result, alive=True)
        if result is not None:
            raise WorkerError(f"a worker process cannot load it: {result}")
        self._loaded = True
        self._restart_clock(self._timeout)
        return None

    def _expire(self) -> Answer:
        if not self._loaded:
            raise WorkerError(f"a worker process was not ready after {_START_SECONDS:g} s")
        return self._answer(f"timeout: no answer within {self._timeout:g} s", alive=False)

    def _answer(self, result: Any, alive: bool) -> Answer:
        answer = Answer(self.chunk, result, time.monotonic() - self._started)
        self.chunk, self._deadline = [], float("inf")
        if not alive:
            self.kill()
        return answer


def _work(function: Callable[[Any, list[Any]], Any], pickled: bytes, pipe: Connection) -> None:
    if os.name == "posix":
        os.setsid()  # a group of its own: killed with its children, deaf to the user's Ctrl-C
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    torch.set_num_threads(1)
    try:
        payload = pickle.loads(pickled)
    except Exception as error:
        problem = (
            f"{type(error).__name__}: {error} (what it runs must be defined in an importable "
            "module, not in an interactive session)"
        )
        pipe.send_bytes(pickle.dumps(problem))
        return
    pipe.send_bytes(pickle.dumps(None))
    while True:
        try:
            items = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(pickle.dumps(function(payload, items)))
        except (EOFError, OSError):
            return
