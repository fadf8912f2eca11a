"""How late the sound of a video is against its picture: the bundled SyncNet's answer, with its confidence."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from data_processing.audio_features import extract
from data_processing.geometry import FaceCrop, mouth_box
from data_processing.video import FPS, read_frames
from models.checkpoint import SYNCNET, LoadedModel, load_model
from models.syncnet import CLIP_LENGTH, encode_moments, offset_and_confidence, shift_scores

BUNDLED = Path(__file__).parent.parent / "checkpoints" / "syncnet_32.safetensors"
MAX_SHIFT = 15  # frames to either side, 0.6 s: a sound further off belongs to something else
MOST_FRAMES = 1000  # of one video; more make the answer no surer


@dataclass(frozen=True)
class Offset:
    """late_ms: how late the sound is, negative if early; confidence: SyncNet's, see `offset_and_confidence`."""

    late_ms: float
    confidence: float


def measure_offset(
    video: Path, shots: list[tuple[int, np.ndarray, float]], waveform: np.ndarray, syncnet: Path = BUNDLED
) -> Offset:
    """Measure one video, whose shots all share one offset.

    Args:
        video: the file.
        shots: of each its first frame, its landmarks (T, 68, 2) and its crop radius in pixels; T 5 or more.
        waveform: (N,) the video's sound.

    Raises:
        UserError: SyncNet or the model of its audio features cannot be had, or the video not be read.
    """
    judge = _judge(syncnet)
    features = extract(waveform, judge.audio_features)
    scores, left = [], MOST_FRAMES
    for start, points, radius_px in shots:
        points = points[:left]
        if len(points) < CLIP_LENGTH:
            break
        left -= len(points)
        mouths = _mouths(video, start, points, radius_px, judge.mouth_size)
        moments, codes = encode_moments(judge.model, mouths, stride=2)
        scores.append(shift_scores(judge.model, moments + start, codes, features, MAX_SHIFT))
    return offset_of(np.concatenate(scores, axis=1))


def offset_of(scores: np.ndarray) -> Offset:
    """From `shift_scores` (2K + 1, moments): the peak of the mean score, by a parabola to parts of a frame."""
    shift, confidence = offset_and_confidence(scores)
    counts = (~np.isnan(scores)).sum(axis=1)
    means, peak = np.nansum(scores, axis=1) / np.where(counts, counts, np.nan), shift + len(scores) // 2
    if 0 < peak < len(means) - 1 and not np.isnan(means[peak - 1 : peak + 2]).any():
        before, top, after = means[peak - 1 : peak + 2]
        if before + after < 2 * top:
            shift += (before - after) / (2 * (before + after - 2 * top))
    return Offset(1000 * shift / FPS, confidence)


@cache
def _judge(path: Path) -> LoadedModel:
    return load_model(path, kinds=SYNCNET)


def _mouths(video: Path, start: int, points: np.ndarray, radius_px: float, mouth_size: int) -> np.ndarray:
    """(T, S, S, 3) uint8 RGB."""
    rows, columns = mouth_box(mouth_size)
    frames = read_frames(video, start, start + len(points), "INPUT")
    crops = (
        FaceCrop.from_landmarks(found, radius_px, mouth_size).extract(frame)
        for frame, found in zip(frames, points, strict=True)
    )
    return np.stack([crop[rows, columns] for crop in crops])
