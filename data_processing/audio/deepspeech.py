"""TODO."""

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from python_speech_features import mfcc

from data_processing.media.audio_io import SAMPLE_RATE
from utils.errors import UserError
from utils.weights import weight_path

if TYPE_CHECKING:
    import tensorflow as tf

NUM_MFCC = 26
CONTEXT = 9  # MFCC rows on either side of the one in question
DEEPSPEECH_NODES = ("input_node", "input_lengths", "logits")


def deepspeech_input(waveform: np.ndarray) -> np.ndarray:
    """Input of DeepSpeech 0.1.0: waveform (N,) float in [-1, 1], 16 kHz -> (steps, 494) float32, 50 a second.

    MFCCs of the samples in int16 range, every second one kept, each with 9 more on either side (zeros beyond
    the ends); the whole recording normalised to mean 0 and deviation 1.
    """
    coefficients = mfcc(np.round(waveform * 32768.0), SAMPLE_RATE, numcep=NUM_MFCC)[::2]
    padded = np.pad(coefficients, ((CONTEXT, CONTEXT), (0, 0)))
    contexts = np.lib.stride_tricks.sliding_window_view(padded, 2 * CONTEXT + 1, axis=0)  # (steps, 26, 19)
    vectors = contexts.transpose(0, 2, 1).reshape(len(coefficients), -1)
    return ((vectors - vectors.mean()) / vectors.std()).astype(np.float32)


def read_frozen_graph(path: str | Path) -> "tf.Graph":
    """Read DeepSpeech's frozen TensorFlow graph.

    Raises UserError if TensorFlow is not installed, or the file is missing, is no frozen graph, or lacks the
    nodes input_node (1, T, 494), input_lengths and logits.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError("audio features deepspeech: TensorFlow is needed (pip install tensorflow)") from error
    from google.protobuf.message import DecodeError

    definition = tf.compat.v1.GraphDef()
    graph = tf.Graph()
    try:
        definition.ParseFromString(Path(path).read_bytes())
        with graph.as_default():
            tf.import_graph_def(definition, name="")
    except (OSError, DecodeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: expected a frozen TensorFlow graph ({reason})") from error

    present = {operation.name for operation in graph.get_operations()}
    missing = [name for name in DEEPSPEECH_NODES if name not in present]
    if missing:
        raise UserError(f"{path}: expected DeepSpeech 0.1.0's frozen graph, found no node {', '.join(missing)}")
    shape = graph.get_tensor_by_name("input_node:0").shape
    width = NUM_MFCC * (2 * CONTEXT + 1)
    if not shape.is_compatible_with([1, None, width]):
        raise UserError(f"{path}: expected input_node of shape (1, T, {width}), found {shape}")
    return graph


def deepspeech_features(waveform: np.ndarray) -> np.ndarray:
    vectors = deepspeech_input(waveform)
    inputs = {"input_node:0": vectors[None], "input_lengths:0": [len(vectors)]}
    logits = _deepspeech_session().run("logits:0", inputs)
    return logits.reshape(len(vectors), -1)[::2].astype(np.float32)  # 50 steps a second -> 25


@cache
def _deepspeech_session() -> "tf.compat.v1.Session":
    graph = read_frozen_graph(weight_path("deepspeech"))
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0})  # it would claim the memory training needs
    return tf.compat.v1.Session(graph=graph, config=config)
