"""Data parallel training under torchrun: which process this is, and what the processes do together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """This process among those that train one model.

    Attributes:
        rank: 0 to world_size - 1; rank 0 writes the files and shows the progress.
        world_size: their number; 1 without torchrun.
        device: where this one works.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module, *, unused: bool = False) -> nn.Module:
        """The model, or one whose backward pass averages the gradients of all processes.

        `unused`: there are steps that do not use all parameters.
        """
        if self.world_size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=unused)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.world_size > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
        return values

    def share(self, values: Tensor) -> None:
        """Overwrites a tensor with that of rank 0."""
        if self.world_size > 1:
            torch.distributed.broadcast(values, 0)

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
        return bool(value)

    def barrier(self) -> None:
        """Returns when every process is here."""
        if self.world_size > 1:
            torch.distributed.barrier()


def local_device(device: str | torch.device | None = None) -> torch.device:
    """Where this process works: None takes CUDA where there is a GPU, else the CPU; of several GPUs that of
    torchrun's LOCAL_RANK."""
    kind = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    rank = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", int(rank)) if rank and kind.type == "cuda" and kind.index is None else kind


@contextlib.contextmanager
def processes(device: str | torch.device | None = None) -> Iterator[Processes]:
    """Joins the group that torchrun started, or is alone.

    A group that the caller has made is used and left as it is. CUDA processes talk by NCCL, one GPU each by
    LOCAL_RANK, others by gloo.

    Args:
        device: None takes CUDA where there is a GPU, else the CPU.
    """
    kind = local_device(device)
    already = torch.distributed.is_available() and torch.distributed.is_initialized()
    world_size = torch.distributed.get_world_size() if already else int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(0, 1, kind)
        return
    if kind.type == "cuda":
        kind = torch.device("cuda", kind.index or 0)
        torch.cuda.set_device(kind)
    if not already:
        torch.distributed.init_process_group("nccl" if kind.type == "cuda" else "gloo")
    try:
        yield Processes(torch.distributed.get_rank(), world_size, kind)
    finally:
        if not already:
            torch.distributed.destroy_process_group()
