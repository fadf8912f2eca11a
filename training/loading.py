"""Load training batches onto the device, one ahead of the one that is trained on, and measure the speed."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from training import distributed
from utils.cores import num_cores
from utils.errors import UserError
from utils.memory import peak_bytes


def load_batches(batches: Dataset, step: int, device: torch.device) -> DataLoader:
    """Load the batches from `step` on; for a GPU, in worker processes, so that it need not wait."""
    workers = min(8, num_cores() // distributed.local_world_size()) if device.type == "cuda" else 0
    return DataLoader(
        _ErrorsAsItems(batches),
        batch_size=None,
        sampler=range(step, len(batches)),
        num_workers=workers,
        worker_init_fn=_start_worker,
        pin_memory=workers > 0,
    )


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the parallelism is over batches


class _ErrorsAsItems(Dataset):
    """Returns an error of the user, which DataLoader would turn into another with a traceback in its message."""

    def __init__(self, batches: Dataset) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> Any:
        try:
            return self._batches[step]
        except UserError as error:
            return UserError(str(error), parameter=error.parameter, path=error.path)


class DeviceBatches:
    """Batches (named tuples) on the device, and how long they and the steps take.

    On a GPU a batch is copied by a stream of its own while the step before it is computed. `step_ended` is to be
    called after each step.
    """

    def __init__(self, batches: Iterable[Any], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._num_steps, self._step_s, self._wait_s = 0, 0.0, 0.0
        self._step_started = 0.0

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._batches)
        following = self._copy(next(batches, None))
        while following is not None:
            if self._stream:
                torch.cuda.current_stream(self._device).wait_stream(self._stream)
            batch, started = following, time.monotonic()
            following = self._copy(next(batches, None))
            self._step_started = time.monotonic()
            self._wait_s += self._step_started - started
            yield batch

    def _copy(self, batch: Any) -> Any:
        if isinstance(batch, UserError):
            raise batch
        if batch is None or self._stream is None:
            return batch
        with torch.cuda.stream(self._stream):
            *tensors, clip_ids = batch
            tensors = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
        for tensor in tensors:  # or its memory could be used again before the step has read it
            tensor.record_stream(torch.cuda.current_stream(self._device))
        return batch._make([*tensors, clip_ids])

    def step_ended(self) -> None:
        """Count the step; what follows until the next batch (validation, saving) is not counted."""
        self._num_steps += 1
        self._step_s += time.monotonic() - self._step_started

    def speed(self, batch_size: int) -> dict[str, float]:
        """Since the last call: samples per second, and the fraction of the time that was spent on waiting for data.

        Also the highest memory use so far in GB, of the GPU if there is one.
        """
        total = self._step_s + self._wait_s
        memory = torch.cuda.max_memory_allocated(self._device) if self._stream else peak_bytes()
        values = {
            "samples_per_s": batch_size * self._num_steps / total,
            "data_wait": self._wait_s / total,
            "memory_gb": memory / 1e9,
        }
        self._num_steps, self._step_s, self._wait_s = 0, 0.0, 0.0
        return values
