"""Audio features "phoneme": probabilities of phonemes, grouped by their appearance on the lips."""

from functools import cache

import numpy as np
import onnxruntime

from data_processing.audio.framing import count_frames
from utils.weights import weight_path

NUM_TOKENS = 191
BLANK = 190
SAMPLES_PER_ROW = 320  # the recogniser outputs 50 rows per second, two per video frame
# The recogniser's squeeze-excitation and attention depend on their whole input, so the output for a chunk of a long
# file depends on where the chunk starts and ends, whatever its context. Densely overlapping chunks, averaged as
# log-probabilities, nearly remove this: shifting the grid by half a hop changes the features by 3 % of their
# standard deviation. Ten seconds is a typical utterance, for which the recogniser was trained.
CHUNK_ROWS = 500
CHUNK_HOP_ROWS = 25
LOG_FLOOR = -20.0  # lower log-probabilities are noise, and would dominate the average
# Phonemes with the same appearance on the lips: the recogniser's IPA tokens and their output indices. The remaining
# outputs (word boundary, tones, stray marks) form one more class; the CTC blank is the last.
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


def phoneme_log_posteriors(waveform: np.ndarray) -> np.ndarray:
    """Log-probabilities of the recogniser's 191 tokens, 50 rows per second.

    Args:
        waveform: (N,) float in [-1, 1], 16 kHz.

    Returns:
        (2T, 191) float32, T = ceil(N / 640), at least 1. Rows 2t and 2t+1 belong to video frame t; row k is centred
        on sample 320·k. The exponentials of each row sum to 1.

    Raises:
        WeightsError: the weights cannot be obtained.
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

    Probabilities are summed over each class and averaged over the two rows of a frame. Their logarithms are mapped
    linearly: 0 to 1, −12 and less to 0. Columns: `PHONEME_GROUPS`, other tokens, blank.
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
    # Data preparation runs one process per core, and one thread is much faster than real time.
    options.intra_op_num_threads = 1
    path = str(weight_path("phoneme"))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
