"""av_sync: the A/V offset from known scores, and of real speech whose audio is shifted by a known time."""

from pathlib import Path

import numpy as np
import pytest

from data_processing.av_sync import MAX_SHIFT, AVOffset, measure_offset, offset_from_scores
from data_processing.face.tracking import find_landmarks
from data_processing.media.audio_io import SAMPLE_RATE, load_audio

pytestmark = pytest.mark.slow

MEDIA = Path(__file__).resolve().parents[3] / "shared" / "media"


def test_offset_to_a_fraction_of_a_frame():
    shifts = np.arange(-MAX_SHIFT, MAX_SHIFT + 1)
    scores = np.repeat(1 - 0.01 * (shifts[:, None] - 2.3) ** 2, 4, axis=1)  # a parabola with its peak at 2.3
    offset = offset_from_scores(scores)
    assert offset.audio_delay_ms == pytest.approx(92, abs=0.01)
    assert offset.confidence == pytest.approx(scores.max() - np.median(scores[:, 0]))


def test_peak_at_the_largest_shift():
    scores = np.repeat(np.arange(7.0)[:, None], 3, axis=1)
    assert offset_from_scores(scores).audio_delay_ms == 3 * 40


def test_shifts_outside_of_the_audio_are_ignored():
    scores = np.full((7, 2), np.nan)
    scores[2:5] = [[0.1, 0.1], [0.4, 0.4], [0.1, 0.1]]
    assert offset_from_scores(scores) == AVOffset(0.0, pytest.approx(0.3))


@pytest.mark.skipif(not MEDIA.is_dir(), reason="needs ../shared/media")
@pytest.mark.parametrize("delay_ms", [-200, 240])
def test_bundled_syncnet_measures_a_known_delay(delay_ms):
    """Relative to the same sentence without a delay, because its own offset is unknown."""
    video = sorted((MEDIA / "grid_s1").glob("*.*"))[1]
    points = find_landmarks(video).points
    waveform = load_audio(video)
    delay = round(delay_ms * SAMPLE_RATE / 1000)
    delayed = np.pad(waveform, (delay, 0)) if delay > 0 else waveform[-delay:]
    original_ms, delayed_ms = (
        measure_offset(video, [(0, points)], audio).audio_delay_ms for audio in (waveform, delayed)
    )
    assert delayed_ms - original_ms == pytest.approx(delay_ms, abs=40)
