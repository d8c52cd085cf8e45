"""Bayesian optimisation by botorch, over candidate sets of discrete objects."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gflow.bench.encodings import Genome, genome
from gflow.bench.ledger import Ledger
from gflow.config import ConfigError
from gflow.pareto import non_dominated, non_dominated_rank
from gflow.seeding import derive_seed, generator
from gflow.tasks import Task

SAMPLES = 32
"""Draws of the posterior behind a noisy acquisition value."""

FIT_STEPS = 60
"""Steps of the optimiser of a Gaussian process's hyperparameters."""


def qnehvi(
    task: Task,
    ledger: Ledger,
    seed: int,
    batch: int = 16,
    initial: int = 64,
    together: int = 1,
    pool: int = 500,
    points: int = 300,
) -> None:
    """Batches of largest noisy expected hypervolume improvement.

    (Daulton, Balandat, Bakshy, 2021, arXiv 2105.08195; in logarithms: Ament et al., 2023,
    arXiv 2310.20708.)

    Args:
        task: a problem whose objects are rows of integers.
        ledger: scores.
        seed: of every random choice.
        batch: objects scored between two fits.
        initial: random objects to begin with.
        together: objects of a batch chosen by one evaluation of the acquisition; those that
            follow know of them. 1 is the usual sequential choice, more is faster.
        pool: candidates among which a batch is chosen, anew for every batch.
        points: most objects a Gaussian process is fitted to: the best ranks first.

    Raises:
        ConfigError: objects are no rows of integers.
    """
    _optimize(task, ledger, seed, "hypervolume", batch, initial, together, pool, points)


def qparego(
    task: Task,
    ledger: Ledger,
    seed: int,
    batch: int = 16,
    initial: int = 64,
    together: int = 1,
    pool: int = 500,
    points: int = 300,
) -> None:
    """Batches of largest noisy expected improvement, each object for a random scalarisation.

    (ParEGO: Knowles, 2006; in batches: Daulton, Balandat, Bakshy, 2020, arXiv 2006.05078.)

    Arguments and errors as in `qnehvi`.

    Args:
        task: a problem whose objects are rows of integers.
        ledger: scores.
        seed: of every random choice.
        batch: objects scored between two fits.
        initial: random objects to begin with.
        together: objects of a batch chosen by one evaluation of the acquisition; those that
            follow know of them. 1 is the usual sequential choice, more is faster.
        pool: candidates among which a batch is chosen, anew for every batch.
        points: most objects a Gaussian process is fitted to: the best ranks first.
    """
    _optimize(task, ledger, seed, "scalarized", batch, initial, together, pool, points)


def _optimize(
    task: Task,
    ledger: Ledger,
    seed: int,
    acquisition: Literal["hypervolume", "scalarized"],
    batch: int,
    initial: int,
    together: int,
    pool: int,
    points: int,
) -> None:
    from botorch.utils.sampling import manual_seed

    code = genome(task.env)
    if not code.direct:
        raise ConfigError(
            "Bayesian optimisation needs objects that are rows of integers, and those of "
            f"{type(task.env).__name__} are not"
        )
    stream = generator(seed, "bayes")
    genes = code.random(initial, stream).unique(dim=0)
    rewards = ledger(code.states(genes))
    reference = torch.tensor(task.reference_point, dtype=torch.float64)
    while True:
        good = torch.isfinite(rewards).all(1)
        chosen = _most_telling(rewards, good, points, stream)
        x, y = code.features(genes[chosen]), rewards[chosen]
        candidates = _candidates(code, genes, rewards, good, pool, stream)
        if not len(candidates):
            return
        features = code.features(candidates)
        number = derive_seed(seed, "acquisition", len(genes))
        # The library draws some of its own numbers from torch's global generator.
        with manual_seed(number):
            model = _fitted(x, y)
            if acquisition == "hypervolume":
                picked = _by_hypervolume(model, x, reference, features, batch, together, number)
            else:
                picked = _by_scalarization(model, x, y, features, batch, together, number, stream)
        new = candidates[picked]
        genes, rewards = torch.cat([genes, new]), torch.cat([rewards, ledger(code.states(new))])


def _most_telling(rewards: Tensor, good: Tensor, most: int, stream: torch.Generator) -> Tensor:
    """Half of them the best ranks, half drawn from the rest; all where they fit."""
    rows = good.nonzero().squeeze(1)
    if len(rows) <= most:
        return rows
    order = rows[non_dominated_rank(rewards[rows]).argsort(stable=True)]
    best, rest = order[: most // 2], order[most // 2 :]
    drawn = torch.randperm(len(rest), generator=stream)[: most - len(best)]
    return torch.cat([best, rest[drawn]])


def _fitted(x: Tensor, y: Tensor) -> Any:
    """Independent Gaussian processes on [n, D] features, one for each of the K rewards."""
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.models.transforms import Standardize
    from gpytorch.mlls import SumMarginalLogLikelihood

    models = [SingleTaskGP(x, y[:, k : k + 1], outcome_transform=Standardize(1)) for k in
              range(y.shape[1])]  # fmt: skip
    model = ModelListGP(*models)
    options = {"options": {"maxiter": FIT_STEPS}}
    fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs=options)
    return model


def _candidates(
    code: Genome, genes: Tensor, rewards: Tensor, good: Tensor, n: int, stream: torch.Generator
) -> Tensor:
    """Unseen objects: half anywhere, half a few steps from the front; at most `n`."""
    front = genes[non_dominated(rewards.nan_to_num(0.0), good)]
    parents = front[torch.randint(len(front), (n // 2,), generator=stream)]
    drawn = torch.cat([code.random(n - n // 2, stream), code.mutate(parents, stream)])
    both, inverse = torch.cat([genes, drawn]).unique(dim=0, return_inverse=True)
    seen = torch.zeros(len(both), dtype=torch.bool)
    seen[inverse[: len(genes)]] = True
    unseen: Tensor = both[~seen]
    return unseen


def _by_hypervolume(
    model: Any, x: Tensor, reference: Tensor, features: Tensor, batch: int, together: int, seed: int
) -> Tensor:
    from botorch.acquisition.multi_objective.logei import (
        qLogNoisyExpectedHypervolumeImprovement,
    )
    from botorch.sampling import SobolQMCNormalSampler

    value = qLogNoisyExpectedHypervolumeImprovement(
        model, reference, x, prune_baseline=True, cache_root=True,
        sampler=SobolQMCNormalSampler(torch.Size([SAMPLES]), seed=seed),
    )  # fmt: skip
    return _greedy(lambda pending: _pending(value, pending), features, batch, together)


def _by_scalarization(
    model: Any, x: Tensor, y: Tensor, features: Tensor, batch: int, together: int,
    seed: int, stream: torch.Generator,
) -> Tensor:  # fmt: skip
    from botorch.acquisition import qLogNoisyExpectedImprovement
    from botorch.acquisition.objective import GenericMCObjective
    from botorch.sampling import SobolQMCNormalSampler
    from botorch.utils.multi_objective.scalarization import get_chebyshev_scalarization

    def of_one(pending: Tensor) -> Any:
        weights = torch.rand(y.shape[1], generator=stream, dtype=torch.float64).log().neg()
        scalarize = get_chebyshev_scalarization(weights / weights.sum(), y)
        return qLogNoisyExpectedImprovement(
            model, x, objective=GenericMCObjective(lambda values, X=None: scalarize(values)),
            X_pending=pending, prune_baseline=True, cache_root=True,
            sampler=SobolQMCNormalSampler(torch.Size([SAMPLES]), seed=seed),
        )  # fmt: skip

    return _greedy(of_one, features, batch, together)


def _pending(value: Any, pending: Tensor) -> Any:
    value.set_X_pending(pending if len(pending) else None)
    return value


@torch.no_grad()
def _greedy(acquisition: Any, features: Tensor, batch: int, together: int) -> Tensor:
    """Rows chosen one after the other, each given those before it; [batch] int64."""
    chosen: list[int] = []
    while len(chosen) < min(batch, len(features)):
        value = acquisition(features[chosen])
        scores = torch.cat([value(part.unsqueeze(1)) for part in features.split(250)])
        scores[chosen] = -torch.inf
        most = min(together, batch - len(chosen), len(features) - len(chosen))
        chosen += scores.topk(most).indices.tolist()
    return torch.tensor(chosen)
