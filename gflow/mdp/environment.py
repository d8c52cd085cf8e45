"""The environment contract: a batched, stateless MDP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gflow.kernels import draw_noise
from gflow.mdp.states import Condition, States

if TYPE_CHECKING:
    from gflow.mdp.trajectories import Trajectories


class Environment(ABC):
    """A batched MDP. Subclasses set the attributes below and define the abstract methods.

    Rows with nothing to do (finished rows forward, initial rows backward) must come back
    unchanged from `step` / `backstep`, and their mask must allow exactly the last entry, so that
    no softmax ever runs over an empty set.

    Attributes:
        state_shape: shape of one state's tensor.
        action_sizes: sizes of the action's factors; (A,) for a plain action.
        n_backward_actions: number of backward actions A_b.
        max_steps: no trajectory has more transitions than this, the stop step included.
        observation_size: width of the tensor `observe` returns (0 where it returns a record).
        has_stop: the last transition of every trajectory is an explicit stop action, whose
            undoing is certain (log P_B = 0).
        fixed_length: every trajectory has exactly `max_steps` transitions.
        tree: every state has one parent, so P_B = 1.
        enumerable: small enough for `all_terminal_states` and exact distributions.
        continuous: an action is the next state itself, so that `actions` of a record are empty.
        deterministic: some steps have no density, which balance objectives need.
    """

    state_shape: tuple[int, ...]
    action_sizes: tuple[int, ...]
    n_backward_actions: int
    max_steps: int
    observation_size: int = 0
    has_stop: bool = True
    fixed_length: bool = False
    tree: bool = False
    enumerable: bool = False
    continuous: bool = False
    deterministic: bool = False

    @abstractmethod
    def initial(self, n: int, device: torch.device | str = "cpu") -> States:
        """`n` copies of the initial state s0."""

    def begin(self, condition: Condition, device: torch.device | str = "cpu") -> States:
        """Where the trajectories of these conditions start: s0, or the prompt a condition names."""
        return self.initial(len(condition.inverse_temperature), device)

    @abstractmethod
    def step(self, states: States, actions: Tensor) -> States:
        """Apply `actions` ([n], or [n, factors]); finished rows stay as they are."""

    @abstractmethod
    def backstep(self, states: States, actions: Tensor) -> States:
        """Undo one transition by backward `actions` [n]; initial rows stay as they are."""

    @abstractmethod
    def forward_mask(self, states: States, *chosen: Tensor) -> Tensor:
        """Legal actions [n, A], bool; with `chosen` factors given, those of the next factor."""

    @abstractmethod
    def backward_mask(self, states: States) -> Tensor:
        """Legal backward actions [n, A_b], bool, one per distinct parent state."""

    @abstractmethod
    def observe(self, states: States) -> Any:
        """What a policy network eats: a float tensor [n, observation_size] or a record."""

    def indices(self, states: States) -> Tensor | None:
        """Where a multi-hot `observe` has its ones, [n, F]; None where it is anything else."""
        return None

    def identify(self, states: States) -> Tensor | None:
        """An integer for each state, [n] int64, equal exactly where states are; None by default.

        With one, each distinct state of a batch is evaluated once. (Conditions count apart.)
        """
        return None

    @abstractmethod
    def decode(self, states: States) -> list[Any]:
        """Terminal states as the user's objects."""

    def encode(self, objects: Sequence[Any]) -> States:
        """Terminal states of the user's objects, the inverse of `decode` (on the CPU)."""
        raise NotImplementedError(f"{type(self).__name__} cannot encode objects")

    def backward_action(self, states: States, actions: Tensor) -> Tensor:
        """Backward action [n] that undoes forward `actions` taken in `states`.

        By default both spaces share their numbering.
        """
        return actions

    def forward_action(self, states: States, actions: Tensor) -> Tensor:
        """Forward action that redoes what backward `actions` undo in the children `states`."""
        return actions

    def log_n_paths(self, states: States) -> Tensor:
        """log of the number of action sequences that build each state, [n] float64."""
        raise NotImplementedError(f"{type(self).__name__} has no closed-form path count")

    def all_terminal_states(self) -> States:
        """Every terminal state once (enumerable environments)."""
        raise NotImplementedError(f"{type(self).__name__} is not enumerable")

    def record(self, batch: Trajectories) -> Trajectories:
        """Note in a fresh batch what is needed to evaluate it later; nothing by default."""
        return batch

    def check(self, batch: Trajectories) -> None:
        """Refuse a batch that this environment cannot have made, by a ValueError that says why."""
        return

    def noise(
        self,
        steps: int,
        n: int,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str,
        backward: bool = False,
    ) -> Tensor:
        """The randomness of `steps` steps of n rows, [steps, n, ...], consumed by `Kernel.sample`.

        See `draw_noise`: its width is that of the action's factors, or of backward actions.
        """
        sizes = (self.n_backward_actions,) if backward else self.action_sizes
        return draw_noise((steps, n), sizes, generator, dtype, device)
