"""Symmetries of fragment trees: canonical keys, automorphisms, and numbers of ways to build.

For a tree x of n fragments v with subtree sizes h_v (all derived here by counting orbits):

    growth orders from root r       T(r) = n! / prod_v h_v(r)
    rooted site-labelled trees      M(x) = n prod_v a_v / |Aut(x)|
    action sequences                N(x) = sum_r T(r) prod_v a_v / |Aut(x)|

where a_v counts the ways to move the used sites of v onto sites of the same fragment by an
automorphism of its atoms (and by swapping hydrogens of one atom), and |Aut(x)| the automorphisms
of the assembled tree. Where a fragment's sites are closed under its automorphisms, a_v is up to
a common factor the order of the fragment's site symmetry group; otherwise (piperazine with one
nitrogen used, when only one ring carbon is a site) it depends on which sites are used.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflow.envs.molecules.chemistry import automorphisms
from gflow.envs.molecules.vocabulary import Vocabulary


class SymmetryTables(NamedTuple):
    """Symmetries of V fragments with at most S sites and G automorphisms.

    Attributes:
        weights: [V + 1, G, S] int64, random weight of the atom to which an automorphism takes
            each site's atom; 0 behind the last site. The identity comes first.
        is_symmetry: [V + 1, G] bool, False behind the fragment's last automorphism.
        same_atom: [V + 1, S, S] bool, site t < s is on the same atom as s.
        log_moves: [V + 1, 2 ** S] float64, log a_v by the bitmask of used sites.
    """

    weights: Tensor
    is_symmetry: Tensor
    same_atom: Tensor
    log_moves: Tensor

    def to(self, device: torch.device | str) -> SymmetryTables:
        """The same tables on `device`."""
        return SymmetryTables(*(table.to(device) for table in self))


class Counts(NamedTuple):
    """What `count_ways` finds for n trees.

    Attributes:
        log_paths: [n] float64, log of the number of action sequences that give the molecule.
        log_rooted_trees: [n] float64, log of the number of rooted site-labelled trees of it.
        key: [n] int64, equal for two trees when they are the same molecule made of the same
            fragments (and otherwise different but for an accident of 2^-64 per pair).
    """

    log_paths: Tensor
    log_rooted_trees: Tensor
    key: Tensor


def build_symmetry_tables(vocabulary: Vocabulary, n_sites: int) -> SymmetryTables:
    """Symmetries of every fragment, on the CPU."""
    groups = [
        _site_images(mol, sites)
        for mol, sites in zip(vocabulary.mols, vocabulary.sites, strict=True)
    ]
    order = max(map(len, groups))
    n_atoms = max(mol.GetNumAtoms() for mol in vocabulary.mols)
    generator = torch.Generator().manual_seed(0)
    atom_weight = _random_words((n_atoms,), generator)
    n = len(vocabulary)
    weights = torch.zeros(n + 1, order, n_sites, dtype=torch.int64)
    is_symmetry = torch.zeros(n + 1, order, dtype=torch.bool)
    same_atom = torch.zeros(n + 1, n_sites, n_sites, dtype=torch.bool)
    log_moves = torch.zeros(n + 1, 2**n_sites, dtype=torch.float64)
    for v, (group, sites) in enumerate(zip(groups, vocabulary.sites, strict=True)):
        weights[v, : len(group), : len(sites)] = atom_weight[torch.tensor(group)]
        is_symmetry[v, : len(group)] = True
        for s in range(len(sites)):
            for t in range(s):
                same_atom[v, s, t] = sites[s] == sites[t]
        for used in range(2 ** len(sites)):
            log_moves[v, used] = math.log(_n_moves(group, sites, used))
    return SymmetryTables(weights, is_symmetry, same_atom, log_moves)


def _site_images(mol: Any, sites: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Atoms to which each automorphism takes the sites' atoms; identity first, each once."""
    # Automorphisms that agree on every atom that is equivalent to a site are one and the same.
    group = automorphisms(mol)
    orbit = sorted({image[atom] for image in group for atom in sites})
    seen = {tuple(image[atom] for atom in orbit): image for image in group}
    images = [tuple(image[atom] for atom in sites) for image in seen.values()]
    return sorted(images, key=lambda image: image != sites)


def site_orbits(vocabulary: Vocabulary, fragment: int) -> list[int]:
    """For each site, the first one that a symmetry of the fragment's sites exchanges it with."""
    sites = vocabulary.sites[fragment]
    group = _site_images(vocabulary.mols[fragment], sites)
    # Only symmetries that map the set of sites to itself leave the same sites to grow at.
    closed = [image for image in group if sorted(image) == sorted(sites)]
    return [min(sites.index(image[s]) for image in closed) for s in range(len(sites))]


def _n_moves(group: list[tuple[int, ...]], sites: tuple[int, ...], used: int) -> int:
    """a_v: ways to move the used sites onto sites of the fragment."""
    total = 0
    for image in group:
        ways, taken = 1, dict[int, int]()
        for s, to in enumerate(image):
            if used >> s & 1:
                ways *= sites.count(to) - taken.get(to, 0)
                taken[to] = taken.get(to, 0) + 1
        total += ways
    return total


def count_ways(
    tables: SymmetryTables, fragment: Tensor, slot: Tensor, site: Tensor, used: Tensor
) -> Counts:
    """Path counts and keys of n trees, whole or partial, given by their [n, F] columns.

    An empty tree has one path and is one rooted tree, both log 0.
    """
    n_sites = tables.same_atom.shape[-1]
    present = fragment < len(tables.weights) - 1
    parent = torch.where(present, torch.div(slot, n_sites, rounding_mode="floor"), -1)
    above = _ancestors(parent)
    below = (above & present[..., None]).sum(1)
    size = present.sum(1, keepdim=True)

    # T(child) = T(parent) h / (n - h), along the path from the table's root to each node.
    total, h = size.double(), below.double()
    log_h = torch.where(present, h.log(), 0.0)
    shift = torch.where(parent >= 0, log_h - (total - h).log(), 0.0)
    log_orders = (above.double() @ shift[..., None])[..., 0].masked_fill(~present, -torch.inf)
    log_orders = log_orders.logsumexp(1) + torch.lgamma(total[:, 0] + 1) - log_h.sum(1)

    # Nodes with at least half of the tree below them are a chain; its end is a centroid.
    node = torch.arange(fragment.shape[1], device=slot.device)
    centroid = torch.where(present & (below * 2 >= size), node, 0).amax(1, keepdim=True)
    halves = (below.gather(1, centroid) * 2 == size)[:, 0]
    log_aut, key = _automorphisms(tables, fragment, slot, site, parent, above, centroid, halves)

    log_moves = tables.log_moves[fragment, used].sum(1)
    empty = size[:, 0] == 0
    log_rooted = torch.where(empty, 0.0, total[:, 0].log() + log_moves - log_aut)
    log_paths = torch.where(empty, 0.0, log_orders + log_moves - log_aut)
    return Counts(log_paths, log_rooted, key)


def _ancestors(parent: Tensor) -> Tensor:
    """[n, F, F] bool: column j is an ancestor of row i, or i itself; roots have parent -1."""
    n, n_nodes = parent.shape
    step = torch.zeros(n, n_nodes, n_nodes + 1, device=parent.device)
    step = step.scatter(2, parent[..., None] + 1, 1.0)[..., 1:]
    reach = step + torch.eye(n_nodes, device=parent.device)
    for _ in range((n_nodes - 1).bit_length()):
        reach = (reach @ reach).clamp(max=1.0)
    return reach > 0


def _automorphisms(
    tables: SymmetryTables,
    fragment: Tensor,
    slot: Tensor,
    site: Tensor,
    parent: Tensor,
    above: Tensor,
    centroid: Tensor,
    halves: Tensor,
) -> tuple[Tensor, Tensor]:
    """log |Aut(x)| and key [n] from the trees hung up at their centroids [n, 1].

    `halves` says that the centroid's parent is a centroid too.
    """
    n, n_nodes = fragment.shape
    n_sites = tables.same_atom.shape[-1]
    nowhere = n_nodes * n_sites
    node = torch.arange(n_nodes, device=slot.device).expand(n, -1)

    # Turn round the links between the table's root and the centroid.
    on_path = above.gather(1, centroid[..., None].expand(-1, 1, n_nodes))[:, 0]
    turned = on_path & (parent >= 0)
    target = torch.where(turned, parent, n_nodes)
    hang = _put(torch.where(parent >= 0, slot, nowhere), target, node * n_sites + site)
    own = _put(site, target, slot - parent * n_sites)
    hang = hang.scatter(1, centroid, nowhere)
    hung = hang < nowhere

    # What stands at each site: a word for the way up, later the label of the child there.
    labels = torch.zeros(n, nowhere + 1, dtype=torch.int64, device=slot.device)
    labels.scatter_(1, torch.where(hung, node * n_sites + own, nowhere), _UP)
    # Children first: rows off the path backwards, then the path down to the centroid.
    order = torch.where(on_path, n_nodes + node, -node).argsort(1)
    columns = torch.arange(n_sites, device=slot.device)
    for at in order[:, :-1].split(1, 1):
        here = labels.gather(1, at * n_sites + columns)
        label = _label(tables, fragment.gather(1, at)[:, 0], here)
        labels.scatter_(1, hang.gather(1, at), label[:, None])

    labels = labels[:, :-1].view(n, n_nodes, n_sites)
    symmetric = _stabilizer(tables, fragment, labels)

    # With two centroids, the halves may be exchanged when they look alike from their bond.
    top = centroid[..., None].expand(-1, 1, n_sites)
    top_labels = labels.gather(1, top)[:, 0]
    top_fragment = fragment.gather(1, centroid)[:, 0]
    joint = site.gather(1, centroid).clamp(min=0)
    other = top_labels.gather(1, joint)[:, 0]
    this = _label(tables, top_fragment, top_labels.scatter(1, joint, _UP))
    exchange = halves & (this == other)
    key = torch.where(halves, _mix(this + other), _label(tables, top_fragment, top_labels))
    return symmetric.log().sum(1) + exchange.double() * math.log(2.0), key


def _put(base: Tensor, target: Tensor, values: Tensor) -> Tensor:
    """`base` [n, F] with `values` at columns `target`; column F is thrown away."""
    return torch.nn.functional.pad(base, (0, 1)).scatter(1, target, values)[:, :-1]


def _label(tables: SymmetryTables, fragment: Tensor, labels: Tensor) -> Tensor:
    """Word [n] for a fragment with `labels` [n, S] at its sites, the same up to symmetry."""
    words = _mix((tables.weights[fragment] * labels[:, None]).sum(-1))
    return _mix((words * tables.is_symmetry[fragment]).sum(-1) + fragment + 1)


def _stabilizer(tables: SymmetryTables, fragment: Tensor, labels: Tensor) -> Tensor:
    """Number of symmetries of each node that keep the labels at its sites, [n, F] float64."""
    words = (tables.weights[fragment] * labels[..., None, :]).sum(-1)
    kept = ((words == words[..., :1]) & tables.is_symmetry[fragment]).sum(-1)
    # Equal subtrees on one atom can be permuted: m! as a product of 1, 2, ..., m.
    twins = (labels[..., :, None] == labels[..., None, :]) & (labels != 0)[..., None]
    swaps = (1 + (twins & tables.same_atom[fragment]).sum(-1)).prod(-1)
    return (kept * swaps).clamp(min=1).double()


def _random_words(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Odd random int64."""
    return torch.randint(-(2**62), 2**62, shape, generator=generator) * 2 + 1


_UP = 0x5851F42D4C957F2D


def _mix(word: Tensor) -> Tensor:
    """Scramble int64 words (the finaliser of MurmurHash3, public domain)."""
    word = (word ^ (word >> 33 & 0x7FFFFFFF)) * -0xAE502812AA7333
    word = (word ^ (word >> 33 & 0x7FFFFFFF)) * -0x3B314601E57A13AD
    return word ^ (word >> 33 & 0x7FFFFFFF)
