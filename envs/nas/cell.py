"""The cell of NAS-Bench-201: six edges, five operations."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from gflow.envs.sequences.slots import Slots
from gflow.mdp import States

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))

_CELL = re.compile(r"\|(\w+)~0\|\+\|(\w+)~0\|(\w+)~1\|\+\|(\w+)~0\|(\w+)~1\|(\w+)~2\|")


class NASCell(Slots):
    """Six edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3, each unset (-1) or an operation 0..4.

    Action `operation * 6 + edge` sets an unset edge, in any order; action 30 stops once all six
    are set. Backward action i unsets edge i, action 6 takes back the stop. Objects are the
    benchmark's strings `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`. (NAS-Bench-201, 2020,
    arXiv 2001.00326; the walk is that of Order-Preserving GFlowNets, 2023, arXiv 2310.00386.)
    """

    def __init__(self) -> None:
        super().__init__(OPERATIONS, len(EDGES), stop=True)

    def decode(self, states: States) -> list[str]:
        """Architecture strings."""
        return [
            "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*(OPERATIONS[o] for o in row))
            for row in states.data.tolist()
        ]

    def encode(self, objects: Sequence[str]) -> States:
        """Finished cells of architecture strings.

        Raises:
            ValueError: a string has another form, or names an unknown operation.
        """
        rows = []
        for i, text in enumerate(objects):
            match = _CELL.fullmatch(text)
            if match is None:
                raise ValueError(
                    f"cell {i}, {text!r}, has not the form |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
                )
            for operation in match.groups():
                if operation not in OPERATIONS:
                    raise ValueError(
                        f"cell {i}: unknown operation {operation!r}, not one of "
                        f"{', '.join(OPERATIONS)}"
                    )
            rows.append([OPERATIONS.index(operation) for operation in match.groups()])
        return self._finished(torch.tensor(rows, dtype=torch.int64).view(-1, self.length))
