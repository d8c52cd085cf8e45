"""Networks of denoisers on request."""

import pytest
import torch

from gflow.envs.denoising.shapes import FIELD_SIZES, SPACES, all_prompts
from gflow.policies.networks import PromptMLP, PromptUNet, time_features
from gflow.policies.scenes import scene_network

BOTH = pytest.mark.parametrize("space", list(SPACES))


def inputs(space, n=6, numbers=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, *SPACES[space].state_shape, generator=generator, dtype=dtype)
    t = torch.rand(n, generator=generator, dtype=dtype)
    extra = torch.rand(n, numbers, generator=generator, dtype=dtype)
    return x, t, torch.cat([all_prompts()[40 : 40 + n].to(dtype), extra], 1)


def stirred(network, seed=1):
    """The network with every parameter moved, so that no layer is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return network


@BOTH
def test_an_untrained_network_says_zero(space):
    network = scene_network(space)
    x, t, encoding = inputs(space)
    assert torch.equal(network(x, t, encoding), torch.zeros_like(x))
    assert sum(p.numel() for p in network.parameters()) < 600_000


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_do_not_see_each_other(space, dtype):
    network = stirred(scene_network(space, numbers=2)).to(dtype)
    x, t, encoding = inputs(space, numbers=2, dtype=dtype)
    whole = network(x, t, encoding)
    assert whole.dtype == dtype and whole.abs().max() > 0
    one = network(x[2:3], t[2:3], encoding[2:3])
    assert torch.allclose(whole[2:3], one, atol=1e-5 if dtype == torch.float32 else 1e-12)


@BOTH
def test_time_prompt_and_numbers_are_heard(space):
    network = stirred(scene_network(space, numbers=2))
    x, t, encoding = inputs(space, numbers=2)
    base = network(x, t, encoding)
    for changed in (
        network(x, t.flip(0), encoding),
        network(x, t, encoding.flip(0)),
        network(x, t, torch.cat([encoding[:, :8], encoding[:, 8:].flip(0)], 1)),
        network(x.flip(0), t, encoding),
    ):
        assert (changed - base).abs().amax(tuple(range(1, x.ndim))).min() > 1e-4


@BOTH
def test_numbers_are_ignored_until_trained(space):
    plain, numbered = stirred(scene_network(space)), scene_network(space, numbers=3)
    missing, unexpected = numbered.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ["condition.numbers.weight"] and not unexpected
    x, t, encoding = inputs(space, numbers=3)
    assert torch.equal(numbered(x, t, encoding), plain(x, t, encoding[:, :8]))


def test_every_field_has_values_of_its_own():
    network = PromptMLP(32, FIELD_SIZES)
    rows = all_prompts() + network.condition.first
    assert int(rows.max()) < sum(FIELD_SIZES)
    # The same value of two fields is two different rows.
    assert all((rows[:, i] < rows[:, i + 1].min()).all() for i in range(7))


def test_seeds_decide_the_weights():
    one, two, three = (PromptUNet(3, FIELD_SIZES, seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["first.weight"], three["first.weight"])


def test_times_are_told_apart():
    features = time_features(torch.linspace(0, 1, 41, dtype=torch.float64))
    distance = torch.cdist(features, features) + torch.eye(41) * 10
    assert features.shape == (41, 32) and distance.min() > 0.1
