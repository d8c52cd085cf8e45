"""A multi-layer perceptron for flat states: one trunk, several heads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gflow.kernels import Categorical
from gflow.mdp import Condition, Environment, Heads, States
from gflow.policies.common import BackwardKind, fixed_backward_kernel, row_starts, seeded_weights
from gflow.policies.linear import Linear
from gflow.policies.log_z import LogZ

UNROLLED = 16
"""Ones of an observation that compiled code adds up without a loop, see `compile_block`."""


class MLPPolicy(nn.Module):
    """Forward, backward and flow heads on one shared trunk.

    Args:
        env: environment with plain actions whose `observe` returns [n, observation_size].
        hidden: widths of the hidden layers; len(hidden) + 1 linear layers on the way to a head.
        condition_size: width of the condition's encoding, 0 without conditions.
        backward: "learned" (own head), "uniform" over parents, "paths" (exact path counts), or
            "tree" (every state has one parent).
        flow: add a head for log F(s).
        energy: add a head for the learned log-reward of each transition.
        seed: seeds the initial weights.

    Raises:
        ValueError: the environment's actions have factors, or its observations are no tensor.
    """

    def __init__(
        self,
        env: Environment,
        hidden: Sequence[int] = (256, 256),
        condition_size: int = 0,
        backward: BackwardKind = "uniform",
        flow: bool = False,
        energy: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        if len(env.action_sizes) != 1 or not env.observation_size:
            raise ValueError(f"{type(env).__name__} has no flat observations or plain actions")
        self.env, self.backward = env, backward
        with seeded_weights(seed):
            self.first = _FirstLayer(env, condition_size, hidden[0])
            self.trunk = nn.ModuleList(
                Linear(width, following) for width, following in itertools.pairwise(hidden)
            )
            self.forward_head = Linear(hidden[-1], env.action_sizes[0])
            if backward == "learned":
                self.backward_head = Linear(hidden[-1], env.n_backward_actions)
            if flow:
                self.flow_head = nn.Linear(hidden[-1], 1)
            self.log_z = LogZ(condition_size)
            if energy:
                self.energy_head = nn.Linear(hidden[-1], env.action_sizes[0])
        self.flow, self.energy = flow, energy

    def forward(self, states: States, condition: Condition, needs: frozenset[str]) -> Heads:
        """Heads for each row, from one pass through the trunk."""
        h = self.features(states, condition)
        forward = backward = flow = energy = None
        if "log_pf" in needs:
            forward = Categorical(self.logits(h, condition), self.env.forward_mask(states))
        if "log_pb" in needs:
            if self.backward == "learned":
                backward = Categorical(self.backward_head(h), self.env.backward_mask(states))
            else:
                backward = fixed_backward_kernel(self.env, states, self.backward, h.dtype)
        if "log_flow" in needs and self.flow:
            flow = self.flow_head(h).squeeze(-1)
        if "energy" in needs and self.energy:
            energy = self.energy_head(h)
        return Heads(forward, backward, flow, energy)

    def features(self, states: States, condition: Condition) -> Tensor:
        """What the trunk says about each row, [n, width]."""
        # In place: at large batches fresh memory costs more than the arithmetic.
        features: Tensor = self.first(states, condition).relu_()
        for layer in self.trunk:
            features = layer(features).relu_()
        return features

    def logits(self, features: Tensor, condition: Condition) -> Tensor:
        """Logits of P_F from the trunk's output, [n, A]."""
        logits: Tensor = self.forward_head(features)
        return logits


class _FirstLayer(nn.Module):
    """Linear layer on [observation, condition].

    Of a multi-hot observation the weights of its ones are picked and summed, which costs what
    the ones cost and not what the width costs; so weights are stored by input, [inputs, width].
    """

    def __init__(self, env: Environment, condition_size: int, width: int):
        super().__init__()
        self.env = env
        made = nn.Linear(env.observation_size + condition_size, width)
        by_input = made.weight.detach().T.contiguous()
        self.seen = nn.Parameter(by_input[: env.observation_size].clone())
        self.asked = (
            nn.Parameter(by_input[env.observation_size :].clone()) if condition_size else None
        )
        self.bias = nn.Parameter(made.bias.detach())
        self.multi_hot = env.indices(env.initial(1)) is not None

    def forward(self, states: States, condition: Condition) -> Tensor:
        """Activations before the non-linearity, [n, width]."""
        if self.multi_hot:
            ones = self.env.indices(states)
            assert ones is not None
            if torch.compiler.is_compiling() and ones.shape[1] <= UNROLLED:
                # Fuses with what follows; the bag would be a call of its own.
                x = self.seen[ones].sum(1) + self.bias
            else:
                starts = row_starts(ones.shape[0], ones.shape[1], ones.device)
                x = torch.embedding_bag(self.seen, ones.flatten(), starts)[0].add_(self.bias)
        else:
            x = torch.addmm(self.bias, self.env.observe(states).to(self.bias.dtype), self.seen)
        if self.asked is not None:
            x = torch.addmm(x, condition.encoding.to(x.dtype), self.asked)
        return x
