"""16 kHz waveform -> audio features (T, D) at 25 per second, one row a video frame; windows of five rows.

Four kinds: "whisper" (the default: an inner sequence of Whisper's encoder, D = 384, from which the lips of people
never seen can be told best), "phoneme" (probabilities of speech sounds, grouped by how they look on the lips,
D = 29), "deepspeech" (the paper's: logits of DeepSpeech 0.1.0, D = 29) and "mel" (what the baseline Wav2Lip hears:
0.2 s of mel spectrogram from the frame on, D = 80 × 16).
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import librosa
import numpy as np
import onnxruntime
from python_speech_features import mfcc
from scipy.signal import lfilter

from data_processing.audio import SAMPLE_RATE
from data_processing.errors import UserError
from data_processing.silence import MouthCloser
from data_processing.video import FPS
from data_processing.weights import weight_path
from data_processing.whisper import WIDTH, whisper_rows

if TYPE_CHECKING:
    import tensorflow as tf

SAMPLES_PER_FRAME = SAMPLE_RATE // FPS  # 640, exactly
MEL_BINS, MEL_COLUMNS = 80, 16
FEATURE_DIMS = {"whisper": WIDTH, "phoneme": 29, "deepspeech": 29, "mel": MEL_BINS * MEL_COLUMNS}
KEPT_S = 20  # seconds of a sound that may be asked for again
KEPT_ROWS = 60 * FPS  # of features already found
CONTEXT_S = 5  # seconds before and after a block of a long sound that are heard with it
WINDOW_RADIUS = 2  # the generator hears five rows: the frame's own and two on either side


def extract(waveform: np.ndarray, name: str, num_frames: int | None = None) -> np.ndarray:
    """Audio features of a whole recording.

    waveform: (N,) float in [-1, 1], 16 kHz; video frame t at 25 fps lasts from sample 640·t to 640·(t+1).
    name: a key of `FEATURE_DIMS`. Returns (T, D) float32, T = ceil(N / 640), at least 1; with `num_frames`
    exactly that many rows, by dropping rows at the end or repeating the last one.
    Raises UserError for an unknown name and if the model cannot be had.
    """
    if name == "whisper":
        rows = whisper_rows(np.pad(_level(waveform), (0, -len(waveform) % SAMPLES_PER_FRAME)))
        features = rows.reshape(-1, 2, WIDTH).mean(axis=1)
    elif name == "phoneme":
        features = reduce_phonemes(phoneme_log_posteriors(_level(waveform)))
    elif name == "mel":
        features = _mel_rows(waveform)
    elif name == "deepspeech":
        features = _deepspeech_features(waveform)
    else:
        raise UserError(f"audio features: expected one of {', '.join(FEATURE_DIMS)}, found {name!r}")
    if num_frames is None:
        num_frames = count_frames(waveform)
    missing = max(0, num_frames - len(features))
    return np.pad(features, ((0, missing), (0, 0)), mode="edge")[:num_frames]


def count_frames(waveform: np.ndarray) -> int:
    """Video frames at 25 fps that a 16 kHz waveform (N,) spans: ceil(N / 640), at least 1."""
    return max(1, -(-len(waveform) // SAMPLES_PER_FRAME))


def windows(features: np.ndarray, indices: np.ndarray, radius: int = WINDOW_RADIUS) -> np.ndarray:
    """Audio windows of the frames `indices` (B,): features (T, D) -> (B, D, 2·radius + 1), columns t ± radius.

    Before the first row and after the last, that row is repeated; between two rows, for frames of other rates than
    25 per second, they are blended. The default radius of 2 gives the audio window of a frame.
    """
    offsets = np.arange(-radius, radius + 1)
    at = np.clip(np.asarray(indices)[:, None] + offsets, 0, len(features) - 1)
    below = np.floor(at).astype(int)
    found = features[below]
    if (at != below).any():
        share = (at - below).astype(features.dtype)[..., None]
        found = found + share * (features[np.minimum(below + 1, len(features) - 1)] - found)
    return found.transpose(0, 2, 1)


class Sound:
    """Audio features of a sound that is read as it goes on: of a long one only a minute is held.

    In silence, Whisper's are moved to where lips close (silence.py); elsewhere they are those of `extract`.

    Args:
        pieces: (n,) float in [-1, 1], 16 kHz, as data_processing.audio.read_audio gives them.
        name: a key of `FEATURE_DIMS`.
        block_s: seconds of which features are found at a time, each with CONTEXT_S before and after it. A sound
            that is no longer than one of these is heard in one, as `extract` hears it.
        after_s: seconds after a block, if fewer.
        level_s: seconds that are read at once, to know how loud the sound is; 0 to find out as it goes on.

    Raises:
        UserError: by `level_s`, what is wrong with the beginning of the sound.
    """

    def __init__(
        self,
        pieces: Iterator[np.ndarray],
        name: str,
        block_s: float = 60,
        after_s: float = CONTEXT_S,
        level_s: float = 0,
    ) -> None:
        self._pieces, self._name = pieces, name
        self._block, self._before, self._after = (
            SAMPLES_PER_FRAME * round(seconds * FPS) for seconds in (block_s, CONTEXT_S, after_s)
        )
        self._waveform = np.zeros(0, np.float32)  # from sample `_start` on, and what was read since
        self._new: list[np.ndarray] = []
        self._start = self._read = self._done = 0  # samples; features are known up to `_done`
        self._ended = False
        self._rows = np.zeros((0, FEATURE_DIMS[name]), np.float32)  # from row `_first` on
        self._first = 0
        while not self._ended and self._read < level_s * SAMPLE_RATE:
            self._take()
        self._close_mouth = None
        if name == "whisper":  # of others nobody knows
            self._close_mouth = MouthCloser(np.concatenate(self._new) if self._new else None)

    def left(self, time_s: float, most_s: float) -> float:
        """Seconds that the sound goes on after a time, at most `most_s`; it is read so far."""
        at = round(time_s * SAMPLE_RATE)
        while not self._ended and self._read < at + most_s * SAMPLE_RATE:
            self._take()
        self._forget(time_s - KEPT_S)
        return min(max(self._read - at, 0) / SAMPLE_RATE, most_s)

    def _forget(self, before_s: float) -> None:
        """Leave out whole blocks that nobody asked for, where nothing was drawn for long."""
        blocks = (round(min(before_s * SAMPLE_RATE, self._read)) - self._done) // self._block
        if blocks > 0:
            self._done += blocks * self._block
            self._rows, self._first = self._rows[:0], self._done // SAMPLES_PER_FRAME
            waveform = np.concatenate([self._waveform, *self._new])
            forgotten = max(0, self._done - self._before - self._start)
            self._waveform, self._start, self._new = waveform[forgotten:], self._start + forgotten, []

    def windows(self, times_s: np.ndarray) -> np.ndarray:
        """Audio windows (B, D, 5) around growing times (B,) in seconds."""
        at = np.round(times_s * FPS, 6)  # whole for frames at 25 per second
        while self._done < self._read or not self._ended:
            if self._done // SAMPLES_PER_FRAME > at.max() + WINDOW_RADIUS + 1:
                break
            self._hear()
        return windows(self._rows, at - self._first)

    def _take(self) -> None:
        piece = next(self._pieces, None)
        self._ended = piece is None
        if piece is not None:
            self._new.append(piece)
            self._read += len(piece)

    def _hear(self) -> None:
        """Find the features of one more block."""
        stop = self._done + self._block
        while not self._ended and self._read < stop + self._after:
            self._take()
        if self._ended and self._read <= stop + self._after:
            stop = self._read
        self._waveform, self._new = np.concatenate([self._waveform, *self._new]), []
        start = max(0, self._done - self._before)
        waveform = self._waveform[start - self._start : stop + self._after - self._start]
        heard = extract(waveform, self._name)
        if self._close_mouth:
            heard = self._close_mouth(heard, waveform)
        skipped = (self._done - start) // SAMPLES_PER_FRAME
        new = heard[skipped : skipped + max(1, -(-(stop - self._done) // SAMPLES_PER_FRAME))]
        kept = self._rows[-KEPT_ROWS:]
        self._rows = np.concatenate([kept, new])
        self._first = self._done // SAMPLES_PER_FRAME - len(kept)
        self._done = stop
        forgotten = max(0, stop - self._before - self._start)
        self._waveform, self._start = self._waveform[forgotten:], self._start + forgotten


def window(features: np.ndarray, t: int) -> np.ndarray:
    """Audio window of frame t: features (T, D) -> (D, 5), columns t−2 … t+2, edge rows repeated."""
    return windows(features, np.array([t]))[0]


# --- mel ----------------------------------------------------------------------------------------------------

MEL_PER_SECOND = 80


def mel_spectrogram(waveform: np.ndarray) -> np.ndarray:
    """The mel spectrogram of Wav2Lip: (N,) float in [-1, 1], 16 kHz -> (80, N // 200 + 1) float32 in [-4, 4]."""
    emphasised = lfilter([1, -0.97], [1], waveform)
    amplitudes = librosa.feature.melspectrogram(
        y=emphasised, sr=SAMPLE_RATE, n_fft=800, hop_length=200, n_mels=MEL_BINS, fmin=55, fmax=7600, power=1
    )
    decibels = 20 * np.log10(np.maximum(amplitudes, 1e-5)) - 20
    return np.clip(8 * (decibels + 100) / 100 - 4, -4, 4).astype(np.float32)


def _mel_rows(waveform: np.ndarray) -> np.ndarray:
    """(T, 80 · 16): the columns from int(3.2·t) on; silence after the end."""
    starts = np.arange(count_frames(waveform)) * MEL_PER_SECOND // FPS
    mel = np.pad(mel_spectrogram(waveform), ((0, 0), (0, MEL_COLUMNS)), constant_values=-4)
    return mel[:, starts[:, None] + np.arange(MEL_COLUMNS)].transpose(1, 0, 2).reshape(len(starts), -1)


# --- phoneme ------------------------------------------------------------------------------------------------

NUM_TOKENS = 191
BLANK = 190
SAMPLES_PER_ROW = 320  # the recogniser gives 50 rows a second: two a video frame

# The recogniser's squeeze-excitation and attention look at everything they are given at once, so no amount of
# context makes one piece of a long file exactly what it would be in another cut. Densely overlapping windows,
# blended by log-probability, make it nearly so: moving the grid by half a hop changes the features by 3 % of
# their standard deviation. Ten seconds is a usual utterance, as the recogniser was made for.
CHUNK_ROWS = 500
CHUNK_HOP_ROWS = 25
LOUD_RMS = 0.15  # what the loud video frames of a well-levelled speech recording measure
MAX_GAIN = 20.0  # a recording of nothing stays one
LOG_FLOOR = -20.0  # below this a log-probability is noise, and would rule the blend

# Sounds that look alike on the lips, as the recogniser's IPA tokens with their output indices. Its other
# outputs (word boundary, tones, stray marks) are one more class, the CTC blank the last.
PHONEME_GROUPS = {
    "p b": {"p": 35, "pʰ": 36, "p͈": 37, "b": 10, "ɓ": 82, "ʙ": 132, "ɸ": 112, "β": 172},
    "m": {"m": 31, "ɱ": 108},
    "f v": {"f": 17, "v": 49, "ʋ": 124},
    "w": {"w": 50, "wa": 51, "we": 52, "wi": 53, "wʌ": 54, "ɥ": 98, "ʷ": 137},
    "θ ð": {"θ": 173, "ð": 69},
    "t d": {"t": 41, "tʰ": 42, "t͈": 43, "d": 12, "ʈ": 121, "ɖ": 86, "ɗ": 87, "ɾ": 116, "ɽ": 115},
    "n": {"n": 32, "ñ": 70, "ɲ": 109},
    "l": {"l": 30, "ɫ": 103, "ɮ": 104, "ʎ": 126},
    "s z": {"s": 39, "s͈": 40, "z": 57, "ẑ": 177},
    "ʃ ʒ": {"ʃ": 120, "ʒ": 130, "t͡ʃ": 47, "d͡ʒ": 13, "ɕ": 85, "ʑ": 129, "ʂ": 119, "ʐ": 128}
    | {"t͡ɕ": 44, "t͡ɕʰ": 45, "t͡ɕ͈": 46},
    "r": {"ɹ": 113, "ɻ": 114, "r": 38, "ʀ": 117, "ʁ": 118},
    "j": {"j": 21, "ja": 22, "je": 23, "jo": 24, "ju": 25, "jʌ": 26, "ʝ": 133, "ʲ": 136},
    "k g ŋ": {"k": 27, "kʰ": 28, "k͈": 29, "g": 18, "ɡ": 95, "c": 11, "ɟ": 94, "ŋ": 75, "ɴ": 110},
    "h": {
        "h": 19,
        "ħ": 73,
        "ɦ": 99,
        "x": 55,
        "χ": 174,
        "ɣ": 96,
        "ɰ": 107,
        "ç": 67,
        "ʔ": 131,
        "ʰ": 134,
        "ʱ": 135,
    },
    "i": {"i": 20, "ĩ": 74, "ì": 68, "ǐ": 78},
    "ɪ": {"ɪ": 101, "ɪə": 102, "ɨ": 100, "ɘ": 88},
    "e": {"e": 14, "ẽ": 178, "eɪ": 16, "eə": 15},
    "ɛ": {"ɛ": 91},
    "æ": {"æ": 66},
    "a": {"a": 7, "ã": 63, "ä": 64, "à": 62, "å": 65, "ɐ": 79},
    "aɪ": {"aɪ": 8},
    "aʊ": {"aʊ": 9},
    "ɑ": {"ɑ": 80, "ɒ": 81},
    "ə ʌ": {"ə": 89, "ᵊ": 175, "ʌ": 125, "ɜ": 92, "ɤ": 97},
    "ɝ": {"ɝ": 93, "ɚ": 90, "˞": 142},
    "o ɔ": {"o": 33, "õ": 71, "oʊ": 34, "ɔ": 83, "ɔɪ": 84},
    "u ʊ": {"u": 48, "ũ": 77, "ʊ": 123, "ʉ": 122, "ɯ": 105, "ɯi": 106, "y": 56, "ʏ": 127}
    | {"ø": 72, "œ": 76, "ɵ": 111},
}


def _level(waveform: np.ndarray) -> np.ndarray:
    """The recording at the usual loudness of speech: the recogniser's answers change with the volume."""
    frames = np.pad(waveform, (0, -len(waveform) % SAMPLES_PER_FRAME)).reshape(-1, SAMPLES_PER_FRAME)
    loud = np.percentile(np.sqrt(np.square(frames).mean(axis=1)), 95) if len(frames) else 0.0
    return waveform * np.float32(min(MAX_GAIN, LOUD_RMS / max(loud, 1e-9)))


def phoneme_log_posteriors(waveform: np.ndarray) -> np.ndarray:
    """Log-probability of each of the 191 tokens, 50 times a second.

    waveform: (N,) float in [-1, 1], 16 kHz. Returns (2T, 191) float32, T = ceil(N / 640), at least 1; rows
    2t and 2t+1 belong to video frame t, row k is centred on sample 320·k; each row sums to 1 after exp.
    """
    num_rows = 2 * count_frames(waveform)
    padded = np.zeros(num_rows * SAMPLES_PER_ROW, np.float32)
    padded[: len(waveform)] = waveform

    log_sum = np.zeros((num_rows, NUM_TOKENS))
    weight_sum = np.zeros((num_rows, 1))
    last_start = max(0, num_rows - CHUNK_ROWS)
    for start in [*range(0, last_start, CHUNK_HOP_ROWS), last_start]:
        stop = min(start + CHUNK_ROWS, num_rows)
        chunk = padded[start * SAMPLES_PER_ROW : stop * SAMPLES_PER_ROW]
        log_probs = _recognise(chunk)[: stop - start]
        weight = np.hanning(stop - start + 2)[1:-1, None]
        log_sum[start:stop] += weight * np.maximum(log_probs, LOG_FLOOR)
        weight_sum[start:stop] += weight
    blended = log_sum / weight_sum
    return (blended - np.logaddexp.reduce(blended, axis=1, keepdims=True)).astype(np.float32)


def reduce_phonemes(log_posteriors: np.ndarray) -> np.ndarray:
    """Token log-probabilities (2T, 191) -> features (T, 29) float32 in [0, 1].

    Probabilities are summed over each class and averaged over the frame's two rows; a log-probability of 0
    becomes 1, one of −12 or less becomes 0. Columns: `PHONEME_GROUPS`, other tokens, blank.
    """
    groups = [list(tokens.values()) for tokens in PHONEME_GROUPS.values()]
    other = sorted(set(range(NUM_TOKENS)) - {BLANK}.union(*groups))
    pairs = np.asarray(log_posteriors, np.float64).reshape(-1, 2, NUM_TOKENS)
    columns = [
        np.logaddexp.reduce(pairs[:, :, group], axis=(1, 2)) - np.log(2) for group in [*groups, other, [BLANK]]
    ]
    return (1 + np.clip(np.stack(columns, axis=1), -12, 0) / 12).astype(np.float32)


def _recognise(waveform: np.ndarray) -> np.ndarray:
    inputs = {"waveform": waveform[None], "waveform_lengths": np.array([len(waveform)], np.int64)}
    return _recogniser().run(["log_probs"], inputs)[0][0]


@cache
def _recogniser() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # Data preparation runs one process a core, and one thread is far faster than real time already.
    options.intra_op_num_threads = 1
    path = str(weight_path("phoneme"))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


# --- DeepSpeech ---------------------------------------------------------------------------------------------

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


def _deepspeech_features(waveform: np.ndarray) -> np.ndarray:
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
