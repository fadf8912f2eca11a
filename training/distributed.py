"""One training in many processes, on one machine or more, as torchrun starts them:

    torchrun --nproc-per-node 4 train_dinet.py --config … --data …

A batch is shared out among the processes, gradients and batch norms are averaged over all of it, and the first
process writes: the losses are those that one process would have had. In a run of one process nothing here acts.
"""

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

TIMEOUT = timedelta(hours=1)  # the others wait while the first process loads or validates


def init(device: torch.device) -> torch.device:
    """Meet the other processes that torchrun started, if it did; the device of this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    if rank() > 0:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (to the end of the process)
    return device


def rank() -> int:
    """This process's number; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def shutdown() -> None:
    """Part from the others at the end."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def main_process_first() -> Iterator[None]:
    """What is in here the first process does before the others, which then find its files."""
    if world_size() > 1 and rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and rank() == 0:
        dist.barrier()


def wrap(network: nn.Module) -> nn.Module:
    """`network` for the forward pass of a training step: its batch norms see, and its gradients are averaged over,
    the batches of all processes. `network` itself stays the one to save, and takes part in both."""
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


def broadcast_flag(decision: bool, device: torch.device) -> bool:
    """What the first process decides."""
    if world_size() == 1:
        return decision
    answer = torch.tensor(int(decision), device=device)
    dist.broadcast(answer, src=0)
    return bool(answer)


def _convert_batchnorm(network: nn.Module) -> None:
    for name, child in network.named_children():
        if isinstance(child, _BatchNorm):
            shared = CpuSyncBatchNorm(child.num_features, child.eps, child.momentum)
            shared.load_state_dict(child.state_dict())
            setattr(network, name, shared.train(child.training))
        else:
            _convert_batchnorm(child)


class CpuSyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, which must be equally large.

    PyTorch's SyncBatchNorm, which is for GPUs only, on the CPU.
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
        all_reduce_mean = all_reduce(exact.sum(dims)) / count
        centred = exact - all_reduce_mean.reshape(shape)
        variance = all_reduce(centred.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(all_reduce_mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.reshape(shape) + self.bias.reshape(shape)).to(x.dtype)
