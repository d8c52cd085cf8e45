"""Named problems: an environment, its oracle, and a policy that suits it.

A task is a function from its options to a `Task`; `register` gives it a name. This is the only
place of the engine that knows concrete environments, and it imports them on demand.
"""

from . import energies, grids, language, molecules, nas, scenes, sequences
from .registry import TASKS, MakePolicy, Task, flat_policy, make_task, near, register

__all__ = [
    "TASKS",
    "MakePolicy",
    "Task",
    "energies",
    "flat_policy",
    "grids",
    "language",
    "make_task",
    "molecules",
    "nas",
    "near",
    "register",
    "scenes",
    "sequences",
]
