"""Oracle workers on a Ray cluster (extra gflow[distributed])."""

from __future__ import annotations

import socket
from collections import deque
from typing import Any

from gflow.workers import Function, Lost, Worker, load


class RayWorker(Worker):
    """An actor that holds one processor of the cluster.

    Args:
        function: what to apply.
        pickled: the payload.
    """

    def __init__(self, function: Function, pickled: bytes) -> None:
        import ray

        self._actor: Any = ray.remote(num_cpus=1, max_restarts=0)(_Actor).remote(function, pickled)
        self._dead = False
        # Messages arrive in the order in which they were asked for.
        self._asked = deque([self._actor.problem.remote()])
        super().__init__()

    @property
    def dead(self) -> bool:
        """The actor was killed."""
        return self._dead

    @property
    def _line(self) -> Any:
        return self._asked[0]

    @staticmethod
    def _wait(lines: list[Any], seconds: float | None) -> list[Any]:
        import ray

        ready, _ = ray.wait(lines, num_returns=1, timeout=seconds)
        return list(ready)

    def _submit(self, items: list[Any]) -> None:
        self._asked.append(self._actor.work.remote(items))

    def _receive(self) -> Any:
        import ray

        try:
            return ray.get(self._asked.popleft())
        except ray.exceptions.RayError as error:
            kind = type(error).__name__
            raise Lost(f"the worker on the cluster died ({kind})") from None

    def kill(self) -> None:
        """End the actor."""
        import ray

        self._dead = True
        ray.kill(self._actor, no_restart=True)


class _Actor:
    """What runs on the cluster."""

    def __init__(self, function: Function, pickled: bytes) -> None:
        self._function = function
        self._payload, self._problem = load(pickled)

    def problem(self) -> str | None:
        """What hinders the payload's loading, or None."""
        return self._problem

    def work(self, items: list[Any]) -> Any:
        """The function's answer."""
        return self._function(self._payload, items)


def connect(address: str) -> int:
    """Join a cluster, or the one this process has joined already; its number of processors.

    Args:
        address: "auto" for the cluster this machine belongs to, "local" for one of this machine
            alone, or an address such as ray://host:10001.

    Raises:
        ImportError: Ray is not installed.
        ValueError: not an address.
        ConnectionError: there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "oracles on a cluster need Ray: install it with `pip install gflow[distributed]`"
        ) from error
    if not ray.is_initialized():
        if address not in ("auto", "local"):
            _knock(address)
        ray.init(
            address=address, include_dashboard=None, log_to_driver=False, logging_level="error"
        )
    return int(ray.cluster_resources().get("CPU", 1))


def _knock(address: str) -> None:
    """Raise at once where nothing answers; Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("the address must be auto, local, host:port or ray://host:port")
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers there ({error})") from error
