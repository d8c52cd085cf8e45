import os
import signal
import threading

import pytest
import torch

from gflow.sampling import Exploration, Replay, WithReplay
from gflow.training import CheckpointError, Events, TrainerSettings, TrainingError, load_checkpoint
from tests.problems import grid_distance, grid_trainer


def parameters(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])


def with_everything(folder=None, **options):
    return grid_trainer(
        wrap=lambda fresh: WithReplay(fresh, Replay(40), 8, seed=1, warm_up=20),
        exploration=Exploration(0.1, 1.2),
        folder=folder,
        backward="learned",
        **options,
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learns_the_8x8_grid(seed):
    trainer = grid_trainer(hidden=(256, 256), backward="learned", seed=seed)
    trainer.run(300)
    assert grid_distance(trainer) < 0.05
    assert abs(trainer.policy.log_z.bias.item() - 3.109061) < 0.1


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole = with_everything()
    whole.run(20)
    first = with_everything(tmp_path)
    first.run(9)
    second = with_everything(tmp_path)
    second.load(tmp_path / "checkpoints" / "step_000000009.pt")
    second.run(20)
    assert second.step == 20
    assert torch.equal(parameters(whole), parameters(second))
    assert torch.equal(whole.batch.states, second.batch.states)


def test_checkpoints_are_bounded_in_number_and_loadable(tmp_path):
    settings = TrainerSettings(checkpoint_every=2, keep_checkpoints=2)
    grid_trainer(folder=tmp_path, settings=settings).run(9)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_000000008.pt", "step_000000009.pt"]
    assert load_checkpoint(tmp_path / "checkpoints" / names[1])["step"] == 9


def test_unusable_checkpoints_are_one_sentence(tmp_path):
    trainer = grid_trainer(folder=tmp_path)
    trainer.run(1)
    path = trainer.save()
    content = path.read_bytes()
    before = parameters(trainer)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"step_000000001.pt is damaged"):
        trainer.load(path)
    torch.save({"version": 99}, path)
    with pytest.raises(CheckpointError, match="format 99"):
        trainer.load(path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        trainer.load(tmp_path / "nothing.pt")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not fit"):
        grid_trainer(side=5).load(path)
    assert torch.equal(before, parameters(trainer))


def test_events_come_in_order_and_at_their_intervals():
    seen = []

    def record(name):
        return lambda trainer, info: seen.append((name, trainer.step, sorted(info)))

    events = Events(
        on_log=[record("log")],
        on_eval=[lambda trainer, info: info.update(score=1.0)],
        on_end=[record("end")],
    )
    grid_trainer(events=events, settings=TrainerSettings(log_every=4, eval_every=3)).run(7)
    assert [(name, step) for name, step, _ in seen] == [
        ("log", 3), ("log", 4), ("log", 6), ("log", 7), ("end", 7),
    ]  # fmt: skip
    assert "score" in seen[0][2] and "score" not in seen[1][2] and "loss" in seen[1][2]


def test_non_finite_losses_are_skipped_counted_and_finally_fatal():
    trainer = grid_trainer(settings=TrainerSettings(max_skipped=2))
    trainer.run(2)
    before = parameters(trainer)
    score = trainer.sampler.score

    def spoiled(batch):
        batch = score(batch)
        batch.log_reward[0] = torch.inf
        return batch

    trainer.sampler.score = spoiled
    with pytest.raises(TrainingError, match="3 consecutive steps up to step 4"):
        trainer.run(10)
    assert trainer.skipped == 3
    assert torch.equal(before, parameters(trainer))


def test_interrupt_finishes_the_step_saves_and_returns(tmp_path):
    def interrupt(trainer, info):
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    trainer = grid_trainer(folder=tmp_path, events=Events(on_step=[interrupt]))
    trainer.run(1000)
    assert trainer.step == 3
    assert (tmp_path / "checkpoints" / "step_000000003.pt").is_file()
    assert signal.getsignal(signal.SIGINT) is before


def test_runs_outside_the_main_thread():
    trainer = grid_trainer()
    thread = threading.Thread(target=trainer.run, args=(2,))
    thread.start()
    thread.join()
    assert trainer.step == 2


def test_log_z_has_its_own_learning_rate():
    trainer = grid_trainer()
    rates = {
        id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]
    }
    assert rates[id(trainer.policy.log_z.bias)] == 0.1
    assert rates[id(trainer.policy.forward_head.weight)] == 1e-3
    assert len(rates) == len(list(trainer.policy.parameters()))
