"""Policies without a network: free numbers for every state, so that exact answers can be set."""

import torch
from torch import nn

from gflow.kernels import Categorical
from gflow.mdp import Heads
from gflow.policies import LogZ, fixed_backward_kernel


class TabularPolicy(nn.Module):
    """Free logits, flows and energies for every state of an environment of digits.

    States are rows of digits 0..base-1 (sets: base 2, grids: base = side). With `slot` the tables
    are separate for each of `n_slots` conditions.
    """

    def __init__(
        self,
        env,
        base,
        backward="uniform",
        dtype=torch.float64,
        n_slots=1,
        slot=lambda condition: torch.zeros(len(condition.encoding), dtype=torch.int64),
    ):
        super().__init__()
        self.env, self.backward, self.slot = env, backward, slot
        digits = env.state_shape[0]
        self.radix = base ** torch.arange(digits)
        shape = (n_slots, base**digits)
        self.logits = nn.Parameter(torch.zeros(*shape, *env.action_sizes, dtype=dtype))
        self.back = nn.Parameter(torch.zeros(*shape, env.n_backward_actions, dtype=dtype))
        self.flow = nn.Parameter(torch.zeros(shape, dtype=dtype))
        self.energy = nn.Parameter(torch.zeros(*shape, *env.action_sizes, dtype=dtype))
        self.log_z = LogZ().to(dtype)

    def number(self, states):
        """The row of each state in the tables."""
        return states.data @ self.radix

    def forward(self, states, condition, needs):
        at = self.slot(condition), self.number(states)
        if self.backward == "learned":
            backward = Categorical(self.back[at], self.env.backward_mask(states))
        else:
            backward = fixed_backward_kernel(self.env, states, self.backward, self.logits.dtype)
        forward = Categorical(self.logits[at], self.env.forward_mask(states))
        return Heads(forward, backward, self.flow[at], self.energy[at])

    @torch.no_grad()
    def solve(self, flows, slot=0):
        """Set P_F, log F and log Z to exact flows with uniform P_B."""
        number = self.number(flows.states)
        going = ~flows.states.done
        self.logits[slot].fill_(-torch.inf)
        self.logits[slot, number[flows.parent], flows.action] = flows.log_pf.to(self.logits.dtype)
        self.flow[slot, number[going]] = flows.log_flow[going].to(self.flow.dtype)
        self.log_z.bias.fill_(flows.log_flow[0])
        return self
