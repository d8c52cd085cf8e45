"""Estimates of the evidence lower bound, against numbers worked out by hand and enumeration."""

import itertools
import math

import pytest
import torch

from gflow.estimators.masked import count_masks, elbo_terms, gauss_legendre, probability_masks

F64 = torch.float64


def all_orders(length):
    """Uniform numbers in every order, [length!, length]: each set of k smallest equally often."""
    rows = list(itertools.permutations(range(length)))
    return (torch.tensor(rows, dtype=F64) + 0.5) / length


def rows_of(joint):
    """Every row of a joint distribution [2] * L, and its log-probability."""
    length = joint.ndim
    rows = torch.tensor(list(itertools.product((0, 1), repeat=length)))
    return rows, joint.flatten().log()


def conditionals(joint, rows, masks):
    """log p(y_i | what is not masked), [n, M, L], exact."""
    length = joint.ndim
    found = torch.zeros(masks.shape, dtype=F64)
    for n, m in itertools.product(range(masks.shape[0]), range(masks.shape[1])):
        hidden = masks[n, m].tolist()
        seen = joint[
            tuple(slice(None) if h else int(y) for h, y in zip(hidden, rows[n], strict=True))
        ]
        for axis, i in enumerate(i for i in range(length) if hidden[i]):
            other = tuple(a for a in range(seen.ndim) if a != axis)
            marginal = seen.sum(other) if other else seen
            found[n, m, i] = (marginal[rows[n, i]] / seen.sum()).log()
    return found


def exact_mean(joint, times, shares, masks_of=count_masks):
    """The estimator's mean over all masks of fixed counts, for every row."""
    rows, log_p = rows_of(joint)
    draws = all_orders(joint.ndim)
    estimate = torch.zeros(len(rows), dtype=F64)
    valid = torch.ones(len(rows), joint.ndim, dtype=torch.bool)
    for t, share in zip(times.tolist(), shares.tolist(), strict=True):
        t, share = torch.full((len(draws),), t), torch.full((len(draws),), share, dtype=F64)
        masks, weights = masks_of(draws.expand(len(rows), -1, -1), valid, t)
        terms = elbo_terms(conditionals(joint, rows, masks), masks, weights, share / len(draws))
        estimate += terms.sum(1)
    return estimate, log_p


def test_quadrature():
    expected = {
        1: ([0.5], [1.0]),
        2: ([0.211325, 0.788675], [0.5, 0.5]),
        3: ([0.112702, 0.5, 0.887298], [0.277778, 0.444444, 0.277778]),
    }
    for n, (nodes, weights) in expected.items():
        found = gauss_legendre(n)
        assert torch.allclose(found[0], torch.tensor(nodes, dtype=F64), atol=1e-6)
        assert torch.allclose(found[1], torch.tensor(weights, dtype=F64), atol=1e-6)
    with pytest.raises(ValueError, match="at least one node, not 0"):
        gauss_legendre(0)


@pytest.mark.parametrize(
    ("length", "factors"),
    [(4, (1, 1.0670, 1.3737)), (8, (1, 1.0670, 1.0265)), (16, (1, 0.9587, 1.0265)),
     (64, (1, 1.0129, 0.9928))],
)  # fmt: skip
def test_fixed_counts_need_the_weight_of_the_count(length, factors):
    log_p = torch.linspace(-3, -1, length, dtype=F64)
    # All rotations of one order: every place is masked equally often.
    draws = torch.stack([torch.arange(length).roll(i) for i in range(length)]).to(F64) / length
    valid = torch.ones(1, length, dtype=torch.bool)
    for n, factor in enumerate(factors, 1):
        t, share = gauss_legendre(n)
        right = by_time = 0.0
        for node, weight in zip(t.tolist(), share.tolist(), strict=True):
            node, weight = torch.full((length,), node), torch.full((length,), weight / length)
            masks, weights = count_masks(draws.unsqueeze(0), valid, node.to(F64))
            right += elbo_terms(log_p.expand(masks.shape), masks, weights, weight).sum()
            wrong = (1 / node.to(F64)).expand_as(weights)
            by_time += elbo_terms(log_p.expand(masks.shape), masks, wrong, weight).sum()
        assert math.isclose(right, log_p.sum(), rel_tol=1e-6)
        assert math.isclose(by_time / log_p.sum(), factor, abs_tol=5e-5)


def test_masks_by_probability_are_exact_in_expectation_for_independent_tokens():
    log_p = torch.linspace(-3, -1, 6, dtype=F64)
    draws = torch.rand(1, 40_000, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    valid = torch.ones(1, 6, dtype=torch.bool)
    for t in (0.2, 0.7):
        times = torch.full((40_000,), t)
        masks, weights = probability_masks(draws, valid, times)
        share = torch.full((40_000,), 1 / 40_000, dtype=F64)
        found = elbo_terms(log_p.expand(masks.shape), masks, weights, share).sum()
        assert math.isclose(found, log_p.sum(), rel_tol=0.02)


def test_two_tokens_with_exact_conditionals():
    # p1 = .5, p2 = .4, p(1 | 2) = .8, p(2 | 1) = .64 for the row 11.
    joint = torch.tensor([[0.42, 0.08], [0.18, 0.32]], dtype=F64)
    for n in (1, 2, 3):
        found, log_p = exact_mean(joint, *gauss_legendre(n))
        if n == 1:
            # One node, t = .5: one of two tokens is masked, so its mean is not the integral.
            expected = math.log(0.8) + math.log(0.64)
            assert math.isclose(found[3], expected, abs_tol=1e-9)
    # Masks by probability: the integrand is t (log p1 + log p2) + (1 - t)(log c1 + log c2).
    for t in (0.2, 0.5, 0.9):
        log_c = conditionals(joint, torch.tensor([[1, 1]]), MASKS)
        chance = torch.tensor([t * (1 - t), t * (1 - t), t * t])
        f = (elbo_terms(log_c, MASKS, torch.full((1, 3), 1 / t, dtype=F64), chance)).sum()
        line = t * math.log(0.5 * 0.4) + (1 - t) * math.log(0.8 * 0.64)
        assert math.isclose(f, line, abs_tol=1e-7)
    assert math.isclose(log_p[3], -1.139434, abs_tol=1e-6)
    assert math.isclose(0.5 * math.log(0.2) + 0.5 * math.log(0.512), -1.139434, abs_tol=1e-6)


MASKS = torch.tensor([[[True, False], [False, True], [True, True]]])


def counted_elbo(joint):
    """Every count of masked tokens equally often: the bound itself, and log p."""
    length = joint.ndim
    t = torch.arange(1, length + 1, dtype=F64) / length
    return exact_mean(joint, t, torch.full((length,), 1 / length, dtype=F64))


def test_the_bound_is_tight_where_conditionals_belong_to_a_joint():
    joint = torch.tensor([[0.4, 0.1], [0.2, 0.3]], dtype=F64)
    found, log_p = counted_elbo(joint)
    assert torch.allclose(found, log_p) and math.isclose(found[0], -0.9162907, abs_tol=1e-7)
    one = exact_mean(joint, torch.tensor([0.5]), torch.ones(1))[0][0]
    two = exact_mean(joint, torch.tensor([1.0]), torch.ones(1))[0][0]
    assert math.isclose(one, -0.6286087, abs_tol=1e-7)
    assert math.isclose(two, -1.2039728, abs_tol=1e-7)


def test_the_bound_is_tight_on_five_bits():
    joint = torch.rand(5 * [2], generator=torch.Generator().manual_seed(0), dtype=F64)
    found, log_p = counted_elbo(joint / joint.sum())
    assert torch.allclose(found, log_p, atol=1e-10)


def test_the_bound_of_a_uniform_guess():
    rows = torch.full((1, 24, 4), -math.log(2.0), dtype=F64)
    t = torch.arange(1, 5, dtype=F64).repeat_interleave(6) / 4
    masks, weights = count_masks(all_orders(4).unsqueeze(0), torch.ones(1, 4) > 0, t)
    share = torch.full((24,), 1 / 24, dtype=F64)
    assert math.isclose(elbo_terms(rows, masks, weights, share).sum(), -4 * math.log(2))


def test_masks_respect_lengths_and_hide_at_least_one():
    draws = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0))
    valid = torch.arange(5) < torch.tensor([[5], [2], [1]])
    masks, weights = count_masks(draws, valid, torch.tensor([0.05, 0.9]))
    assert masks.sum(-1).tolist() == [[1, 5], [1, 2], [1, 1]]
    assert not (masks & ~valid.unsqueeze(1)).any()
    assert weights.tolist() == [[5, 1], [2, 1], [1, 1]]
    masks, weights = probability_masks(draws, valid, torch.tensor([0.05, 0.9]))
    assert not (masks & ~valid.unsqueeze(1)).any()
    assert torch.allclose(weights, torch.tensor([[20.0, 1 / 0.9]] * 3))


def spread(masks_of, times, shares, joint, row, n=4000):
    """Standard deviation of the estimate of one row."""
    generator = torch.Generator().manual_seed(0)
    length = joint.ndim
    draws = torch.rand(n, len(shares), length, generator=generator, dtype=F64)
    if times is None:
        times = torch.rand(n, len(shares), generator=generator, dtype=F64).clamp(min=1e-3)
        masks, weights = draws < times.unsqueeze(-1), 1 / times
    else:
        valid = torch.ones(n, length, dtype=torch.bool)
        masks, weights = masks_of(draws, valid, times)
    table = {}
    for code in itertools.product((False, True), repeat=length):
        table[code] = conditionals(joint, row.unsqueeze(0), torch.tensor([[code]]))[0, 0]
    keys = (masks.long() * 2 ** torch.arange(length)).sum(-1)
    listed = torch.stack([
        table[tuple(bool(k >> i & 1) for i in range(length))] for k in range(2**length)
    ])  # fmt: skip
    return float(elbo_terms(listed[keys], masks, weights, shares).sum(1).std())


def test_fixed_times_and_counts_lower_the_variance():
    joint = torch.rand(8 * [2], generator=torch.Generator().manual_seed(1), dtype=F64) ** 3
    joint = joint / joint.sum()
    row = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0])
    for n in (2, 3):
        times, shares = gauss_legendre(n)
        even = torch.full((n,), 1 / n, dtype=F64)
        double = spread(None, None, even, joint, row)
        fixed = spread(probability_masks, times, shares, joint, row)
        counted = spread(count_masks, times, shares, joint, row)
        assert counted < fixed < double
