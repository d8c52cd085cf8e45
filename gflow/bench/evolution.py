"""Evolutionary baselines: NSGA-II, NSGA-III and MOEA/D of pymoo, regularised evolution, and a
genetic algorithm on molecular graphs.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gflow.bench.encodings import Genome, genome
from gflow.bench.ledger import Ledger
from gflow.config import ConfigError
from gflow.pareto import crowding_distance, non_dominated_rank, reference_directions
from gflow.seeding import derive_seed, generator
from gflow.tasks import Task

WORST = 1e9
"""Cost of an object that the oracle failed on."""


def nsga2(task: Task, ledger: Ledger, seed: int, population: int = 50) -> None:
    """NSGA-II (Deb et al., 2002) as pymoo has it.

    Args:
        task: the problem.
        ledger: scores.
        seed: of every random choice.
        population: members of a generation.
    """
    from pymoo.algorithms.moo.nsga2 import NSGA2

    code = genome(task.env)
    _minimize(NSGA2(pop_size=population, **_operators(code)), code, ledger, seed)


def nsga3(task: Task, ledger: Ledger, seed: int, population: int = 50) -> None:
    """NSGA-III (Deb, Jain, 2014) as pymoo has it, one direction for each member.

    Args:
        task: the problem, of at least two rewards.
        ledger: scores.
        seed: of every random choice.
        population: members of a generation.
    """
    from pymoo.algorithms.moo.nsga3 import NSGA3

    code = genome(task.env)
    directions = _directions(task, population, seed)
    algorithm = NSGA3(ref_dirs=directions, pop_size=population, **_operators(code))
    _minimize(algorithm, code, ledger, seed)


def moead(task: Task, ledger: Ledger, seed: int, population: int = 50) -> None:
    """MOEA/D (Zhang, Li, 2007) as pymoo has it, one direction for each member.

    Args:
        task: the problem, of at least two rewards.
        ledger: scores.
        seed: of every random choice.
        population: members, and directions.
    """
    from pymoo.algorithms.moo.moead import MOEAD

    code = genome(task.env)
    neighbors = max(2, min(20, population // 3))
    algorithm = MOEAD(
        ref_dirs=_directions(task, population, seed), n_neighbors=neighbors, **_operators(code)
    )
    _minimize(algorithm, code, ledger, seed)


def regularized_evolution(
    task: Task, ledger: Ledger, seed: int, population: int = 50, tournament: int = 10
) -> None:
    """Regularised evolution: mutate the best of a tournament, drop the oldest member.

    With several rewards it maximises their mean. (Real et al., 2019, arXiv 1802.01548.)

    Args:
        task: the problem.
        ledger: scores.
        seed: of every random choice.
        population: members.
        tournament: members of which the best becomes a parent.
    """
    code, stream = genome(task.env), generator(seed, "regularized_evolution")
    first = code.random(population, stream)
    members = deque(zip(first, _mean(ledger, code, first), strict=True))
    while True:
        places = torch.randint(len(members), (tournament,), generator=stream).tolist()
        parent, _ = max((members[place] for place in places), key=lambda member: member[1])
        child = code.mutate(parent.unsqueeze(0), stream, rate=0.0)
        members.append((child[0], _mean(ledger, code, child)[0]))
        members.popleft()


def graph_ga(task: Task, ledger: Ledger, seed: int, population: int = 100) -> None:
    """Crossover and mutation of molecular graphs, survival by rank and crowding.

    The operators are those of the package mol_ga (Graph GA: Jensen, 2019, doi
    10.1039/C8SC05372C; a strong baseline: Tripp, Hernandez-Lobato, 2023, arXiv 2310.09267), the
    survival is that of NSGA-II. It starts from randomly assembled molecules of the task, and then
    leaves their space: any molecule may come.

    Args:
        task: a problem of molecules.
        ledger: scores.
        seed: of every random choice.
        population: members, and children of a generation.

    Raises:
        ConfigError: another kind of task, or mol_ga is not installed.
    """
    if task.kind != "molecule":
        raise ConfigError("graph_ga makes molecules only")
    try:
        from mol_ga.graph_ga.gen_candidates import graph_ga_blended_generation
    except ImportError as error:
        raise ConfigError("graph_ga needs mol_ga: pip install gflow[bench]") from error
    code, stream = genome(task.env), generator(seed, "graph_ga")
    dice = random.Random(derive_seed(seed, "mol_ga"))
    start = code.states(code.random(population, stream))
    members = task.env.decode(start)
    rewards = ledger(start)
    while True:
        kept = _survivors(rewards, population)
        members, rewards = [members[i] for i in kept], rewards[kept]
        parents = dice.choices(members, k=2 * population)
        # A set of strings has no order of its own that two processes would share.
        children = sorted(graph_ga_blended_generation(parents, population, dice) - {""})
        known = set(members)
        children = [child for child in children if "." not in child and child not in known]
        if children:
            rewards = torch.cat([rewards, ledger.score(children)])
            members += children


def _survivors(rewards: Tensor, n: int) -> list[int]:
    """The n best by rank, then by crowding distance; those that failed last."""
    good = torch.isfinite(rewards).all(1)
    rank = non_dominated_rank(rewards.nan_to_num(0.0), good)
    rank = torch.where(good, rank, len(rewards))
    space = torch.zeros(len(rewards), dtype=torch.float64)
    for number in rank.unique().tolist():
        here = rank == number
        space[here] = crowding_distance(rewards[here].nan_to_num(0.0))
    order = np.lexsort((-space.numpy(), rank.numpy()))
    kept: list[int] = order[:n].tolist()
    return kept


def _mean(ledger: Ledger, code: Genome, genes: Tensor) -> list[float]:
    mean: list[float] = ledger(code.states(genes)).mean(1).nan_to_num(-WORST).tolist()
    return mean


def _directions(task: Task, n: int, seed: int) -> NDArray[np.float64]:
    """Directions for `n` members: all of a lattice with two rewards, evenly spread otherwise."""
    k = len(task.oracle.rewards)
    if k < 2:
        raise ConfigError("a method that follows directions needs at least two rewards")
    if k == 2:
        return reference_directions(2, partitions=n - 1, dtype=torch.float64).numpy()
    directions = reference_directions(
        k, n_points=n, method="energy", seed=derive_seed(seed, "directions"), dtype=torch.float64
    )
    return directions.numpy()


def _operators(code: Genome) -> dict[str, Any]:
    """Integers with an order are crossed by simulated binary crossover, names are exchanged."""
    from pymoo.core.mutation import Mutation
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling

    if code.ordinal:
        whole = RoundingRepair()
        return {
            "sampling": IntegerRandomSampling(),
            "crossover": SBX(prob=1.0, eta=3.0, vtype=float, repair=whole),
            "mutation": PM(prob=1.0, eta=3.0, vtype=float, repair=whole),
        }

    class Renaming(Mutation):  # type: ignore[misc]
        """Each gene drawn anew with probability 1/L, one at least."""

        def _do(
            self, problem: Any, X: NDArray[Any], *_: Any, random_state: Any = None, **__: Any
        ) -> NDArray[Any]:
            stream = torch.Generator().manual_seed(int(random_state.integers(2**31)))
            mutated: NDArray[Any] = code.mutate(torch.from_numpy(X), stream).numpy()
            return mutated

    return {
        "sampling": IntegerRandomSampling(),
        "crossover": UniformCrossover(),
        "mutation": Renaming(),
    }


def _minimize(algorithm: Any, code: Genome, ledger: Ledger, seed: int) -> None:
    """Run until the ledger ends it, or until the algorithm has nothing new to propose."""
    from pymoo.core.problem import Problem
    from pymoo.core.termination import NoTermination
    from pymoo.optimize import minimize

    class Costs(Problem):  # type: ignore[misc]
        """Negative rewards of genes."""

        def __init__(self) -> None:
            upper = np.array(code.sizes) - 1
            n = len(code.sizes)
            super().__init__(n_var=n, n_obj=len(ledger.rewards), xl=0 * upper, xu=upper, vtype=int)

        def _evaluate(self, x: NDArray[Any], out: dict[str, Any], *_: Any, **__: Any) -> None:
            genes = torch.from_numpy(np.asarray(x, dtype=np.int64))
            out["F"] = ledger(code.states(genes)).neg().nan_to_num(WORST).numpy()

    minimize(Costs(), algorithm, NoTermination(), seed=derive_seed(seed, "pymoo"), verbose=False)
