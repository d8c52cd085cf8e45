import math

import pytest
import torch

from gflow.kernels import (
    MANY,
    Categorical,
    Factored,
    Independent,
    Repeated,
    draw_noise,
    gumbel_noise,
    noise_widths,
)
from gflow.seeding import generator


def test_gumbel_max_samples_the_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0, 5.0]]).expand(40_000, -1)
    mask = torch.tensor([True, True, True, False]).expand(40_000, -1)
    kernel = Categorical(logits, mask)
    noise = gumbel_noise((40_000, 4), torch.Generator().manual_seed(0), torch.float32, "cpu")
    share = torch.bincount(kernel.sample(noise), minlength=4) / 40_000
    expected = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    assert torch.allclose(share[:3], expected, atol=0.01)
    assert share[3] == 0


def many(n, dtype=torch.float32):
    """n rows of one distribution over many actions, a fifth of them legal."""
    size = 3 * MANY
    logits = 2 * torch.randn(size, generator=generator(1), dtype=dtype)
    mask = torch.arange(size) % 5 == 2
    return Categorical(logits.expand(n, -1), mask.expand(n, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_actions_are_sampled_by_their_cumulative_distribution(dtype):
    n = 400_000
    kernel = many(n, dtype)
    size = kernel.logits.shape[1]
    even = torch.arange(n, dtype=dtype).add(0.5).unsqueeze(1) / n
    share = torch.bincount(kernel.sample(even), minlength=size) / n
    expected = many(1, dtype).log_probs()[0].exp()
    # Evenly spaced points hit an interval of length p between p n - 1 and p n + 1 times.
    assert ((share - expected).abs() <= 1.1 / n).all()
    assert (share[expected == 0] == 0).all()
    drawn = draw_noise((n,), (size,), generator(0), dtype, "cpu")
    assert drawn.shape == (n, 1)
    share = torch.bincount(kernel.sample(drawn), minlength=size) / n
    assert (share - expected).abs().sum() / 2 < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 1e4])
def test_many_actions_never_give_an_illegal_one(dtype, spread):
    """Also from the smallest and largest numbers that can be drawn, whatever is legal."""
    size, n = 3840, 512
    source = generator(0)
    logits = spread * torch.randn(n, size, generator=source, dtype=dtype)
    mask = torch.rand(n, size, generator=source) < torch.rand(n, 1, generator=source) ** 4
    mask[torch.arange(n), torch.randint(size, (n,), generator=source)] = True
    kernel = Categorical(logits, mask)
    for point in (0.0, 1 - torch.finfo(dtype).eps / 2, torch.rand(n, 1, generator=source)):
        action = kernel.sample(torch.full((n, 1), 0.0, dtype=dtype) + point)
        assert mask[torch.arange(n), action].all()


def test_logits_that_are_not_finite_give_an_action_within_range():
    kernel = Categorical(torch.full((4, 2 * MANY), torch.nan))
    action = kernel.sample(torch.tensor([[0.0], [0.3], [0.9], [0.99999]]))
    assert ((action >= 0) & (action < 2 * MANY)).all()


def test_noise_of_each_factor_is_as_wide_as_its_sampling_needs():
    sizes = (3, MANY, MANY + 1)
    assert noise_widths(sizes) == [3, MANY, 1]
    gumbel, uniform = draw_noise((9, 70), sizes, generator(0), torch.float64, "cpu").split(
        [3 + MANY, 1], -1
    )
    assert (
        uniform.min() >= 0
        and uniform.max() < 1
        and uniform.mean().item() == pytest.approx(0.5, abs=0.05)
    )
    # Euler's constant and pi^2 / 6
    assert gumbel.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert gumbel.var().item() == pytest.approx(1.6449, abs=0.04)


def test_noise_is_finite_even_when_the_exponential_is_zero():
    assert torch.isfinite(gumbel_noise((100_000,), None, torch.float32, "cpu")).all()


def test_log_prob_entropy_and_kl():
    logits = torch.log(torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64))
    kernel = Categorical(logits)
    assert kernel.log_prob(torch.tensor([1])).item() == pytest.approx(math.log(0.3))
    entropy = -sum(p * math.log(p) for p in (0.2, 0.3, 0.5))
    assert kernel.entropy().item() == pytest.approx(entropy)
    other = Categorical(torch.zeros(1, 3, dtype=torch.float64))
    assert kernel.kl(other).item() == pytest.approx(math.log(3) - entropy)
    assert kernel.kl(kernel).item() == 0


def test_masked_actions_have_no_gradient_and_no_nan():
    logits = torch.zeros(2, 3, requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    kernel = Categorical(logits, mask)
    (kernel.log_prob(torch.tensor([0, 2])) + kernel.entropy()).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1].abs().sum() == 0
    assert kernel.entropy().tolist() == pytest.approx([math.log(2), 0.0])


def test_explore_is_even_over_legal_actions_where_asked():
    kernel = Categorical(
        torch.tensor([[9.0, 0.0, 0.0]] * 2), torch.tensor([[True, True, False]] * 2)
    )
    behaviour = kernel.explore(torch.tensor([True, False]), temperature=2.0)
    p = behaviour.log_probs().exp()
    assert p[0].tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert p[1, 1].item() == pytest.approx(1 / (1 + math.exp(4.5)), rel=1e-5)


def factored(n):
    table = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first = Categorical(torch.tensor([[0.1, 0.5, -0.3]], dtype=torch.float64).expand(n, -1))
    return Factored(first, lambda one: Categorical(table[one]), (3, 4))


def test_entropy_of_masked_actions_has_a_gradient():
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    entropy = Categorical(logits, torch.tensor([[True, True, False]])).entropy()
    (5 * entropy).sum().backward()
    torch.testing.assert_close(entropy.item(), math.log(2))
    assert logits.grad.abs().max() < 1e-12


def test_repeated_rows_are_those_of_the_kernel():
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]).bool()
    row = torch.tensor([2, 0, 1, 1, 0])
    shared, plain = Repeated(Categorical(logits, mask), row), Categorical(logits[row], mask[row])
    action = torch.tensor([3, 2, 1, 3, 0])
    uniform = torch.tensor([True, False, True, False, False])
    noise = draw_noise((5,), (4,), torch.Generator().manual_seed(1), torch.float64, "cpu")
    other = Categorical(logits[row] * 0.5, mask[row])
    for one, two in (
        (shared.log_prob(action), plain.log_prob(action)),
        (shared.log_probs(), plain.log_probs()),
        (shared.entropy(), plain.entropy()),
        (shared.kl(other), plain.kl(other)),
        (shared.explore(uniform, 2.0).log_probs(), plain.explore(uniform, 2.0).log_probs()),
    ):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    assert torch.equal(shared.sample(noise), plain.sample(noise))


def test_factored_log_probs_are_the_product():
    kernel = factored(1)
    every = kernel.log_probs()[0]
    assert every.exp().sum().item() == pytest.approx(1)
    for flat in range(12):
        pair = torch.tensor([[flat // 4, flat % 4]])
        assert kernel.log_prob(pair).item() == pytest.approx(every[flat].item())
    assert kernel.entropy().item() == pytest.approx(-(every.exp() * every).sum().item())
    assert kernel.kl(factored(1)).item() == pytest.approx(0)


@pytest.mark.parametrize("first, second", [(3, 2 * MANY), (2 * MANY, 3), (2 * MANY, 2 * MANY)])
def test_a_factor_with_many_values_is_sampled_beside_any_other(first, second):
    """The second factor's only legal value says which first factor it was drawn for."""
    n = 2000
    kernel = Factored(
        Categorical(torch.zeros(n, first)),
        lambda one: Categorical(
            torch.zeros(n, second), torch.arange(second) == (one % second).unsqueeze(1)
        ),
        (first, second),
    )
    pairs = kernel.sample(draw_noise((n,), (first, second), generator(0), torch.float32, "cpu"))
    assert torch.equal(pairs[:, 1], pairs[:, 0] % second)
    share = torch.bincount(pairs[:, 0], minlength=first) / n
    assert (share - 1 / first).abs().max() < 5 * (1 / first / n) ** 0.5


def test_factored_samples_its_own_distribution():
    kernel = factored(40_000)
    noise = gumbel_noise((40_000, 7), torch.Generator().manual_seed(0), torch.float64, "cpu")
    pairs = kernel.sample(noise)
    share = torch.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=12) / 40_000
    assert torch.allclose(share.double(), factored(1).log_probs()[0].exp(), atol=0.01)


class TestIndependent:
    logits = torch.tensor(
        [
            [[0.0, 1.0, -torch.inf], [2.0, 0.0, 0.5]],
            [[0.3, -1.0, 0.1], [-torch.inf, 0.0, -torch.inf]],
        ],
        dtype=torch.float64,
    )

    def joint(self, kernel):
        """Probabilities of all pairs, [2, 3, 3]."""
        pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        return torch.stack([kernel.log_prob(pair.expand(2, 2)) for pair in pairs], 1).exp()

    def test_it_is_a_product(self):
        kernel = Independent(self.logits)
        one, two = self.logits.softmax(-1).unbind(1)
        expected = (one.unsqueeze(2) * two.unsqueeze(1)).flatten(1)
        assert torch.allclose(self.joint(kernel), expected)
        assert torch.allclose(self.joint(kernel).sum(1), torch.ones(2, dtype=torch.float64))
        found = -(expected * expected.clamp(min=1e-300).log()).sum(1)
        assert torch.allclose(kernel.entropy(), found)

    def test_divergence(self):
        p, q = Independent(self.logits), Independent(2 * self.logits)
        a, b = self.joint(p), self.joint(q)
        expected = torch.where(a > 0, a * (a / b.clamp(min=1e-300)).clamp(min=1e-300).log(), 0.0)
        assert torch.allclose(p.kl(q), expected.sum(1))
        with pytest.raises(TypeError, match="no divergence to a Categorical"):
            p.kl(Categorical(self.logits[:, 0]))

    @pytest.mark.parametrize("widths", [(3, 3), (1, 1)])
    def test_samples_follow_the_probabilities(self, widths):
        generator, n = torch.Generator().manual_seed(0), 20_000
        kernel = Independent(self.logits[:1].expand(n, -1, -1))
        if widths == (3, 3):
            noise = gumbel_noise((n, 6), generator, torch.float64, "cpu")
        else:
            noise = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        drawn = kernel.sample(noise)
        share = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9) / n
        assert (share - self.joint(Independent(self.logits))[0]).abs().max() < 0.015

    def test_exploration_is_even_over_what_is_legal(self):
        kernel = Independent(self.logits).explore(torch.tensor([True, False]), 2.0)
        one, two = self.joint(kernel)[0].view(3, 3).sum(1), self.joint(kernel)[0].view(3, 3).sum(0)
        assert torch.allclose(one, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
        assert torch.allclose(two, torch.full((3,), 1 / 3, dtype=torch.float64))
        tempered = Independent(self.logits / 2)
        assert torch.allclose(self.joint(kernel)[1], self.joint(tempered)[1])

    def test_actions_are_not_listed(self):
        with pytest.raises(NotImplementedError, match="no list of actions"):
            Independent(self.logits).log_probs()
