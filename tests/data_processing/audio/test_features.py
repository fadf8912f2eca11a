"""audio_features: audio windows in closed form; Whisper and DeepSpeech's input against references; the phoneme model."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_processing.audio import deepspeech, phoneme
from data_processing.audio.deepspeech import deepspeech_input, read_frozen_graph
from data_processing.audio.features import FEATURE_DIMS, extract_features
from data_processing.audio.framing import SAMPLES_PER_FRAME, audio_windows, count_frames, window
from data_processing.audio.mel import mel_spectrogram
from data_processing.audio.phoneme import (
    BLANK,
    CHUNK_HOP_ROWS,
    CHUNK_ROWS,
    NUM_TOKENS,
    PHONEME_GROUPS,
    phoneme_log_posteriors,
    reduce_phonemes,
)
from dubbing.audio_stream import AudioStream
from tests.support.golden import DATA, golden_arrays
from tests.support.media import babble, speech_like
from utils.errors import UserError


def test_windows_repeat_the_edges() -> None:
    features = np.stack([np.arange(6.0), 10 + np.arange(6.0)], axis=1)  # (6, 2): row t is (t, 10 + t)
    np.testing.assert_array_equal(window(features, 3), [[1, 2, 3, 4, 5], [11, 12, 13, 14, 15]])
    np.testing.assert_array_equal(window(features, 0)[0], [0, 0, 0, 1, 2])
    np.testing.assert_array_equal(window(features, 5)[0], [3, 4, 5, 5, 5])
    batch = audio_windows(features, np.array([5, 1]))
    assert batch.shape == (2, 2, 5)
    np.testing.assert_array_equal(batch[0], window(features, 5))
    np.testing.assert_array_equal(batch[1], window(features, 1))


def test_window_of_a_single_row() -> None:
    np.testing.assert_array_equal(window(np.full((1, 29), 3.0), 0), np.full((29, 5), 3.0))


@pytest.mark.parametrize(
    ("samples", "frames"), [(0, 1), (1, 1), (640, 1), (641, 2), (1599, 3), (16000, 25), (16001, 26)]
)
def test_one_row_a_video_frame(samples: int, frames: int) -> None:
    waveform = babble(2.0)[:samples]
    assert count_frames(waveform) == frames
    features = extract_features(waveform, "phoneme")
    assert features.shape == (frames, 29) and features.dtype == np.float32
    assert features.min() >= 0 and features.max() <= 1


def test_num_frames_cuts_and_repeats() -> None:
    waveform = babble(1.0)
    features = extract_features(waveform, "phoneme")
    np.testing.assert_array_equal(extract_features(waveform, "phoneme", 10), features[:10])
    longer = extract_features(waveform, "phoneme", 30)
    np.testing.assert_array_equal(longer[:25], features)
    np.testing.assert_array_equal(longer[25:], np.repeat(features[-1:], 5, axis=0))


def test_unknown_features() -> None:
    with pytest.raises(UserError, match="phoneme, deepspeech, mel, found 'mfcc'"):
        extract_features(np.zeros(640, np.float32), "mfcc")


def test_posteriors_are_probabilities() -> None:
    log_posteriors = phoneme_log_posteriors(babble(3.0))
    assert log_posteriors.shape == (150, NUM_TOKENS) and log_posteriors.dtype == np.float32
    np.testing.assert_allclose(np.exp(log_posteriors).sum(axis=1), 1, atol=1e-4)


def test_silence_is_blank() -> None:
    assert (phoneme_log_posteriors(np.zeros(32000, np.float32)).argmax(axis=1) == BLANK).mean() > 0.9


def test_a_short_recording_is_one_call_of_the_model() -> None:
    waveform = babble(4.0)
    expected = phoneme._recognise(waveform)[:200]
    found = phoneme_log_posteriors(waveform)
    likely = expected > -15
    np.testing.assert_allclose(found[likely], expected[likely], atol=1e-4)


def test_features_hardly_depend_on_the_chunk_grid() -> None:
    waveform = babble(24.0)
    cut = CHUNK_HOP_ROWS // 4  # frames, at two rows each: half a hop, the furthest two grids can be apart
    whole = extract_features(waveform, "phoneme")[cut:]
    shifted = extract_features(waveform[cut * SAMPLES_PER_FRAME :], "phoneme")
    # One chunk away from the ends, where both see the same sound through grids that never meet.
    middle = slice(CHUNK_ROWS // 2, len(whole) - CHUNK_ROWS // 2)
    difference = np.abs(whole[middle] - shifted[middle])
    assert difference.size > 0 and (2 * cut) % CHUNK_HOP_ROWS != 0
    assert difference.mean() < 0.004 and difference.max() < 0.05
    assert whole[middle].std(axis=0).mean() > 0.05  # against features that are merely constant


def test_rows_are_where_the_sound_is() -> None:
    """A burst between silences is heard in its own frames: the features of the rest stay those of silence."""
    waveform = np.zeros(3 * 16000, np.float32)
    waveform[16000:32000] = babble(1.0, seed=3)
    blank = np.exp(phoneme_log_posteriors(waveform)[:, BLANK]).reshape(75, 2).mean(axis=1)
    assert blank[25:50].min() < 0.7
    assert blank[:22].min() > 0.93 and blank[54:].min() > 0.9


def test_mel_spectrogram_against_the_original() -> None:
    golden = golden_arrays("wav2lip_96")
    found = mel_spectrogram(golden["waveform"].numpy())
    np.testing.assert_allclose(found, golden["mel_spectrogram"], atol=1e-4)


def test_mel_rows_are_windows_of_the_spectrogram() -> None:
    waveform = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    rows, mel = extract_features(waveform, "mel"), mel_spectrogram(waveform)
    assert rows.shape == (25, 1280)
    np.testing.assert_array_equal(rows[7].reshape(80, 16), mel[:, 22:38])  # 7 / 25 s is column 22.4
    np.testing.assert_array_equal(
        rows[24].reshape(80, 16), np.pad(mel[:, 76:], ((0, 0), (0, 11)), constant_values=-4)
    )


def test_phoneme_groups_are_disjoint_and_fill_the_width() -> None:
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


# --- DeepSpeech ---------------------------------------------------------------------------------------------


def test_deepspeech_input_against_the_original() -> None:
    golden = np.load(DATA / "deepspeech_input.npz")
    vectors = deepspeech_input(golden["waveform"].astype(np.float32) / 32768)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, golden["vector"], atol=1e-4)


def write_graph(path: Path, lengths_name: str = "input_lengths", width: int = 494) -> np.ndarray:
    """A stand-in for DeepSpeech: logits (T, 1, 29) = input · matrix, + 0 · length. Returns the matrix."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    tf = pytest.importorskip("tensorflow").compat.v1
    matrix = np.random.default_rng(0).normal(size=(width, 29)).astype(np.float32)
    graph = tf.Graph()
    with graph.as_default():
        vectors = tf.placeholder(tf.float32, (1, None, width), name="input_node")
        lengths = tf.placeholder(tf.int32, (1,), name=lengths_name)
        product = tf.matmul(tf.reshape(vectors, (-1, width)), tf.constant(matrix))
        product += 0 * tf.cast(lengths[0], tf.float32)
        tf.reshape(product, (-1, 1, 29), name="logits")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return matrix


def test_deepspeech_features_are_every_second_logit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = write_graph(tmp_path / "graph.pb")
    monkeypatch.setattr(deepspeech, "weight_path", lambda name: tmp_path / "graph.pb")
    deepspeech._deepspeech_session.cache_clear()
    waveform = np.load(DATA / "deepspeech_input.npz")["waveform"].astype(np.float32) / 32768
    try:
        features = extract_features(waveform, "deepspeech", 60)
    finally:
        deepspeech._deepspeech_session.cache_clear()
    expected = (np.load(DATA / "deepspeech_input.npz")["vector"] @ matrix)[::2]
    assert features.shape == (60, 29) and features.dtype == np.float32
    np.testing.assert_allclose(features[:50], expected, atol=2e-3)
    np.testing.assert_array_equal(features[50:], np.repeat(features[49:50], 10, axis=0))


def test_wrong_graphs_are_refused(tmp_path: Path) -> None:
    write_graph(tmp_path / "other.pb", lengths_name="seq_length")
    write_graph(tmp_path / "wide.pb", width=26)
    (tmp_path / "text.pb").write_text("no graph")
    for name, words in [
        ("other.pb", "found no node input_lengths"),
        ("wide.pb", "expected input_node of shape"),
        ("text.pb", "expected a frozen TensorFlow graph"),
        ("missing.pb", "expected a frozen TensorFlow graph"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            read_frozen_graph(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


# --- a sound that is read as it goes on -----------------------------------------------------------------------


def pieces_of(waveform: np.ndarray, length: int = 1111) -> Iterator[np.ndarray]:
    return (waveform[start : start + length] for start in range(0, len(waveform), length))


def test_windows_between_rows_are_blended() -> None:
    rows = np.arange(20, dtype=np.float32)[:, None] ** 2
    assert np.array_equal(audio_windows(rows, np.array([3.0])), audio_windows(rows, np.array([3])))
    found = audio_windows(rows, np.array([3.25]))[0, 0]
    expected = [0.75 * t**2 + 0.25 * (t + 1) ** 2 for t in (1, 2, 3, 4, 5)]
    np.testing.assert_allclose(found, expected)
    assert audio_windows(rows, np.array([18.5]))[0, 0].tolist() == [
        16.5**2 + 0.25,
        17.5**2 + 0.25,
        18.5**2 + 0.25,
        361,
        361,
    ]


@pytest.mark.parametrize("seconds", [0.03, 1.0, 2.03])
def test_short_sound_is_heard_in_one(seconds: float) -> None:
    waveform = speech_like(seconds, 1).astype(np.float32)
    features = extract_features(waveform, "mel")
    sound = AudioStream(pieces_of(waveform), "mel")
    times = np.arange(len(features)) / 25
    for start in range(0, len(times), 8):
        found = sound.windows(times[start : start + 8])
        assert np.array_equal(found, audio_windows(features, np.arange(start, min(start + 8, len(times)))))


def test_long_sound_is_heard_in_blocks() -> None:
    waveform = speech_like(40, 2).astype(np.float32)
    features = extract_features(waveform, "mel")
    read = 0

    def pieces() -> Iterator[np.ndarray]:
        nonlocal read
        for piece in pieces_of(waveform):
            read += len(piece)
            yield piece

    sound = AudioStream(pieces(), "mel", block_s=2, after_s=1)
    found = sound.windows(np.array([0.0, 0.04]))
    np.testing.assert_allclose(found, audio_windows(features, np.array([0, 1])), atol=1e-3)
    assert read <= 3.2 * 16000
    times = np.arange(2, len(features)) / 25
    found = np.concatenate([sound.windows(times[start : start + 7]) for start in range(0, len(times), 7)])
    np.testing.assert_allclose(found, audio_windows(features, np.arange(2, len(features))), atol=1e-3)


def test_how_long_a_sound_goes_on() -> None:
    sound = AudioStream(pieces_of(np.zeros(16000, np.float32)), "mel")
    assert sound.left(0, 0.2) == 0.2
    assert sound.left(0.9, 0.2) == pytest.approx(0.1)
    assert sound.left(1, 0.2) == 0
    assert sound.left(5, 0.2) == 0
    assert sound.windows(np.array([0.5])).shape == (1, 1280, 5)
