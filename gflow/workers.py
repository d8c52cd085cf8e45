"""Workers that can be killed: the building blocks of the oracle runner's pool.

The standard executor gives up every pending task when one process dies. Here each worker has a
line of its own, so killing one that hangs disturbs no other.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch

# A worker has loaded its oracle (imports included) within this time, or something is wrong.
_START_SECONDS = 300.0

Function = Callable[[Any, list[Any]], Any]


class WorkerError(RuntimeError):
    """A worker could not be started."""


class Lost(Exception):
    """A worker is gone; the message says why."""


class Answer(NamedTuple):
    """What came of a chunk: a result, or in one line why there is none."""

    chunk: list[int]
    result: Any
    seconds: float


class Worker(ABC):
    """Holds a payload and applies `function(payload, items)` to lists of items.

    Its first message is None once it has loaded the payload, or what hinders it.

    Attributes:
        chunk: the indices of the items being worked on, empty when idle.
    """

    def __init__(self) -> None:
        self.chunk: list[int] = []
        self._timeout: float | None = None
        self._loaded = False
        self._restart_clock(_START_SECONDS)

    @property
    @abstractmethod
    def dead(self) -> bool:
        """It has ended."""

    @property
    @abstractmethod
    def _line(self) -> Any:
        """What its next message arrives on."""

    @staticmethod
    @abstractmethod
    def _wait(lines: list[Any], seconds: float | None) -> list[Any]:
        """The lines on which something has arrived within so many seconds."""

    @abstractmethod
    def _submit(self, items: list[Any]) -> None:
        """Hand over work."""

    @abstractmethod
    def _receive(self) -> Any:
        """The message that has arrived.

        Raises:
            Lost: the worker is gone.
        """

    @abstractmethod
    def kill(self) -> None:
        """End it and whatever it started."""

    def send(self, chunk: list[int], items: list[Any], timeout: float | None) -> None:
        """Start work on `items`, whose indices are `chunk`, for at most `timeout` seconds."""
        self.chunk, self._timeout = chunk, timeout
        self._restart_clock(timeout if self._loaded else _START_SECONDS)
        self._submit(items)

    @classmethod
    def answers(cls, busy: Sequence[Worker]) -> list[Answer]:
        """Wait until one of the `busy` workers answers, dies or times out; what is there then.

        Raises:
            WorkerError: a worker could not load its payload.
        """
        lines = {worker._line: worker for worker in busy}
        first = min(worker._deadline for worker in busy)
        patience = None if first == float("inf") else max(0.0, first - time.monotonic())
        answers = [lines[line]._read() for line in cls._wait(list(lines), patience)]
        now = time.monotonic()
        answers += [worker._expire() for worker in busy if worker._deadline <= now]
        return [answer for answer in answers if answer is not None]

    def _restart_clock(self, seconds: float | None) -> None:
        self._started = time.monotonic()
        self._deadline = float("inf") if seconds is None else self._started + seconds

    def _read(self) -> Answer | None:
        try:
            result = self._receive()
        except Lost as error:
            if not self._loaded:
                raise WorkerError(
                    f"{error} before it was ready; a script needs the guard "
                    "`if __name__ == '__main__':`, and what is typed into a session belongs in "
                    "a module"
                ) from None
            return self._answer(str(error), alive=False)
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


class ProcessWorker(Worker):
    """A process on this machine.

    Args:
        function: what to apply.
        pickled: the payload.
    """

    def __init__(self, function: Function, pickled: bytes) -> None:
        method = "forkserver" if os.name == "posix" else "spawn"
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            # Imports torch once for all workers; without effect once the server runs.
            context.set_forkserver_preload([__name__])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(function, pickled, theirs), daemon=True)
        self._process.start()
        theirs.close()
        super().__init__()

    @property
    def dead(self) -> bool:
        """The process has ended."""
        return not self._process.is_alive()

    @property
    def _line(self) -> Any:
        return self._pipe

    @staticmethod
    def _wait(lines: list[Any], seconds: float | None) -> list[Any]:
        return wait(lines, seconds)

    def _submit(self, items: list[Any]) -> None:
        try:
            # Plain pickle: the pipe's own pickler would pass tensors by file descriptor.
            self._pipe.send_bytes(pickle.dumps(items))
        except OSError:
            pass  # died just now: the closed pipe is noticed when its answer is read

    def _receive(self) -> Any:
        try:
            return pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            self._process.join(1.0)
            code = self._process.exitcode
            raise Lost(f"the worker process died (exit code {code})") from None

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


def load(pickled: bytes) -> tuple[Any, str | None]:
    """The payload in a fresh process with one thread, and what hinders loading it."""
    torch.set_num_threads(1)
    try:
        return pickle.loads(pickled), None
    except Exception as error:
        return None, (
            f"{type(error).__name__}: {error} (what it runs must be defined in an importable "
            "module, not in an interactive session)"
        )


def _work(function: Function, pickled: bytes, pipe: Connection) -> None:
    if os.name == "posix":
        os.setsid()  # a group of its own: killed with its children, deaf to the user's Ctrl-C
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    payload, problem = load(pickled)
    pipe.send_bytes(pickle.dumps(problem))
    while problem is None:
        try:
            items = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(pickle.dumps(function(payload, items)))
        except (EOFError, OSError):
            return
