"""torchgfn as a contestant of `benchmarks/speed.py`: `python with_torchgfn.py SETTING`.

Runs in an environment where torchgfn is installed; its sampler, loss and optimiser are used as its
own training scripts use them. The one-hot preprocessor for tokens and the table of rewards are
supplied here, so that all contestants see the same input and look up the same kind of reward.
"""

from __future__ import annotations

import sys

import torch
from gfn.estimators import DiscretePolicyEstimator
from gfn.gflownet import TBGFlowNet
from gfn.gym import BitSequence, HyperGrid, NonAutoregressiveBitSequence
from gfn.preprocessors import KHotPreprocessor, Preprocessor
from gfn.samplers import Sampler
from gfn.utils.modules import MLP
from turns import SETTINGS, Setting, serve


class OneHotTokens(Preprocessor):
    """Tokens -1 (empty), 0, ..., V - 1 of each place as unit vectors side by side."""

    def __init__(self, n_places, n_symbols):
        super().__init__(output_dim=n_places * (n_symbols + 1))
        self.width = n_symbols + 1

    def preprocess(self, states):
        codes = torch.nn.functional.one_hot(states.tensor + 1, self.width)
        return codes.flatten(-2).float()


class RandomLetters(BitSequence):
    """Eight letters of four, each with a random reward between 0.001 and 1."""

    def __init__(self):
        super().__init__(word_size=2, seq_size=16, n_modes=2)
        source = torch.Generator().manual_seed(0)
        self.table = torch.rand(4**8, generator=source).clamp(min=1e-3)
        self.place = 4 ** torch.arange(8)

    def log_reward(self, final_states):
        return self.table[(final_states.tensor * self.place).sum(-1)].log()


def gflownet(setting: Setting):
    """Environment, and policies under trajectory balance."""
    if setting.problem == "tfbind8":
        env, codes = RandomLetters(), OneHotTokens(8, 4)
    elif setting.problem == "bits":
        env = NonAutoregressiveBitSequence(word_size=8, seq_size=120, n_modes=60)
        codes = OneHotTokens(15, 256)
    else:
        rewards = {"R0": 0.1, "R1": 0.5, "R2": 2.0}
        env = HyperGrid(
            ndim=4,
            height=setting.side,
            reward_fn_str="original",
            reward_fn_kwargs=rewards,
            calculate_partition=False,
            store_all_states=False,
            debug=False,
        )
        codes = KHotPreprocessor(height=setting.side, ndim=4)
    network = MLP(codes.output_dim, env.n_actions, hidden_dim=256, n_hidden_layers=2)
    forward = DiscretePolicyEstimator(network, env.n_actions, preprocessor=codes)
    backward = None
    if setting.problem == "bits":
        backward = DiscretePolicyEstimator.uniform(env.n_actions, preprocessor=codes)
    elif setting.problem == "grid":
        head = MLP(codes.output_dim, env.n_actions - 1, hidden_dim=256, trunk=network.trunk)
        backward = DiscretePolicyEstimator(
            head, env.n_actions, preprocessor=codes, is_backward=True
        )
    return env, TBGFlowNet(forward, backward, constant_pb=backward is None)


def main(name: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    setting = SETTINGS[name]
    env, model = gflownet(setting)
    sampler = Sampler(estimator=model.pf)
    optimizer = torch.optim.Adam(model.pf_pb_parameters(), lr=1e-3)
    optimizer.add_param_group({"params": model.logz_parameters(), "lr": 0.1})
    lengths = []

    def run(n: int) -> None:
        for _ in range(n):
            batch = sampler.sample_trajectories(
                env, n=setting.batch_size, save_logprobs=False, save_estimator_outputs=False
            )
            optimizer.zero_grad()
            loss = model.loss_from_trajectories(env, batch, recalculate_all_logprobs=True)
            loss.backward()
            optimizer.step()
            lengths[:] = [batch.terminating_idx]

    serve(setting, run, lambda: float(lengths[0].double().mean()))


if __name__ == "__main__":
    main(sys.argv[1])
