"""Features, Gaussian processes and ensembles, against dense algebra and botorch's own posterior."""

import itertools

import pytest
import torch

from gflow.active import surrogates
from gflow.active.computed import WithComputed
from gflow.active.ensemble import DeepEnsemble
from gflow.active.features import Features, featurizer, longest_ngram, ngram_counts
from gflow.active.surrogates import GaussianProcess, TanimotoKernel, tanimoto
from gflow.envs.sequences import AppendSequences
from gflow.envs.sets import Sets

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(n, k, seed=0):
    """Counts with many zeros, and rewards that depend on them."""
    random = generator(seed)
    features = torch.randint(0, 4, (n, 12), generator=random).to(F64)
    weights = torch.randn(12, k, generator=random, dtype=F64)
    noise = torch.randn(n, k, generator=random, dtype=F64)
    return features, (features @ weights / 4).sin() * 3 + 0.2 * noise + 5


def test_ngram_counts_are_those_of_a_loop():
    tokens = torch.tensor([[0, 1, 0, 1, -1], [2, 2, 2, 2, 2], [1, -1, -1, -1, -1]])
    counts = ngram_counts(tokens, 3, 3)
    words = [w for k in (1, 2, 3) for w in itertools.product(range(3), repeat=k)]
    for row, text in enumerate(["0101", "22222", "1"]):
        for place, word in enumerate(words):
            wanted = "".join(map(str, word))
            found = sum(text.startswith(wanted, i) for i in range(len(text)))
            assert counts[row, place] == found, (text, wanted)


def test_words_longer_than_the_row_do_not_occur():
    assert ngram_counts(torch.tensor([[0, 1]]), 2, 3)[0, 6:].sum() == 0
    assert longest_ngram(4) == 4 and longest_ngram(20) == 2 and longest_ngram(1) == 1


def test_features_are_computed_once():
    asked = []

    def lengths(texts):
        asked.extend(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    features = Features(lengths)
    assert features(["a", "bb", "a"]).tolist() == [[1], [2], [1]]
    assert features(["ccc", "bb"]).tolist() == [[3], [2]] and features([f"{'d' * 9}"]).item() == 9
    assert asked == ["a", "bb", "ccc", "d" * 9]
    assert features(["a"]).dtype == F64


def test_featurizers_suit_their_objects():
    rows = featurizer(AppendSequences("ACGT", 3), "text")(["AAA", "ACG"])
    assert rows.shape == (2, 4 + 16 + 64 + 256) and rows.sum(1).tolist() == [6, 6]
    assert featurizer(Sets(4, 2), "text")([(0, 2), (1, 3)]).tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    bits = featurizer(AppendSequences("ACGT", 3), "molecule")(["CCO", "OCC", "c1ccccc1"])
    assert bits[0].equal(bits[1]) and not bits[0].equal(bits[2])


def test_tanimoto_by_hand():
    x = torch.tensor([[1.0, 1, 0], [2, 0, 1], [0, 0, 0]], dtype=F64)
    expected = [[1, 2 / (2 + 5 - 2), 0], [2 / 5, 1, 0], [0, 0, 1]]
    assert torch.allclose(tanimoto(x, x), torch.tensor(expected, dtype=F64))
    kernel = TanimotoKernel()
    assert torch.allclose(kernel(x, x).to_dense(), tanimoto(x, x))
    assert kernel(x, x, diag=True).tolist() == [1, 1, 1]
    features, _ = data(40, 1)
    assert torch.linalg.eigvalsh(tanimoto(features, features)).min() > -1e-9


@pytest.mark.parametrize("multitask", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_predictions_are_those_of_botorch(multitask, k, monkeypatch):
    fitted = []
    fit = surrogates._maximize_likelihood
    monkeypatch.setattr(
        surrogates, "_maximize_likelihood", lambda model: (fit(model), fitted.append(model))
    )
    features, rewards = data(30, k)
    surrogate = GaussianProcess(features, rewards, multitask)
    others = data(7, k, seed=1)[0]
    found = surrogate.moments(others)
    (model,) = fitted
    model.eval()
    with torch.no_grad():
        posterior = model(others)
    mean, variance = posterior.mean, posterior.variance
    if mean.shape != (7, k):
        mean, variance = mean.view(k, 7).T, variance.view(k, 7).T
    scale = rewards.std(0)
    assert torch.allclose(found.mean, mean * scale + rewards.mean(0), atol=1e-6)
    assert torch.allclose(found.std, variance.sqrt() * scale, atol=1e-5)


def test_parameters_fit_on_a_part_serve_all(monkeypatch):
    monkeypatch.setattr(surrogates, "FIT_INDEPENDENT", 20)
    features, rewards = data(60, 2)
    part = GaussianProcess(features, rewards)
    assert part.root.shape == (2, 60, 60)
    near = part.moments(features).mean
    assert (near - rewards).abs().mean() < 0.5 * (rewards - rewards.mean(0)).abs().mean()


def dense(surrogate, features):
    """Mean and covariance of all rewards at `features`, by one dense system of K n equations."""
    p = surrogate.parameters
    tasks = surrogate.mixing * p.scale @ surrogate.mixing.T
    noise = surrogate.mixing * p.noise @ surrogate.mixing.T
    known = surrogate.features
    within = torch.kron(tanimoto(known, known), tasks) + torch.kron(
        torch.eye(len(known), dtype=F64), noise
    )
    cross = torch.kron(tanimoto(features, known), tasks)
    y = (surrogate.observed.T @ surrogate.mixing.T).flatten()
    mean = (cross @ torch.linalg.solve(within, y)).view(len(features), -1) + surrogate.location
    own = torch.kron(tanimoto(features, features), tasks)
    return mean, own - cross @ torch.linalg.solve(within, cross.T)


@pytest.mark.parametrize("multitask", [False, True])
def test_moments_and_draws_are_those_of_dense_algebra(multitask):
    features, rewards = data(25, 2)
    surrogate = GaussianProcess(features, rewards, multitask)
    others = data(4, 2, seed=1)[0]
    mean, covariance = dense(surrogate, others)
    found = surrogate.moments(others)
    assert torch.allclose(found.mean, mean, atol=1e-6)
    assert torch.allclose(found.std.square().flatten(), covariance.diagonal(), atol=1e-6)
    draws = surrogate.sample(others, 40_000, generator()).flatten(1)
    size = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean.flatten()) / size).abs().max() < 0.03
    assert ((draws.T.cov() - covariance) / size.outer(size)).abs().max() < 0.05


@pytest.mark.parametrize("multitask", [False, True])
def test_functions_agree_with_the_process_they_were_drawn_from(multitask):
    features, rewards = data(25, 2)
    surrogate = GaussianProcess(features, rewards, multitask)
    baseline, others = features[:5], data(6, 2, seed=1)[0]
    functions = surrogate.functions(baseline, 4000, generator())
    # At the baseline nothing is left open.
    there = functions.elsewhere(baseline)
    spread = functions.values.std(0)
    assert ((there.mean - functions.values).abs() / spread).max() < 1e-2
    assert (there.std / rewards.std(0)).max() < 1e-2
    # Elsewhere, the parts known and open add up to the whole (law of total variance).
    left, whole = functions.elsewhere(others), surrogate.moments(others)
    assert (left.std < whole.std + 1e-9).all() and (left.std < 0.99 * whole.std).any()
    total = left.mean.var(0) + left.std.square()
    assert torch.allclose(total, whole.std.square(), rtol=0.08)
    assert torch.allclose(left.mean.mean(0), whole.mean, atol=0.1)


def test_the_global_generator_is_left_alone():
    features, rewards = data(30, 2)
    before = torch.get_rng_state()
    for multitask in (False, True):
        one = GaussianProcess(features, rewards, multitask)
        two = GaussianProcess(features, rewards, multitask)
        assert one.moments(features).mean.equal(two.moments(features).mean)
    DeepEnsemble(features, rewards, steps=2)
    assert torch.get_rng_state().equal(before)


def test_a_constant_reward_and_empty_rows_do_no_harm():
    features, rewards = data(10, 2)
    rewards[:, 1] = 7.0
    features[3] = 0
    found = GaussianProcess(features, rewards).moments(features)
    assert torch.isfinite(found.mean).all() and torch.isfinite(found.std).all()
    assert torch.allclose(found.mean[:, 1], torch.tensor(7.0, dtype=F64), atol=0.1)


def test_what_cannot_be_learned_from_is_refused():
    features, rewards = data(5, 2)
    for bad in (rewards[:4], rewards[:, 0]):
        with pytest.raises(ValueError, match="needs features"):
            GaussianProcess(features, bad)
    with pytest.raises(ValueError, match="at least 2 objects"):
        DeepEnsemble(features[:1], rewards[:1])
    rewards[3, 1] = float("nan")
    with pytest.raises(ValueError, match="object 3 are not finite"):
        GaussianProcess(features, rewards)


def test_an_ensemble_learns_and_doubts_what_it_has_not_seen():
    features, rewards = data(200, 2)
    ensemble = DeepEnsemble(features[:150], rewards[:150], steps=300, seed=1)
    error = (ensemble.moments(features[150:]).mean - rewards[150:]).square().mean()
    assert error < 0.7 * rewards.var()
    near, far = ensemble.moments(features[:50]).std, ensemble.moments(features[:50] * 4).std
    assert far.mean() > 2 * near.mean()


def test_members_are_drawn_without_repetition():
    features, rewards = data(30, 2)
    ensemble = DeepEnsemble(features, rewards, members=4, steps=3)
    drawn = ensemble.sample(features, 4, generator())
    assert len({tuple(member.flatten().tolist()) for member in drawn}) == 4
    assert torch.allclose(drawn.mean(0), ensemble.moments(features).mean)
    functions = ensemble.functions(features[:3], 4, generator())
    found = functions.elsewhere(features)
    assert torch.allclose(functions.values, found.mean[:, :3]) and found.std.abs().max() == 0


def test_computed_rewards_are_exact():
    features, rewards = data(20, 2)
    inner = GaussianProcess(features, rewards[:, :1])
    exact = torch.linspace(0, 1, 20, dtype=F64).unsqueeze(1)
    both = WithComputed(inner, 1)
    seen = torch.cat([features, exact], 1)
    moments = both.moments(seen)
    assert moments.mean[:, 1:].equal(exact) and moments.std[:, 1].abs().max() == 0
    assert moments.mean[:, :1].equal(inner.moments(features).mean)
    assert both.sample(seen, 3, generator())[..., 1:].equal(exact.expand(3, 20, 1))
    functions = both.functions(seen[:4], 3, generator())
    assert functions.values[..., 1:].equal(exact[:4].expand(3, 4, 1))
    assert functions.elsewhere(seen).mean[..., 1:].equal(exact.expand(3, 20, 1))
