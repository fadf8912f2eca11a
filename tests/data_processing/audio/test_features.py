"""Audio features of all kinds: number of rows, unknown names."""

import numpy as np
import pytest

from data_processing.audio.features import FEATURE_DIMS, extract_features
from data_processing.audio.framing import count_frames
from models.wav2lip import MEL_BINS, MEL_COLUMNS
from models.whisper import WIDTH
from tests.support.media import babble
from utils.errors import ParameterError


@pytest.mark.parametrize(
    ("samples", "frames"), [(0, 1), (1, 1), (640, 1), (641, 2), (1599, 3), (16000, 25), (16001, 26)]
)
def test_one_row_per_video_frame(samples: int, frames: int) -> None:
    waveform = babble(2.0)[:samples]
    assert count_frames(waveform) == frames
    features = extract_features(waveform, "phoneme")
    assert features.shape == (frames, 29) and features.dtype == np.float32
    assert features.min() >= 0 and features.max() <= 1


def test_num_frames_drops_or_repeats_rows() -> None:
    waveform = babble(1.0)
    features = extract_features(waveform, "phoneme")
    np.testing.assert_array_equal(extract_features(waveform, "phoneme", 10), features[:10])
    longer = extract_features(waveform, "phoneme", 30)
    np.testing.assert_array_equal(longer[:25], features)
    np.testing.assert_array_equal(longer[25:], np.repeat(features[-1:], 5, axis=0))


def test_dimensions_are_those_of_the_networks() -> None:
    assert FEATURE_DIMS["whisper"] == WIDTH and FEATURE_DIMS["mel"] == MEL_BINS * MEL_COLUMNS


def test_unknown_features() -> None:
    with pytest.raises(ParameterError, match="phoneme, deepspeech, mel, found 'mfcc'") as error:
        extract_features(np.zeros(640, np.float32), "mfcc")
    assert error.value.parameter == "audio_features"
