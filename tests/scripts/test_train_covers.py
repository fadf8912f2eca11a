"""Made covers for the training of the cover network, and the command."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.cover_net import NUM_VIEWS, SIDE, load_cover_net
from models.crop_layout import crop_size
from scripts import train_covers
from scripts.train_covers import CoverMaker, Shot
from tests.support.commands import run_command_line


def grey_shots() -> dict[str, list[Shot]]:
    frames = np.full((10, *crop_size(64), 3), 128, np.uint8)
    return {"ann": [Shot(frames, np.zeros((10, 2)))]}


def samples(monkeypatch: pytest.MonkeyPatch, uncovered: float) -> tuple[np.ndarray, np.ndarray]:
    """20 samples without the changes of light and position."""
    monkeypatch.setattr(train_covers, "UNCOVERED", uncovered)
    monkeypatch.setattr(CoverMaker, "_light", lambda self, crops: crops)
    monkeypatch.setattr(CoverMaker, "_move", lambda self, crops, alpha: (crops, alpha))
    maker = CoverMaker(grey_shots(), seed=3)
    crops, masks = zip(*(maker.sample() for _ in range(20)), strict=True)
    return np.stack(crops), np.stack(masks)


def test_uncovered_samples_are_the_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    crops, masks = samples(monkeypatch, 1.0)
    assert crops.shape == (20, 1 + NUM_VIEWS, SIDE, SIDE, 3)
    assert masks.shape == (20, SIDE, SIDE)
    assert (crops == 128).all() and not masks.any()


def test_the_mask_is_where_the_cover_is(monkeypatch: pytest.MonkeyPatch) -> None:
    crops, masks = samples(monkeypatch, 0.0)
    change = np.abs(crops[:, 0].astype(int) - 128).max(axis=-1)
    assert (masks > 0.5).any(axis=(1, 2)).mean() > 0.5  # some lie outside the crop
    assert np.median(change[masks > 0.9]) > 10
    assert np.median(change[masks == 0]) == 0
    assert (np.abs(crops[:, 1:].astype(int) - 128) > 10).any()  # some are in the reference frames too


@pytest.mark.slow
def test_the_command_writes_weights(prepared_dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "covers.safetensors"
    run_command_line(train_covers.main, "--data", prepared_dataset, "--minutes", 0.02, "--output", output)
    load_cover_net(output, torch.device("cpu"))
