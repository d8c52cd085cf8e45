"""Classes of equal cells, training on digits, and the oracle that trains."""

import pickle
import shutil
import sys
from itertools import permutations, product
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from gflow.envs.common import finished
from gflow.envs.nas.cell import EDGES, OPERATIONS, NASCell
from gflow.envs.nas.classes import INPUT, classes, depth, form, prune
from gflow.envs.nas.digits import (
    REWARDS,
    DigitsTraining,
    accuracies,
    costs,
    digits_table,
    representative,
)
from gflow.envs.nas.training import (
    CellNetwork,
    Images,
    batches,
    digits,
    train_cell,
)
from gflow.oracles import OracleRunner

ROOT = Path(__file__).parents[2]
CELLS = list(product(range(5), repeat=6))


def spelled(*cells):
    """Architecture strings."""
    data = torch.tensor(cells)
    return NASCell().decode(finished(data, torch.full_like(data[:, 0], 7)))


def normalized(x):
    """Channels of [N, C, H, W] with mean 0 and variance 1 over images and pixels."""
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) / (x.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()


def run_cell(cell, x, weights):
    """Node 3 of a cell by the definition alone; `weights` has one tensor for each edge."""
    nodes = [x, *[torch.zeros_like(x) for _ in range(3)]]
    for edge, (source, target) in enumerate(EDGES):
        value, operation = nodes[source], cell[edge]
        if operation == 0:
            value = torch.zeros_like(value)
        elif operation in (2, 3):
            value = normalized(F.conv2d(value.relu(), weights[edge], padding=operation - 2))
        elif operation == 4:
            value = F.avg_pool2d(value, 3, 1, 1, count_include_pad=False)
        nodes[target] = nodes[target] + value
    return nodes[3]


def random_weights(operations, source):
    return [
        torch.randn(3, 3, 2 * (o == 3) + 1, 2 * (o == 3) + 1, generator=source).double()
        for o in operations
    ]


def same_function(a, b, x, source):
    """Whether b computes what a does, if its convolutions take a's weights in some order."""
    mine = [e for e in range(6) if prune(a)[e] in (2, 3)]
    theirs = [e for e in range(6) if prune(b)[e] in (2, 3)]
    if sorted(a[e] for e in mine) != sorted(b[e] for e in theirs):
        return False
    own, other = random_weights(a, source), random_weights(b, source)
    expected = run_cell(a, x, own)
    for order in permutations(mine):
        if any(a[e] != b[f] for e, f in zip(order, theirs, strict=True)):
            continue
        for e, f in zip(order, theirs, strict=True):
            other[f] = own[e]
        if torch.allclose(run_cell(b, x, other), expected, rtol=0, atol=1e-9):
            return True
    return False


class TestClasses:
    def test_counts(self):
        number = classes()
        assert len(number) == 15_625 and int(number.max()) + 1 == 5_044
        assert int((number == number[0]).sum()) == 341

    def test_one_convolution_twice_is_not_two(self):
        # 2 c(x) and c(x) + c'(x): the same terms by name, different functions.
        twice, two = (2, 0, 1, 0, 1, 1), (0, 1, 0, 2, 0, 2)
        source = torch.Generator().manual_seed(0)
        x = torch.randn(5, 3, 6, 6, generator=source).double()
        assert form(twice).output == {(0, 0): 2}
        assert form(two).output == {(3, 0): 1, (5, 0): 1}
        assert not same_function(twice, two, x, source)
        assert classes()[CELLS.index(twice)] != classes()[CELLS.index(two)]

    def test_naming_terms_by_what_they_are_would_join_too_many(self):
        def tree(made, value):
            terms = [
                (INPUT if atom == INPUT else (made[atom][0], tree(made, made[atom][1])), k)
                for (atom, k), times in value.items()
                for _ in range(times)
            ]
            return tuple(sorted(map(repr, terms)))

        trees = {tree(form(cell).convolutions, form(cell).output) for cell in CELLS}
        assert len(trees) == 4_660

    def test_classes_are_equal_functions(self):
        source = torch.Generator().manual_seed(1)
        x = torch.randn(5, 3, 6, 6, generator=source).double()
        number = classes()
        some = torch.randperm(len(CELLS), generator=source)[:40].tolist()
        for i in some:
            equal = (number == number[i]).nonzero()[:, 0].tolist()
            for j in {equal[0], equal[-1], equal[len(equal) // 2]} - {i}:
                assert same_function(CELLS[i], CELLS[j], x, source), (CELLS[i], CELLS[j])

    def test_other_classes_are_other_functions(self):
        source = torch.Generator().manual_seed(2)
        x = torch.randn(5, 3, 6, 6, generator=source).double()
        number = classes()
        some = torch.randperm(len(CELLS), generator=source)[:300].tolist()
        for i, j in zip(some[::2], some[1::2], strict=True):
            if number[i] != number[j]:
                assert not same_function(CELLS[i], CELLS[j], x, source), (CELLS[i], CELLS[j])

    def test_pruning_changes_nothing(self):
        source = torch.Generator().manual_seed(3)
        x = torch.randn(5, 3, 6, 6, generator=source).double()
        for i in torch.randperm(len(CELLS), generator=source)[:60].tolist():
            weights = random_weights(CELLS[i], source)
            whole, pruned = (run_cell(c, x, weights) for c in (CELLS[i], prune(CELLS[i])))
            torch.testing.assert_close(pruned, whole, rtol=0, atol=1e-12)
        assert prune((3, 2, 0, 1, 0, 0)) == (0, 0, 0, 1, 0, 0)

    def test_equal_cells_cost_the_same(self):
        data = torch.tensor(CELLS)
        cost, number = costs(data), classes()
        first = torch.full((int(number.max()) + 1,), len(CELLS)).scatter_reduce(
            0, number, torch.arange(len(CELLS)), "amin"
        )
        assert torch.equal(cost, cost[first[number]])

    def test_depth(self):
        cells = [(3,) * 6, (1,) * 6, (2, 0, 1, 0, 0, 3), (3, 0, 3, 1, 0, 0)]
        assert [depth(form(cell)) for cell in cells] == [3, 0, 2, 0]

    def test_representative(self):
        cells = spelled((0, 1, 0, 2, 0, 2), (2, 0, 0, 2, 1, 0))
        assert representative(cells[0]) == representative(cells[1])
        assert representative(representative(cells[0])) == representative(cells[0])


def plain_network(network, images):
    """Logits [N, 10] of the first seed by torch's own operations on [N, 8, 8]."""
    parts = network.weights[0].split(network._sizes)
    weights = [part.view(shape) for part, shape in zip(parts, network._shapes, strict=True)]
    square = [w.view(*w.shape[:2], 3, 3) if w.shape[2] == 9 else w[..., None] for w in weights[:-2]]
    x = normalized(F.conv2d(images.unsqueeze(1), square[0], padding=1))
    convolutions = [e for e, name in enumerate(network.operations) if name.startswith("nor")]
    cell = [OPERATIONS.index(name) for name in network.operations]
    half = len(convolutions)
    for i in (0, 1):
        own = dict(zip(convolutions, square[1 + i * half : 1 + (i + 1) * half], strict=True))
        x = run_cell(cell, x, own)
        x = F.avg_pool2d(x, 2) if i == 0 else x
    return x.mean((2, 3)) @ weights[-2].squeeze(2).T + weights[-1].view(-1)


class TestTraining:
    @pytest.mark.parametrize(
        "cell", [(3, 1, 2, 4, 0, 3), (3,) * 6, (4, 2, 4, 1, 3, 1), (0, 4, 0, 2, 0, 4)]
    )
    def test_network_and_gradient_are_those_of_plain_operations(self, cell):
        source = torch.Generator().manual_seed(0)
        images = torch.randn(12, 8, 8, generator=source).double()
        up = torch.randn(12, 10, generator=source).double()
        network = CellNetwork(cell, [5])
        network.weights = network.weights.detach().double().requires_grad_()
        expected = plain_network(network, images)
        found = network(images.permute(1, 2, 0).unsqueeze(0))
        torch.testing.assert_close(found[0].T, expected)
        wanted = torch.autograd.grad((expected * up).sum(), network.weights)
        gradient = torch.autograd.grad((found[0].T * up).sum(), network.weights)
        torch.testing.assert_close(gradient, wanted)

    def test_a_network_of_nothing_says_its_bias(self):
        network = CellNetwork((0, 0, 0, 3, 0, 0), [0])
        assert CellNetwork((0,) * 6, [0])(torch.randn(1, 8, 8, 4)).abs().max() == 0
        assert network(torch.randn(1, 8, 8, 4)).abs().max() > 0

    def test_seen_images_alone_give_the_statistics(self):
        network = CellNetwork((3, 1, 2, 4, 0, 3), [0])
        source = torch.Generator().manual_seed(0)
        images = torch.randn(1, 8, 8, 20, generator=source)
        other = torch.cat([images[..., :12], 100 * images[..., 12:]], 3)
        first = network(images[..., :12])
        torch.testing.assert_close(network(images, 12)[..., :12], first)
        torch.testing.assert_close(network(other, 12)[..., :12], first)

    def test_seeds_side_by_side_are_seeds_alone(self):
        source = torch.Generator().manual_seed(0)
        labels = torch.randint(0, 10, (400,), generator=source)
        pixels = F.one_hot(labels, 64).view(-1, 8, 8).float()
        pixels += 0.3 * torch.randn(400, 8, 8, generator=source)
        images, cell = Images(pixels, labels, 256), (1, 0, 2, 0, 0, 1)
        both = train_cell(cell, images, (3, 4), epochs=2)
        alone = [float(train_cell(cell, images, (seed,), epochs=2)) for seed in (3, 4)]
        assert both.tolist() == pytest.approx(alone, abs=0.02)
        assert torch.equal(both, train_cell(cell, images, (3, 4), epochs=2))

    def test_batches_are_shuffled_epochs(self):
        rows = batches(300, seed=1, epochs=3)
        assert rows.shape == (6, 128)
        for epoch in rows.view(3, 256):
            assert len(epoch.unique()) == 256 and int(epoch.max()) < 300
        assert not torch.equal(rows[:2], rows[2:4])

    def test_digits_can_be_learned(self):
        images = digits()
        assert images.pixels.shape == (1797, 8, 8) and images.n_train == 1024
        accuracy = train_cell((0, 0, 0, 3, 0, 0), images, (0,), epochs=3)
        assert float(accuracy) > 0.5

    @pytest.mark.slow
    def test_the_fast_copy_trains_alike(self, monkeypatch):
        if shutil.which("g++") is None:
            pytest.skip("needs g++")
        monkeypatch.syspath_prepend(ROOT / "benchmarks" / "digits")
        from make_table import Fast

        images = digits()
        fast = Fast(images)
        for cell in [(0, 1, 0, 2, 0, 4), (0, 0, 0, 3, 0, 0)]:
            expected = float(train_cell(cell, images, (0,)))
            assert fast(cell, 0) == pytest.approx(expected, abs=0.02)


class TestTable:
    def test_every_cell_is_there_and_equal_networks_are_equal(self):
        accuracy, number = accuracies(), classes()
        assert accuracy.shape[0] == 15_625 and 1 <= accuracy.shape[1] <= 3
        assert ((accuracy > 0.05) & (accuracy <= 1)).all()
        first = torch.full((5_044,), 15_625).scatter_reduce(0, number, torch.arange(15_625), "amin")
        assert torch.equal(accuracy, accuracy[first[number]])
        # 773 images.
        assert torch.allclose(accuracy * 773, (accuracy * 773).round(), rtol=0, atol=1e-3)

    def test_rewards(self):
        oracle = digits_table(list(REWARDS))
        env = NASCell()
        states = env.all_terminal_states()
        values = oracle(states)
        assert torch.equal(values[:, 0], accuracies().mean(1))
        cost = costs(states.data).double()
        for column, place, most in ((1, 1, 281_178.0), (2, 0, 7_074.0), (3, 2, 3.0)):
            low = float(cost[:, place].min())
            assert float(cost[:, place].max()) == most
            expected = 1 - (cost[:, place] - low) / (most - low)
            torch.testing.assert_close(values[:, column], expected)
        torch.testing.assert_close(values[:, 1], values[:, 2])
        assert [reward.flipped for reward in oracle.rewards] == [False, True, True, True]

    def test_it_is_what_training_gives(self):
        oracle, images = digits_table(["accuracy"]), digits()
        for cell in [(0, 1, 0, 2, 0, 4), (0, 0, 0, 2, 0, 0), (0, 0, 0, 1, 0, 0)]:
            found = float(train_cell(cell, images, (0,)))
            known = float(accuracies()[CELLS.index(cell), 0])
            assert found == pytest.approx(known, abs=0.02)
            assert float(oracle(NASCell().encode(spelled(cell)))) == pytest.approx(found, abs=0.2)

    def test_good_cells_convolve(self):
        best = CELLS[int(accuracies().mean(1).argmax())]
        assert depth(form(best)) >= 1 and 3 in prune(best)

    def test_unknown_rewards(self):
        with pytest.raises(ValueError, match="'latency': choose from accuracy, multiply_adds"):
            digits_table(["accuracy", "latency"])


class TestDigitsTraining:
    @staticmethod
    def images():
        source = torch.Generator().manual_seed(0)
        labels = torch.randint(0, 10, (160,), generator=source)
        return Images(torch.randn(160, 8, 8, generator=source), labels, 128)

    def test_rewards(self):
        oracle = DigitsTraining(epochs=1, images=self.images())
        values = oracle(spelled((0,) * 6, (3,) * 6, (0, 0, 0, 2, 0, 0)))
        assert values.shape == (3, 3) and values.dtype == torch.float64
        assert values[:, 1].tolist() == pytest.approx([1, 0, 1 - 64 / (6 * 576)])
        assert values[:, 2].tolist() == pytest.approx([1, 0, 2 / 3])
        assert [r.name for r in oracle.rewards] == ["accuracy", "few multiply-adds", "shallow"]

    def test_equal_networks_are_trained_once_behind_the_runner(self):
        oracle = DigitsTraining(epochs=1, images=self.images())
        cells = spelled((0, 1, 0, 2, 0, 2), (2, 0, 0, 2, 1, 0), (1,) * 6)
        again = pickle.loads(pickle.dumps(oracle))  # as worker processes get it
        scores = OracleRunner(again, representative).evaluate(cells)
        assert torch.equal(scores.rewards, oracle(cells))
        assert scores.fresh == 2 and scores.reasons == [None] * 3
        assert torch.equal(scores.rewards[0], scores.rewards[1])

    def test_bad_settings(self, monkeypatch):
        with pytest.raises(ValueError, match="'speed': choose from accuracy, multiply_adds"):
            DigitsTraining(["speed"], images=self.images())
        with pytest.raises(ValueError, match="each once, not \\['depth', 'depth'\\]"):
            DigitsTraining(["depth", "depth"], images=self.images())
        with pytest.raises(ValueError, match="epochs must be at least 1, not 0"):
            DigitsTraining(epochs=0, images=self.images())
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(ImportError, match=r"needs scikit-learn: .*gflow\[digits\]"):
            DigitsTraining()
