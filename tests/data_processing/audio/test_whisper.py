"""Whisper features against OpenAI's code with the same weights and audio (tests/data/whisper_tiny.npz)."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import torch

from data_processing.audio.features import extract_features
from data_processing.audio.whisper import CHUNK_HOP_ROWS, load_encoder, log_mel, mel_filters, whisper_rows
from models.whisper import MAX_ROWS
from utils.errors import WeightsError
from utils.weights import weight_path

GOLDEN = np.load(Path(__file__).resolve().parents[2] / "data" / "whisper_tiny.npz")
WAVEFORM = GOLDEN["waveform"].astype(np.float32) / 32768  # two seconds


def padded(waveform: np.ndarray) -> np.ndarray:
    """Padded to the 30 seconds of Whisper's input."""
    return np.pad(waveform, (0, 320 * MAX_ROWS - len(waveform)))


def test_log_mel_matches_openai():
    mel = log_mel(padded(WAVEFORM))
    assert mel.shape == (80, 3000) and mel.dtype == np.float32
    np.testing.assert_allclose(mel[:, :200:4], GOLDEN["log_mel"], atol=1e-4)


def test_log_mel_matches_librosa():
    """Also of weak frequencies beside loud ones, where librosa needs double precision too."""
    np.testing.assert_allclose(mel_filters(), librosa.filters.mel(sr=16000, n_fft=400, n_mels=80), atol=1e-8)
    times = np.arange(32000) / 16000
    for waveform in (WAVEFORM, 0.9 * np.sin(2 * np.pi * 300 * times).astype(np.float32) + 1e-5 * WAVEFORM):
        power = librosa.feature.melspectrogram(
            y=waveform.astype(float), sr=16000, n_fft=400, hop_length=160, n_mels=80, pad_mode="reflect"
        )[:, :-1]
        logs = np.log10(np.maximum(power, 1e-10))
        np.testing.assert_allclose(log_mel(waveform), (np.maximum(logs, logs.max() - 8) + 4) / 4, atol=1e-5)


def test_encoder_matches_openai():
    encoder = load_encoder(weight_path("whisper"))
    rows = encoder(torch.from_numpy(log_mel(padded(WAVEFORM)))[None])[0]
    assert rows.shape == (MAX_ROWS, 384)
    np.testing.assert_allclose(rows[:100:5], GOLDEN["rows"], atol=1e-3)


@pytest.mark.parametrize("samples", [0, 1, 320, 321])
def test_short_waveforms(samples):
    rows = whisper_rows(np.zeros(samples, np.float32))
    assert rows.shape == (max(1, -(-samples // 320)), 384) and np.isfinite(rows).all()


@pytest.mark.slow
def test_rows_are_nearly_independent_of_the_position():
    alone = whisper_rows(WAVEFORM)
    later = whisper_rows(np.concatenate([np.zeros(320 * 333, np.float32), WAVEFORM]))  # 6.66 s
    assert len(later) == 333 + len(alone)
    assert np.corrcoef(alone.ravel(), later[333:].ravel())[0, 1] > 0.98
    hop = whisper_rows(np.concatenate([np.zeros(320 * CHUNK_HOP_ROWS, np.float32), WAVEFORM]))
    np.testing.assert_allclose(hop[CHUNK_HOP_ROWS:], alone, atol=1e-3)


def test_features_have_one_row_per_frame():
    features = extract_features(WAVEFORM[:16001], "whisper")
    assert features.shape == (26, 384) and features.dtype == np.float32
    assert extract_features(WAVEFORM[:16000], "whisper", 30).shape == (30, 384)


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100, b"\x06\x00\x00\x00\x05\x00ab"])
def test_invalid_files_are_rejected(tmp_path, content):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"model\.bin: not a valid model of Whisper tiny in CTranslate2's format: ."
    ) as error:
        load_encoder(path)
    assert error.value.path == path and "\n" not in str(error.value)


def test_openai_file_is_read(tmp_path):
    """Made from the other format, with the names and types of OpenAI's code."""
    encoder = load_encoder(weight_path("whisper"))
    stored = {}
    for name, tensor in encoder.state_dict().items():
        name = (
            name.replace("self_attn.out_proj", "attn.out").replace("linear1", "mlp.0").replace("linear2", "mlp.2")
        )
        name = name.replace("norm1", "attn_ln").replace("norm2", "mlp_ln")
        if "in_proj_" in name:
            start, kind = name.split("self_attn.in_proj_")
            for part, piece in zip(("query", "key", "value"), tensor.half().chunk(3), strict=True):
                stored[f"encoder.{start}attn.{part}.{kind}"] = piece.clone()
        else:
            stored[f"encoder.{name}"] = tensor.half()
    for number in range(3):
        assert not stored.pop(f"encoder.blocks.{number}.attn.key.bias").any()
    path = tmp_path / "tiny.en.pt"
    torch.save({"dims": {"n_mels": 80}, "model_state_dict": stored}, path)
    for name, tensor in load_encoder(path).state_dict().items():
        torch.testing.assert_close(tensor, encoder.state_dict()[name], atol=1e-6, rtol=1e-3)
    stored.popitem()
    torch.save({"model_state_dict": stored}, path)
    with pytest.raises(WeightsError, match=r"tiny\.en\.pt: not a valid model of Whisper tiny: no tensor 'encoder"):
        load_encoder(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match=r"not a valid model of Whisper tiny: ."):
        load_encoder(path)


def test_all_tensors_are_loaded():
    encoder = load_encoder(weight_path("whisper"))
    fresh = type(encoder)().state_dict()
    for name, tensor in encoder.state_dict().items():
        assert name == "positions" or not torch.equal(tensor, fresh[name]), name
