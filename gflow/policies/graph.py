"""torch_geometric layers as the trunk of a tree policy, for those who bring their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gflow.mdp import Condition
from gflow.policies.tree import Features, Nodes


def graph_trunk(
    convolution: Callable[[int], nn.Module],
) -> Callable[[Any, int, int, int], nn.Module]:
    """A trunk of `layers` graph convolutions, for `TreePolicy(trunk=...)`.

    Args:
        convolution: makes one layer from the width d; called as
            layer(x [m, d], edge_index [2, e], edge_attr [e, d]) -> [m, d], the convention of
            torch_geometric's GINEConv, GATv2Conv or TransformerConv (give those edge_dim=d).
    """

    def make(env: Any, condition_size: int, hidden: int, layers: int) -> nn.Module:
        return _GraphTrunk(
            env, condition_size, hidden, (convolution(hidden) for _ in range(layers))
        )

    return make


class _GraphTrunk(nn.Module):
    """Every bond is an edge in both directions; the summary is the mean over nodes."""

    def __init__(
        self, env: Any, condition_size: int, hidden: int, convolutions: Iterable[nn.Module]
    ):
        super().__init__()
        self.n_fragments = env.n_fragments
        self.fragment = nn.Embedding(env.n_fragments + 1, hidden)
        self.used = nn.Embedding(2**env.n_sites, hidden)
        self.bond = nn.Embedding(2 * (env.n_halves + 1), hidden)
        self.size = nn.Embedding(env.max_fragments + 1, hidden)
        self.condition = nn.Linear(condition_size, hidden) if condition_size else None
        self.convolutions = nn.ModuleList(convolutions)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, record: Any, condition: Condition) -> Features:
        """Features of the states and of their nodes."""
        n, n_nodes = record.fragment.shape
        fragment = record.fragment.flatten()
        present = fragment != self.n_fragments
        rows = present.nonzero()[:, 0]
        inverse = torch.where(present, present.cumsum(0) - 1, len(rows))
        state = torch.div(rows, n_nodes, rounding_mode="floor")
        start = n_nodes * torch.arange(n, device=rows.device)[:, None]
        parent = (record.parent + start).flatten()[rows]
        child = (parent != rows).nonzero()[:, 0]
        ends = torch.stack([child, inverse[parent[child]]])
        own, theirs = (
            half.flatten()[rows][child] for half in (record.own_half, record.parent_half)
        )
        offset = self.bond.num_embeddings // 2
        edges = torch.cat([ends, ends.flip(0)], 1)
        # What a bond looks like from its target's end and from its source's.
        bonds = self.bond(torch.cat([theirs, own])) + self.bond(offset + torch.cat([own, theirs]))

        size = present.view(n, n_nodes).sum(1)
        whole = self.size(size)
        if self.condition is not None:
            whole = whole + self.condition(condition.encoding.to(whole.dtype))
        h = self.fragment(fragment[rows]) + self.used(record.used.flatten()[rows]) + whole[state]
        for layer in self.convolutions:
            h = h + layer(self.norm(h), edges, bonds).relu()
        total: Tensor = torch.zeros_like(whole).index_add(0, state, h)
        return Features(whole + total / size.clamp(min=1)[:, None], Nodes(h, rows, inverse))
