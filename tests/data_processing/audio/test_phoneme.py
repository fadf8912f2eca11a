"""Phoneme features: properties of the recogniser's output, and the reduction to classes in closed form."""

import numpy as np
import pytest

from data_processing.audio import phoneme
from data_processing.audio.features import FEATURE_DIMS, extract_features
from data_processing.audio.framing import SAMPLES_PER_FRAME
from data_processing.audio.phoneme import (
    BLANK,
    CHUNK_HOP_ROWS,
    CHUNK_ROWS,
    NUM_TOKENS,
    PHONEME_GROUPS,
    phoneme_log_posteriors,
    reduce_phonemes,
)
from tests.support.media import babble


def test_posteriors_are_probabilities() -> None:
    log_posteriors = phoneme_log_posteriors(babble(3.0))
    assert log_posteriors.shape == (150, NUM_TOKENS) and log_posteriors.dtype == np.float32
    np.testing.assert_allclose(np.exp(log_posteriors).sum(axis=1), 1, atol=1e-4)


def test_silence_is_blank() -> None:
    assert (phoneme_log_posteriors(np.zeros(32000, np.float32)).argmax(axis=1) == BLANK).mean() > 0.9


def test_short_waveform_is_one_chunk() -> None:
    waveform = babble(4.0)
    expected = phoneme._recognise(waveform)[:200]
    log_posteriors = phoneme_log_posteriors(waveform)
    likely = expected > -15
    np.testing.assert_allclose(log_posteriors[likely], expected[likely], atol=1e-4)


@pytest.mark.slow
def test_features_are_nearly_independent_of_the_chunk_grid() -> None:
    waveform = babble(24.0)
    cut = CHUNK_HOP_ROWS // 4  # frames of two rows each: half a hop, the largest distance between two grids
    whole = extract_features(waveform, "phoneme")[cut:]
    shifted = extract_features(waveform[cut * SAMPLES_PER_FRAME :], "phoneme")
    # Far from the ends, where both cover the same audio with different grids.
    middle = slice(CHUNK_ROWS // 2, len(whole) - CHUNK_ROWS // 2)
    difference = np.abs(whole[middle] - shifted[middle])
    assert difference.size > 0 and (2 * cut) % CHUNK_HOP_ROWS != 0
    assert difference.mean() < 0.004 and difference.max() < 0.05
    assert whole[middle].std(axis=0).mean() > 0.05  # the features are not constant


def test_rows_are_aligned_with_the_audio() -> None:
    """Speech between silences changes the features of its own frames only."""
    waveform = np.zeros(3 * 16000, np.float32)
    waveform[16000:32000] = babble(1.0, seed=3)
    blank = np.exp(phoneme_log_posteriors(waveform)[:, BLANK]).reshape(75, 2).mean(axis=1)
    assert blank[25:50].min() < 0.7
    assert blank[:22].min() > 0.93 and blank[54:].min() > 0.9


def test_phoneme_groups_are_disjoint_and_match_the_dimensions() -> None:
    indices = [index for tokens in PHONEME_GROUPS.values() for index in tokens.values()]
    assert len(indices) == len(set(indices)) and BLANK not in indices and max(indices) < NUM_TOKENS
    assert len(PHONEME_GROUPS) + 2 == FEATURE_DIMS["phoneme"]


def test_reduction_in_closed_form() -> None:
    probabilities = np.full((4, NUM_TOKENS), 1e-30)
    probabilities[0, [35, 10]] = 0.5, 0.25  # p and b
    probabilities[1, 36] = 0.25  # pʰ
    probabilities[1, 31] = 0.75  # m
    probabilities[2:, BLANK] = 1
    features = reduce_phonemes(np.log(probabilities))
    assert features.shape == (2, 29) and features.dtype == np.float32
    names = list(PHONEME_GROUPS)
    assert features[0, names.index("p b")] == pytest.approx(1 + np.log((0.75 + 0.25) / 2) / 12, abs=1e-6)
    assert features[0, names.index("m")] == pytest.approx(1 + np.log(0.75 / 2) / 12, abs=1e-6)
    assert features[0, names.index("f v")] == 0
    np.testing.assert_allclose(features[1], [0] * 28 + [1], atol=1e-6)
