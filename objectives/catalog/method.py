"""What one row of the catalog says."""

from __future__ import annotations

from dataclasses import dataclass, field

from gflow.mdp import Objective

Paper = tuple[str, int, str]
"""Title, year of first publication, arXiv identifier."""


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
        requires: fields of the objective that have no default; fill them by
            `dataclasses.replace(method.objective, ...)`.
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
    requires: tuple[str, ...] = ()

    @property
    def needs_flow(self) -> bool:
        """The policy must have a head for log F(s)."""
        return bool({"log_flow", "log_inflow"} & self.objective.needs)

    @property
    def needs_energy(self) -> bool:
        """The policy must have a head for the energies of transitions."""
        return "energy" in self.objective.needs

    @property
    def needs_partial_rewards(self) -> bool:
        """The batch must carry the log-reward of every state, finished or not."""
        return "partial_log_reward" in getattr(self.objective, "batch_needs", ())
