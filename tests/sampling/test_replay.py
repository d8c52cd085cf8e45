import pytest
import torch

from gflow.conditions import Conditions, InverseTemperature
from gflow.sampling import Replay
from gflow.seeding import generator
from tests.problems import grid_trainer


def batches(n=6, batch_size=16):
    sampler = grid_trainer(
        batch_size=batch_size,
        conditions=Conditions(1, InverseTemperature("uniform", 1, 2)),
    ).sampler
    return [sampler() for _ in range(n)]


def test_the_oldest_leave_first():
    replay = Replay(40)
    made = batches()
    for batch in made:
        replay.add(batch)
    assert len(replay) == 40
    kept = {round(v, 5) for v in replay.kept.condition.inverse_temperature.tolist()}
    every = torch.cat([batch.condition.inverse_temperature for batch in made])
    assert kept == {round(v, 5) for v in every[-40:].tolist()}


def test_samples_are_stored_trajectories():
    replay, made = Replay(1000), batches()
    for batch in made:
        replay.add(batch)
    drawn = replay.sample(200, generator(0))
    known = {
        round(beta, 5): (terminal, reward)
        for batch in made
        for beta, terminal, reward in zip(
            batch.condition.inverse_temperature.tolist(),
            batch.terminal.data.tolist(),
            batch.log_reward.tolist(),
            strict=True,
        )
    }
    for i in range(200):
        terminal, reward = known[round(drawn.condition.inverse_temperature[i].item(), 5)]
        assert drawn.terminal.data[i].tolist() == terminal
        assert drawn.log_reward[i].item() == pytest.approx(reward)
    assert not drawn.states.requires_grad


def test_prioritized_samples_are_better():
    plain, prioritized = Replay(1000), Replay(1000, prioritized=True)
    for batch in batches():
        plain.add(batch)
        prioritized.add(batch)
    mean = [r.sample(400, generator(0)).log_reward.mean() for r in (plain, prioritized)]
    assert mean[1] > mean[0] + 0.1


def test_state_round_trip():
    replay, other = Replay(50), Replay(50)
    for batch in batches():
        replay.add(batch)
    other.load_state_dict(replay.state_dict())
    a, b = replay.sample(20, generator(1)), other.sample(20, generator(1))
    assert torch.equal(a.states, b.states) and torch.equal(a.log_reward, b.log_reward)


def test_bad_buffers_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Replay(0)
    with pytest.raises(ValueError, match="empty"):
        Replay(3).sample(1, generator(0))
