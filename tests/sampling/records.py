"""What every trajectory record must satisfy, whoever sampled it; and strategies for tests."""

import torch


def check_record(env, batch):
    """The record starts at s0, every transition is legal and undone by its backward action."""
    n, horizon = batch.valid.shape
    lengths = batch.lengths
    assert horizon == lengths.max()
    assert torch.equal(batch.valid, torch.arange(horizon) < lengths[:, None])
    states = env.initial(n)
    assert torch.equal(batch.states[:, 0], states.data)
    rows = torch.arange(n)
    for t in range(horizon):
        going = batch.valid[:, t]
        if len(env.action_sizes) == 1:
            assert env.forward_mask(states)[rows, batch.actions[:, t]][going].all()
        child = env.step(states, batch.actions[:, t])
        assert torch.equal(child.data, batch.states[:, t + 1])
        assert torch.equal(child.done, t + 1 >= lengths)
        back = env.backstep(child, batch.backward_actions[:, t])
        assert torch.equal(back.data[going], states.data[going])
        states = child
    assert torch.equal(states.data, batch.terminal.data)


class Fixed:
    """A strategy that returns the same batch again and again."""

    def __init__(self, batch):
        self.batch = batch

    def __call__(self):
        return self.batch

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def parameters(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def same_batches(a, b):
    """Both batches are equal to the bit."""
    return all(
        torch.equal(x, y)
        for x, y in [
            (a.states, b.states),
            (a.actions, b.actions),
            (a.log_reward, b.log_reward),
            (a.condition.encoding, b.condition.encoding),
            (a.group, b.group),
        ]
    )
