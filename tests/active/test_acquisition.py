"""Acquisition functions against botorch's, closed forms and brute force."""

import math

import pytest
import torch
from botorch.acquisition.multi_objective import (
    ExpectedHypervolumeImprovement,
    qNoisyExpectedHypervolumeImprovement,
)
from botorch.models import SingleTaskGP
from botorch.sampling import SobolQMCNormalSampler
from botorch.utils.multi_objective.box_decompositions import NondominatedPartitioning
from botorch.utils.testing import MockModel, MockPosterior
from gpytorch.kernels import ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood

from gflow.active.acquisition import (
    LOG_FLOOR,
    NoisyImprovement,
    UpperConfidence,
    choose_batch,
    expected_improvement,
    promising,
    tchebycheff_distance,
    undominated_boxes,
)
from gflow.active.ensemble import DeepEnsemble
from gflow.active.surrogates import GaussianProcess, Moments, TanimotoKernel
from gflow.pareto import hypervolume, hypervolume_improvement, non_dominated

from .test_surrogates import data, generator

F64 = torch.float64


def draws(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed), dtype=F64)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_expected_improvement_is_botorchs(k):
    fronts, mean, std = draws(2, 6, k), draws(2, 5, k, seed=1) * 1.5, draws(5, k, seed=2) * 0.4
    reference = torch.full((k,), 0.1, dtype=F64)
    found = expected_improvement(Moments(mean, std), undominated_boxes(fronts, reference))
    for s in range(2):
        partition = NondominatedPartitioning(ref_point=reference, Y=fronts[s])
        for i in range(5):
            model = MockModel(MockPosterior(mean=mean[s, i : i + 1], variance=std[i : i + 1] ** 2))
            theirs = ExpectedHypervolumeImprovement(model, reference.tolist(), partition)
            expected = theirs(torch.zeros(1, 1, dtype=F64))
            assert found[s, i].item() == pytest.approx(expected.item(), rel=1e-9)


def test_expected_improvement_of_one_reward_in_closed_form():
    fronts = torch.tensor([[[0.2], [0.7]], [[-1.0], [-3.0]]], dtype=F64)
    mean = torch.tensor([[[0.9], [0.1]]] * 2, dtype=F64)
    std = torch.tensor([[0.5], [0.2]], dtype=F64)
    reference = torch.zeros(1, dtype=F64)
    found = expected_improvement(Moments(mean, std), undominated_boxes(fronts, reference))
    for s, best in enumerate((0.7, 0.0)):
        z = (mean[s, :, 0] - best) / std[:, 0]
        density = (-0.5 * z**2).exp() / math.sqrt(2 * math.pi)
        expected = std[:, 0] * (density + z * torch.special.ndtr(z))
        assert torch.allclose(found[s], expected, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_without_doubt_the_improvement_is_that_of_the_point(k):
    front, points = draws(6, k), draws(20, k, seed=1) * 1.3
    reference = torch.full((k,), 0.05, dtype=F64)
    boxes = undominated_boxes(front.unsqueeze(0), reference)
    found = expected_improvement(Moments(points.unsqueeze(0), torch.zeros(20, k).double()), boxes)
    for point, value in zip(points, found[0], strict=True):
        expected = hypervolume_improvement(point.unsqueeze(0), front, reference)
        assert torch.allclose(value, expected, atol=1e-12)


def test_fronts_below_the_reference_and_open_boxes():
    fronts = torch.full((1, 3, 2), -1.0, dtype=F64)
    reference = torch.zeros(2, dtype=F64)
    boxes = undominated_boxes(fronts, reference)
    mean, std = torch.tensor([[[0.5, 0.25]]], dtype=F64), torch.zeros(1, 2, dtype=F64)
    assert expected_improvement(Moments(mean, std), boxes).item() == pytest.approx(0.125)
    for far in (-50.0, -1e6):
        lost = expected_improvement(Moments(mean + far, std + 1), boxes)
        assert lost.item() == 0.0


def test_noisy_improvement_is_botorchs():
    features, rewards = data(20, 2)
    surrogate = GaussianProcess(features, rewards)
    reference = rewards.quantile(0.2, 0)
    others = data(6, 2, seed=3)[0]
    p, scale = surrogate.parameters, rewards.std(0)
    outputs = torch.Size([2])
    likelihood = GaussianLikelihood(batch_shape=outputs)
    kernel = ScaleKernel(TanimotoKernel(), batch_shape=outputs)
    model = SingleTaskGP(
        features, (rewards - rewards.mean(0)) / scale, outcome_transform=None,
        likelihood=likelihood, covar_module=kernel,
    )  # fmt: skip
    likelihood.noise = p.noise.unsqueeze(1)
    kernel.outputscale = p.scale
    model.mean_module.initialize(constant=p.mean)
    theirs = qNoisyExpectedHypervolumeImprovement(
        model.eval(),
        ref_point=(reference - rewards.mean(0)) / scale,
        X_baseline=features,
        sampler=SobolQMCNormalSampler(torch.Size([1024]), seed=1),
        prune_baseline=False,
    )
    with torch.no_grad():
        expected = theirs(others.unsqueeze(1)) * scale.prod()
    ours = NoisyImprovement(surrogate, features, reference, 1024, generator())(others).exp()
    assert torch.allclose(ours, expected, rtol=0.1, atol=0.02 * float(expected.max()))


def test_pending_objects_are_worth_less_and_so_are_their_likes():
    features, rewards = data(20, 2)
    surrogate = GaussianProcess(features, rewards)
    reference = rewards.amin(0)
    others = data(40, 2, seed=3)[0]
    before = NoisyImprovement(surrogate, features, reference, 64, generator())
    best = before(others).argsort(descending=True)
    waiting = torch.cat([features, others[best[:1]]])
    after = NoisyImprovement(surrogate, waiting, reference, 64, generator())
    lost = before(others[best]) - after(others[best])
    assert lost[0] > 1 and lost[0] > 3 * lost.median()


def test_an_ensembles_improvement_is_the_mean_over_its_members():
    features, rewards = data(30, 2)
    ensemble = DeepEnsemble(features, rewards, members=4, steps=30)
    reference = rewards.amin(0)
    others = data(10, 2, seed=3)[0]
    found = NoisyImprovement(ensemble, features, reference, 4, generator())(others)
    members = [ensemble.sample(x, 4, generator()) for x in (features, others)]
    expected = torch.stack(
        [
            hypervolume_improvement(
                members[1][:, i : i + 1], members[0], reference
            ).mean()
            for i in range(10)
        ]
    )  # fmt: skip
    assert torch.allclose(found.exp(), expected, atol=1e-9)
    assert (found[expected == 0] == LOG_FLOOR).all()


def test_promising_objects_are_those_on_fronts():
    features, rewards = data(30, 2)
    surrogate = GaussianProcess(features, rewards)
    found = promising(surrogate, features, 64, generator())
    sampled = surrogate.sample(features, 64, generator())
    on_front = non_dominated(sampled).any(0).nonzero().squeeze(1)
    assert sorted(found.tolist()) == on_front.tolist() and 0 < len(found) < 30
    fewer = promising(surrogate, features, 64, generator(), most=3)
    assert fewer.equal(found[:3])
    reference = rewards.amin(0)
    whole, part = (
        hypervolume(sampled[:, rows], reference)
        for rows in (torch.arange(30), torch.tensor(sorted(found.tolist())))
    )
    assert torch.allclose(whole, part)


def greedy(samples, fronts, reference, n):
    """By brute force."""
    chosen = []
    for _ in range(n):
        gains = [
            -1.0
            if i in chosen
            else float(
                hypervolume_improvement(samples[:, i : i + 1], fronts, reference).mean()
            )
            for i in range(samples.shape[1])
        ]  # fmt: skip
        chosen.append(max(range(len(gains)), key=gains.__getitem__))
        fronts = torch.cat([fronts, samples[:, chosen[-1:]]], 1)
    return chosen


@pytest.mark.parametrize("k", [1, 2, 3])
def test_batches_are_those_of_brute_force(k):
    samples, fronts = draws(4, 40, k), draws(4, 3, k, seed=1) * 0.6
    reference = torch.full((k,), 0.1, dtype=F64)
    n = 3 if k == 1 else 8
    assert choose_batch(samples, fronts, reference, n) == greedy(samples, fronts, reference, n)


def test_a_batch_goes_on_with_the_next_layer():
    # Nothing improves on the front; of the rest, the best come first.
    samples = torch.tensor([[[0.5, 0.5], [0.4, 0.4], [0.6, 0.2], [0.3, 0.3]]], dtype=F64)
    fronts = torch.ones(1, 1, 2, dtype=F64)
    assert choose_batch(samples, fronts, [0.0, 0.0], 4) == [0, 2, 1, 3]
    below = choose_batch(-samples, fronts, [0.0, 0.0], 3)
    assert len(set(below)) == 3


def test_a_batch_does_not_ask_twice_for_the_same():
    point, other = [0.9, 0.5], [0.2, 0.8]
    samples = torch.tensor([[point, point, other]], dtype=F64)
    fronts = torch.zeros(1, 1, 2, dtype=F64)
    assert choose_batch(samples, fronts, [0.0, 0.0], 2) == [0, 2]


def test_upper_confidence_and_its_scalarisation():
    class Known:
        def moments(self, features):
            return Moments(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]]))

    bounds = UpperConfidence(Known(), torch.tensor([1.0, 0.0]), torch.tensor([2.0, 4.0]), kappa=2.0)
    assert torch.allclose(bounds(torch.zeros(1, 1)), torch.tensor([[1.0, 0.625]]))
    values = torch.tensor([[0.5, 0.25], [1.4, 1.2]])
    weights = torch.tensor([[0.3, 0.7], [0.5, 0.5]])
    # max(0.3 * 0.5, 0.7 * 0.75) and max(0.5 * -0.4, 0.5 * -0.2)
    assert torch.allclose(tchebycheff_distance(values, weights), torch.tensor([-0.525, 0.1]))
