import math

import pytest
import torch

from gflow.kernels import Categorical, Factored, gumbel_noise


def test_gumbel_max_samples_the_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0, 5.0]]).expand(40_000, -1)
    mask = torch.tensor([True, True, True, False]).expand(40_000, -1)
    kernel = Categorical(logits, mask)
    noise = gumbel_noise((40_000, 4), torch.Generator().manual_seed(0), torch.float32, "cpu")
    share = torch.bincount(kernel.sample(noise), minlength=4) / 40_000
    expected = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    assert torch.allclose(share[:3], expected, atol=0.01)
    assert share[3] == 0


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


def test_factored_log_probs_are_the_product():
    kernel = factored(1)
    every = kernel.log_probs()[0]
    assert every.exp().sum().item() == pytest.approx(1)
    for flat in range(12):
        pair = torch.tensor([[flat // 4, flat % 4]])
        assert kernel.log_prob(pair).item() == pytest.approx(every[flat].item())
    assert kernel.entropy().item() == pytest.approx(-(every.exp() * every).sum().item())
    assert kernel.kl(factored(1)).item() == pytest.approx(0)


def test_factored_samples_its_own_distribution():
    kernel = factored(40_000)
    noise = gumbel_noise((40_000, 7), torch.Generator().manual_seed(0), torch.float64, "cpu")
    pairs = kernel.sample(noise)
    share = torch.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=12) / 40_000
    assert torch.allclose(share.double(), factored(1).log_probs()[0].exp(), atol=0.01)
