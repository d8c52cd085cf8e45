"""Where indicators are measured from: reference points, directions and known fronts."""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal

import torch
from torch import Tensor

from gflow.pareto._check import Maximize, check_finite, oriented, read_points
from gflow.pareto.dominance import non_dominated


def infer_reference_point(
    points: Tensor,
    mask: Tensor | None = None,
    *,
    maximize: Maximize = True,
    scale: float = 0.1,
) -> Tensor:
    """A reference point a little beyond the worst corner of the front.

    ref_j = nadir_j - scale * (ideal_j - nadir_j) of the non-dominated points, maximising. An
    objective without range takes |nadir_j| for it, and 1e-6 where that is zero too. The value
    depends on the front: use one point for all the fronts that are to be compared.

    Args:
        points: [..., n, m], float32 or float64.
        mask: [..., n] bool.
        maximize: one flag, or one for each objective.
        scale: how far beyond, in ranges.

    Returns:
        [..., m], in the direction of the points.

    Raises:
        TypeError: integer or half precision points.
        ValueError: wrong shapes or devices, infinite coordinates, or an empty set.

    Source: Ishibuchi et al., "How to specify a reference point in hypervolume calculation for
    fair performance comparison", 2018.
    """
    y, valid = read_points(points, mask, maximize)
    check_finite(y, valid, "points")
    front = non_dominated(y, valid).unsqueeze(-1)
    if not bool(front.any(-2).all()):
        raise ValueError("a reference point cannot be inferred from an empty set")
    nadir = y.masked_fill(~front, torch.inf).amin(-2)
    spread = y.masked_fill(~front, -torch.inf).amax(-2) - nadir
    spread = torch.where(spread > 0, spread, nadir.abs()).clamp(min=1e-6)
    return oriented(nadir - scale * spread, maximize)


def reference_directions(
    m: int,
    *,
    partitions: int | None = None,
    n_points: int | None = None,
    method: Literal["das-dennis", "energy"] = "das-dennis",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Directions spread evenly over the unit simplex.

    "das-dennis": all points with coordinates i / partitions, C(m + partitions - 1, m - 1) of
    them. "energy": n_points of least Riesz s-energy, for any number.

    Args:
        m: number of objectives.
        partitions: for "das-dennis".
        n_points: for "energy".
        method: "das-dennis" or "energy".
        seed: of the energy minimisation.
        dtype: of the result.
        device: of the result.

    Returns:
        [k, m], rows sum to 1.

    Raises:
        ValueError: m < 2, an unknown method, or its size missing.

    Source: Das, Dennis, "Normal-boundary intersection", 1998; Blank et al., "Generating
    well-spaced points on a unit simplex for evolutionary many-objective optimization", 2021.
    """
    from pymoo.util.ref_dirs import get_reference_directions

    if m < 2:
        raise ValueError(f"directions need at least two objectives, not {m}")
    if method == "das-dennis":
        if partitions is None or partitions < 1 or n_points is not None:
            raise ValueError("das-dennis directions take partitions (>= 1) and no n_points")
        directions = get_reference_directions("das-dennis", m, n_partitions=partitions)
    elif method == "energy":
        if n_points is None or n_points < m or partitions is not None:
            raise ValueError(f"energy directions take n_points (>= {m}) and no partitions")
        directions = get_reference_directions("energy", m, n_points, seed=seed)
    else:
        raise ValueError(f"method must be das-dennis or energy, not {method!r}")
    return torch.as_tensor(directions, dtype=dtype, device=device)


def cube_faces(
    m: int,
    steps: int = 10,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Grid points of the unit cube on its outer faces, the stand-in for an unknown front.

    P = {x in linspace(0, 1, steps)^m : max_j x_j = 1}; steps^m - (steps - 1)^m points.

    Args:
        m: number of objectives.
        steps: grid values on each axis.
        dtype: of the result.
        device: of the result.

    Returns:
        [k, m].

    Raises:
        ValueError: m < 1 or steps < 2.

    Source: Roy et al., "Goal-conditioned GFlowNets for controllable multi-objective molecular
    design", 2023 (arXiv 2306.04620).
    """
    if m < 1 or steps < 2:
        raise ValueError(f"cube faces need m >= 1 and steps >= 2, not m = {m}, steps = {steps}")
    axis = torch.linspace(0, 1, steps, dtype=dtype, device=device)
    grid = torch.cartesian_prod(*[axis] * m).view(-1, m)
    return grid[(grid == 1).any(-1)]


def pareto_front_of(
    problem: Any,
    n_points: int = 1000,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Points of the known Pareto front of a pymoo or botorch test problem, maximising.

    Args:
        problem: a pymoo `Problem`, its name ("zdt1"), or a botorch `MultiObjectiveTestProblem`.
        n_points: wanted where the problem can be asked; other fronts come as they are stored.
            Dominated points, which some of the libraries' fronts hold, are left out.
        seed: of fronts that are drawn (botorch's DTLZ).
        dtype: of the result.
        device: of the result.

    Returns:
        [k, m]; minimised objectives come with their sign changed.

    Raises:
        ValueError: the problem is unknown or has no known front, or the front is one of those
            that pymoo fetches from its site and that could not be had.
    """
    if isinstance(problem, str):
        problem = _pymoo_problem(problem)
    if hasattr(problem, "gen_pareto_front"):
        # botorch draws from the global generator, which is the caller's.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                front, minimised = problem.gen_pareto_front(n_points), not problem.negate
            except NotImplementedError:
                front = None
    elif hasattr(problem, "pareto_front"):
        try:
            front, minimised = _pymoo_front(problem, n_points), True
        except OSError as error:
            raise ValueError(
                f"pymoo fetches the front of {type(problem).__name__} from its site: {error}"
            ) from error
    else:
        raise ValueError(f"{type(problem).__name__} is neither a pymoo nor a botorch problem")
    if front is None:
        raise ValueError(f"{type(problem).__name__} has no known Pareto front")
    points = torch.as_tensor(front, dtype=torch.float64)
    points = -points if minimised else points
    return points[non_dominated(points)].to(dtype=dtype, device=device)


def _pymoo_problem(name: str) -> Any:
    from pymoo.problems import get_problem

    try:
        return get_problem(name)
    except Exception as error:
        raise ValueError(f"pymoo does not give the problem {name!r}: {error}") from error


def _pymoo_front(problem: Any, n_points: int) -> Any:
    """Each pymoo problem says by its signature how its front can be asked for."""
    wanted = inspect.signature(problem._calc_pareto_front).parameters
    for size in ("n_pareto_points", "n_points"):
        if size in wanted:
            return problem.pareto_front(**{size: n_points})
    if "ref_dirs" in wanted:
        m = problem.n_obj
        partitions = 1
        while math.comb(m + partitions - 1, m - 1) < n_points:
            partitions += 1
        directions = reference_directions(m, partitions=partitions, dtype=torch.float64)
        return problem.pareto_front(ref_dirs=directions.numpy())
    return problem.pareto_front()
