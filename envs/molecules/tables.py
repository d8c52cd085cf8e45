"""A vocabulary as lookup tensors: everything the environment asks about fragments and sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gflow.envs.molecules.chemistry import SITE_CLASSES
from gflow.envs.molecules.symmetry import site_orbits
from gflow.envs.molecules.vocabulary import Vocabulary


class Tables(NamedTuple):
    """Lookup tensors for V fragments of at most S sites and H (fragment, site) halves.

    Entries 0..H-1 of the second action factor are halves, H..H+V-1 root fragments. Fragment V
    stands for an empty node and fragment V + 1 for the stop slot.

    Attributes:
        entry_fragment: [H + V], the fragment an entry adds.
        entry_site: [H + V], its site that gets bonded, -1 for root fragments.
        entry_bit: [H + V], bit of that site, 0 for root fragments.
        entry_orbit: [H + V], equal for halves that a symmetry of the fragment exchanges, so that
            choosing one or the other leads to the same molecules.
        half_start: [V + 1], first half of each fragment.
        open_sites: [V + 1, 2 ** S, S] bool, free sites that some half may bond to, by the bitmask
            of used sites.
        entry_row: [V + 2, S], row of `entry_mask` for a slot.
        entry_mask: [rows, H + V] bool, legal entries; one row per site class, then only root
            fragments, then only the last entry.
    """

    entry_fragment: Tensor
    entry_site: Tensor
    entry_bit: Tensor
    entry_orbit: Tensor
    half_start: Tensor
    open_sites: Tensor
    entry_row: Tensor
    entry_mask: Tensor

    @property
    def n_sites(self) -> int:
        """S, the most sites a fragment has."""
        return int(self.entry_row.shape[1])

    def to(self, device: torch.device | str) -> Tables:
        """The same tables on `device`."""
        return Tables(*(table.to(device) for table in self))


def build_tables(vocabulary: Vocabulary, pairs: Sequence[Sequence[bool]]) -> Tables:
    """Lookup tensors of a vocabulary under a table of allowed bonds, on the CPU."""
    n_fragments = len(vocabulary)
    n_sites = max(map(len, vocabulary.sites))
    halves = [(v, s) for v in range(n_fragments) for s in range(len(vocabulary.sites[v]))]
    roots = [(v, -1) for v in range(n_fragments)]
    fragment, site = torch.tensor(halves + roots).unbind(1)
    bit = torch.where(site >= 0, 1 << site.clamp(min=0), 0)

    counts = torch.tensor([*map(len, vocabulary.sites), 0])
    exists = torch.arange(n_sites) < counts[:, None]
    classes = torch.full((n_fragments + 2, n_sites), len(SITE_CLASSES))
    for v, row in enumerate(vocabulary.site_classes):
        classes[v, : len(row)] = torch.tensor(row)

    n_halves = len(halves)
    orbits = [(v, orbit) for v in range(n_fragments) for orbit in site_orbits(vocabulary, v)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(orbits + roots))}
    orbit = torch.tensor([numbers[key] for key in orbits + roots])

    root_row, stop_row = len(SITE_CLASSES), len(SITE_CLASSES) + 1
    mask = torch.zeros(len(SITE_CLASSES) + 2, n_halves + n_fragments, dtype=torch.bool)
    half_class = classes[fragment[:n_halves], site[:n_halves]]
    mask[:root_row, :n_halves] = torch.tensor(pairs)[:, half_class]
    mask[root_row, n_halves:] = True
    mask[stop_row, -1] = True
    lonely = ~mask.any(1)
    mask[lonely, -1] = True
    has_partner = torch.cat([~lonely[:root_row], torch.zeros(1, dtype=torch.bool)])[classes]

    entry_row = classes.clone()
    entry_row[:n_fragments][~exists[:n_fragments]] = stop_row
    entry_row[n_fragments], entry_row[n_fragments + 1] = root_row, stop_row
    bits = torch.arange(2**n_sites)[:, None] >> torch.arange(n_sites) & 1
    open_sites = has_partner[: n_fragments + 1, None] & (bits == 0)
    half_start = counts.cumsum(0) - counts
    return Tables(fragment, site, bit, orbit, half_start, open_sites, entry_row, mask)
