"""scripts.visualize: figures, and what they are computed from."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data_processing.dataset import load_clips
from models.checkpoint import load_model, save_model
from models.crop_layout import mouth_box
from models.dinet import DINet, DINetConfig
from scripts import visualize
from scripts.visualize import best_lag, draw_strips, dubbed_crops, loudness_db, transformed_grid
from tests.support.commands import run_command_line


@pytest.mark.slow
def test_figure_of_a_generator(
    tmp_path: Path, portrait_clip: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visualize, "NUM_CHANNELS", 2)  # Matplotlib takes seconds for all
    torch.manual_seed(0)
    model = DINet(DINetConfig(audio_dim=29, num_references=2))
    save_model(tmp_path / "model", model, audio_features="phoneme", mouth_size=32, info={})
    flags = ("generator", "--video", portrait_clip, "--checkpoint", tmp_path / "model")
    image = tmp_path / "figure.png"
    run_command_line(visualize.main, *flags, "--frame", 5, "--output", image)
    assert cv2.imread(str(image)).std() > 10
    with pytest.raises(SystemExit) as caught:
        run_command_line(visualize.main, *flags, "--frame", 99)
    assert caught.value.code == 2
    assert "error: --frame: expected one of 0 to 39 with a face, found 99" in capsys.readouterr().err


@pytest.mark.slow
def test_strips_of_real_frames_and_of_checkpoints(prepared_dataset: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "untrained.safetensors"
    save_model(path, DINet(DINetConfig(29, 2)), audio_features="lips", mouth_size=32, info={})
    (clip,) = load_clips(prepared_dataset, "val", 64, "lips")
    (small,) = load_clips(prepared_dataset, "val", 32, "lips")
    dubbed = dubbed_crops(load_model(path), small, clip, np.array([3, 9]))
    changed = (dubbed != clip.frames[[3, 9]]).any(axis=(0, 3))
    rows, columns = mouth_box(64)
    assert changed[rows, columns].mean() > 0.9
    changed[rows, columns] = False
    assert not changed.any()
    image = tmp_path / "strips.png"
    flags = ("--data", prepared_dataset, "--size", 64, "--checkpoints", path, path, "--output", image)
    run_command_line(visualize.main, "strips", *flags)
    assert cv2.imread(str(image)).std() > 10
    black, white = (np.full((2, 8, 6, 3), level, np.uint8) for level in (0, 255))
    figure = draw_strips([("real", [white, black]), ("same", [black, white]), ("same", [white, white])])
    brightest = [axes.images[0].get_array().max() for axes in figure.axes]
    assert brightest == [255, 255, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255]


@pytest.mark.slow
def test_loudness_and_lag_of_the_mouth(portrait_clip: Path, tmp_path: Path) -> None:
    tone = 0.1 * np.sin(np.arange(3 * 640) * 0.2)
    tone[640:1280] = 0
    np.testing.assert_allclose(loudness_db(tone, 4), [-23.0, -60, -23.0, -60], atol=0.1)
    audio = np.random.default_rng(0).random(50)
    for lag in (-3, 0, 2):
        assert best_lag(np.roll(audio, lag), audio) == (lag, pytest.approx(1))
    hidden = np.roll(audio, 2)
    hidden[20:30] = np.nan
    assert best_lag(hidden, audio) == (2, pytest.approx(1))
    assert best_lag(audio, np.zeros(50)) is best_lag(hidden[:4], audio[:4]) is None
    image = tmp_path / "curves.png"
    run_command_line(visualize.main, "loudness", "--videos", portrait_clip, portrait_clip, "--output", image)
    assert cv2.imread(str(image)).std() > 10


def test_transformed_grids_are_the_sampling_grids_of_adaat() -> None:
    translation = np.array([0.3, -0.1])
    grid = F.affine_grid(
        torch.tensor([[[0.5 * np.cos(1), -0.5 * np.sin(1), 0.3], [0.5 * np.sin(1), 0.5 * np.cos(1), -0.1]]]),
        [1, 1, 9, 50],
        align_corners=True,
    )[0]
    lines = transformed_grid(0.5, 1.0, translation)
    assert len(lines) == 18
    for row, line in zip(grid.numpy(), lines[::2], strict=True):
        np.testing.assert_allclose(line.T, row, atol=1e-6)
