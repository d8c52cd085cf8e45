"""Where a run executes: device, process group, and the few collective operations it needs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gflow.mdp.collective import all_reduce, wait_until_released


@dataclass(frozen=True)
class Runtime:
    """One process of a run; alone (world_size 1) every collective is a no-op.

    Gradients are averaged as one flat vector after backward. That is right for any number of
    policy calls and unused parameters, where gradient hooks on a module's forward are not.

    Attributes:
        device: where parameters and states live.
        rank: number of this process.
        world_size: number of processes.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @classmethod
    def create(cls, device: str = "cpu") -> Runtime:
        """The runtime of this process; joins the group when started by `torchrun`."""
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        chosen = torch.device(device)
        if world_size == 1:
            return cls(chosen)
        if chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if not dist.is_initialized():
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return cls(chosen, dist.get_rank(), dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """This process writes files and prints."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[Tensor], weight: Tensor | float) -> None:
        """Replace gradients by their mean over processes, weighted by `weight` of each."""
        if self.world_size == 1:
            return
        owners = [p for p in parameters if p.requires_grad]
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in owners]
        flat = torch.cat([piece.flatten() for piece in pieces])
        mass = torch.as_tensor(weight, dtype=flat.dtype, device=flat.device).reshape(1)
        total = torch.cat([flat * mass, mass])
        all_reduce(total)
        mean = total[:-1] / total[-1]
        for p, part in zip(owners, mean.split([p.numel() for p in owners]), strict=True):
            p.grad = part.view_as(p)

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([float(flag)], device=self.device)
        all_reduce(value, dist.ReduceOp.MAX)
        return bool(value.item())

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.world_size > 1:
            wait_until_released()
            dist.destroy_process_group()
