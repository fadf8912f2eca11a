"""Scores of one generated video, of any method, against the ground-truth video.

Both videos are read at 25 fps. A generated frame is resized to the size of the ground-truth frame, and the frames
that both videos have are compared. Faces are cropped at S = 256 from both by the landmarks of the ground truth, as
for training. The output of a talking-head method in another framing can only be compared by its face: with
`own_crops` each face is cropped by its own landmarks, and full frames and dubbing artifacts are not scored.
"""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from data_processing.audio.framing import SAMPLES_PER_FRAME
from data_processing.audio.silence import silent_frames
from data_processing.av_sync import measure_offset
from data_processing.clips import MIN_SYNC_FRAMES
from data_processing.face.crop import FaceCrop
from data_processing.face.identity import IdentityEncoder
from data_processing.face.lips import mouth_opening
from data_processing.face.radius import crop_radii
from data_processing.face.syncnet_crop import face_tracks, track_crop
from data_processing.face.tracking import Landmarks, find_landmarks
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import read_frames
from evaluation.artifacts import (
    ARTIFACTS,
    LOWER_FACE,
    RING_SIZE,
    colour_shift,
    flicker,
    jitter,
    opening_agreement,
    opening_in_silence,
    ring_levels,
    seam,
    sharpness,
    stabilise_head,
)
from evaluation.clips import evenly_spaced
from evaluation.metrics import FID, ImageMetric, image_metrics, landmark_distance, lip_sync_error
from evaluation.reports import COLUMNS, LEAKAGE_COLUMNS, SYNC_COLUMNS
from models.crop_layout import mouth_box
from models.syncnet_v2 import SyncNetV2, load_syncnet_v2
from utils.errors import MediaError, NoFaceError, UserError
from utils.weights import cached_path, is_cached

MOUTH_SIZE = 256  # face crops of 416 × 320, as in the paper
STRIP_LENGTH = 6  # frames
LSE_FRAMES = 1000  # frames of the longest shot that LSE uses; more hardly change it


@dataclass
class MetricNetworks:
    """The networks of the metrics, loaded once. `syncnet_v2` and `fid` are None if their weights are not cached."""

    device: torch.device
    image_metrics: dict[str, ImageMetric] = field(init=False)
    identity: IdentityEncoder = field(default_factory=IdentityEncoder)
    syncnet_v2: SyncNetV2 | None = field(init=False)
    fid: FID | None = None

    def __post_init__(self) -> None:
        self.image_metrics = image_metrics(self.device, with_vgg=True)
        self.syncnet_v2 = official_syncnet(self.device)
        if is_cached("fid_inception"):
            self.fid = FID(cached_path("fid_inception"), self.device)


def official_syncnet(device: torch.device) -> SyncNetV2 | None:
    """The SyncNet of LSE-D and LSE-C; None if its weights are not cached."""
    return load_syncnet_v2(cached_path("syncnet_v2"), device) if is_cached("syncnet_v2") else None


@dataclass(frozen=True)
class VideoScores:
    """Scores of one generated video.

    scores: COLUMNS and ARTIFACTS by name, None where a score is not available.
    num_frames: K, the number of frames of which images were compared.
    unpaired_frames: the number of frames by which one video is longer than the other.
    strip: up to six mouth boxes in a row, ground truth above generated: (512, W, 3) uint8 RGB.
    features: (2, K, 2048) of the face crops for FID, generated and ground truth; None without its network.
    """

    scores: dict[str, float | None]
    num_frames: int
    unpaired_frames: int
    strip: np.ndarray
    features: np.ndarray | None


def compare_videos(
    generated: Path,
    ground_truth: Path,
    networks: MetricNetworks,
    count: int | None,
    *,
    own_crops: bool = False,
    second_half: bool = False,
) -> VideoScores:
    """Score one generated video against its ground truth.

    Args:
        count: number of frames for the image metrics, LMD, CSIM, seam, colour shift and sharpness: evenly spaced
            among those in which both videos show a face; None for all of these. The other scores use every frame.
        own_crops: crop the generated face by its own landmarks; full frames and ARTIFACTS are not scored.
        second_half: score only the frames of the second half, except for the A/V sync.

    Raises:
        MediaError: a video cannot be read, or the aspect ratios differ (without `own_crops`).
        NoFaceError: a video shows no face, or no frame of both videos shows one.
    """
    target_landmarks = find_landmarks(ground_truth)
    output_landmarks = find_landmarks(generated)
    length = min(len(target_landmarks.points), len(output_landmarks.points))
    first = (length + 1) // 2 if second_half else 0
    has_face = target_landmarks.usable[:length] & output_landmarks.usable[:length]
    has_face[:first] = False
    candidates = np.flatnonzero(has_face)
    if not len(candidates):
        raise NoFaceError(generated, f"no frame in which this video and {ground_truth} both show a face")
    selected = candidates[evenly_spaced(len(candidates), count)].tolist()
    shown = {selected[number] for number in evenly_spaced(len(selected), STRIP_LENGTH)}
    selected = set(selected)
    target_radii, output_radii = _radii(target_landmarks), _radii(output_landmarks)
    rows, mouths, features, rings = [], [], [], {}
    readers = (read_frames(generated), read_frames(ground_truth))
    for index, (output, target) in enumerate(zip(*readers, strict=False)):
        if index >= length or not has_face[index]:
            continue
        output_points, target_points = output_landmarks.points[index], target_landmarks.points[index]
        if not own_crops:
            if output.shape != target.shape:
                scale = [target.shape[1] / output.shape[1], target.shape[0] / output.shape[0]]
                output_points = output_points * scale
                output = _resized(output, target.shape, generated)
            ring_crop = FaceCrop.from_landmarks(target_points, target_radii[index], RING_SIZE)
            rings[index] = np.stack([ring_levels(ring_crop.extract(frame)) for frame in (output, target)])
        if index not in selected:
            continue
        crop = output_crop = FaceCrop.from_landmarks(target_points, target_radii[index], MOUTH_SIZE)
        if own_crops:
            output_crop = FaceCrop.from_landmarks(output_points, output_radii[index], MOUTH_SIZE)
        pair = np.stack([output_crop.extract(output), crop.extract(target)])
        regions = {"face": pair, "mouth": pair[:, *mouth_box(MOUTH_SIZE)]}
        if not own_crops:
            regions["frame"] = np.stack([output, target])
        row = _image_scores(regions, networks.image_metrics)
        row["lmd"] = landmark_distance(output_crop.to_crop(output_points), crop.to_crop(target_points))
        row["csim"] = float(networks.identity(output, output_points) @ networks.identity(target, target_points))
        if not own_crops:
            row |= {"seam": seam(*pair), "colour_shift": colour_shift(*pair)}
            row["sharpness"] = sharpness(output, target, crop)
        rows.append(row)
        if index in shown:
            mouths.append(np.vstack(regions["mouth"][::-1]))
        if networks.fid:
            features.append(networks.fid.features(torch.from_numpy(pair).permute(0, 3, 1, 2) / 255))
    scores: dict[str, float | None] = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    waveform = _audio_track(generated)
    if not own_crops:
        temporal = _temporal_artifacts(output_landmarks, target_landmarks, rings, waveform, first)
        scores = dict.fromkeys(ARTIFACTS) | scores | temporal
    return VideoScores(
        scores=scores | _sync_scores(generated, output_landmarks, waveform, networks.syncnet_v2),
        unpaired_frames=abs(len(target_landmarks.points) - len(output_landmarks.points)),
        num_frames=len(rows),
        strip=np.hstack(mouths),
        features=np.stack(features, axis=1) if features else None,
    )


def video_synchrony(video: Path, syncnet_v2: SyncNetV2 | None) -> dict[str, float | None]:
    """SYNC_COLUMNS of a video, without ground truth; LSE is None without `syncnet_v2`.

    Raises:
        MediaError: the video cannot be read. NoFaceError: it shows no face.
    """
    return _sync_scores(video, find_landmarks(video), _audio_track(video), syncnet_v2)


def video_leakage(dub: Path, source: Path) -> dict[str, float | None]:
    """LEAKAGE_COLUMNS of a dub that is driven by silence: how far its lips move and follow the source's speech.

    Raises:
        MediaError: a video cannot be read. NoFaceError: it shows no face.
    """
    scores: dict[str, float | None] = dict.fromkeys(LEAKAGE_COLUMNS)
    dub_landmarks, landmarks = find_landmarks(dub), find_landmarks(source)
    openings = _opening_scores(dub_landmarks, landmarks, _audio_track(dub), 0)
    scores |= {name: openings[name] for name in LEAKAGE_COLUMNS if name in openings}
    if scores["opening_range"] is not None:
        scores["leakage"] = scores["opening_range"] * (scores["opening_correlation"] or 0.0)
    waveform = _audio_track(source)
    if waveform is not None and (
        shot := _longest_shot(landmarks, waveform[: len(dub_landmarks.points) * SAMPLES_PER_FRAME])
    ):
        start, stop = shot
        for name, video in (("confidence_with_source_audio", dub), ("confidence_of_source", source)):
            # the source's landmarks for both, so that only the pixels of the mouth box differ
            scores[name] = measure_offset(video, [(start, landmarks.points[start:stop])], waveform).confidence
    return scores


def _resized(frame: np.ndarray, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """A frame of the video `path`, resized to `shape` (height, width, …).

    Raises:
        MediaError: the aspect ratios differ by more than 2 %.
    """
    (height, width), (own_height, own_width) = shape[:2], frame.shape[:2]
    if not 0.98 < own_width * height / (own_height * width) < 1.02:
        raise MediaError(
            path,
            f"expected the aspect ratio of the ground truth, {width}x{height}, found {own_width}x{own_height}; "
            "for heads in another framing, crop each face by its own landmarks (own_crops)",
        )
    method = cv2.INTER_AREA if own_height > height else cv2.INTER_CUBIC
    return cv2.resize(frame, (width, height), interpolation=method)


def _image_scores(regions: dict[str, np.ndarray], metrics: dict[str, ImageMetric]) -> dict[str, float]:
    """Those of COLUMNS that compare two images.

    Args:
        regions: by name, (2, H, W, 3) uint8 RGB, generated and ground truth.
    """
    scores = {}
    for region, pair in regions.items():
        output, target = (torch.from_numpy(pair).permute(0, 3, 1, 2) / 255).split(1)
        for name, metric in metrics.items():
            if f"{name}_{region}" in COLUMNS:
                scores[f"{name}_{region}"] = float(metric(output, target)[0])
    return scores


def _temporal_artifacts(
    output: Landmarks, target: Landmarks, rings: dict[int, np.ndarray], waveform: np.ndarray | None, first: int
) -> dict[str, float | None]:
    """Those of ARTIFACTS that need consecutive frames.

    Args:
        rings: `ring_levels` of both videos, (2, N), of every frame in which both show a face.
        waveform: (N,) the audio track of the dub at 16 kHz; None if it has none.
        first: number of the first frame that is scored.
    """
    overlaps = [(max(a, c, first), min(b, d)) for a, b in output.shots for c, d in target.shots]
    segments = [slice(start, stop) for start, stop in overlaps if stop - start > 2]
    movements = []
    for landmarks in (output, target):
        pixel_sizes = 2 * _radii(landmarks) / MOUTH_SIZE  # source pixels per face-crop pixel
        movements.append(
            [
                stabilise_head(landmarks.raw[segment])[:, LOWER_FACE] / pixel_sizes[segment.start]
                for segment in segments
            ]
        )
    levels = [np.stack([rings[index] for index in range(part.start, part.stop)]) for part in segments]
    values = {
        "jitter": jitter(movements[0]) - jitter(movements[1]),
        "flicker": flicker([level[:, 0] for level in levels], [level[:, 1] for level in levels]),
    }
    scores: dict[str, float | None] = {name: None if np.isnan(value) else value for name, value in values.items()}
    return scores | _opening_scores(output, target, waveform, first)


def _opening_scores(
    output: Landmarks, target: Landmarks, waveform: np.ndarray | None, first: int
) -> dict[str, float | None]:
    """Those of ARTIFACTS that compare mouth openings.

    Args:
        waveform: (N,) the audio track of the dub at 16 kHz; None if it has none.
        first: number of the first frame that is scored.
    """
    length = min(len(output.points), len(target.points))
    openings = [mouth_opening(landmarks.points[first:length]) for landmarks in (output, target)]
    scores = opening_agreement(*openings)
    if waveform is not None:
        silent = silent_frames(waveform)[first:length]
        scores |= opening_in_silence(*(opening[: len(silent)] for opening in openings), silent)
    return scores


def _audio_track(video: Path) -> np.ndarray | None:
    """(N,) the audio track of a video at 16 kHz; None if it has none that can be read."""
    try:
        return load_audio(video)
    except UserError:
        return None


def _radii(landmarks: Landmarks) -> np.ndarray:
    """(T,) the crop radius in pixels of each frame, NaN outside shots."""
    radii = np.full(len(landmarks.points), np.nan)
    for start, stop in landmarks.shots:
        radii[start:stop] = crop_radii(landmarks.points[start:stop])
    return radii


def _sync_scores(
    video: Path, landmarks: Landmarks, waveform: np.ndarray | None, syncnet_v2: SyncNetV2 | None
) -> dict[str, float | None]:
    """SYNC_COLUMNS of the longest shot of a video with its own audio track.

    All are None without an audio track or if the shot or the track is too short; LSE is None without `syncnet_v2`.
    """
    scores: dict[str, float | None] = dict.fromkeys(SYNC_COLUMNS)
    if waveform is None or (shot := _longest_shot(landmarks, waveform)) is None:
        return scores
    start, stop = shot
    points = landmarks.points[start:stop]
    offset = measure_offset(video, [(start, points)], waveform)
    scores |= {"sync_confidence": offset.confidence, "sync_offset_ms": float(offset.audio_delay_ms)}
    if syncnet_v2:
        frames = zip(read_frames(video, start, stop), face_tracks(points), strict=True)
        faces = np.stack([track_crop(frame, track) for frame, track in frames])
        segment = waveform[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME]
        lse = lip_sync_error(syncnet_v2, faces, segment)
        scores |= {"lse_d": lse.distance, "lse_c": lse.confidence, "lse_offset": float(lse.offset)}
    return scores


def _longest_shot(landmarks: Landmarks, waveform: np.ndarray) -> tuple[int, int] | None:
    """Frames [start, stop) of the longest shot, as far as there is audio (N,) at 16 kHz; None if too short."""
    start, stop = max(landmarks.shots, key=lambda shot: shot[1] - shot[0])
    stop = min(stop, start + LSE_FRAMES, len(waveform) // SAMPLES_PER_FRAME)
    return (start, stop) if stop - start >= MIN_SYNC_FRAMES else None
