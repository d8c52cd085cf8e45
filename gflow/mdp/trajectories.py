"""The one batch record, and what can be done with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from gflow.mdp.states import Condition, States


@dataclass
class Trajectories:
    """The one batch record: B trajectories, padded to the longest real one of T transitions.

    State t of trajectory b is `states[b, t]`; transition t leads from it to state t + 1 by
    `actions[b, t]`. Padding repeats the terminal state and contributes exactly 0 to any loss.

    Attributes:
        states: [B, T + 1, *state_shape].
        actions: [B, T] or [B, T, factors], forward actions; [B, T, 0] where an action is the next
            state.
        backward_actions: [B, T], what would undo each of them; [B, T, 0] likewise.
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
        clock: [B, T + 1] float, the denoising time that the network was fed in each state.
        stochastic: [B, T] bool, the step was drawn from the policy; None where all were. Forced
            and deterministic steps, and those the environment made, are False.
        log_pf_ref: [B, T] log-probabilities under the reference policy.
        advantage: [B, T], how much better than expected each step was; no gradient.
        value_old: [B, T], value of the state each transition leaves when the batch was drawn.
        value_target: [B, T], what that value is regressed on.
        draws: [B, M, ...], random numbers of Monte-Carlo log-probabilities: current, old and
            reference policy must read the same.
        mean_old: [B, T, *state_shape], means of Gaussian steps when the batch was drawn.
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
    clock: Tensor | None = None
    stochastic: Tensor | None = None
    log_pf_ref: Tensor | None = None
    advantage: Tensor | None = None
    value_old: Tensor | None = None
    value_target: Tensor | None = None
    draws: Tensor | None = None
    mean_old: Tensor | None = None

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


_PER_STATE = ("states", "partial_log_reward", "clock")
_PER_STEP = (
    *_PER_STATE, "actions", "backward_actions", "valid", "log_pf_old", "stochastic", "log_pf_ref",
    "advantage", "value_old", "value_target", "mean_old",
)  # fmt: skip


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
