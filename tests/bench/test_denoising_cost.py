"""Where the time of a rollout goes."""

import torch

from benchmarks.denoising_cost import rollout_seconds


def test_the_network_takes_most_of_a_rollout():
    whole, outside = rollout_seconds(4, torch.device("cpu"), 3)
    assert 0 < outside < whole / 2
