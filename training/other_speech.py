"""What adaptation does with speech of another voice, the bundled example: a check that the lips still follow it,
and audio windows for frames whose own audio does not fit."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from data_processing.audio.features import extract_features
from data_processing.audio.framing import audio_windows
from data_processing.av_sync import common_offset, load_syncnet
from data_processing.dataset import Clip
from data_processing.media.audio_io import load_audio
from evaluation.clips import mouth_boxes
from models.crop_layout import lips_box, mouth_size_of
from models.dinet import DINet
from training.steps import autocast
from utils.bundled import EXAMPLE_AUDIO

CANDIDATES = 8  # audio windows among which that of a frame without fitting audio is chosen
SYNC_FRAMES = 100  # of the speech, 4 s, that drive a speaker to measure the sync
BATCH_SIZE = 16  # frames generated at a time


@dataclass(frozen=True)
class Speech:
    """Audio features of the bundled speech, 25 rows per second.

    features: (T, D), of the kind that the generator takes.
    sync_features: (T, D'), of the kind that the bundled SyncNet takes.
    """

    features: np.ndarray
    sync_features: np.ndarray


def load_speech(audio_features: str) -> Speech:
    """The bundled speech, for a generator driven by this kind of audio features.

    Raises:
        WeightsError: the weights of the audio features are missing.
    """
    waveform = load_audio(EXAMPLE_AUDIO)
    kinds = (audio_features, load_syncnet().audio_features)
    return Speech(*(extract_features(waveform, kind) for kind in kinds))


@torch.no_grad()
def sync_confidence(generator: DINet, speech: Speech, clip: Clip, references: np.ndarray, precision: str) -> float:
    """Confidence of the bundled SyncNet that the lips of a speaker follow the bundled speech.

    SYNC_FRAMES of the speech drive the last frames of the clip, a shorter clip played forward and backward.

    Args:
        generator: in evaluation mode.
        clip: two or more frames of the speaker.
        references: (N,) indices of reference frames.
        precision: bf16 or fp32.
    """
    device = next(generator.parameters()).device
    length = min(SYNC_FRAMES, len(speech.features))
    last = min(len(clip.frames), length) - 1
    frames = len(clip.frames) - 1 - last + np.abs((np.arange(length) + last) % (2 * last) - last)
    windows = torch.from_numpy(audio_windows(speech.features, np.arange(length)))
    size = load_syncnet().mouth_size
    mouths = []
    with autocast(precision, device):
        encoded = generator.encode_references(_images(clip, references, device).flatten(0, 1)[None])
    for start in range(0, length, BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        with autocast(precision, device):
            masked = generator.mask(_images(clip, frames[part], device))
            output = generator.generate(masked, encoded, windows[part].to(device)).float()
        levels = (mouth_boxes(output) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        mouths += [cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in levels]
    return common_offset([(np.stack(mouths), speech.sync_features[:length], 0)]).confidence


@torch.no_grad()
def fitting_windows(
    generator: DINet, speech: Speech, clip: Clip, used: np.ndarray, references: np.ndarray, precision: str
) -> np.ndarray:
    """For each frame in `used`, the audio window of other speech with which its lips are drawn best.

    CANDIDATES windows are tried, far from each other in the code of the audio encoder. The mean colour of the lips
    is ignored, since it depends little on the speech.

    Args:
        generator: in evaluation mode.
        used: indices of frames of the clip.
        references: (N,) indices of reference frames.
        precision: bf16 or fp32.

    Returns:
        (T, D, 5), zeros for other frames.
    """
    device = next(generator.parameters()).device
    candidates = torch.from_numpy(audio_windows(speech.features, np.arange(len(speech.features)))).to(device)
    codes = generator.audio_encoder(candidates)
    chosen = [int((codes - codes.mean(dim=0)).norm(dim=1).argmin())]
    while len(chosen) < CANDIDATES:
        chosen.append(int(torch.cdist(codes, codes[chosen]).amin(dim=1).argmax()))
    candidates = candidates[chosen]
    with autocast(precision, device):
        encoded = generator.encode_references(_images(clip, references, device).flatten(0, 1)[None])
    rows, columns = lips_box(mouth_size_of(clip.frames.shape[1]))
    windows = np.zeros((len(clip.frames), *candidates.shape[1:]), np.float32)
    for index in used:
        target = _images(clip, np.array([index]), device).expand(CANDIDATES, -1, -1, -1)
        with autocast(precision, device):
            output = generator.generate(generator.mask(target), encoded, candidates).float()
        difference = (output - target)[..., rows, columns]
        errors = (difference - difference.mean(dim=(2, 3), keepdim=True)).abs().mean(dim=(1, 2, 3))
        windows[index] = candidates[int(errors.argmin())].cpu().numpy()
    return windows


def _images(clip: Clip, indices: np.ndarray, device: torch.device) -> torch.Tensor:
    """Frames (B,) of a clip: (B, 3, H, W), RGB in [0, 1]."""
    return torch.from_numpy(clip.frames[indices]).to(device).permute(0, 3, 1, 2).float() / 255
