"""Gaussian processes over features: what measured values say about objects not yet measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import gpytorch
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import KroneckerMultiTaskGP, SingleTaskGP
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from gflow.policies.common import seeded_weights

FIT_INDEPENDENT = 512
FIT_MULTITASK = 192
"""Scale and noise are fitted to at most so many objects; predictions condition on all of them."""


class Moments(NamedTuple):
    """Gaussian beliefs about n objects.

    Attributes:
        mean: [..., n, K].
        std: [n, K].
    """

    mean: Tensor
    std: Tensor


class Functions(NamedTuple):
    """S functions drawn from a surrogate, known at some objects.

    Attributes:
        values: [S, m, K], the functions at those m objects.
        elsewhere: features [n, d] -> what is left to believe of each function at n other objects:
            mean [S, n, K] and std [n, K].
    """

    values: Tensor
    elsewhere: Callable[[Tensor], Moments]


class Surrogate(Protocol):
    """What acquisition functions ask of a model of K rewards."""

    def moments(self, features: Tensor) -> Moments:
        """Mean and standard deviation of the noise-free rewards of n objects."""

    def sample(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """`n` joint draws of the noise-free rewards of m objects, [n, m, K]."""

    def functions(self, features: Tensor, n: int, generator: torch.Generator) -> Functions:
        """`n` draws at m objects, and what each of them leaves open at others."""


class TanimotoKernel(Kernel):  # type: ignore[misc]
    """k(x, y) = x.y / (|x|^2 + |y|^2 - x.y) of non-negative features.

    On bits this is the Tanimoto similarity of fingerprints (Ralaivola et al., 2005), on n-gram
    counts a normalised spectrum kernel. It has no parameter, so that the matrix of the training
    objects is computed once and not at every step of a fit. Two empty rows count as equal.
    """

    has_lengthscale = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._known: tuple[Tensor, Tensor] | None = None

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **options: Any) -> Tensor:
        """Similarities [..., n, m], or [..., n] of equal rows."""
        if diag:
            return torch.ones(x1.shape[:-1], dtype=x1.dtype, device=x1.device)
        if not self.training:
            return tanimoto(x1, x2)
        if self._known is None or not (self._known[0].equal(x1) and x1.equal(x2)):
            self._known = (x1, tanimoto(x1, x2))
        return self._known[1]


def tanimoto(x: Tensor, y: Tensor) -> Tensor:
    """Tanimoto similarities [..., n, m] of non-negative features [..., n, d] and [..., m, d]."""
    common = x @ y.transpose(-1, -2)
    either = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2) - common
    return torch.where(either > 0, common / either.clamp(min=1e-12), 1.0)


class Parameters(NamedTuple):
    """Independent processes z_k behind standardised rewards mean + mixing z.

    Attributes:
        mean: [K].
        scale: [K], variance of z_k.
        noise: [K], variance of the noise on z_k.
        mixing: [K, K].
    """

    mean: Tensor
    scale: Tensor
    noise: Tensor
    mixing: Tensor


class GaussianProcess:
    """Exact Gaussian processes with the Tanimoto kernel, fitted by marginal likelihood.

    Independent processes, one for each reward; or one multi-task process (Bonilla, Chai, Williams,
    2008), which is as many independent processes of mixed rewards: with task covariance C and
    noise covariance N, the columns of N^1/2 U are mixed, U being the eigenvectors of
    N^-1/2 C N^-1/2. Botorch's models find the parameters; predictions are written out here, so
    that what every object shares is computed once.

    Args:
        features: [n, d] float64, non-negative.
        rewards: [n, K] float64.
        multitask: correlate the rewards.

    Raises:
        ValueError: fewer than two objects, or values that are not finite.
    """

    def __init__(self, features: Tensor, rewards: Tensor, multitask: bool = False):
        check_data(features, rewards)
        self.features = features
        location, spread = rewards.mean(0), rewards.std(0)
        scale = torch.where(spread > 0, spread, 1.0)
        standard = (rewards - location) / scale
        fit = _fit_multitask if multitask and rewards.shape[1] > 1 else _fit_independent
        most = FIT_MULTITASK if fit is _fit_multitask else FIT_INDEPENDENT
        # Evenly over the history: early objects are diverse, late ones good.
        some = torch.linspace(0, len(features) - 1, min(most, len(features))).round().long()
        # Botorch draws first guesses from the global generator.
        with seeded_weights(0):
            self.parameters = found = fit(features[some], standard[some])
        self.mixing = scale.unsqueeze(1) * found.mixing
        self.location = location + scale * found.mean
        self.observed = torch.linalg.solve(self.mixing, (rewards - self.location).T)
        self.root = _root(self._kernel(features, features), found.noise.unsqueeze(1))
        self.weights = _solve(self.root, self.observed.unsqueeze(-1))

    def moments(self, features: Tensor) -> Moments:
        """Mean and standard deviation [n, K]."""
        means, variances = zip(
            *(
                self._given(part, self.features, self.weights, self.root)
                for part in features.split(_CHUNK)
            ),
            strict=True,
        )
        mean = self._rewards(torch.cat(means, 1).squeeze(-1))
        return Moments(mean, self._std(torch.cat(variances, 1)))

    def sample(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Joint draws [n, m, K]."""
        return self._rewards(self._draw(features, n, generator))

    def functions(self, features: Tensor, n: int, generator: torch.Generator) -> Functions:
        """Draws at the objects `features` [m, d], and Gaussian beliefs elsewhere given each."""
        drawn = self._draw(features, n, generator)
        # A draw and the measurements: a process that knows both, the draw without noise.
        known = torch.cat([self.features, features])
        noise = self.parameters.noise.unsqueeze(1).expand(-1, len(self.features))
        noise = torch.cat([noise, torch.zeros(len(drawn[0]), len(features), dtype=noise.dtype)], 1)
        root = _root(self._kernel(known, known), noise)
        targets = torch.cat([self.observed.expand(n, -1, -1), drawn], 2)
        weights = _solve(root, targets.movedim(0, -1))

        def elsewhere(others: Tensor) -> Moments:
            means, variances = zip(
                *(self._given(part, known, weights, root) for part in others.split(_CHUNK)),
                strict=True,
            )
            mean = self._rewards(torch.cat(means, 1).movedim(-1, 0))
            return Moments(mean, self._std(torch.cat(variances, 1)))

        return Functions(self._rewards(drawn), elsewhere)

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Covariances [K, n, m] of the mixed rewards."""
        return self.parameters.scale.view(-1, 1, 1) * tanimoto(x, y)

    def _given(
        self, features: Tensor, known: Tensor, weights: Tensor, root: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Means [K, n, S] and variances [K, n] of n objects, by m `known` ones."""
        cross = self._kernel(features, known)
        explained = torch.linalg.solve_triangular(root, cross.mT, upper=False)
        own = self.parameters.scale.unsqueeze(1)
        variance = (own - explained.square().sum(1)).maximum(_JITTER * own)
        return cross @ weights, variance

    def _draw(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Joint draws [n, K, m] of the mixed rewards."""
        cross = self._kernel(features, self.features)
        explained = torch.linalg.solve_triangular(self.root, cross.mT, upper=False)
        covariance = self._kernel(features, features) - explained.mT @ explained
        root = _root(covariance, torch.zeros_like(covariance[:, :1, 0]))
        normals = torch.randn(n, *root.shape[:-1], generator=generator, dtype=root.dtype)
        return (cross @ self.weights).squeeze(-1) + (root @ normals.unsqueeze(-1)).squeeze(-1)

    def _rewards(self, mixed: Tensor) -> Tensor:
        """Rewards [..., n, K] of [..., K, n] mixed ones."""
        return mixed.mT @ self.mixing.T + self.location

    def _std(self, variance: Tensor) -> Tensor:
        """[n, K] of the variances [K, n] of the mixed rewards."""
        return (variance.mT @ self.mixing.square().T).sqrt()


_CHUNK = 1024
_JITTER = 1e-8


def _root(covariance: Tensor, noise: Tensor) -> Tensor:
    """Cholesky factor of covariance [K, n, n] + diagonal noise [K, n] (or [K, 1])."""
    size = covariance.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    diagonal = (noise + _JITTER * size).expand(covariance.shape[:2])
    return psd_safe_cholesky(covariance + torch.diag_embed(diagonal))  # type: ignore[no-any-return]


def _solve(root: Tensor, values: Tensor) -> Tensor:
    return torch.cholesky_solve(values, root)


def _fit_independent(features: Tensor, standard: Tensor) -> Parameters:
    n_rewards = standard.shape[1]
    outputs = torch.Size([n_rewards] if n_rewards > 1 else [])
    likelihood = GaussianLikelihood(batch_shape=outputs)
    kernel = ScaleKernel(TanimotoKernel(), batch_shape=outputs)
    model = SingleTaskGP(
        features, standard, likelihood=likelihood, covar_module=kernel, outcome_transform=None
    )
    _maximize_likelihood(model)
    return Parameters(
        model.mean_module.constant.detach().reshape(n_rewards),
        kernel.outputscale.detach().reshape(n_rewards),
        likelihood.noise.detach().reshape(n_rewards),
        torch.eye(n_rewards, dtype=standard.dtype),
    )


def _fit_multitask(features: Tensor, standard: Tensor) -> Parameters:
    model = KroneckerMultiTaskGP(
        features, standard, data_covar_module=TanimotoKernel(), outcome_transform=None
    )
    _maximize_likelihood(model)
    tasks = model.covar_module.task_covar_module.covar_matrix.to_dense().detach()
    noise = (model.likelihood.task_noises + model.likelihood.noise).detach()
    size = noise.sqrt()
    scale, vectors = torch.linalg.eigh(tasks / size.outer(size))
    means = [base.constant.detach().reshape(()) for base in model.mean_module.base_means]
    # A task covariance of low rank leaves eigenvalues that rounding makes negative.
    scale = scale.clamp(min=1e-8)
    return Parameters(
        torch.stack(means), scale, torch.ones_like(scale), size.unsqueeze(1) * vectors
    )


def _maximize_likelihood(model: Any) -> None:
    # Cholesky factors at every size: iterative solvers would draw from the global generator.
    with gpytorch.settings.max_cholesky_size(10**6):
        fit_gpytorch_mll(
            ExactMarginalLogLikelihood(model.likelihood, model),
            optimizer_kwargs={"options": {"maxiter": 100}},
        )


def check_data(features: Tensor, rewards: Tensor) -> None:
    """Refuse what no surrogate can learn from."""
    if len(features) < 2 or features.shape[:1] != rewards.shape[:1] or rewards.ndim != 2:
        raise ValueError(
            f"a surrogate needs features [n, d] and rewards [n, K] of at least 2 objects, not "
            f"{list(features.shape)} and {list(rewards.shape)}"
        )
    bad = ~torch.isfinite(rewards).all(1)
    if bool(bad.any()):
        raise ValueError(f"the rewards of object {int(bad.nonzero()[0])} are not finite")
