"""One thread and fixed hypothesis examples for every test."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("ci")
