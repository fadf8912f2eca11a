"""The encoder of Whisper (Radford et al. 2022), as far as it serves the lips: 16 kHz sound -> 50 rows a second.

Only the first blocks are here: the last ones turn what was pronounced into what was meant. On held-out people the
third block's output explains more of the lips than any other's (checkpoints/README.md).
"""

import struct
from functools import cache
from pathlib import Path

import librosa
import numpy as np
import torch

from data_processing.media.audio_io import SAMPLE_RATE
from models.whisper import NUM_BLOCKS, NUM_MELS, WIDTH, WhisperEncoder
from utils.errors import UserError
from utils.weights import weight_path

SAMPLES_PER_ROW = 320
# Whisper knows where in the 30 seconds a sound is, and tells. Every sound is therefore heard in four pieces of ten
# seconds, at four places in them, and their rows are averaged: features that depend on the sound, less on when.
PIECE_ROWS = 500
HOP_ROWS = 125


def whisper_rows(waveform: np.ndarray) -> np.ndarray:
    """(N,) float in [-1, 1], 16 kHz -> (ceil(N / 320), 384) float32, row k about the sound from sample 320·k on.

    Raises:
        UserError: the weights cannot be had.
    """
    num_rows = max(1, -(-len(waveform) // SAMPLES_PER_ROW))
    lead = PIECE_ROWS - HOP_ROWS  # silence, so that the first second too is heard in all places
    starts = range(0, lead + num_rows, HOP_ROWS)
    silence = np.zeros((starts[-1] + PIECE_ROWS) * SAMPLES_PER_ROW, np.float32)
    silence[lead * SAMPLES_PER_ROW :][: len(waveform)] = waveform
    mel = log_mel(silence)
    weight = torch.hann_window(PIECE_ROWS)[:, None]
    total, weights = torch.zeros(starts[-1] + PIECE_ROWS, WIDTH), torch.zeros(starts[-1] + PIECE_ROWS, 1)
    for start in starts:
        rows = slice(start, start + PIECE_ROWS)
        total[rows] += weight * _encode(mel[:, 2 * start : 2 * (start + PIECE_ROWS)])
        weights[rows] += weight
    return (total / weights)[lead : lead + num_rows].numpy()


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Whisper's input: (N,) float in [-1, 1], 16 kHz, N a multiple of 160 -> (80, N / 160) float32."""
    power = librosa.feature.melspectrogram(
        y=waveform, sr=SAMPLE_RATE, n_fft=400, hop_length=160, n_mels=NUM_MELS, pad_mode="reflect"
    )
    logs = np.log10(np.maximum(power[:, :-1], 1e-10))
    return ((np.maximum(logs, logs.max() - 8) + 4) / 4).astype(np.float32)


def load_encoder(path: str | Path) -> WhisperEncoder:
    """Read the encoder out of a Whisper tiny model in CTranslate2's format.

    Raises:
        UserError: the file is none.
    """
    try:
        stored = _read_ctranslate2(Path(path).read_bytes())
        encoder = WhisperEncoder()
        encoder.load_state_dict(
            {ours: torch.from_numpy(stored[theirs].astype(np.float32)) for ours, theirs in _names().items()}
        )
    except (OSError, struct.error, KeyError, ValueError, RuntimeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected Whisper tiny in CTranslate2's format, found another file") from error
    return encoder.eval().requires_grad_(False)


def _names() -> dict[str, str]:
    """Our tensors' names -> those in the file."""
    parts = {
        "self_attn.in_proj_": "self_attention/linear_0/",
        "self_attn.out_proj.": "self_attention/linear_1/",
        "linear1.": "ffn/linear_0/",
        "linear2.": "ffn/linear_1/",
        "norm1.": "self_attention/layer_norm/",
        "norm2.": "ffn/layer_norm/",
    }
    names = {
        f"{conv}.{kind}": f"encoder/{conv}/{kind}" for conv in ("conv1", "conv2") for kind in ("weight", "bias")
    }
    for number in range(NUM_BLOCKS):
        for ours, theirs in parts.items():
            kinds = ("gamma", "beta") if "norm" in ours else ("weight", "bias")
            for kind, stored in zip(("weight", "bias"), kinds, strict=True):
                names[f"blocks.{number}.{ours}{kind}"] = f"encoder/layer_{number}/{theirs}{stored}"
    return names


def _read_ctranslate2(content: bytes) -> dict[str, np.ndarray]:
    """The variables of a model.bin (format 6) by name: after a header, name, shape, type and values of each."""
    position = 0

    def take(form: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(f"<{form}", content, position)
        position += struct.calcsize(f"<{form}")
        return value

    def text() -> str:
        nonlocal position
        length = take("H")
        position += length
        return content[position - length : position - 1].decode()

    version = take("I")
    if version != 6:
        raise ValueError(f"version {version}")
    text()  # what kind of model
    take("I")  # its revision
    types = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
    variables = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        dtype = np.dtype(types[take("B")])
        size = take("I")
        variables[name] = np.frombuffer(content, dtype, size // dtype.itemsize, position).reshape(shape)
        position += size
    return variables


@cache
def _encoder() -> WhisperEncoder:
    return load_encoder(weight_path("whisper"))


@torch.inference_mode()
def _encode(mel: np.ndarray) -> torch.Tensor:
    """(80, 2L) -> (L, 384)."""
    return _encoder()(torch.from_numpy(mel)[None])[0]
