"""Data-parallel training in several processes, on one machine or more, started by torchrun:

    torchrun --nproc-per-node 4 train_dinet.py --config … --data …

Each process trains on its shard of every batch. Gradients and batch-norm statistics are averaged over all
processes, so the losses equal those of one process with the whole batch. Only process 0 writes files and prints.
In a run of one process these functions do nothing.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(hours=1)  # the other processes wait while process 0 loads data or validates


def init(device: torch.device) -> torch.device:
    """Join the process group if torchrun started several processes.

    Returns:
        The device of this process: its own GPU, or `device` if there is one process or no GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    if rank() > 0:  # until the process ends
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        logging.disable(logging.INFO)
    return device


def shutdown() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process; process 0 is the main process, which writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the body in the main process before the other processes, which can then read the files it wrote."""
    if world_size() > 1 and rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and rank() == 0:
        dist.barrier()


def wrap(network: nn.Module) -> nn.Module:
    """Return `network` wrapped for the forward pass of a training step.

    In the wrapped network, gradients and batch-norm statistics cover the batches of all processes. Both share the
    same weights; save `network` itself. Its batch norms are replaced in place.
    """
    if world_size() == 1:
        return network
    if next(network.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    else:
        _convert_batchnorm(network)
    device_ids = [torch.cuda.current_device()] if next(network.parameters()).is_cuda else None
    return DistributedDataParallel(network, device_ids=device_ids, broadcast_buffers=False)


def all_reduce_mean(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each value over all processes."""
    if world_size() == 1:
        return values
    total = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(values, (total / world_size()).tolist(), strict=True))


def broadcast_flag(flag: bool, device: torch.device) -> bool:
    """The main process's `flag`, in every process."""
    if world_size() == 1:
        return flag
    tensor = torch.tensor(int(flag), device=device)
    dist.broadcast(tensor, src=0)
    return bool(tensor)


def _convert_batchnorm(network: nn.Module) -> None:
    for name, child in network.named_children():
        if isinstance(child, _BatchNorm):
            synchronized = CpuSyncBatchNorm(child.num_features, child.eps, child.momentum)
            synchronized.load_state_dict(child.state_dict())
            setattr(network, name, synchronized.train(child.training))
        else:
            _convert_batchnorm(child)


class CpuSyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, on the CPU; PyTorch's SyncBatchNorm needs GPUs.

    All processes must have batches of the same size.
    """

    def _check_input_dim(self, x: torch.Tensor) -> None:
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        dims = [0, *range(2, x.ndim)]
        count = x.numel() // x.shape[1] * world_size()
        exact = x.float()
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean = all_reduce(exact.sum(dims)) / count
        centred = exact - mean.reshape(shape)
        variance = all_reduce(centred.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.reshape(shape) + self.bias.reshape(shape)).to(x.dtype)
