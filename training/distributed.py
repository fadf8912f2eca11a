"""Training in several processes, on one machine or more, started by torchrun:

    torchrun --nproc-per-node 4 train_dinet.py --config … --data …

The processes share the samples of every step. Batch norms see the samples of all processes, every loss is weighted
by its number of samples, and the gradients are added up. So any number of processes takes the same steps as one,
but for the random numbers of dropout. Only process 0 writes files and prints. In a run of one process these
functions do nothing.
"""

import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.errors import ParameterError

STEP_TIMEOUT = timedelta(minutes=30)  # the processes take a step at the same time; more means that one hangs
MAIN_TIMEOUT = timedelta(days=7)  # but they wait as long as process 0 needs to load data or to validate
_waiting_group: dist.ProcessGroup | None = None  # on the CPU, with MAIN_TIMEOUT


def init(device: torch.device, max_processes: int) -> torch.device:
    """Join the process group if torchrun started several processes.

    Args:
        device: the device of a run of one process.
        max_processes: number of processes that there are samples for. Further ones end here.

    Returns:
        The device of this process: its own GPU, or `device` if there is one process or no GPU.

    Raises:
        ParameterError: this machine has fewer GPUs than processes.
    """
    global _waiting_group
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1:
        return device
    if device.type == "cuda":
        local_rank, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= num_gpus:
            reason = f"{num_gpus} GPUs on this machine; start at most as many processes (--nproc-per-node)"
            raise ParameterError("device", reason)
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    processes, number = min(started, max_processes), int(os.environ["RANK"])
    if number >= processes:
        sys.exit(0)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=STEP_TIMEOUT, world_size=processes, rank=number)
    _waiting_group = dist.new_group(backend="gloo", timeout=MAIN_TIMEOUT)
    if number > 0:  # until the process ends
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


def shares(batch_size: int, grad_accum_steps: int) -> list[range]:
    """Numbers of the samples that this process takes in each forward pass of a step.

    A pass consists of consecutive samples, and the processes take turns in it. So the samples of a pass, from which
    the batch norms compute their statistics, are the same for any number of processes.
    """
    bounds = [batch_size * number // grad_accum_steps for number in range(grad_accum_steps + 1)]
    return [range(start + rank(), stop, world_size()) for start, stop in itertools.pairwise(bounds)]


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the body in the main process before the other processes, which can then read the files it wrote."""
    if rank() > 0:
        wait_for_main()
    yield
    if rank() == 0:
        wait_for_main()


def wait_for_main() -> None:
    """Wait until all processes are here, however long the main process loads data or validates."""
    if world_size() > 1:
        dist.barrier(group=_waiting_group)


def broadcast_flag(flag: bool) -> bool:
    """The main process's `flag`, in every process."""
    if world_size() == 1:
        return flag
    tensor = torch.tensor(int(flag))
    dist.broadcast(tensor, src=0, group=_waiting_group)
    return bool(tensor)


def synchronize(network: nn.Module) -> None:
    """Start from the weights of the main process, and train on the samples of all processes from now on.

    Batch norms are replaced in place by those below, or by PyTorch's on GPUs. Parameters stay the same objects, so
    the optimizer still trains them.
    """
    if world_size() == 1:
        return
    tensors = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    _at_once(tensors, lambda tensor: dist.broadcast(tensor, src=0))
    if tensors[0].is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    else:
        _convert_batchnorm(network)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in place."""
    if world_size() > 1:
        _at_once([parameter.grad for parameter in parameters if parameter.grad is not None], dist.all_reduce)


def sum_values(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """The sum of each scalar over all processes. The CPU waits for the GPU here."""
    total = torch.stack([value.to(torch.promote_types(value.dtype, torch.float32)) for value in values.values()])
    if world_size() > 1:
        total = total.double()  # not in one process: MPS has no float64
        dist.all_reduce(total)
    return dict(zip(values, total.tolist(), strict=True))


def _at_once(tensors: list[torch.Tensor], operation: Callable[[torch.Tensor], object]) -> None:
    """Apply a collective operation to many tensors as one."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    operation(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def _convert_batchnorm(network: nn.Module) -> None:
    for name, child in network.named_children():
        if isinstance(child, _BatchNorm):
            setattr(network, name, CpuSyncBatchNorm.from_norm(child))
        else:
            _convert_batchnorm(child)


class _Sum(torch.autograd.Function):
    """Sum over all processes; the gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.forward(ctx, gradient)


class CpuSyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, on the CPU; PyTorch's SyncBatchNorm needs GPUs."""

    @classmethod
    def from_norm(cls, norm: _BatchNorm) -> "CpuSyncBatchNorm":
        """The replacement of `norm`, with the same parameters and buffers."""
        synchronized = cls(norm.num_features, norm.eps, norm.momentum)
        for name, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
            setattr(synchronized, name, tensor)
        return synchronized.train(norm.training)

    def _check_input_dim(self, x: torch.Tensor) -> None:
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        dims = [0, *range(2, x.ndim)]
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        count = torch.tensor(x.numel() // x.shape[1], dtype=exact.dtype)  # shares may differ
        dist.all_reduce(count)
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean = _Sum.apply(exact.sum(dims)) / count
        centred = exact - mean.reshape(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.reshape(shape) + self.bias.reshape(shape)).to(x.dtype)
