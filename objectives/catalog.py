"""Every published method as a setting of a few switches, with its citation."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from gflow.mdp import Objective
from gflow.objectives.balance import (
    DetailedBalance,
    SubTrajectoryBalance,
    TrajectoryBalance,
    VarGrad,
)


@dataclass(frozen=True)
class Method:
    """One row of the catalog.

    Attributes:
        name: key of the row.
        summary: one line on what it does.
        paper: title of the paper.
        year: first publication.
        arxiv: arXiv identifier.
        tags: words to search by.
        objective: the objective with its settings.
        conditional: the policy sees a preference drawn for each trajectory.
        defaults: settings of a run that belong to the method, by the name of the run's option.
    """

    name: str
    summary: str
    paper: str
    year: int
    arxiv: str
    tags: tuple[str, ...]
    objective: Objective
    conditional: bool = False
    defaults: dict[str, object] = field(default_factory=dict)

    @property
    def needs_flow(self) -> bool:
        """The policy must have a head for log F(s)."""
        return "log_flow" in self.objective.needs


def _by_name(rows: Iterable[Method]) -> dict[str, Method]:
    return {row.name: row for row in rows}


METHODS: dict[str, Method] = _by_name(
    [
        Method(
            name="tb",
            summary="Trajectory balance: one residual per complete trajectory",
            paper="Trajectory Balance: Improved Credit Assignment in GFlowNets",
            year=2022,
            arxiv="2201.13259",
            tags=("gflownet", "balance", "discrete"),
            objective=TrajectoryBalance(),
        ),
        Method(
            name="subtb",
            summary="Sub-trajectory balance: all pieces of a trajectory, geometrically weighted",
            paper="Learning GFlowNets from Partial Episodes for Improved Convergence and Stability",
            year=2022,
            arxiv="2209.12782",
            tags=("gflownet", "balance", "discrete"),
            objective=SubTrajectoryBalance(lam=0.9),
        ),
        Method(
            name="db",
            summary="Detailed balance: one residual per transition",
            paper="GFlowNet Foundations",
            year=2021,
            arxiv="2111.09266",
            tags=("gflownet", "balance", "discrete"),
            objective=DetailedBalance(),
        ),
        Method(
            name="vargrad",
            summary="Trajectory balance with log Z estimated by the group's mean, not learned",
            paper="Robust Scheduling with GFlowNets",
            year=2023,
            arxiv="2302.05446",
            tags=("gflownet", "balance", "discrete"),
            objective=VarGrad(),
        ),
        Method(
            name="mogfn_pc",
            summary="Preference-conditional trajectory balance: one sampler for every trade-off",
            paper="Multi-Objective GFlowNets",
            year=2022,
            arxiv="2210.12765",
            tags=("gflownet", "balance", "discrete", "multi-objective", "conditional"),
            objective=TrajectoryBalance(),
            conditional=True,
            defaults={"inverse_temperature": "16", "concentration": 1.5},
        ),
    ]
)


def get_method(name: str) -> Method:
    """The row called `name`.

    Raises:
        ValueError: there is none; the message lists the nearest names.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(METHODS)}"
        raise ValueError(f"there is no method {name!r}: {hint}")
    return METHODS[name]
