"""The table of what loading costs: that it compares the reading of the same frames."""

import numpy as np
import pytest

from data_processing.media.video_reader import read_frames
from tests.tools import loader_table
from tests.tools.loader_table import NUM_FRAMES, decoding_rows, seek_and_decode


def test_decoding_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(loader_table, "random_frames_per_s", lambda function: 1.0)
    crops = np.random.default_rng(0).integers(0, 200, (1, 52, 40, 3)).repeat(NUM_FRAMES, axis=0)
    crops = (crops + np.arange(NUM_FRAMES)[:, None, None, None] % 50).astype(np.uint8)
    rows = decoding_rows(crops, tmp_path)
    assert [name for name, *_ in rows] == ["older clip", "clip", "JPEG"]
    assert rows[0][1] < rows[1][1] < rows[2][1] < crops[0].nbytes


@pytest.mark.parametrize("interval", [25, 250])
def test_seek_and_decode(tmp_path, interval):
    brightness = 5 * np.arange(NUM_FRAMES) % 250
    crops = np.zeros((NUM_FRAMES, 52, 40, 3), np.uint8) + brightness[:, None, None, None].astype(np.uint8)
    decoding_rows(crops, tmp_path)
    clip = tmp_path / ("clip-32.mp4" if interval == 25 else "older clip-32.mp4")
    numbers = np.array([120, 3, 4, 60, 25, 149])
    expected = np.stack(list(read_frames(clip)))[np.sort(numbers)].mean(axis=(1, 2, 3))
    images = np.stack(seek_and_decode(clip, interval, numbers))
    assert np.abs(images.mean(axis=(1, 2, 3)) - expected).max() < 2
