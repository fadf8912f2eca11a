"""Loading of batches, one ahead of the step, and the measured speed."""

import time
from pathlib import Path
from typing import NamedTuple

import cv2
import pytest
import torch

from training import loading
from training.loading import DeviceBatches, load_batches
from utils.errors import MediaError, UserError


class Item(NamedTuple):
    number: torch.Tensor
    clip_ids: list[str]


class Numbers(torch.utils.data.Dataset):
    """Item k is k."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> Item:
        return Item(torch.tensor(step), ["a"])


def test_batches_from_a_step_on_are_loaded_one_ahead():
    loaded = []

    def items():
        for item in load_batches(Numbers(6), 2, torch.device("cpu")):
            loaded.append(int(item.number))
            yield item

    seen = []
    for item in DeviceBatches(items(), torch.device("cpu")):
        seen.append(int(item.number))
        assert loaded[-1] == min(seen[-1] + 1, 5)
        assert item.clip_ids == ["a"]
    assert seen == [2, 3, 4, 5]


class Broken(Numbers):
    def __getitem__(self, step: int) -> Item:
        raise MediaError("clip.mp4", "is broken")


def test_error_in_a_worker_keeps_its_message():
    with_workers = load_batches(Broken(3), 0, torch.device("cuda"))
    assert with_workers.num_workers > 0
    with pytest.raises(UserError, match=r"^clip\.mp4: is broken$") as caught:
        list(DeviceBatches(with_workers, torch.device("cpu")))
    assert caught.value.path == Path("clip.mp4")


class OpenCVThreads(Numbers):
    def __getitem__(self, step: int) -> Item:
        return Item(torch.tensor(cv2.getNumThreads()), [])


def test_opencv_has_no_threads_of_its_own_in_workers(monkeypatch):
    monkeypatch.setattr(loading, "num_cores", lambda: 1)
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        (item,) = load_batches(OpenCVThreads(1), 0, torch.device("cuda"))
    finally:
        cv2.setNumThreads(before)
    assert item.number == 1


def test_speed_counts_steps_and_waiting_but_not_what_is_between_them():
    def slow_items():
        for _ in range(5):
            time.sleep(0.03)
            yield Item(torch.tensor(0), [])

    batches = DeviceBatches(slow_items(), torch.device("cpu"))
    for number, _ in enumerate(batches):
        time.sleep(0.01)
        batches.step_ended()
        time.sleep(0.1 if number < 4 else 0)  # validation
        if number == 3:  # four batches were waited for, the first of five before the first step
            speed = batches.speed(batch_size=8)
            assert speed["data_wait"] == pytest.approx(0.75, abs=0.15)
            assert 8 * 4 / 0.16 / 2 < speed["samples_per_s"] <= 8 * 4 / 0.16
            assert 0.01 < speed["memory_gb"] < 100
