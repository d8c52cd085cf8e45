"""Assembly of molecules from fragments, one fragment per step, on integer tables.

A state is a tree of fragments, one row per node: (fragment, slot, own site, bitmask of used
sites). `slot = parent node * S + parent's site` says where the node hangs; it is -1 for the root
and F * S for an empty row. Nodes are kept sorted by slot, which is the breadth-first order of the
tree, so that every rooted, site-labelled tree has exactly one table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflow.envs.molecules.chemistry import allowed_pairs
from gflow.envs.molecules.cutting import cut_molecule
from gflow.envs.molecules.spelling import Speller
from gflow.envs.molecules.symmetry import (
    Counts,
    SymmetryTables,
    build_symmetry_tables,
    count_ways,
)
from gflow.envs.molecules.tables import Tables, build_tables
from gflow.envs.molecules.vocabulary import Vocabulary
from gflow.mdp import Environment, States

FRAGMENT, SLOT, SITE, USED = range(4)


class MoleculeObservation(NamedTuple):
    """What a policy network sees of n states of F nodes with S sites each.

    Finished molecules look like unfinished ones; their only action is certain.

    Attributes:
        fragment: [n, F], V for an empty node.
        parent: [n, F], node this one hangs on; the node itself for the root and empty nodes.
        own_half: [n, F], the node's own half in the bond to its parent, 0..H-1; H where none.
        parent_half: [n, F], its parent's half in that bond, H where none.
        first_half: [n, F], half of the node's first site, H for empty nodes.
        used: [n, F], bitmask of used sites, 0..2^S-1.
        flat: [n, 3F], indices below `flat_size` of one-hot features that depend on the node's
            position: fragment, slot and used sites; `flat_size` itself for empty nodes.
    """

    fragment: Tensor
    parent: Tensor
    own_half: Tensor
    parent_half: Tensor
    first_half: Tensor
    used: Tensor
    flat: Tensor


class FragmentMolecules(Environment):
    """Molecules grown fragment by fragment at typed attachment sites.

    An action has two factors. The first is a slot `node * S + site` to grow at, or stop, the last
    entry. The second is a half (a fragment and the site of it that is bonded), or, for the first
    fragment, one of the V root fragments behind the H halves; with stop it is the last entry.
    Bonds are single and join site classes that `chemistry.allowed_pairs` allows. Backward action
    i removes leaf i (the root only when alone); the last one, F, takes back the stop.

    States are rooted trees, and every removable leaf leads to a different rooted tree, so uniform
    leaf removal is one entry per parent. A molecule has `exp(log_n_rooted_trees)` such states; to
    sample molecules in proportion to R, either use the backward policy of `log_n_paths` (uniform
    over all action sequences that give the molecule), or uniform leaf removal with the reward
    divided by the number of rooted trees. With the preset "full", some molecules can be written
    with different fragments; such spellings count as different objects.

    (Fragment assembly: 2106.04399, section 4.3. Path counts: Mohammadpour et al. 2023,
    arXiv 2312.14331.)

    Args:
        vocabulary: fragments; the built-in ones when None.
        preset: "full", or "irreducible", which drops fragments that others of the vocabulary can
            be joined to.
        max_fragments: F, at least 1.
        min_fragments: stopping is illegal below this number of fragments while growth is possible.
        pairs: symmetric table over `chemistry.SITE_CLASSES` of the bonds that may be made;
            `chemistry.allowed_pairs()` when None.

    Raises:
        ValueError: unknown preset, or not 1 <= min_fragments <= max_fragments.
    """

    def __init__(
        self,
        vocabulary: Vocabulary | None = None,
        preset: str = "full",
        max_fragments: int = 9,
        min_fragments: int = 2,
        pairs: Sequence[Sequence[bool]] | None = None,
    ):
        if preset not in ("full", "irreducible"):
            raise ValueError(f"preset must be 'full' or 'irreducible', not {preset!r}")
        if not 1 <= min_fragments <= max_fragments:
            raise ValueError(
                "FragmentMolecules needs 1 <= min_fragments <= max_fragments, "
                f"not {min_fragments} and {max_fragments}"
            )
        vocabulary = vocabulary or Vocabulary.default()
        if preset == "irreducible":
            vocabulary = vocabulary.without_composites()
        self.vocabulary = vocabulary
        self.max_fragments, self.min_fragments = max_fragments, min_fragments
        self.pairs = [list(row) for row in pairs or allowed_pairs()]
        self._speller = Speller(vocabulary)
        tables = build_tables(vocabulary, self.pairs)
        symmetries = build_symmetry_tables(vocabulary, tables.n_sites)
        self._tables = {torch.device("cpu"): (tables, symmetries)}
        self.n_fragments = len(vocabulary)
        self.n_sites = tables.n_sites
        self.n_entries = len(tables.entry_fragment)
        self.n_halves = self.n_entries - self.n_fragments
        self.n_slots = max_fragments * self.n_sites
        self.state_shape = (max_fragments, 4)
        self.action_sizes = (self.n_slots + 1, self.n_entries)
        self.n_backward_actions = max_fragments + 1
        self.max_steps = max_fragments + 1
        self.flat_size = max_fragments * (self.n_fragments + self.n_slots + 1 + 2**self.n_sites)
        self.entry_orbit = tables.entry_orbit

    def __getstate__(self) -> dict[str, Any]:
        cpu = torch.device("cpu")
        return self.__dict__ | {"_tables": {cpu: self._tables[cpu]}}

    def tables(self, device: torch.device | str) -> tuple[Tables, SymmetryTables]:
        """Lookup tensors on `device` (copied there once)."""
        device = torch.device(device)
        if device not in self._tables:
            tables, symmetries = self._tables[torch.device("cpu")]
            self._tables[device] = (tables.to(device), symmetries.to(device))
        return self._tables[device]

    def initial(self, n: int, device: torch.device | str = "cpu") -> States:
        """`n` empty tables."""
        data = self._empty_node(device).expand(n, self.max_fragments, 4).clone()
        zeros = torch.zeros(n, dtype=torch.int64, device=device)
        return States(data, zeros, zeros.bool())

    def size(self, states: States) -> Tensor:
        """Number of fragments, [n] int64."""
        return (states.data[..., FRAGMENT] != self.n_fragments).sum(1)

    def step(self, states: States, actions: Tensor) -> States:
        """Add a fragment at a slot, or stop; actions [n, 2] must be legal."""
        tables, n_sites = self.tables(actions.device)[0], self.n_sites
        slot, entry = actions.unbind(-1)
        going = ~states.done
        stop = slot >= self.n_slots
        grow = (going & ~stop)[:, None]
        data = states.data
        # Sorted by slot: the new node's place is the number of smaller slots.
        place = (data[..., SLOT] < slot[:, None]).sum(1, keepdim=True)
        node = torch.arange(self.max_fragments, device=data.device)
        old = (node - ((node > place) & grow).long())[..., None].expand_as(data)
        fragment, hang, site, used = data.gather(1, old).unbind(-1)
        # Parents behind the new node move down by one; empty rows stay at n_slots.
        hang = (hang + n_sites * ((hang >= place * n_sites) & grow)).clamp(max=self.n_slots)
        here = (node == place) & grow
        site_new = tables.entry_site[entry][:, None]
        slot_new = torch.where(site_new < 0, -1, slot[:, None])
        parent = torch.div(slot_new, n_sites, rounding_mode="floor")
        parent_bit = torch.where((node == parent) & grow, 1 << (slot_new - parent * n_sites), 0)
        data = torch.stack(
            [
                torch.where(here, tables.entry_fragment[entry][:, None], fragment),
                torch.where(here, slot_new, hang),
                torch.where(here, site_new, site),
                torch.where(here, tables.entry_bit[entry][:, None], used) | parent_bit,
            ],
            -1,
        )
        return States(data, states.step + going, states.done | stop)

    def backstep(self, states: States, actions: Tensor) -> States:
        """Remove the leaf at node `actions` [n], or take back the stop."""
        n_sites = self.n_sites
        started = states.step > 0
        leaf = torch.where(states.done | ~started, self.max_fragments, actions)[:, None]
        padded = torch.cat(
            [states.data, self._empty_node(actions.device).expand(states.n, 1, 4)], 1
        )
        gone = padded.gather(1, leaf[..., None].expand(-1, 1, 4))[:, 0]
        node = torch.arange(self.max_fragments, device=actions.device)
        kept = (node + (node >= leaf).long())[..., None].expand_as(states.data)
        fragment, hang, site, used = padded.gather(1, kept).unbind(-1)
        behind = (hang >= (leaf + 1) * n_sites) & (hang < self.n_slots)
        slot = gone[:, SLOT, None]
        parent = torch.div(slot, n_sites, rounding_mode="floor")
        parent_bit = torch.where((node == parent) & (slot >= 0), 1 << (slot - parent * n_sites), 0)
        data = torch.stack([fragment, hang - n_sites * behind.long(), site, used ^ parent_bit], -1)
        return States(data, states.step - started.long(), torch.zeros_like(states.done))

    def forward_mask(self, states: States, *chosen: Tensor) -> Tensor:
        """Legal slots [n, F * S + 1]; given chosen slots [n], legal entries [n, H + V]."""
        tables = self.tables(states.data.device)[0]
        fragment = states.data[..., FRAGMENT]
        if chosen:
            (slot,) = chosen
            node = torch.div(slot, self.n_sites, rounding_mode="floor")
            padded = torch.nn.functional.pad(fragment, (0, 1), value=self.n_fragments + 1)
            there = padded.gather(1, node[:, None])[:, 0]
            return tables.entry_mask[tables.entry_row[there, slot - node * self.n_sites]]
        present = fragment != self.n_fragments
        size = present.sum(1)
        growing = ~states.done & (size < self.max_fragments)
        free = tables.open_sites[fragment, states.data[..., USED]].flatten(1) & growing[:, None]
        stop = (size >= self.min_fragments) | ~free.any(1)
        # The empty state has one dummy slot, where the root goes.
        first = (size == 0) & ~states.done
        free[:, 0] |= first
        return torch.cat([free, (stop & ~first)[:, None]], 1)

    def backward_mask(self, states: States) -> Tensor:
        """Leaves, and the root when alone; of a finished row only its stop."""
        fragment, slot = states.data[..., FRAGMENT], states.data[..., SLOT]
        only_stop = (states.done | (states.step == 0))[:, None]
        parent = torch.div(slot, self.n_sites, rounding_mode="floor")
        padding = torch.zeros(states.n, self.max_fragments + 2, device=slot.device)
        # Parent -1 (the root's) lands in column 0, F (of empty rows) in the last one.
        children = padding.scatter(1, parent + 1, 1.0)[:, 1:-1]
        leaf = (children == 0) & (fragment != self.n_fragments) & ~only_stop
        return torch.cat([leaf, only_stop], 1)

    def backward_action(self, states: States, actions: Tensor) -> Tensor:
        """Node that a forward action adds to `states`, or F for stop."""
        slot = actions[:, 0]
        place = (states.data[..., SLOT] < slot[:, None]).sum(1)
        return torch.where(slot >= self.n_slots, self.max_fragments, place)

    def forward_action(self, states: States, actions: Tensor) -> Tensor:
        """Slot and entry [n, 2] that put back leaf `actions` of the children `states`."""
        tables = self.tables(actions.device)[0]
        leaf = actions.clamp(max=self.max_fragments - 1)[:, None, None].expand(-1, 1, 4)
        fragment, slot, site, _ = states.data.gather(1, leaf)[:, 0].unbind(-1)
        root = site < 0
        entry = torch.where(root, self.n_halves + fragment, tables.half_start[fragment] + site)
        redo = torch.stack([torch.where(root, 0, slot), entry], -1)
        stop = torch.tensor([self.n_slots, self.n_entries - 1], device=actions.device)
        return torch.where((actions >= self.max_fragments)[:, None], stop, redo)

    def observe(self, states: States) -> MoleculeObservation:
        """The tables as indices for embeddings."""
        fragment, slot, site, used = states.data.unbind(-1)
        n_sites, tables = self.n_sites, self.tables(slot.device)[0]
        node = torch.arange(self.max_fragments, device=slot.device)
        attached = (slot >= 0) & (slot < self.n_slots)
        parent = torch.where(attached, torch.div(slot, n_sites, rounding_mode="floor"), node)
        first_half = tables.half_start[fragment]
        parent_half = first_half.gather(1, parent) + slot - parent * n_sites
        # One-hot blocks of each position: fragment, slot (the root's comes last), used sites.
        position = node * (self.flat_size // self.max_fragments)
        place = torch.where(attached, slot, self.n_slots)
        second, third = self.n_fragments, self.n_fragments + self.n_slots + 1
        flat = position[:, None] + torch.stack([fragment, second + place, third + used], -1)
        empty = fragment == self.n_fragments
        return MoleculeObservation(
            fragment,
            parent,
            torch.where(attached, first_half + site, self.n_halves),
            torch.where(attached, parent_half, self.n_halves),
            first_half,
            used,
            torch.where(empty[..., None], self.flat_size, flat).flatten(1),
        )

    def count_ways(self, states: States) -> Counts:
        """Path counts and canonical keys of whole or partial molecules."""
        return count_ways(self.tables(states.data.device)[1], *states.data.unbind(-1))

    def log_n_paths(self, states: States) -> Tensor:
        """log N: number of action sequences to each molecule, its other rooted trees included."""
        return self.count_ways(states).log_paths

    def log_n_rooted_trees(self, states: States) -> Tensor:
        """log M: number of states that are the same molecule, [n] float64."""
        return self.count_ways(states).log_rooted_trees

    def decode(self, states: States) -> list[str]:
        """Canonical SMILES of whole or partial molecules; "" for the empty state.

        Equal molecules are converted once.
        """
        _, inverse = torch.unique(self.count_ways(states).key, return_inverse=True)
        first = inverse.new_zeros(int(inverse.max()) + 1 if states.n else 0)
        first = first.scatter(0, inverse, torch.arange(states.n, device=inverse.device))
        sizes = self.size(states)[first].tolist()
        rows = zip(states.data[first].tolist(), sizes, strict=True)
        smiles = [self._speller(nodes[:size], self.n_sites) for nodes, size in rows]
        return [smiles[i] for i in inverse.tolist()]

    def encode(self, objects: Sequence[str]) -> States:
        """Finished states of SMILES, cut into the fewest fragments; stereo marks are ignored.

        Raises:
            ValueError: naming the first molecule that cannot be written, and why.
        """
        data = self.initial(len(objects)).data
        sizes = []
        for row, smiles in enumerate(objects):
            nodes = cut_molecule(self.vocabulary, smiles, self.n_sites, self.pairs)
            if not self.min_fragments <= len(nodes) <= self.max_fragments:
                raise ValueError(
                    f"{smiles!r} takes {len(nodes)} fragments, not {self.min_fragments} to "
                    f"{self.max_fragments}"
                )
            data[row, : len(nodes)] = torch.tensor(nodes)
            sizes.append(len(nodes))
        step = torch.tensor(sizes, dtype=torch.int64) + 1
        return States(data, step, torch.ones(len(objects), dtype=torch.bool))

    def _empty_node(self, device: torch.device | str) -> Tensor:
        return torch.tensor([self.n_fragments, self.n_slots, 0, 0], device=device)
