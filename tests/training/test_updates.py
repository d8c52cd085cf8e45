"""Several passes over parts of a batch, objectives that prepare batches, and their state."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from gflow.config import ConfigError, from_dict
from gflow.mdp import Deferred, Loss
from gflow.objectives.balance import TrajectoryBalance
from gflow.training import CheckpointError, Events, TrainerSettings
from gflow.training.trainer import split_groups
from tests.problems import grid_trainer


@dataclass
class Preparing:
    """Trajectory balance towards log-rewards that `prepare` raises by how often it was called."""

    inner: TrajectoryBalance = field(default_factory=TrajectoryBalance)
    prepared: int = 0
    seen: list = field(default_factory=list)

    @property
    def needs(self):
        return self.inner.needs

    def prepare(self, policy, batch):
        assert not torch.is_grad_enabled()
        self.prepared += 1
        return replace(batch, log_reward=batch.log_reward + self.prepared)

    def __call__(self, policy, batch):
        self.seen.append(batch)
        return self.inner(policy, batch)

    def state_dict(self):
        return {"prepared": self.prepared}

    def load_state_dict(self, state):
        self.prepared = state["prepared"]


def parameters(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])


def test_a_batch_is_prepared_once_and_passed_over_in_parts():
    objective = Preparing()
    settings = TrainerSettings(updates=3, minibatches=2)
    trainer = grid_trainer(objective=objective, settings=settings)
    trainer.run(2)
    assert trainer.step == 2 and objective.prepared == 2
    assert [part.n for part in objective.seen] == [8] * 12
    first, second = objective.seen[0], objective.seen[1]
    assert torch.equal(objective.seen[2].states, first.states)
    assert torch.equal(torch.cat([p.log_reward for p in objective.seen[6:8]]),
                       trainer.batch.log_reward)  # fmt: skip
    assert not torch.equal(first.states, second.states)


def test_every_part_is_an_optimiser_step():
    """Two passes over one batch are two steps on it."""
    trainer = grid_trainer(settings=TrainerSettings(updates=2))
    by_hand = grid_trainer()
    for _ in range(3):
        batch = by_hand.sampler()
        for _ in range(2):
            by_hand.optimizer.zero_grad()
            by_hand.objective(by_hand.policy, batch).value.backward()
            by_hand.optimizer.step()
    trainer.run(3)
    assert torch.equal(parameters(trainer), parameters(by_hand))


def test_groups_stay_whole():
    batch = grid_trainer(batch_size=12).sampler()
    batch.group = torch.tensor([7, 3, 7, 3, 1, 1, 9, 9, 9, 7, 3, 1])
    parts = split_groups(batch, 2)
    assert [sorted(part.group.unique().tolist()) for part in parts] == [[1, 3], [7, 9]]
    assert sum(part.n for part in parts) == 12
    batch.group = torch.zeros(12, dtype=torch.int64)
    assert [part.n for part in split_groups(batch, 5)] == [3, 2, 3, 2, 2]
    with pytest.raises(ValueError, match="12 trajectories cannot be split into 13 parts"):
        split_groups(batch, 13)


def test_logged_scalars_are_means_over_the_parts():
    class Numbered:
        needs = frozenset()

        def __init__(self):
            self.calls = 0

        def __call__(self, policy, batch):
            self.calls += 1
            value = policy.forward_head.bias.sum() * 0 + self.calls
            return Loss(value, {"calls": torch.tensor(10.0 * self.calls)}, batch.n)

    seen = []
    events = Events(on_log=[lambda trainer, info: seen.append((info["loss"], info["calls"]))])
    settings = TrainerSettings(updates=2, minibatches=2, log_every=1)
    grid_trainer(objective=Numbered(), settings=settings, events=events).run(2)
    assert seen == [(2.5, 25.0), (6.5, 65.0)]


def test_deferred_metrics_are_worked_out_where_they_are_logged():
    read = []

    class Watched:
        needs = frozenset()

        def __call__(self, policy, batch):
            value = policy.forward_head.bias.sum() * 0

            def metric():
                read.append(trainer.step)
                return value.detach() + 3

            return Loss(value, Deferred({"metric": metric}), batch.n)

    seen = []
    events = Events(on_log=[lambda trainer, info: seen.append(info["metric"])])
    settings = TrainerSettings(log_every=3)
    trainer = grid_trainer(objective=Watched(), settings=settings, events=events)
    trainer.run(7)
    assert read == [3, 6, 7] and seen == [3.0] * 3


def test_the_state_of_an_objective_is_in_the_checkpoint(tmp_path):
    settings = TrainerSettings(updates=2, minibatches=4)
    whole = grid_trainer(objective=Preparing(), settings=settings)
    whole.run(8)
    first = grid_trainer(objective=Preparing(), settings=settings, folder=tmp_path)
    first.run(3)
    second = grid_trainer(objective=Preparing(), settings=settings)
    second.load(tmp_path / "checkpoints" / "step_000000003.pt")
    assert second.objective.prepared == 3
    second.run(8)
    assert torch.equal(parameters(whole), parameters(second))
    grid_trainer(folder=tmp_path / "plain").run(1)
    with pytest.raises(CheckpointError, match="objective"):
        second.load(tmp_path / "plain" / "checkpoints" / "step_000000001.pt")


def test_a_pass_needs_a_part():
    with pytest.raises(ValueError, match="at least one pass over at least one part"):
        TrainerSettings(minibatches=0)
    with pytest.raises(ConfigError, match="trainer: a trainer takes at least one pass"):
        from_dict({"trainer": {"updates": 0}}, "command line")
