import pytest
import torch

from gflow.policies import linear
from gflow.policies.linear import Linear


@pytest.mark.parametrize("shape", [(300, 128), (20, 15, 128)])
@pytest.mark.parametrize("bias", [True, False])
def test_large_products_and_their_gradients_are_those_of_torch(shape, bias, monkeypatch):
    monkeypatch.setattr(linear, "LARGE", 300 * 128 * 64)
    source = torch.Generator().manual_seed(0)
    layer = Linear(128, 64, bias=bias)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=source)
    found = []
    for forward in (layer, lambda x: torch.nn.functional.linear(x, layer.weight, layer.bias)):
        layer.zero_grad()
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = forward(x)
        assert y.shape == (*shape[:-1], 64)
        y.square().sum().backward()
        found.append([y.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_what_onednn_is_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr(linear, "_times", lambda *given: calls.append(1) or torch.zeros(400, 128))
    layer = Linear(128, 128)
    layer(torch.zeros(400, 128))
    assert len(calls) == 1
    layer(torch.zeros(100, 128))
    layer.double()(torch.zeros(400, 128, dtype=torch.float64))
    Linear(4000, 8)(torch.zeros(400, 4000))
    assert len(calls) == 1
    monkeypatch.setattr(linear, "_product", None)
    Linear(128, 128)(torch.zeros(400, 128))
    assert len(calls) == 1
