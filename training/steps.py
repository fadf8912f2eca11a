"""What a training step of the generator and one of SyncNet have in common."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from data_processing.batches import to_float
from training import distributed
from utils.errors import UserError

Batch = TypeVar("Batch", bound=NamedTuple)


def micro_batches(batch: Batch, grad_accum_steps: int, device: torch.device) -> list[tuple[Batch, float]]:
    """Split a batch into one part for each forward pass, and move it to the device.

    Args:
        batch: this process's samples of a step, in the order of `distributed.shares`. Its last field has one entry
            for each sample of all processes, the others are tensors with one or more rows for each sample of this
            process.
        grad_accum_steps: number of forward passes.

    Returns:
        Each part, uint8 images converted to float32 in [0, 1], and its fraction of the samples of all processes.
        The sum over parts and processes of fraction times mean loss is the mean loss of the step.
    """
    *tensors, clip_ids = batch
    sizes = [len(part) for part in distributed.shares(len(clip_ids), grad_accum_steps)]
    split = [tensor.split([size * len(tensor) // sum(sizes) for size in sizes]) for tensor in tensors]
    return [
        (batch._make([*(_to_float(tensor, device) for tensor in part), clip_ids]), size / len(clip_ids))
        for size, *part in zip(sizes, *split, strict=True)
    ]


def _to_float(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    tensor = tensor.to(device, non_blocking=True)
    return to_float(tensor) if tensor.dtype == torch.uint8 else tensor


def optimizer_step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Update the parameters with the gradients of all processes, at the learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        distributed.sum_gradients(group["params"])
    optimizer.step()


@contextmanager
def without_traces(network: nn.Module) -> Iterator[None]:
    """A forward pass that leaves no graph and no running statistics, because it is computed again later."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.track_running_stats = False
    with torch.no_grad():
        yield
    for norm in norms:
        norm.track_running_stats = True


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """bfloat16 autocast if `precision` is "bf16"; nothing if it is "fp32"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def check_finite(losses: dict[str, float], step: int, clip_ids: list[str]) -> None:
    """Raise UserError, with the clips of the batch, if a loss is NaN or Inf."""
    if not all(map(math.isfinite, losses.values())):
        advice = "start again from earlier weights (init_from) with a lower learning_rate, or with precision fp32"
        raise UserError(f"step {step}: a loss is NaN or Inf: {losses}; clips: {', '.join(clip_ids)}; {advice}")
