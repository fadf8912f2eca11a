"""DeepSpeech features: the network input against the golden file, a small graph, and invalid graphs."""

import os
from pathlib import Path

import numpy as np
import pytest

from data_processing.audio import deepspeech
from data_processing.audio.deepspeech import deepspeech_input, read_frozen_graph
from data_processing.audio.features import extract_features
from tests.support.golden import DATA
from utils.errors import WeightsError


def test_input_matches_the_authors() -> None:
    golden = np.load(DATA / "deepspeech_input.npz")
    vectors = deepspeech_input(golden["waveform"].astype(np.float32) / 32768)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, golden["vector"], atol=1e-4)


def write_graph(path: Path, lengths_name: str = "input_lengths", width: int = 494) -> np.ndarray:
    """Write a graph with the interface of DeepSpeech: logits (T, 1, 29) = input · matrix. Returns the matrix."""
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


@pytest.mark.slow
def test_features_are_every_second_logit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.slow
def test_invalid_graphs_are_rejected(tmp_path: Path) -> None:
    write_graph(tmp_path / "other.pb", lengths_name="seq_length")
    write_graph(tmp_path / "wide.pb", width=26)
    (tmp_path / "text.pb").write_text("no graph")
    for name, reason in [
        ("other.pb", "no node input_lengths"),
        ("wide.pb", "input_node: expected shape"),
        ("text.pb", "not a valid frozen TensorFlow graph"),
        ("missing.pb", "not a valid frozen TensorFlow graph"),
    ]:
        with pytest.raises(WeightsError, match=reason) as error:
            read_frozen_graph(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
        assert error.value.path == tmp_path / name
