"""The table of audio lags: the measurement itself, and a sample of the table."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.media import babble
from tests.tools.audio_lags import encoders, lag_ms, measure


@pytest.mark.parametrize("shift", [-80, 0, 37])
def test_lag(shift: int) -> None:
    waveform = np.random.default_rng(0).standard_normal(16000)
    lag, correlation = lag_ms(waveform, np.roll(waveform, shift))
    assert lag == pytest.approx(shift / 16)
    assert correlation > 0.9


@pytest.mark.parametrize(
    ("codec", "container", "encoder_delay_ms"),
    [
        ("aac", "mp4", 0),
        ("aac", "aac", 21.3),
        ("libmp3lame", "mp3", 0),
        ("libopus", "webm", 0),
        ("eac3", "avi", 5.3),
    ],
)
def test_result_is_in_step_with_the_lips(
    tmp_path: Path, codec: str, container: str, encoder_delay_ms: float
) -> None:
    assert codec in set(encoders())
    lips, result = measure(tmp_path / f"a.{container}", codec, babble(3, 1))
    assert lips == pytest.approx(encoder_delay_ms, abs=0.1)
    assert abs(result) < 1


def test_codec_that_does_not_fit(tmp_path: Path) -> None:
    assert measure(tmp_path / "a.flac", "aac", babble(3, 1)) is None
