"""Other speech for adaptation: which window fits a frame, and what SyncNet is asked about."""

import numpy as np
import pytest
import torch
from torch import nn

from data_processing.av_sync import AVOffset
from data_processing.dataset import Clip
from models.dinet import DINet
from training import other_speech
from training.other_speech import Speech, fitting_windows, load_speech, sync_confidence


class _Stripes(nn.Module):
    """Draws stripes as strong as the mean of the audio window; its audio code is that mean."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def audio_encoder(self, windows: torch.Tensor) -> torch.Tensor:
        return windows.mean(dim=(1, 2))[:, None]

    mask = staticmethod(DINet.mask)

    def encode_references(self, references: torch.Tensor) -> None:
        assert references.shape == (1, 15, 52, 40)

    def generate(self, masked: torch.Tensor, references: None, windows: torch.Tensor) -> torch.Tensor:
        stripes = torch.arange(masked.shape[3]) % 2 - 0.5
        return 0.5 + stripes * self.audio_encoder(windows)[:, :, None, None].expand_as(masked)


def test_frames_without_fitting_audio_get_the_window_that_draws_them_best():
    strengths = np.linspace(0.05, 0.85, 9, dtype=np.float32)  # of the speech, constant around each candidate
    shown = np.array([0.1, 0.45, 0.8, 0.3, 0.6, 0.2, 0.7])
    stripes = np.arange(40) % 2 - 0.5
    frames = 0.3 + shown[:, None, None] * stripes + np.zeros((1, 52, 1))  # darker than drawn, which does not count
    images = np.repeat((255 * frames.clip(0, 1))[..., None], 3, axis=3).astype(np.uint8)
    clip = Clip("clip", "speaker", images, np.zeros((7, 1), np.float32), np.zeros((7, 68, 2), np.float32))
    speech = Speech(np.repeat(strengths, 5)[:, None], np.zeros((45, 1)))
    windows = fitting_windows(_Stripes(), speech, clip, np.arange(6), np.arange(5), "fp32")
    assert windows.shape == (7, 1, 5)
    assert (windows[6] == 0).all()  # a frame that is not used
    drawn = windows[:6].mean(axis=(1, 2))
    order = np.argsort(np.abs(frames.clip(0, 1)[:6].std(axis=(1, 2))))
    assert (np.diff(drawn[order]) >= 0).all()
    assert drawn[2] > drawn[1] > drawn[0]


class _Brightness(_Stripes):
    """Draws a frame as bright as the part of it that it sees."""

    def generate(self, masked: torch.Tensor, references: None, windows: torch.Tensor) -> torch.Tensor:
        return masked[..., :1, :1].expand_as(masked)


@pytest.mark.parametrize("num_frames", [40, 150])
def test_the_speech_drives_the_last_frames_forward_and_backward(num_frames, monkeypatch):
    images = (
        np.zeros((num_frames, 52, 40, 3), np.uint8) + np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    )
    clip = Clip("clip", "speaker", images, np.zeros((num_frames, 1)), np.zeros((num_frames, 68, 2)))
    speech = Speech(np.zeros((120, 1), np.float32), np.arange(120, dtype=np.float32)[:, None])
    asked = []
    monkeypatch.setattr(other_speech, "common_offset", lambda clips: asked.extend(clips) or AVOffset(0, 0.3))
    assert sync_confidence(_Brightness(), speech, clip, np.arange(5), "fp32") == 0.3
    ((mouths, features, start),) = asked
    forward = [*range(40), *range(38, -1, -1), *range(1, 22)] if num_frames == 40 else list(range(50, 150))
    assert mouths.shape == (100, 32, 32, 3)
    assert mouths[:, 5, 5, 0].tolist() == forward
    assert (start, features[:, 0].tolist()) == (0, list(range(100)))


def test_the_bundled_speech_has_a_row_for_each_frame():
    speech = load_speech("mel")
    assert len(speech.features) == len(speech.sync_features) == 172  # 6.85 s
