"""sync: the offset in closed form; the bundled SyncNet on real speech that was moved by a known time."""

from pathlib import Path

import numpy as np
import pytest

from data_processing.av_sync import MAX_SHIFT, AVOffset, measure_offset, offset_from_scores
from data_processing.face.crop import crop_radius
from data_processing.face.tracking import find_landmarks
from data_processing.media.audio_io import SAMPLE_RATE, load_audio

MEDIA = Path(__file__).resolve().parents[3] / "shared" / "media"


def test_offset_between_frames():
    shifts = np.arange(-MAX_SHIFT, MAX_SHIFT + 1)
    scores = np.repeat(1 - 0.01 * (shifts[:, None] - 2.3) ** 2, 4, axis=1)  # a parabola with its top at 2.3
    found = offset_from_scores(scores)
    assert found.audio_delay_ms == pytest.approx(92, abs=0.01)
    assert found.confidence == pytest.approx(scores.max() - np.median(scores[:, 0]))


def test_peak_at_the_edge_stays_there():
    scores = np.repeat(np.arange(7.0)[:, None], 3, axis=1)
    assert offset_from_scores(scores).audio_delay_ms == 3 * 40


def test_shifts_without_sound_are_left_out():
    scores = np.full((7, 2), np.nan)
    scores[2:5] = [[0.1, 0.1], [0.4, 0.4], [0.1, 0.1]]
    assert offset_from_scores(scores) == AVOffset(0.0, pytest.approx(0.3))


@pytest.mark.skipif(not MEDIA.is_dir(), reason="needs ../shared/media")
@pytest.mark.parametrize("moved_ms", [-200, 240])
def test_bundled_syncnet_finds_a_known_delay(moved_ms):
    """Against the same sentence unmoved: how exactly that is in sync nobody has said."""
    video = sorted((MEDIA / "grid_s1").glob("*.*"))[1]
    points = find_landmarks(video).points
    waveform = load_audio(video)
    moved = round(moved_ms * SAMPLE_RATE / 1000)
    moved = np.pad(waveform, (moved, 0)) if moved > 0 else waveform[-moved:]
    found = [
        measure_offset(video, [(0, points, crop_radius(points))], sound).audio_delay_ms
        for sound in (waveform, moved)
    ]
    assert found[1] - found[0] == pytest.approx(moved_ms, abs=40)
