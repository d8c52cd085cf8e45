"""A laboratory of five-letter words, small enough for sessions in a test."""

import torch

from gflow.active import Session, SessionConfig
from gflow.envs.sequences import AppendSequences
from gflow.mdp import Reward
from gflow.tasks import Task, flat_policy

CONFIG = SessionConfig(task="words", steps=3, batch_size=32, seed=5)


class Words:
    """As many As as possible, and as many words AC, out of five letters."""

    rewards = (Reward("a"), Reward("ac"))
    version, on_states, seconds = "1", False, 0.0

    def __call__(self, objects):
        rows = [[text.count("A") / 5, text.count("AC") / 2] for text in objects]
        return torch.tensor(rows, dtype=torch.float64).view(-1, 2)


def task(length=5):
    env = AppendSequences("ACGT", length)
    return Task(env, Words(), flat_policy(env))


def session(folder, config=CONFIG, length=5):
    return Session(folder, config, task(length))


def measured(one, objects):
    """Tell a session what the laboratory says of objects."""
    return one.tell(objects, Words()(objects))
