"""Policy for objects that grow as trees of parts, such as fragment molecules.

The environment's `observe` returns a record of index tensors (parts, parent pointers, sites), and
an action is a slot (part, site) to grow at and an entry (what is attached there, by which of its
sites). Two trunks share the heads: message passing along the tree, and a perceptron on summed
embeddings of the flat table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gflow.kernels import Categorical, Factored
from gflow.mdp import Condition, Heads, States
from gflow.policies.common import BackwardKind, fixed_backward_kernel, seeded_weights
from gflow.policies.linear import Linear
from gflow.policies.log_z import LogZ


class Nodes(NamedTuple):
    """The m nodes that are computed, of n states of F nodes.

    Attributes:
        hidden: [m, d].
        rows: [m], their positions among the n * F.
        inverse: [n * F], number of the node at each position, m where there is none.
    """

    hidden: Tensor
    rows: Tensor
    inverse: Tensor

    def at(self, rows: Tensor) -> Tensor:
        """Hidden vectors [k, d] at positions [k], 0 where there is no node."""
        padded = nn.functional.pad(self.hidden, (0, 0, 0, 1))
        return padded[self.inverse[rows]]

    def spread(self, values: Tensor) -> Tensor:
        """Values [m, k] of the nodes at their positions, [n * F, k], 0 elsewhere."""
        empty = values.new_zeros(len(self.inverse), values.shape[1])
        return empty.index_copy(0, self.rows, values)


class Features(NamedTuple):
    """What a trunk says about n states: [n, d], and about their nodes (not the flat trunk)."""

    whole: Tensor
    nodes: Nodes | None


class TreePolicy(nn.Module):
    """Forward, backward and flow heads for environments of typed trees.

    Args:
        env: environment with factored actions (slot, entry) and attributes `max_fragments` F,
            `n_sites` S, `n_fragments` V, `n_halves` H, `flat_size`, and `entry_orbit` [H + V]
            (entries with equal numbers are interchangeable and share their logit).
        condition_size: width of the condition's encoding, 0 without conditions.
        hidden: width d of all layers.
        layers: message passing rounds, or hidden layers of the perceptron.
        backward: "learned" (own head over leaves), "uniform" over them, or "paths" (exact counts).
        flow: add a head for log F(s).
        trunk: "tree" (does not depend on which node is the root), "mlp" (faster, does), or a
            function (env, condition_size, hidden, layers) -> module that makes a trunk per node,
            such as `gflow.policies.graph.graph_trunk(...)` for torch_geometric layers.
        seed: seeds the initial weights.

    Raises:
        ValueError: unknown trunk, or fewer than one layer.
    """

    def __init__(
        self,
        env: Any,
        condition_size: int = 0,
        hidden: int = 128,
        layers: int = 4,
        backward: BackwardKind = "uniform",
        flow: bool = False,
        trunk: str | Callable[[Any, int, int, int], nn.Module] = "tree",
        seed: int = 0,
    ):
        super().__init__()
        made = {"tree": _TreeTrunk, "mlp": _FlatTrunk}
        make = made.get(trunk) if isinstance(trunk, str) else trunk
        if make is None:
            raise ValueError(f"trunk must be 'tree', 'mlp' or a function, not {trunk!r}")
        if layers < 1:
            raise ValueError(f"a policy needs at least one layer, not {layers}")
        self.env, self.backward, self.flow = env, backward, flow
        with seeded_weights(seed):
            self.trunk = make(env, condition_size, hidden, layers)
            self.modulation = (
                _Modulation(condition_size, hidden, trunk != "mlp") if condition_size else None
            )
            self.slot_head = _SlotHead(env, hidden, per_node=trunk != "mlp")
            self.stop_head = nn.Linear(hidden, 1)
            self.entry_head = _EntryHead(env, hidden, per_node=trunk != "mlp")
            if backward == "learned":
                width = env.max_fragments if trunk == "mlp" else 1
                self.backward_head = nn.Sequential(
                    nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width)
                )
            if flow:
                self.flow_head = nn.Sequential(
                    nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
                )
            self.log_z = LogZ(condition_size)

    def forward(self, states: States, condition: Condition, needs: frozenset[str]) -> Heads:
        """Heads for each row, from one pass through the trunk."""
        record = self.env.observe(states)
        features = self.trunk(record, condition)
        if self.modulation is not None:
            features = self.modulation(features, condition, states.n)
        forward: Factored | None = None
        backward: Categorical | None = None
        flow: Tensor | None = None
        if "log_pf" in needs:
            forward = self._forward_kernel(states, record, features)
        if "log_pb" in needs:
            backward = self._backward_kernel(states, features)
        if "log_flow" in needs and self.flow:
            flow = self.flow_head(features.whole).squeeze(-1)
        return Heads(forward, backward, flow)

    def _forward_kernel(self, states: States, record: Any, features: Features) -> Factored:
        slots = self.slot_head(record, features)
        logits = torch.cat([slots, self.stop_head(features.whole)], 1)
        first = Categorical(logits, self.env.forward_mask(states))

        def second(slot: Tensor) -> Categorical:
            entries = self.entry_head(record, features, slot)
            return Categorical(entries, self.env.forward_mask(states, slot))

        return Factored(first, second, self.env.action_sizes)

    def _backward_kernel(self, states: States, features: Features) -> Categorical:
        if self.backward != "learned":
            dtype = features.whole.dtype
            return fixed_backward_kernel(self.env, states, self.backward, dtype)
        if features.nodes is None:
            logits = self.backward_head(features.whole)
        else:
            leaves = self.backward_head(features.nodes.hidden)
            logits = features.nodes.spread(leaves).view(states.n, -1)
        mask = self.env.backward_mask(states)
        # Undoing the stop is certain wherever it is legal; its logit does not matter.
        return Categorical(torch.nn.functional.pad(logits, (0, 1)), mask)


class _Modulation(nn.Module):
    """Scales and shifts features by the condition (FiLM, 2017, arXiv 1709.07871).

    What a preference changes is which features count, which sums alone express slowly.
    """

    def __init__(self, condition_size: int, hidden: int, per_node: bool):
        super().__init__()
        self.whole = nn.Linear(condition_size, 2 * hidden)
        self.nodes = nn.Linear(condition_size, 2 * hidden) if per_node else None

    def forward(self, features: Features, condition: Condition, n: int) -> Features:
        encoding = condition.encoding.to(features.whole.dtype)
        whole, nodes = _modulate(features.whole, self.whole(encoding)), features.nodes
        if nodes is not None and self.nodes is not None:
            state = torch.div(nodes.rows, len(nodes.inverse) // n, rounding_mode="floor")
            nodes = nodes._replace(hidden=_modulate(nodes.hidden, self.nodes(encoding)[state]))
        return Features(whole, nodes)


def _modulate(features: Tensor, by: Tensor) -> Tensor:
    scale, shift = by.chunk(2, -1)
    return features * (1 + scale) + shift


class _TreeTrunk(nn.Module):
    """Rounds of messages along the bonds, and a summary of the whole that joins in."""

    def __init__(self, env: Any, condition_size: int, hidden: int, layers: int):
        super().__init__()
        self.max_fragments, self.n_fragments = env.max_fragments, env.n_fragments
        self.fragment = nn.Embedding(env.n_fragments + 1, hidden)
        self.used = nn.Embedding(2**env.n_sites, hidden)
        self.here = nn.Embedding(env.n_halves + 1, hidden)
        self.there = nn.Embedding(env.n_halves + 1, hidden)
        self.size = nn.Embedding(env.max_fragments + 1, hidden)
        self.condition = nn.Linear(condition_size, hidden) if condition_size else None
        self.rounds = nn.ModuleList(_Round(hidden) for _ in range(layers))
        self.norm, self.whole_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)

    def forward(self, record: Any, condition: Condition) -> Features:
        """Features of the states and of their nodes."""
        n, n_nodes = record.fragment.shape
        fragment = record.fragment.flatten()
        present = fragment != self.n_fragments
        parent = (
            record.parent + n_nodes * torch.arange(n, device=fragment.device)[:, None]
        ).flatten()
        attached = parent != torch.arange(n * n_nodes, device=fragment.device)
        # On a CPU only real nodes are computed; elsewhere shapes stay fixed and the rest weighs 0.
        if fragment.device.type == "cpu" and not torch.compiler.is_compiling():
            rows, children = present.nonzero()[:, 0], attached.nonzero()[:, 0]
            index = present.cumsum(0) - 1
        else:
            rows = children = index = torch.arange(n * n_nodes, device=fragment.device)
        inverse = torch.where(present, index, len(rows))
        links = _Links(
            state=torch.div(rows, n_nodes, rounding_mode="floor"),
            node_weight=present[rows, None],
            child=index[children],
            parent=index[parent[children]],
            weight=attached[children, None],
        )
        own, theirs = record.own_half.flatten()[children], record.parent_half.flatten()[children]
        # What a bond looks like from its parent's end, and from its child's.
        from_parent = self.here(theirs) + self.there(own)
        from_child = self.here(own) + self.there(theirs)

        size = present.view(n, n_nodes).sum(1)
        whole = self.size(size)
        if self.condition is not None:
            whole = whole + self.condition(condition.encoding.to(whole.dtype))
        h = self.fragment(fragment[rows]) + self.used(record.used.flatten()[rows])
        for one in self.rounds:
            h, whole = one(h, whole, links, from_parent, from_child)
        return Features(self.whole_norm(whole), Nodes(self.norm(h), rows, inverse))


class _Links(NamedTuple):
    """Indices of m computed nodes in n states and of the bonds between them."""

    state: Tensor
    node_weight: Tensor
    child: Tensor
    parent: Tensor
    weight: Tensor


class _Round(nn.Module):
    """One exchange along bonds in both directions, and with the summary."""

    def __init__(self, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.whole_norm = nn.LayerNorm(hidden)
        self.message = Linear(hidden, hidden, bias=False)
        self.own = Linear(hidden, hidden)
        self.down = Linear(hidden, hidden, bias=False)
        self.out = Linear(hidden, hidden)
        self.up = Linear(hidden, hidden)

    def forward(
        self, h: Tensor, whole: Tensor, links: _Links, from_parent: Tensor, from_child: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = self.norm(h)
        sent = self.message(x)
        to_parent = (sent[links.child] + from_parent).relu() * links.weight
        to_child = (sent[links.parent] + from_child).relu() * links.weight
        heard = self.own(x) + self.down(self.whole_norm(whole))[links.state]
        heard = heard.index_add(0, links.parent, to_parent).index_add(0, links.child, to_child)
        h = h + self.out(heard.relu())
        pooled = torch.zeros_like(whole).index_add(0, links.state, h * links.node_weight)
        return h, whole + self.up(pooled).relu()


class _FlatTrunk(nn.Module):
    """Perceptron on the sum of embeddings of the flat table's indices."""

    def __init__(self, env: Any, condition_size: int, hidden: int, layers: int):
        super().__init__()
        # The last index stands for nothing at all.
        self.first = nn.EmbeddingBag(
            env.flat_size + 1, hidden, mode="sum", padding_idx=env.flat_size
        )
        nn.init.normal_(self.first.weight, std=0.1)
        self.condition = nn.Linear(max(condition_size, 1), hidden)
        self.layers = nn.ModuleList(Linear(hidden, hidden) for _ in range(layers - 1))

    def forward(self, record: Any, condition: Condition) -> Features:
        x = self.first(record.flat) + self.condition.bias
        if condition.encoding.shape[1]:
            x = x + condition.encoding.to(x.dtype) @ self.condition.weight.T
        for layer in self.layers:
            x = layer(x.relu())
        return Features(x.relu(), None)


class _SlotHead(nn.Module):
    """Logits [n, F * S] of growing at each site of each node."""

    def __init__(self, env: Any, hidden: int, per_node: bool):
        super().__init__()
        self.n_sites = env.n_sites
        if per_node:
            width = 32  # sites are many, and what tells them apart is simple
            self.query = nn.Linear(hidden, width)
            self.site = nn.Embedding(env.n_halves + env.n_sites, width)
            nn.init.normal_(self.site.weight, std=0.3 * width**-0.5)
        else:
            self.flat = nn.Linear(hidden, env.max_fragments * env.n_sites)

    def forward(self, record: Any, features: Features) -> Tensor:
        """Logits; those of absent nodes and sites are meaningless."""
        if features.nodes is None:
            flat: Tensor = self.flat(features.whole)
            return flat
        first = record.first_half.flatten()[features.nodes.rows]
        half = first[:, None] + torch.arange(self.n_sites, device=first.device)
        scores = (self.site(half) @ self.query(features.nodes.hidden)[..., None])[..., 0]
        return features.nodes.spread(scores).view(len(features.whole), -1)


class _EntryHead(nn.Module):
    """Logits [n, H + V] of what is attached at a chosen slot: a query dotted with embeddings."""

    def __init__(self, env: Any, hidden: int, per_node: bool):
        super().__init__()
        self.n_sites, self.max_fragments = env.n_sites, env.max_fragments
        self.orbit: Tensor
        self.register_buffer("orbit", env.entry_orbit.clone(), persistent=False)
        width = min(hidden, 128)
        self.whole = nn.Linear(hidden, width)
        self.node = nn.Linear(hidden, width, bias=False) if per_node else None
        self.site = nn.Embedding(env.n_halves + env.n_sites, width)
        self.slot = None if per_node else nn.Embedding(env.action_sizes[0], width)
        self.query = nn.Linear(width, width)
        self.entries = nn.Linear(width, int(env.entry_orbit.max()) + 1)
        nn.init.normal_(self.entries.weight, std=0.3 * width**-0.5)

    def forward(self, record: Any, features: Features, slot: Tensor) -> Tensor:
        """Logits given the chosen slots [n]."""
        node = torch.div(slot, self.n_sites, rounding_mode="floor")
        site = slot - node * self.n_sites
        # The stop slot lies behind the last node; its only legal entry needs no query.
        node = node.clamp(max=self.max_fragments - 1)
        half = record.first_half.gather(1, node[:, None])[:, 0] + site
        x = self.whole(features.whole) + self.site(half)
        if self.node is not None and features.nodes is not None:
            row = node + self.max_fragments * torch.arange(len(slot), device=node.device)
            x = x + self.node(features.nodes.at(row))
        if self.slot is not None:
            x = x + self.slot(slot)
        q = self.query(x.relu()).relu()
        entries = self.entries
        return nn.functional.linear(q, entries.weight[self.orbit], entries.bias[self.orbit])
