"""States, trajectories and the environment contract: what every part of gflow shares.

An environment is a batched, stateless MDP over a pointed DAG (GFlowNet Foundations, 2021,
arXiv 2111.09266): construction starts at `initial`, each `step` takes one action per row, and a
row is finished when its `done` flag is set. Backward moves undo forward ones one at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gflow.kernels import Categorical, Kernel, gumbel_noise


class States(NamedTuple):
    """A batch of n states.

    Attributes:
        data: [n, *state_shape], integer for discrete objects, float for denoising.
        step: [n] int64, number of forward transitions since the initial state.
        done: [n] bool, the row is a finished (terminal) object.
    """

    data: Tensor
    step: Tensor
    done: Tensor

    def rows(self, index: Tensor) -> States:
        """The states at `index` (integer or boolean, along the batch)."""
        return States(self.data[index], self.step[index], self.done[index])

    def to(self, device: torch.device | str) -> States:
        """The same states on `device`."""
        return States(self.data.to(device), self.step.to(device), self.done.to(device))

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.data.shape[0])


def concat_states(parts: Sequence[States]) -> States:
    """Join batches of states along the batch dimension."""
    return States(*(torch.cat(column) for column in zip(*parts, strict=True)))


class Condition(NamedTuple):
    """What the sampler is asked for, one row per trajectory.

    Attributes:
        encoding: [n, C], what the networks see.
        preference: [n, K] weights on the simplex, or None when there is nothing to prefer.
        inverse_temperature: [n], the exponent beta of the reward.
    """

    encoding: Tensor
    preference: Tensor | None
    inverse_temperature: Tensor

    def rows(self, index: Tensor) -> Condition:
        """The conditions at `index` (integer or boolean)."""
        preference = None if self.preference is None else self.preference[index]
        return Condition(self.encoding[index], preference, self.inverse_temperature[index])

    def to(self, device: torch.device | str) -> Condition:
        """The same conditions on `device`."""
        preference = None if self.preference is None else self.preference.to(device)
        return Condition(self.encoding.to(device), preference, self.inverse_temperature.to(device))


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

    @abstractmethod
    def initial(self, n: int, device: torch.device | str = "cpu") -> States:
        """`n` copies of the initial state s0."""

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

    def noise(
        self,
        steps: int,
        n: int,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str,
        backward: bool = False,
    ) -> Tensor:
        """The randomness of `steps` steps of n rows, consumed by `Kernel.sample`.

        Gumbel noise [steps, n, sum of action sizes] (or [steps, n, A_b] backward).
        """
        width = self.n_backward_actions if backward else sum(self.action_sizes)
        return gumbel_noise((steps, n, width), generator, dtype, device)


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


@dataclass
class Trajectories:
    """The one batch record: B trajectories, padded to the longest real one of T transitions.

    State t of trajectory b is `states[b, t]`; transition t leads from it to state t + 1 by
    `actions[b, t]`. Padding repeats the terminal state and contributes exactly 0 to any loss.

    Attributes:
        states: [B, T + 1, *state_shape].
        actions: [B, T] or [B, T, factors], forward actions.
        backward_actions: [B, T], what would undo each of them.
        valid: [B, T] bool, the transition is real.
        condition: the condition each trajectory was sampled under.
        log_pf_old: [B, T] log-probabilities under the policy that sampled, if kept.
        rewards: [B, K] raw reward vectors, maximised; NaN where an oracle failed.
        log_reward: [B] log R(x given c), what balance objectives train towards.
        group: [B] int64, trajectories that share one condition share a number.
        partial_log_reward: [B, T + 1] log-reward of every state, for objectives that credit
            unfinished objects; that of the terminal state is its log_reward.
        complete: [B] bool, None where all are. A trajectory that was cut short is False: its last
            transition only shows the state it leaves, where everything known about it ends.
    """

    states: Tensor
    actions: Tensor
    backward_actions: Tensor
    valid: Tensor
    condition: Condition
    log_pf_old: Tensor | None = None
    rewards: Tensor | None = None
    log_reward: Tensor | None = None
    group: Tensor | None = None
    partial_log_reward: Tensor | None = None
    complete: Tensor | None = None

    @property
    def n(self) -> int:
        """Number of trajectories B."""
        return int(self.valid.shape[0])

    @property
    def lengths(self) -> Tensor:
        """[B] int64, number of real transitions."""
        return self.valid.sum(1)

    @property
    def terminal(self) -> States:
        """The terminal states, in the order of the batch."""
        lengths = self.lengths
        rows = torch.arange(self.n, device=lengths.device)
        done = (
            torch.ones_like(lengths, dtype=torch.bool) if self.complete is None else self.complete
        )
        return States(self.states[rows, lengths], lengths, done)

    def rows(self, index: Tensor) -> Trajectories:
        """The trajectories at `index` (integer or boolean)."""
        return self._map(lambda value: value.rows(index), lambda value: value[index])

    def to(self, device: torch.device | str) -> Trajectories:
        """The same trajectories on `device`."""
        return self._map(lambda value: value.to(device), lambda value: value.to(device))

    def put_rows_(self, index: Tensor, new: Trajectories) -> None:
        """Overwrite the rows at `index` by those of `new`, which is padded alike."""
        for field in fields(self):
            old, value = getattr(self, field.name), getattr(new, field.name)
            pairs = zip(old, value, strict=True) if field.name == "condition" else [(old, value)]
            for target, source in pairs:
                if target is not None:
                    target[index] = source

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, for checkpoints."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "condition": tuple(self.condition)}

    @staticmethod
    def from_state_dict(state: dict[str, Any]) -> Trajectories:
        """The inverse of `state_dict`."""
        return Trajectories(**{**state, "condition": Condition(*state["condition"])})

    def _map(self, condition: Any, tensor: Any) -> Trajectories:
        changes: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Condition):
                changes[field.name] = condition(value)
            elif value is not None:
                changes[field.name] = tensor(value)
        return replace(self, **changes)


_PER_STATE = ("states", "partial_log_reward")
_PER_STEP = (*_PER_STATE, "actions", "backward_actions", "valid", "log_pf_old")


def concat_trajectories(parts: Sequence[Trajectories]) -> Trajectories:
    """Join batches, padding the shorter ones; optional fields must be set in all or none."""
    longest = max(part.valid.shape[1] for part in parts)
    parts = [pad_trajectories(part, longest) for part in parts]
    changes: dict[str, Any] = {}
    for field in fields(Trajectories):
        values = [getattr(part, field.name) for part in parts]
        if all(value is None for value in values):
            continue
        if any(value is None for value in values):
            raise ValueError(f"cannot join trajectories: only some of them have {field.name}")
        if field.name == "condition":
            changes[field.name] = Condition(
                torch.cat([value.encoding for value in values]),
                None if values[0].preference is None else torch.cat([v.preference for v in values]),
                torch.cat([value.inverse_temperature for value in values]),
            )
        else:
            changes[field.name] = torch.cat(values)
    return Trajectories(**changes)


def pad_trajectories(batch: Trajectories, horizon: int) -> Trajectories:
    """The batch padded to `horizon` transitions, or as it is when it has as many."""
    missing = horizon - batch.valid.shape[1]
    if missing <= 0:
        return batch
    changes: dict[str, Any] = {}
    for name in _PER_STEP:
        value = getattr(batch, name)
        if value is not None:
            # The last column is repeated so that padded states are legal states.
            tail = value[:, -1:].expand(-1, missing, *value.shape[2:])
            changes[name] = torch.cat([value, tail], 1)
    changes["valid"] = torch.nn.functional.pad(batch.valid, (0, missing))
    return replace(batch, **changes)


def trim_trajectories(batch: Trajectories) -> Trajectories:
    """The batch without columns that are padding in every row."""
    horizon = int(batch.lengths.max())
    changes: dict[str, Any] = {}
    for name in _PER_STEP:
        value = getattr(batch, name)
        if value is not None:
            changes[name] = value[:, : horizon + (name in _PER_STATE)]
    return replace(batch, **changes)


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

    env: Environment

    def __call__(self, states: States, condition: Condition, needs: frozenset[str]) -> Heads:
        """Heads for each row; `needs` is among {"log_pf", "log_pb", "log_flow", "energy"}."""

    def log_z(self, condition: Condition) -> Tensor:
        """log Z(c) for each condition, [n]."""

    @property
    def backward(self) -> str:
        """Kind of backward policy: "learned", "uniform", "paths" or "tree"."""


class Evaluation(NamedTuple):
    """A batch re-evaluated under the current policy, with gradient.

    Attributes:
        log_pf: [B, T], 0 on padding.
        log_pb: [B, T], 0 on padding and on the stop step.
        log_flow: [B, T], log F of the state each transition leaves, 0 on padding.
        log_z: [B].
        construction: [B, T] bool, real transitions other than the stop step.
        log_stop: [B, T], log P_F(stop) in the state each transition leaves, 0 on padding.
        energy: [B, T], learned log-reward of each transition, 0 on padding and the stop step.
        backward_kl: [B, T], KL(uniform || P_B) over the parents of the state that each
            construction step enters, 0 elsewhere.
        log_inflow: [B, T], log of the total flow into the state that each construction step
            enters, 0 elsewhere.
    """

    log_pf: Tensor
    log_pb: Tensor | None
    log_flow: Tensor | None
    log_z: Tensor | None
    construction: Tensor
    log_stop: Tensor | None = None
    energy: Tensor | None = None
    backward_kl: Tensor | None = None
    log_inflow: Tensor | None = None


def evaluate(policy: Policy, batch: Trajectories, needs: frozenset[str]) -> Evaluation:
    """Recompute what `needs` names in one forward pass over the real steps only.

    Args:
        policy: the policy to evaluate.
        batch: B trajectories.
        needs: subset of {"log_pb", "log_pb_total", "log_flow", "log_z", "log_stop", "energy",
            "backward_kl", "log_inflow"}; log P_F always comes. "log_pb_total" promises that only
            the sum of log P_B over a trajectory will be used, which spares the path counts of
            intermediate states. "log_inflow" costs a second pass, over the parents.

    Returns:
        An `Evaluation`; entries that were not asked for are None.
    """
    env, valid = policy.env, batch.valid
    kind = "tree" if env.tree else policy.backward
    if "backward_kl" in needs and kind != "learned":
        raise ValueError(f"a {kind} backward policy has no parameters to pull towards uniform")
    want_pb = bool(needs & {"log_pb", "log_pb_total", "backward_kl"})
    lengths = valid.sum(1)
    visited = torch.nn.functional.pad(valid, (0, 1))
    if want_pb and kind in ("learned", "uniform") and not env.has_stop:
        # The last transition is a construction step: its P_B is asked at the terminal state.
        visited[torch.arange(batch.n, device=valid.device), lengths] = True
    row, column = visited.nonzero(as_tuple=True)
    done = column >= lengths[row]
    if batch.complete is not None:
        done &= batch.complete[row]
    states = States(batch.states[row, column], column, done)
    construction = torch.nn.functional.pad(valid[:, 1:], (0, 1)) if env.has_stop else valid

    asked = {"log_pf"} | (needs & {"log_flow", "energy"})
    if want_pb and kind == "learned":
        asked |= {"log_pb"}
    heads = policy(states, batch.condition.rows(row), frozenset(asked))
    assert heads.forward is not None
    last = valid.shape[1] - 1
    actions = batch.actions[row, column.clamp(max=last)]
    log_pf = _scatter(heads.forward.log_prob(actions), valid, row, column, column <= last)

    log_pb: Tensor | None = None
    backward_kl: Tensor | None = None
    if want_pb:
        if kind == "tree":
            log_pb = torch.zeros_like(log_pf)
        elif kind == "paths":
            log_pb = _log_pb_by_paths(env, batch, total="log_pb" not in needs).to(log_pf.dtype)
        else:
            if kind == "learned":
                assert heads.backward is not None
                undone = batch.backward_actions[row, (column - 1).clamp(min=0)]
                values = heads.backward.log_prob(undone)
                if "backward_kl" in needs:
                    legal = env.backward_mask(states)
                    even = Categorical(torch.zeros_like(legal, dtype=values.dtype), legal)
                    spread = even.kl(heads.backward)
                    backward_kl = _scatter(spread, construction, row, column - 1, column > 0)
            else:
                values = -env.backward_mask(states).sum(-1).to(log_pf.dtype).log()
            log_pb = _scatter(values, valid, row, column - 1, column > 0)

    log_flow: Tensor | None = None
    if "log_flow" in needs:
        if heads.log_flow is None:
            raise ValueError("the objective needs log F(s): build the policy with flow=True")
        log_flow = _scatter(heads.log_flow, valid, row, column, column <= last)
    log_stop: Tensor | None = None
    if "log_stop" in needs:
        stop = stop_action(env, row.device).expand(len(row), *actions.shape[1:])
        values = heads.forward.log_prob(stop)
        log_stop = _scatter(values, valid, row, column, column <= last)
    energy: Tensor | None = None
    if "energy" in needs:
        if heads.energy is None:
            raise ValueError("the objective needs learned energies: give the policy such a head")
        values = heads.energy.gather(1, actions.unsqueeze(1)).squeeze(1)
        energy = _scatter(values, construction, row, column, column <= last)
    log_z = policy.log_z(batch.condition) if "log_z" in needs else None
    log_inflow = _log_inflow(policy, batch, construction) if "log_inflow" in needs else None
    return Evaluation(
        log_pf, log_pb, log_flow, log_z, construction, log_stop, energy, backward_kl, log_inflow
    )


def _log_inflow(policy: Policy, batch: Trajectories, construction: Tensor) -> Tensor:
    """log sum over parents s of F(s) P_F(s' | s), s' entered by each construction step, [B, T]."""
    env = policy.env
    row, column = construction.nonzero(as_tuple=True)
    done = column + 1 >= batch.lengths[row]
    if batch.complete is not None:
        done &= batch.complete[row]
    children = States(batch.states[row, column + 1], column + 1, done)
    legal = env.backward_mask(children)
    if not bool(legal.any(-1).all()):
        raise ValueError(f"{type(env).__name__}: a state that is not initial has no parent")
    child, undone = legal.nonzero(as_tuple=True)
    ends = children.rows(child)
    parents, redone = env.backstep(ends, undone), env.forward_action(ends, undone)
    needs = frozenset({"log_pf", "log_flow"})
    heads = policy(parents, batch.condition.rows(row[child]), needs)
    if heads.forward is None or heads.log_flow is None:
        raise ValueError("the objective needs log F(s): build the policy with flow=True")
    edge = heads.log_flow + heads.forward.log_prob(redone)
    edges = edge.new_full(legal.shape, -torch.inf).index_put((child, undone), edge)
    return _scatter(edges.logsumexp(-1), construction, row, column, column >= 0)


def stop_action(env: Environment, device: torch.device | str = "cpu") -> Tensor:
    """The forward action that stops, [1] or [1, factors].

    Raises:
        ValueError: trajectories of this environment do not end by a stop action.
    """
    if not env.has_stop:
        raise ValueError(f"{type(env).__name__} has no stop action: every object has its own end")
    start = env.initial(1, device)
    finished = States(start.data, start.step + 1, torch.ones_like(start.done))
    return env.forward_action(finished, env.backward_mask(finished).int().argmax(-1))


def _scatter(values: Tensor, valid: Tensor, row: Tensor, column: Tensor, keep: Tensor) -> Tensor:
    """Put `values` of the visited rows back at [B, T]; everything else is exactly 0."""
    flat = torch.where(keep, row * valid.shape[1] + column, 0)
    values = torch.where(keep, values, 0.0)
    spread = values.new_zeros(valid.numel()).index_add(0, flat, values)
    return torch.where(valid, spread.view(valid.shape), 0.0)


def _log_pb_by_paths(env: Environment, batch: Trajectories, total: bool) -> Tensor:
    """P_B uniform over all construction sequences: log n(s) - log n(s') (2312.14331)."""
    n, horizon = batch.valid.shape
    if total:
        log_pb = torch.zeros(n, horizon, dtype=torch.float64, device=batch.valid.device)
        log_pb[:, 0] = -env.log_n_paths(batch.terminal)
        return log_pb
    lengths = batch.lengths[:, None]
    column = torch.arange(horizon + 1, device=lengths.device).expand(n, -1)
    states = States(batch.states.flatten(0, 1), column.flatten(), (column >= lengths).flatten())
    counts = env.log_n_paths(states).view(n, horizon + 1)
    return torch.where(batch.valid, counts[:, :-1] - counts[:, 1:], 0.0)


class Loss(NamedTuple):
    """What an objective returns.

    Attributes:
        value: scalar to minimise.
        metrics: detached scalars worth logging.
        weight: number of terms the mean in `value` runs over; parallel processes weigh by it.
    """

    value: Tensor
    metrics: dict[str, Tensor]
    weight: Tensor | int


class Objective(Protocol):
    """A training objective: settings, and a call on a policy and a batch."""

    @property
    def needs(self) -> frozenset[str]:
        """What `evaluate` must deliver."""

    def __call__(self, policy: Policy, batch: Trajectories) -> Loss:
        """The loss of a batch with log-rewards."""
