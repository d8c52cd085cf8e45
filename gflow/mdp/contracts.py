"""What the engine asks of oracles, policies and objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from gflow.kernels import Kernel
from gflow.mdp.environment import Environment
from gflow.mdp.states import Condition, States
from gflow.mdp.trajectories import Trajectories


class Reward(NamedTuple):
    """One entry of a reward vector, always maximised.

    Attributes:
        name: short name, unique within an oracle.
        unit: unit of the value the user sees ("" for a dimensionless score).
        low: smallest reward the oracle can return.
        high: largest reward the oracle can return.
        flipped: the underlying quantity is minimised and was turned round.
        description: one line on what it measures.
    """

    name: str
    unit: str = ""
    low: float = 0.0
    high: float = 1.0
    flipped: bool = False
    description: str = ""


class Oracle(Protocol):
    """A reward function on decoded objects (or on states, see `on_states`).

    Attributes:
        rewards: what the K columns mean.
        version: changes whenever values change, so that caches notice.
        on_states: the oracle takes `States` instead of a list of objects (cheap tensor rewards).
        seconds: rough cost of one object, which decides about worker processes.
    """

    @property
    def rewards(self) -> tuple[Reward, ...]:
        """What the K columns mean."""

    @property
    def version(self) -> str:
        """Identifies the values."""

    @property
    def on_states(self) -> bool:
        """The oracle takes `States`."""

    @property
    def seconds(self) -> float:
        """Rough cost of one object."""

    def __call__(self, objects: Any, /) -> Tensor:
        """Rewards [n, K]; NaN marks an object that could not be scored."""


class Heads(NamedTuple):
    """What a policy says about a batch of states; heads that were not asked for are None.

    `energy` [n, A] are learned log-rewards of single transitions (plain actions only).
    """

    forward: Kernel | None = None
    backward: Kernel | None = None
    log_flow: Tensor | None = None
    energy: Tensor | None = None


class Policy(Protocol):
    """What the engine asks of a policy; `gflow.policies` holds the usual ones."""

    @property
    def env(self) -> Environment:
        """The environment it walks."""

    def __call__(self, states: States, condition: Condition, needs: frozenset[str]) -> Heads:
        """Heads for each row; `needs` is among {"log_pf", "log_pb", "log_flow", "energy"}."""

    def log_z(self, condition: Condition) -> Tensor:
        """log Z(c) for each condition, [n]."""

    @property
    def backward(self) -> str:
        """Kind of backward policy: "learned", "uniform", "paths" or "tree".

        "fixed" is any other kernel without parameters; the policy gives it as a head.
        """


class Deferred(Mapping[str, Tensor]):
    """Metrics that are worked out where they are read: most steps are not logged.

    Args:
        functions: what gives each of them, by name.
    """

    def __init__(self, functions: dict[str, Callable[[], Tensor]]):
        self.functions = functions

    def __getitem__(self, name: str) -> Tensor:
        return self.functions[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.functions)

    def __len__(self) -> int:
        return len(self.functions)


class Loss(NamedTuple):
    """What an objective returns.

    Attributes:
        value: scalar to minimise.
        metrics: detached scalars worth logging; a `Deferred` where they cost something.
        weight: number of terms the mean in `value` runs over; parallel processes weigh by it.
    """

    value: Tensor
    metrics: Mapping[str, Tensor]
    weight: Tensor | int


class Objective(Protocol):
    """A training objective: settings, and a call on a policy and a batch."""

    @property
    def needs(self) -> frozenset[str]:
        """What `evaluate` must deliver."""

    def __call__(self, policy: Policy, batch: Trajectories) -> Loss:
        """The loss of a batch with log-rewards."""
