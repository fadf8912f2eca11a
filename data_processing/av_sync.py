"""How late the sound of a video is against its picture: the bundled SyncNet's answer, with its confidence."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from data_processing.audio.features import extract_features
from data_processing.audio.framing import audio_windows
from data_processing.face.crop import FaceCrop
from data_processing.media.video_reader import FPS, read_frames
from models.checkpoint import SYNCNET, LoadedModel, load_model
from models.crop_layout import mouth_box
from models.syncnet import CLIP_LENGTH, SYNC_WINDOW, SyncNet
from utils.bundled import BUNDLED_SYNCNET

MAX_SHIFT = 15  # frames to either side, 0.6 s: a sound further off belongs to something else
MAX_FRAMES = 1000  # of one video; more make the answer no surer


@dataclass(frozen=True)
class AVOffset:
    """audio_delay_ms: how late the sound is, negative if early; confidence: SyncNet's, see `offset_and_confidence`."""

    audio_delay_ms: float
    confidence: float


def measure_offset(
    video: Path, shots: list[tuple[int, np.ndarray, float]], waveform: np.ndarray, syncnet: Path = BUNDLED_SYNCNET
) -> AVOffset:
    """Measure one video, whose shots all share one offset.

    Args:
        video: the file.
        shots: of each its first frame, its landmarks (T, 68, 2) and its crop radius in pixels; T 5 or more.
        waveform: (N,) the video's sound.

    Raises:
        UserError: SyncNet or the model of its audio features cannot be had, or the video not be read.
    """
    judge = _judge(syncnet)
    features = extract_features(waveform, judge.audio_features)
    scores, left = [], MAX_FRAMES
    for start, points, radius_px in shots:
        points = points[:left]
        if len(points) < CLIP_LENGTH:
            break
        left -= len(points)
        mouths = _mouths(video, start, points, radius_px, judge.mouth_size)
        moments, codes = encode_windows(judge.model, mouths, stride=2)
        scores.append(shift_scores(judge.model, moments + start, codes, features, MAX_SHIFT))
    return offset_from_scores(np.concatenate(scores, axis=1))


def offset_from_scores(scores: np.ndarray) -> AVOffset:
    """From `shift_scores` (2K + 1, moments): the peak of the mean score, by a parabola to parts of a frame."""
    shift, confidence = offset_and_confidence(scores)
    counts = (~np.isnan(scores)).sum(axis=1)
    means, peak = np.nansum(scores, axis=1) / np.where(counts, counts, np.nan), shift + len(scores) // 2
    if 0 < peak < len(means) - 1 and not np.isnan(means[peak - 1 : peak + 2]).any():
        before, top, after = means[peak - 1 : peak + 2]
        if before + after < 2 * top:
            shift += (before - after) / (2 * (before + after - 2 * top))
    return AVOffset(1000 * shift / FPS, confidence)


@cache
def _judge(path: Path) -> LoadedModel:
    return load_model(path, kinds=SYNCNET)


def _mouths(video: Path, start: int, points: np.ndarray, radius_px: float, mouth_size: int) -> np.ndarray:
    """(T, S, S, 3) uint8 RGB."""
    rows, columns = mouth_box(mouth_size)
    frames = read_frames(video, start, start + len(points))
    crops = (
        FaceCrop.from_landmarks(found, radius_px, mouth_size).extract(frame)
        for frame, found in zip(frames, points, strict=True)
    )
    return np.stack([crop[rows, columns] for crop in crops])


@torch.no_grad()
def encode_windows(syncnet: SyncNet, mouths: np.ndarray, stride: int = 1) -> tuple[np.ndarray, torch.Tensor]:
    """Encode every `stride`-th moment of a clip: five frames each.

    Args:
        syncnet: in evaluation mode.
        mouths: (T, S, S, 3) uint8 RGB, consecutive frames, five or more.

    Returns:
        The middle frames of the moments (M,), and their codes (M, 128, S/32, S/32).
    """
    device = next(syncnet.parameters()).device
    half = CLIP_LENGTH // 2
    moments = np.arange(half, len(mouths) - half, stride)
    codes = []
    for start in range(0, len(moments), 32):
        frames = mouths[moments[start : start + 32, None] + np.arange(-half, half + 1)]
        images = torch.from_numpy(frames).to(device).permute(0, 1, 4, 2, 3).flatten(1, 2)
        codes.append(syncnet.face_encoder(images.float() / 255))
    return moments, torch.cat(codes)


@torch.no_grad()
def window_scores(syncnet: SyncNet, codes: torch.Tensor, features: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """Scores (M,), means over patches, of encoded moments with the sound at `heard` (M,) in features (T, D)."""
    sound = torch.from_numpy(audio_windows(features, heard, SYNC_WINDOW // 2)).to(codes.device)
    return syncnet.merge(codes, syncnet.audio_encoder(sound)).mean(dim=(1, 2, 3)).cpu().numpy()


def shift_scores(
    syncnet: SyncNet, moments: np.ndarray, codes: torch.Tensor, features: np.ndarray, max_shift: int
) -> np.ndarray:
    """Scores (2·max_shift + 1, M) of a clip's moments with its sound moved by −max_shift … max_shift frames.

    Entry (max_shift + d, i) compares moment i with the sound d frames later; NaN where the clip has none. A clip in
    sync has its highest mean in the middle row.
    """
    scores = np.full((2 * max_shift + 1, len(moments)), np.nan, np.float32)
    half = CLIP_LENGTH // 2
    for row, shift in enumerate(range(-max_shift, max_shift + 1)):
        heard = moments + shift
        there = (heard >= half) & (heard < len(features) - half)
        if there.any():
            scores[row, there] = window_scores(syncnet, codes[torch.from_numpy(there)], features, heard[there])
    return scores


def offset_and_confidence(scores: np.ndarray) -> tuple[int, float]:
    """How many frames late the sound is, and how sure that is, from `shift_scores` (2K + 1, moments).

    The offset is the shift of the highest mean score, the confidence how far that stands above the median shift's.
    """
    counts = (~np.isnan(scores)).sum(axis=1)
    means = np.where(counts, np.nansum(scores, axis=1) / np.maximum(counts, 1), np.nan)
    return int(np.nanargmax(means)) - len(means) // 2, float(np.nanmax(means) - np.nanmedian(means))
