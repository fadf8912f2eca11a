"""The A/V offset of a video, and how certain it is (sync confidence), measured with a SyncNet.

SyncNet scores a window of five frames against a window of audio: about 1 if they match, about 0 if not. The A/V
offset is the shift of the audio with the highest mean score.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from data_processing.audio.features import extract_features
from data_processing.audio.framing import audio_windows
from data_processing.face.crop import FaceCrop
from data_processing.face.radius import crop_radii
from data_processing.media.video_reader import FPS, read_frames
from models.checkpoint import SYNCNET, LoadedModel, load_model
from models.crop_layout import mouth_box
from models.syncnet import CLIP_LENGTH, SYNC_WINDOW, SyncNet
from utils.bundled import BUNDLED_SYNCNET

MAX_SHIFT = 15  # frames in either direction, 0.6 s; audio with a larger offset is taken as mismatched
MAX_FRAMES = 1000  # of one video; more do not make the result more certain
BATCH_SIZE = 32  # windows encoded at a time
HALF = CLIP_LENGTH // 2  # frames of a window on either side of its middle frame


@dataclass(frozen=True)
class AVOffset:
    """audio_delay_ms: positive if the audio lags the video; confidence: see `offset_and_confidence`."""

    audio_delay_ms: float
    confidence: float


def measure_offset(video: Path, shots: list[tuple[int, np.ndarray]], waveform: np.ndarray) -> AVOffset:
    """Measure the A/V offset of a video, assuming that all its shots have the same one.

    Args:
        video: the video file.
        shots: for each shot its first frame and its landmarks (T, 68, 2) in source pixels; T is 5 or more.
        waveform: (N,) audio of the video, mono, 16 kHz.

    Raises:
        WeightsError: the weights of its audio features are missing.
        MediaError: the video cannot be read.
    """
    syncnet = load_syncnet()
    features = extract_features(waveform, syncnet.audio_features)

    def clips() -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        num_left = MAX_FRAMES
        for start, points in shots:
            points = points[:num_left]
            if len(points) < CLIP_LENGTH:
                return
            num_left -= len(points)
            yield _read_mouths(video, start, points, syncnet.mouth_size), features, start

    return common_offset(clips())


def common_offset(clips: Iterable[tuple[np.ndarray, np.ndarray, int]]) -> AVOffset:
    """The A/V offset that clips have in common, by the bundled SyncNet.

    Args:
        clips: one or more of mouth boxes (T, S, S, 3) uint8 RGB of SyncNet's mouth size, T at least 5, audio
            features (T', D), and the row of the features that belongs to the first frame.
    """
    model = load_syncnet().model
    scores = []
    for mouths, features, start in clips:
        middles, codes = encode_windows(model, mouths, stride=2)
        scores.append(shift_scores(model, middles + start, codes, features, MAX_SHIFT))
    return offset_from_scores(np.concatenate(scores, axis=1))


def offset_from_scores(scores: np.ndarray) -> AVOffset:
    """A/V offset to a fraction of a frame, from `shift_scores` (2K + 1, M).

    It is the peak of the parabola through the highest mean score and its two neighbours.
    """
    shift, confidence = offset_and_confidence(scores)
    counts = (~np.isnan(scores)).sum(axis=1)
    means, peak = np.nansum(scores, axis=1) / np.where(counts, counts, np.nan), shift + len(scores) // 2
    if 0 < peak < len(means) - 1 and not np.isnan(means[peak - 1 : peak + 2]).any():
        before, top, after = means[peak - 1 : peak + 2]
        if before + after < 2 * top:
            shift += (before - after) / (2 * (before + after - 2 * top))
    return AVOffset(1000 * shift / FPS, confidence)


@cache
def load_syncnet() -> LoadedModel:
    """The bundled SyncNet, on the CPU."""
    return load_model(BUNDLED_SYNCNET, kinds=SYNCNET)


def _read_mouths(video: Path, start: int, points: np.ndarray, mouth_size: int) -> np.ndarray:
    """Mouth boxes of the frames from `start` on, one per row of `points`: (T, S, S, 3) uint8 RGB."""
    rows, columns = mouth_box(mouth_size)
    frames = read_frames(video, start, start + len(points))
    crops = (
        FaceCrop.from_landmarks(frame_points, radius_px, mouth_size).extract(frame)
        for frame, frame_points, radius_px in zip(frames, points, crop_radii(points), strict=True)
    )
    return np.stack([crop[rows, columns] for crop in crops])


@torch.no_grad()
def encode_windows(syncnet: SyncNet, mouths: np.ndarray, stride: int = 1) -> tuple[np.ndarray, torch.Tensor]:
    """Encode every `stride`-th window of five frames of a clip.

    Args:
        syncnet: in evaluation mode.
        mouths: (T, S, S, 3) uint8 RGB mouth boxes of five or more consecutive frames.

    Returns:
        The middle frames (M,) of the windows, and their codes (M, 128, S/32, S/32).
    """
    device = next(syncnet.parameters()).device
    middles = np.arange(HALF, len(mouths) - HALF, stride)
    codes = []
    for start in range(0, len(middles), BATCH_SIZE):
        frames = mouths[middles[start : start + BATCH_SIZE, None] + np.arange(-HALF, HALF + 1)]
        images = torch.from_numpy(frames).to(device).permute(0, 1, 4, 2, 3).flatten(1, 2)
        codes.append(syncnet.face_encoder(images.float() / 255))
    return middles, torch.cat(codes)


@torch.no_grad()
def window_scores(
    syncnet: SyncNet, codes: torch.Tensor, features: np.ndarray, audio_middles: np.ndarray
) -> np.ndarray:
    """Scores (M,), averaged over patches, of encoded windows with the audio around the rows `audio_middles` (M,) of
    the audio features (T, D)."""
    audio = torch.from_numpy(audio_windows(features, audio_middles, SYNC_WINDOW // 2)).to(codes.device)
    return syncnet.merge(codes, syncnet.audio_encoder(audio)).mean(dim=(1, 2, 3)).cpu().numpy()


def shift_scores(
    syncnet: SyncNet, middles: np.ndarray, codes: torch.Tensor, features: np.ndarray, max_shift: int
) -> np.ndarray:
    """Scores of the windows of a clip with the audio shifted by −max_shift … max_shift frames.

    Args:
        middles, codes: of `encode_windows`.
        features: (T, D) audio features; row t belongs to frame t.

    Returns:
        (2·max_shift + 1, M). Entry (max_shift + d, i) compares window i with the audio d frames later; NaN outside
        of the audio. For a clip in sync the middle row has the highest mean.
    """
    scores = np.full((2 * max_shift + 1, len(middles)), np.nan, np.float32)
    for row, shift in enumerate(range(-max_shift, max_shift + 1)):
        audio_middles = middles + shift
        valid = (audio_middles >= HALF) & (audio_middles < len(features) - HALF)
        if valid.any():
            valid_codes = codes[torch.from_numpy(valid)]
            scores[row, valid] = window_scores(syncnet, valid_codes, features, audio_middles[valid])
    return scores


def offset_and_confidence(scores: np.ndarray) -> tuple[int, float]:
    """A/V offset in frames, positive if the audio lags, and sync confidence, from `shift_scores` (2K + 1, M).

    The offset is the shift with the highest mean score. The confidence is the difference between this score and the
    median over all shifts.
    """
    counts = (~np.isnan(scores)).sum(axis=1)
    means = np.where(counts, np.nansum(scores, axis=1) / np.maximum(counts, 1), np.nan)
    return int(np.nanargmax(means)) - len(means) // 2, float(np.nanmax(means) - np.nanmedian(means))
