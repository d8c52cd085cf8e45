"""log Z(c): a scalar parameter, or a small network of the condition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gflow.mdp import Condition


class LogZ(nn.Module):
    """log of the partition function for each condition.

    Without a condition it is one parameter of shape [1] (never a scalar: sharded training refuses
    those). Its learning rate belongs apart from the policy's (2201.13259).

    Args:
        condition_size: width C of the condition's encoding; 0 for one log Z.
        hidden: width of the two hidden layers of the conditional network.
    """

    def __init__(self, condition_size: int = 0, hidden: int = 64):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.network: nn.Module | None = None
        if condition_size:
            self.network = nn.Sequential(
                nn.Linear(condition_size, hidden),
                nn.LeakyReLU(),
                nn.Linear(hidden, hidden),
                nn.LeakyReLU(),
                nn.Linear(hidden, 1),
            )

    def forward(self, condition: Condition) -> Tensor:
        """log Z(c) for each row, [n]."""
        n = condition.inverse_temperature.shape[0]
        if self.network is None:
            return self.bias.expand(n)
        encoding = condition.encoding.to(self.bias.dtype)
        network: Tensor = self.network(encoding)
        return self.bias + network.squeeze(-1)
