"""Audio features "whisper": rows of Whisper's encoder (Radford et al. 2022), 50 per second, in overlapping chunks.

Reads the weights of Whisper tiny as OpenAI publishes them or in CTranslate2's format. The network is in
models/whisper.py.
"""

import pickle
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from data_processing.media.audio_io import SAMPLE_RATE
from models.whisper import NUM_BLOCKS, NUM_MELS, WIDTH, WhisperEncoder
from utils.errors import WeightsError, error_reason
from utils.weights import weight_path

SAMPLES_PER_ROW = 320
WINDOW, HOP = 400, 160  # samples, of the log-mel spectrogram
# Whisper's position embedding makes its rows depend on their position in the input. Every row is therefore computed
# in four overlapping chunks of ten seconds, at four positions, and averaged, to reduce this dependence.
CHUNK_ROWS = 500
CHUNK_HOP_ROWS = 125
# Of live audio, in one chunk of a few seconds at these positions, in a sixth of the time. With one position only,
# the features differ twice as much from those of a file.
LIVE_STARTS = (0, CHUNK_HOP_ROWS, 2 * CHUNK_HOP_ROWS)


def whisper_rows(waveform: np.ndarray) -> np.ndarray:
    """Whisper's encoder outputs for a waveform of any length.

    Args:
        waveform: (N,) float in [-1, 1], 16 kHz.

    Returns:
        (ceil(N / 320), 384) float32, at least one row; row k describes the audio from sample 320·k on.

    Raises:
        WeightsError: the weights cannot be obtained or are not valid.
    """
    num_rows = max(1, -(-len(waveform) // SAMPLES_PER_ROW))
    lead = CHUNK_ROWS - CHUNK_HOP_ROWS  # rows of silence, so that the first rows too are in four chunks
    starts = range(0, lead + num_rows, CHUNK_HOP_ROWS)
    padded = np.zeros((starts[-1] + CHUNK_ROWS) * SAMPLES_PER_ROW, np.float32)
    padded[lead * SAMPLES_PER_ROW :][: len(waveform)] = waveform
    mel = log_mel(padded)
    weight = torch.hann_window(CHUNK_ROWS)[:, None]
    total, weights = torch.zeros(starts[-1] + CHUNK_ROWS, WIDTH), torch.zeros(starts[-1] + CHUNK_ROWS, 1)
    for start in starts:
        rows = slice(start, start + CHUNK_ROWS)
        total[rows] += weight * _encode(mel[:, 2 * start : 2 * (start + CHUNK_ROWS)])
        weights[rows] += weight
    return (total / weights)[lead : lead + num_rows].numpy()


def live_whisper_rows(waveform: np.ndarray) -> np.ndarray:
    """A faster approximation of `whisper_rows`, of at most 10 s: waveform (N,) -> (ceil(N / 320), 384) float32."""
    rows = _encode(log_mel(np.pad(waveform, (0, -len(waveform) % SAMPLES_PER_ROW))), LIVE_STARTS)
    return rows.numpy()


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Whisper's input: (N,) float in [-1, 1], 16 kHz, N a multiple of 160 -> (80, N / 160) float32."""
    samples = torch.from_numpy(waveform).double()  # single precision is off by 1e-4 beside loud frequencies
    window = torch.hann_window(WINDOW, dtype=torch.float64)
    spectrum = torch.stft(samples, WINDOW, HOP, window=window, return_complex=True)[:, :-1]
    logs = (torch.from_numpy(mel_filters()) @ spectrum.abs().square()).clamp(min=1e-10).log10()
    return ((logs.clamp(min=logs.max() - 8) + 4) / 4).float().numpy()


@cache
def mel_filters() -> np.ndarray:
    """(80, 201): the share of each frequency of the spectrum in each mel band, as librosa.filters.mel gives it.

    Triangles of equal area, between corners that are equally far apart on Slaney's mel scale: linear up to 1 kHz,
    logarithmic above.
    """
    nyquist = SAMPLE_RATE / 2
    mels = np.linspace(0, 15 + 27 * np.log(nyquist / 1000) / np.log(6.4), NUM_MELS + 2)
    corners = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))[:, None]  # Hz
    frequencies = np.linspace(0, nyquist, WINDOW // 2 + 1)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (frequencies - left) / (centre - left), (right - frequencies) / (right - centre)
    return np.minimum(rising, falling).clip(min=0) * 2 / (right - left)


def load_encoder(path: str | Path) -> WhisperEncoder:
    """Load the encoder of a Whisper tiny model, frozen: OpenAI's (.pt), or one in CTranslate2's format (.bin).

    Raises:
        WeightsError: the file cannot be read or is not such a model.
    """
    path = Path(path)
    is_openai = path.suffix == ".pt"
    try:
        encoder = WhisperEncoder()
        if is_openai:
            encoder.load_state_dict(_openai_tensors(path))
        else:
            stored = _read_ctranslate2(path.read_bytes())
            encoder.load_state_dict(
                {ours: torch.from_numpy(stored[name].astype(np.float32)) for ours, name in _tensor_names().items()}
            )
    except (
        *(OSError, EOFError, struct.error, pickle.UnpicklingError),
        *(KeyError, TypeError, ValueError, RuntimeError, UnicodeDecodeError),
    ) as error:
        lines = f"no tensor {error}" if isinstance(error, KeyError) else error_reason(error) or type(error).__name__
        kind = "Whisper tiny" if is_openai else "Whisper tiny in CTranslate2's format"
        raise WeightsError(f"{path}: not a valid model of {kind}: {lines.splitlines()[0]}", path=path) from error
    return encoder.eval().requires_grad_(False)


def _openai_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of `WhisperEncoder` from OpenAI's file."""
    stored = torch.load(path, map_location="cpu", weights_only=True)["model_state_dict"]
    parts = {
        "self_attn.out_proj": "attn.out",
        "linear1": "mlp.0",
        "linear2": "mlp.2",
        "norm1": "attn_ln",
        "norm2": "mlp_ln",
    }
    names = {"conv1": "conv1", "conv2": "conv2"} | {
        f"blocks.{number}.{ours}": f"blocks.{number}.{theirs}"
        for number in range(NUM_BLOCKS)
        for ours, theirs in parts.items()
    }
    tensors = {
        f"{ours}.{kind}": stored[f"encoder.{theirs}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    for number in range(NUM_BLOCKS):
        ours, theirs = f"blocks.{number}.self_attn.in_proj_", f"encoder.blocks.{number}.attn."
        tensors[f"{ours}weight"] = torch.cat(
            [stored[f"{theirs}{part}.weight"] for part in ("query", "key", "value")]
        )
        query, value = stored[f"{theirs}query.bias"], stored[f"{theirs}value.bias"]
        tensors[f"{ours}bias"] = torch.cat([query, torch.zeros_like(query), value])  # keys have none
    return tensors


def _tensor_names() -> dict[str, str]:
    """Tensor names of `WhisperEncoder` -> names in the file."""
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
    """The variables of a model.bin (format 6) by name.

    After a header, the file stores name, shape, type and values of each variable.
    """
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
        raise ValueError(f"expected format 6, found {version}")
    text()  # kind of model
    take("I")  # revision
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
def _encode(mel: np.ndarray, starts: Sequence[int] = (0,)) -> torch.Tensor:
    """(80, 2L) -> (L, 384), the mean over positions of the first row."""
    return _encoder()(torch.from_numpy(mel)[None], starts).mean(dim=0)
