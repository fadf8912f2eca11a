"""Audio features "deepspeech": logits of DeepSpeech 0.1.0 (a frozen TensorFlow graph), as in the paper."""

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from python_speech_features import mfcc

from data_processing.media.audio_io import SAMPLE_RATE
from utils.errors import WeightsError, error_reason
from utils.weights import weight_path

if TYPE_CHECKING:
    import tensorflow as tf

NUM_MFCC = 26
CONTEXT = 9  # MFCC rows on either side of each row
DEEPSPEECH_NODES = ("input_node", "input_lengths", "logits")


def deepspeech_input(waveform: np.ndarray) -> np.ndarray:
    """Input of DeepSpeech 0.1.0: waveform (N,) float in [-1, 1], 16 kHz -> (steps, 494) float32, 50 per second.

    MFCCs of the samples in int16 range; every second row is kept, with 9 rows of context on either side (zeros
    outside). The whole recording is normalised to mean 0 and standard deviation 1.
    """
    coefficients = mfcc(np.round(waveform * 32768.0), SAMPLE_RATE, numcep=NUM_MFCC)[::2]
    padded = np.pad(coefficients, ((CONTEXT, CONTEXT), (0, 0)))
    contexts = np.lib.stride_tricks.sliding_window_view(padded, 2 * CONTEXT + 1, axis=0)  # (steps, 26, 19)
    vectors = contexts.transpose(0, 2, 1).reshape(len(coefficients), -1)
    return ((vectors - vectors.mean()) / vectors.std()).astype(np.float32)


def read_frozen_graph(path: str | Path) -> "tf.Graph":
    """Read DeepSpeech's frozen TensorFlow graph.

    It must have the nodes input_node, of shape (1, T, 494), input_lengths and logits.

    Raises:
        WeightsError: TensorFlow is not installed, or the file cannot be read or is not such a graph.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported
    try:
        import tensorflow as tf
    except ImportError as error:
        raise WeightsError("audio features deepspeech require TensorFlow (pip install tensorflow)") from error
    from google.protobuf.message import DecodeError

    definition = tf.compat.v1.GraphDef()
    graph = tf.Graph()
    try:
        definition.ParseFromString(Path(path).read_bytes())
        with graph.as_default():
            tf.import_graph_def(definition, name="")
    except (OSError, DecodeError, ValueError) as error:
        reason = (error_reason(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{path}: not a valid frozen TensorFlow graph: {reason}", path=path) from error

    present = {operation.name for operation in graph.get_operations()}
    missing = [name for name in DEEPSPEECH_NODES if name not in present]
    if missing:
        reason = f"no node {', '.join(missing)}"
        raise WeightsError(f"{path}: not the frozen graph of DeepSpeech 0.1.0: {reason}", path=path)
    shape = graph.get_tensor_by_name("input_node:0").shape
    width = NUM_MFCC * (2 * CONTEXT + 1)
    if not shape.is_compatible_with([1, None, width]):
        reason = f"input_node: expected shape (1, T, {width}), found {shape}"
        raise WeightsError(f"{path}: not the frozen graph of DeepSpeech 0.1.0: {reason}", path=path)
    return graph


def deepspeech_features(waveform: np.ndarray) -> np.ndarray:
    """(N,) float in [-1, 1], 16 kHz -> logits (T, 29) float32, 25 rows per second."""
    vectors = deepspeech_input(waveform)
    inputs = {"input_node:0": vectors[None], "input_lengths:0": [len(vectors)]}
    logits = _deepspeech_session().run("logits:0", inputs)
    return logits.reshape(len(vectors), -1)[::2].astype(np.float32)  # 50 steps per second -> 25


@cache
def _deepspeech_session() -> "tf.compat.v1.Session":
    graph = read_frozen_graph(weight_path("deepspeech"))
    import tensorflow as tf

    # CPU only: on a GPU, TensorFlow would allocate the memory that training needs.
    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
    return tf.compat.v1.Session(graph=graph, config=config)
