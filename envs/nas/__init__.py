"""Neural architecture search on the NAS-Bench-201 cell."""

from gflow.envs.nas.cell import NASCell
from gflow.envs.nas.costs import flops, parameters

__all__ = ["NASCell", "flops", "parameters"]
