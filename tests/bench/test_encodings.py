"""Objects as integers, and the distances between them."""

import itertools
import math

import pytest
import torch

from gflow.bench.encodings import distances, edit_distances, genome
from gflow.envs.grids import HyperGrid
from gflow.envs.sequences import AppendSequences
from gflow.envs.sequences.slots import Slots
from gflow.seeding import generator
from gflow.tasks import make_task


def levenshtein(a, b):
    """By the textbook recursion."""
    if not a or not b:
        return max(len(a), len(b))
    if a[0] == b[0]:
        return levenshtein(a[1:], b[1:])
    return 1 + min(levenshtein(a[1:], b), levenshtein(a, b[1:]), levenshtein(a[1:], b[1:]))


def test_edit_distances_are_levenshtein():
    stream = generator(0, "words")
    words = ["", "a", "kitten", "sitting", "abcde", "eabcd"]
    for _ in range(12):
        n = int(torch.randint(0, 7, (1,), generator=stream))
        words.append("".join("ab c"[i] for i in torch.randint(4, (n,), generator=stream).tolist()))
    rows = torch.full((len(words), 8), -1)
    for i, word in enumerate(words):
        rows[i, : len(word)] = torch.tensor([ord(letter) for letter in word])
    found = edit_distances(rows)
    for (i, a), (j, b) in itertools.product(enumerate(words), repeat=2):
        assert found[i, j] == levenshtein(a, b), (a, b)


@pytest.mark.parametrize(
    "env",
    [Slots("ABC", 3), AppendSequences("ABC", 3), HyperGrid(2, 4)],
    ids=["slots", "rows", "grid"],
)
def test_direct_genomes_cover_the_space_and_only_it(env):
    code = genome(env)
    assert code.direct
    genes = torch.cartesian_prod(*[torch.arange(size) for size in code.sizes])
    states = code.states(genes)
    assert bool(states.done.all())
    found = env.decode(states)
    assert sorted(found) == sorted(env.decode(env.all_terminal_states()))
    again = env.encode(found)
    assert torch.equal(again.data, states.data) and torch.equal(again.step, states.step)


def test_grids_without_corners_get_reachable_points():
    env = HyperGrid(2, 4, stop_at_border=True)
    genes = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    points = env.decode(genome(env).states(genes))
    env.encode(points)
    assert points[-1] == (3, 2) and set(points) == set(env.decode(env.all_terminal_states()))


def test_constructions_are_legal_and_even():
    env = AppendSequences("AB", 3, 1)
    code = genome(env)
    assert not code.direct
    states = code.states(code.random(20_000, generator(0, "genes")))
    assert bool(states.done.all())
    words = env.decode(states)
    env.encode(words)
    # A, B at 1/2 each; then stop, A, B at 1/3 each; a full row stops.
    share = words.count("A") / len(words)
    assert abs(share - 1 / 6) < 4 * math.sqrt(1 / 6 * 5 / 6 / 20_000)
    share = words.count("ABA") / len(words)
    assert abs(share - 1 / 18) < 4 * math.sqrt(1 / 18 * 17 / 18 / 20_000)


def test_molecules_are_constructions():
    task = make_task("molecules")
    code = genome(task.env)
    smiles = task.env.decode(code.states(code.random(20, generator(0, "genes"))))
    assert len(set(smiles)) > 15
    apart = distances(task, smiles)
    assert torch.equal(apart.diagonal(), torch.zeros(20).double()) and float(apart.mean()) > 0.5


def test_mutations_change_something_and_stay_in_range():
    code = genome(HyperGrid(4, 5))
    genes = code.random(5000, generator(0, "genes"))
    new = code.mutate(genes, generator(1, "genes"))
    changed = new != genes
    assert bool(changed.any(1).all()) and int(new.min()) == 0 and int(new.max()) == 4
    # A gene changes with probability 1/4, and the one of smallest chance even above that.
    expected = 4 * 0.25 + 0.75**4
    assert abs(float(changed.double().sum(1).mean()) - expected) < 0.05
    single = code.mutate(genes, generator(2, "genes"), rate=0.0)
    assert torch.equal((single != genes).sum(1), torch.ones(5000).long())
    steps = (single - genes)[single != genes] % 5
    assert torch.bincount(steps, minlength=5)[1:].min() > 5000 / 4 * 0.85


def test_features_keep_order_and_tell_names_apart():
    grid = genome(HyperGrid(2, 5)).features(torch.tensor([[0, 4], [2, 1]]))
    assert grid.tolist() == [[0.0, 1.0], [0.5, 0.25]]
    names = genome(Slots("ABC", 2)).features(torch.tensor([[0, 2]]))
    assert names.tolist() == [[1, 0, 0, 0, 0, 1]]


def test_distances_by_kind():
    grid = make_task("grid_objectives", "branin,currin", {"side": 5, "border": False})
    assert distances(grid, [(0, 0), (4, 0), (4, 2)])[0].tolist() == [0, 0.5, 0.75]
    words = make_task("ngrams", "AV,VC", {"min_length": 2, "max_length": 4})
    assert distances(words, ["AVCA", "VCA", "AV"])[0].tolist() == [0, 0.25, 0.5]
    slots = make_task("bit_sequences", None, {"bits": 8, "word": 1, "order": "slots"})
    assert distances(slots, ["00000000", "10000001"])[0].tolist() == [0, 0.25]
