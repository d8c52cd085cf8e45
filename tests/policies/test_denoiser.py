"""What a denoiser makes of its network: predictions, guidance, precision, memory, speed."""

import math

import pytest
import torch
from torch import nn

from gflow.conditions import Conditions
from gflow.envs.denoising import (
    brownian,
    diffusion,
    flow,
    time_grid,
)
from gflow.mdp import States, evaluate
from gflow.objectives.balance import (
    TrajectoryBalance,
)
from gflow.policies.denoiser import DenoiserPolicy, GradientGuided, TimeMLP
from gflow.sampling.rollout import Exploration, step_block
from tests.denoisers import SCHEDULES, alphas, make_policy, sample, scored


class Wrong(nn.Module):
    def forward(self, x, t, encoding):
        return x[:, :-1]


class Says(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x, t, encoding):
        return self.output


@pytest.mark.parametrize("n", [1, 4])
def test_flows_are_one_number_a_point(n):
    env = brownian((3,), 4)
    states, condition = env.initial(n), Conditions().sample(n)
    need = frozenset({"log_flow"})
    for shape in ((n, 1), (n,)):
        policy = DenoiserPolicy(env, Wrong(), flow=Says(torch.ones(shape)))
        assert policy(states, condition, need).log_flow.shape == (n,)
    for shape in ((n, 3), (2 * n,), (1, n + 1)):
        policy = DenoiserPolicy(env, Wrong(), flow=Says(torch.ones(shape)))
        with pytest.raises(ValueError, match="the flow network returned"):
            policy(states, condition, need)


def test_what_a_denoiser_refuses():
    env = brownian((3,), 4)
    with pytest.raises(ValueError, match=r"returned \[6, 2\] for points \[6, 3\]"):
        sample(DenoiserPolicy(env, Wrong()))
    for output, found in (((), "a tuple"), (None, "a NoneType")):
        with pytest.raises(ValueError, match=f"the network returned {found} for points"):
            sample(DenoiserPolicy(env, Says(output)))
    with pytest.raises(ValueError, match="guidance needs"):
        DenoiserPolicy(env, Wrong(), guidance=2.0)
    policy = make_policy(env)
    states = env.initial(2)
    for half in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match="float32 or float64"):
            policy.step(states._replace(data=states.data.to(half)), Conditions().sample(2))
    with pytest.raises(ValueError, match="no even choice"):
        sample(policy, exploration=Exploration(epsilon=0.1))
    with pytest.raises(ValueError, match="do not estimate"):
        policy.clean(states, Conditions().sample(2))
    with pytest.raises(NotImplementedError):
        env.forward_mask(states)
    with pytest.raises(NotImplementedError):
        env.backward_mask(states)
    with pytest.raises(ValueError, match="object 1 has shape"):
        env.encode([torch.zeros(3), torch.zeros(4)])


@pytest.mark.parametrize("prediction", ["noise", "clean", "velocity"])
def test_predictions_of_one_denoiser_agree(prediction):
    """Networks that say the same thing in other words give the same steps and clean points."""

    class Knows(nn.Module):
        """Always expects the same data."""

        def __init__(self, what):
            super().__init__()
            self.what = what

        def forward(self, x, t, encoding):
            t = t.unsqueeze(1)
            signal, noise = alphas()[8 - (8 * t).round().long()].sqrt(), None
            noise = (1 - signal.square()).sqrt()
            eps = (x - signal * 0.7) / noise
            return {"clean": 0.7 + 0 * x, "noise": eps, "velocity": signal * eps - noise * 0.7}[
                self.what
            ]

    truth = make_steps(diffusion((2,), alphas(), clock=time_grid(8)), Knows("noise"))
    other = make_steps(
        diffusion((2,), alphas(), clock=time_grid(8), prediction=prediction), Knows(prediction)
    )
    for a, b in zip(truth, other, strict=True):
        assert torch.allclose(a, b, atol=1e-9)
    assert torch.allclose(other[2], torch.tensor(0.7, dtype=torch.float64))


def make_steps(env, network):
    policy = DenoiserPolicy(env, network).double()
    states = env.initial(8)
    step = torch.arange(1, 9)
    data = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = states._replace(data=data, step=step)
    condition = Conditions().sample(8)
    kernel = policy.step(states, condition)
    return kernel.mean, kernel.std.expand_as(kernel.mean), policy.clean(states, condition)


class Asked(nn.Module):
    def __init__(self, size, seed=0):
        super().__init__()
        self.inner = TimeMLP(size, size, 2, seed=seed)
        nn.init.normal_(self.inner.trunk[-1].weight, generator=torch.Generator().manual_seed(1))

    def forward(self, x, t, encoding):
        return self.inner(x, t, encoding)


def test_guidance():
    """gamma = 1 is the conditional prediction; both branches take the gradient."""
    env = flow((3,), time_grid(4))
    x, t = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.full((5,), 0.5)
    encoding = torch.rand(5, 2, generator=torch.Generator().manual_seed(1))
    network = Asked(3)
    null = torch.tensor([0.3, -1.0])
    plain = DenoiserPolicy(env, network, condition_size=2, null=null)
    guided = DenoiserPolicy(env, network, condition_size=2, null=null, guidance=4.5)
    asked, unasked = network(x, t, encoding), network(x, t, null.expand(5, 2))
    assert torch.equal(plain.predict(x, t, encoding), asked)
    out = guided.predict(x, t, encoding)
    assert torch.allclose(out, unasked + 4.5 * (asked - unasked), atol=1e-5)
    gradients = torch.autograd.grad(out.sum(), network.inner.trunk[-1].bias)[0]
    assert torch.allclose(gradients, torch.full_like(gradients, 5.0), atol=1e-4)


def test_gradient_guidance_adds_the_target_s_gradient():
    env = brownian((2,), 6)
    network = GradientGuided(TimeMLP(2, 2), lambda x: -0.5 * x.square().sum(1), clip=1.0, scale=0.5)
    policy = DenoiserPolicy(env, network)
    x = torch.tensor([[0.2, -0.4], [3.0, -5.0]])
    out = policy.predict(x, torch.full((2,), 0.5), torch.zeros(2, 0))
    assert torch.allclose(out, torch.tensor([[-0.1, 0.2], [-0.5, 0.5]]))
    batch = sample(policy, 4, dtype=torch.float32)
    log_pf = evaluate(policy, batch, frozenset()).log_pf
    assert torch.allclose(log_pf, batch.log_pf_old, atol=1e-5)


def test_recomputing_activations_changes_nothing():
    policy = make_policy(brownian((3,), 8))
    batch = scored(sample(policy))
    loss = TrajectoryBalance()(policy, batch).value
    kept = torch.autograd.grad(loss, list(policy.network.parameters()))
    policy.recompute = 5
    loss_again = TrajectoryBalance()(policy, batch).value
    again = torch.autograd.grad(loss_again, list(policy.network.parameters()))
    assert torch.allclose(loss, loss_again, rtol=1e-12)
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(kept, again, strict=True))


def test_learned_variance():
    env = brownian((2,), 5)
    network = TimeMLP(2, 4)
    policy = DenoiserPolicy(env, network, log_variance_range=4.0).double()
    batch = sample(policy)
    fixed = make_policy(env, scale=0.0)
    assert torch.allclose(
        evaluate(policy, batch, frozenset()).log_pf, evaluate(fixed, batch, frozenset()).log_pf
    )
    nn.init.constant_(network.trunk[-1].bias, 50.0)
    states = env.initial(1)
    kernel = policy.step(states, Conditions().sample(1))
    assert torch.allclose(
        kernel.std, torch.tensor(math.sqrt(math.exp(4.0) / 5), dtype=torch.float64)
    )


def test_pictures_pass_through():
    env = flow((2, 4, 4), time_grid(3))

    class Zero(nn.Module):
        def forward(self, x, t, encoding):
            return torch.zeros_like(x)

    batch = sample(DenoiserPolicy(env, Zero()), 5, dtype=torch.float32)
    assert batch.states.shape == (5, 5, 2, 4, 4)
    log_pf = evaluate(DenoiserPolicy(env, Zero()), batch, frozenset({"log_pb"})).log_pf
    assert torch.allclose(log_pf, batch.log_pf_old, rtol=1e-6)


def kept_for_the_gradient(steps, recompute):
    """Bytes of a batch of 16 paths, and of the tensors its gradient keeps."""
    policy = make_policy(brownian((3,), steps), torch.float32, recompute=recompute)
    batch = scored(sample(policy, 16, dtype=torch.float32))
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = TrajectoryBalance()(policy, batch)
    held = sum(saved.values())
    loss.value.backward()
    return sum(t.nbytes for t in (batch.states, batch.actions, batch.backward_actions)), held


def test_memory_is_linear_in_the_steps_and_recomputing_spares_it():
    path, held = zip(*(kept_for_the_gradient(steps, 0) for steps in (10, 20, 40)), strict=True)
    assert path == tuple(16 * (steps + 1) * 3 * 4 for steps in (10, 20, 40))
    assert held[2] - held[1] == pytest.approx(2 * (held[1] - held[0]), rel=0.05)
    _, less = kept_for_the_gradient(40, 32)
    assert less < 0.1 * held[2]


@pytest.mark.parametrize("name", ["brownian", "dds", "flow_sde"])
@pytest.mark.parametrize("first, temperature", [(0, 1.0), (3, 1.5)])
def test_rows_in_step_move_as_rows_one_by_one(name, first, temperature):
    """The fast block of a denoiser is the block of any policy."""
    env = SCHEDULES[name]((2,))
    policy = make_policy(env)
    source = torch.Generator().manual_seed(1)
    points = torch.randn(5, 2, generator=source, dtype=torch.float64) * float(first > 0)
    noise = torch.randn(4, 5, 2, generator=source, dtype=torch.float64)
    start, condition = env.initial(5), Conditions().sample(5, dtype=torch.float64)
    in_step = States(points, (start.step[:1] + first).expand(5), start.done)
    apart = States(points, torch.full((5,), first), torch.zeros(5, dtype=torch.bool))
    options = (condition, noise, None, 0.0, temperature, False, True, False)
    ours = policy.step_block(in_step, *options)
    for theirs in (step_block(policy, in_step, *options), policy.step_block(apart, *options)):
        for one, other in zip(
            (*ours.states, *ours[1:]), (*theirs.states, *theirs[1:]), strict=True
        ):
            assert one.shape == other.shape
            assert torch.allclose(one.double(), other.double(), rtol=1e-12, atol=1e-12)
    assert ours.log_p.std() > 0 and (ours.states.step == first + 4).all()
