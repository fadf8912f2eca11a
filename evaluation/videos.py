"""Scoring any method's videos against the real ones, file by file.

A generated video is brought to the real one's frames: both are read at 25 frames per second, the generated frame is
resized to the real one's size, and the frames that both have are compared. Faces are cropped from both by the real
video's landmarks, as for training, at S = 256. A talking head that fills its own picture otherwise than the real
video can only be compared by its face: then each is cropped by its own landmarks, and nothing is said of LOOKS.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from data_processing.audio.framing import SAMPLES_PER_FRAME
from data_processing.audio.silence import silent_frames
from data_processing.av_sync import measure_offset
from data_processing.clips import MIN_SYNC_FRAMES
from data_processing.face.crop import FaceCrop, crop_radius
from data_processing.face.identity import IdentityEncoder
from data_processing.face.lips import mouth_opening
from data_processing.face.syncnet_crop import face_tracks, track_crop
from data_processing.face.tracking import Landmarks, find_landmarks
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import VIDEO_SUFFIXES, read_frames
from evaluation.artifacts import (
    ARTIFACTS,
    LOWER_FACE,
    RING_SIZE,
    colour_shift,
    flicker,
    jitter,
    opening_in_silence,
    ring_levels,
    seam,
    sharpness,
    still_head,
)
from evaluation.clips import evenly_spaced
from evaluation.metrics import FID, ImageMetric, image_metrics, landmark_distance, lip_sync_error
from evaluation.reports import COLUMNS, SYNC_COLUMNS, means_over
from models.crop_layout import mouth_box
from models.syncnet_v2 import SyncNetV2, load_syncnet_v2
from utils.errors import UserError
from utils.weights import cached_path, is_cached

MOUTH_SIZE = 256  # face crops of 416 × 320, as in the paper
LSE_FRAMES = 1000  # of the longest shot: more make a video's score no surer


@dataclass
class MetricNetworks:
    """The networks that judge, loaded once; syncnet_v2 and fid are None where their files are not there."""

    device: torch.device
    image_metrics: dict[str, ImageMetric] = field(init=False)
    identity: IdentityEncoder = field(default_factory=IdentityEncoder)
    syncnet_v2: SyncNetV2 | None = field(init=False)
    fid: FID | None = None

    def __post_init__(self) -> None:
        self.measures = image_metrics(self.device, with_vgg=True)
        self.syncnet_v2 = official_syncnet(self.device)
        if is_cached("fid_inception"):
            self.fid = FID(cached_path("fid_inception"), self.device)


def official_syncnet(device: torch.device) -> SyncNetV2 | None:
    """The judge of LSE-D and LSE-C, None where its file is not there."""
    return load_syncnet_v2(cached_path("syncnet_v2"), device) if is_cached("syncnet_v2") else None


@dataclass(frozen=True)
class VideoScores:
    """scores: COLUMNS and LOOKS to numbers, None where one cannot be had; unpaired_frames: how many frames one video has
    more; faces: (2, frames, 416, 320, 3) uint8 RGB, what was looked at, generated and real."""

    scores: dict[str, float | None]
    unpaired_frames: int
    faces: np.ndarray

    def strip(self) -> np.ndarray:
        """Up to six real mouths above what was generated: (512, W, 3) uint8 RGB."""
        rows, columns = mouth_box(MOUTH_SIZE)
        shown = self.faces[::-1, evenly_spaced(self.faces.shape[1], 6), rows, columns]
        return np.vstack([np.hstack(list(row)) for row in shown])


def find_videos(folder: Path, flag: str) -> dict[str, Path]:
    """The videos of a folder by their names without suffix, in order; hidden ones are left out.

    Raises:
        UserError: the folder, given by `flag`, is missing, holds none, or two of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{flag}: expected a folder of videos, found none at {folder}")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    paths = [path for path in paths if not path.name.startswith(".")]
    found = {path.stem: path for path in paths}
    if not found:
        raise UserError(f"{flag}: expected videos in {folder}, found none")
    if len(found) < len(paths):
        twice = next(path for path in paths if path not in found.values())
        raise UserError(f"{flag}: expected one video of each name in {folder}, found two of {twice.stem}")
    return found


def find_pairs(generated: Path, reference: Path) -> tuple[list[tuple[str, Path, Path]], list[str]]:
    """(name, generated, real) of the videos of two folders with the same name up to its suffix, and those without.

    Raises:
        UserError: a folder is missing or empty, or no two videos have the same name.
    """
    first, second = find_videos(generated, "--generated"), find_videos(reference, "--reference")
    if not first.keys() & second.keys():
        raise UserError(f"--generated: expected videos named as in {reference}, found {', '.join(list(first)[:3])}")
    pairs = [(name, first[name], second[name]) for name in sorted(first.keys() & second.keys())]
    alone = [(first | second)[name] for name in first.keys() ^ second.keys()]
    return pairs, sorted(map(str, alone))


def compare_videos(
    generated: Path, reference: Path, judges: MetricNetworks, count: int, *, own_crops: bool = False
) -> VideoScores:
    """Score one video; `count` frames with a face, evenly spaced, are looked at for the likeness of pictures.

    own_crops: the generated face is cropped by its own landmarks, and nothing is said of full frames nor of LOOKS.

    Raises:
        UserError: a video cannot be read or shows no face, or the two have no frame with one in common.
    """
    real = find_landmarks(reference)
    drawn = find_landmarks(generated)
    length = min(len(real.points), len(drawn.points))
    both = np.flatnonzero(real.usable[:length] & drawn.usable[:length])
    if not len(both):
        raise UserError(f"--generated: {generated} and {reference} have no frame with a face in common")
    wanted = set(both[evenly_spaced(len(both), count)].tolist())
    real_radii, drawn_radii = _radii(real), _radii(drawn)
    rows, faces, rings = [], [], {}
    readers = (read_frames(generated), read_frames(reference))
    for index, (made, true) in enumerate(zip(*readers, strict=False)):
        if index >= length or not (real.usable[index] and drawn.usable[index]):
            continue
        points = drawn.points[index]
        if not own_crops:
            if made.shape != true.shape:
                points = points * [true.shape[1] / made.shape[1], true.shape[0] / made.shape[0]]
                made = _resized(made, true.shape)
            small = FaceCrop.from_landmarks(real.points[index], real_radii[index], RING_SIZE)
            rings[index] = np.stack([ring_levels(small.extract(made)), ring_levels(small.extract(true))])
        if index not in wanted:
            continue
        crop = made_crop = FaceCrop.from_landmarks(real.points[index], real_radii[index], MOUTH_SIZE)
        if own_crops:
            made_crop = FaceCrop.from_landmarks(points, drawn_radii[index], MOUTH_SIZE)
        pair = np.stack([made_crop.extract(made), crop.extract(true)])
        regions = {"face": pair, "mouth": pair[:, *mouth_box(MOUTH_SIZE)]}
        row = _likeness(regions if own_crops else regions | {"frame": np.stack([made, true])}, judges.measures)
        row["lmd"] = landmark_distance(made_crop.to_crop(points), crop.to_crop(real.points[index]))
        row["csim"] = float(judges.identity(made, points) @ judges.identity(true, real.points[index]))
        if not own_crops:
            row |= {"seam": seam(*pair), "colour_shift": colour_shift(*pair)}
            row["sharpness"] = sharpness(made, true, crop)
        rows.append(row)
        faces.append(pair)
    scores: dict[str, float | None] = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    waveform = _sound(generated)
    if not own_crops:
        scores = dict.fromkeys(ARTIFACTS) | scores | _over_time(drawn, real, rings, waveform)
    return VideoScores(
        scores=scores | _sync_scores(generated, drawn, waveform, judges.syncnet_v2),
        unpaired_frames=abs(len(real.points) - len(drawn.points)),
        faces=np.stack(faces, axis=1),
    )


def _resized(frame: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A frame brought to the size of another.

    Raises:
        UserError: it is not of its form.
    """
    (height, width), (own_height, own_width) = shape[:2], frame.shape[:2]
    if not 0.98 < own_width * height / (own_height * width) < 1.02:
        raise UserError(
            f"--generated: expected frames in the form of the real ones, {width}x{height}, found "
            f"{own_width}x{own_height}; for heads in a framing of their own there is --own-crops"
        )
    method = cv2.INTER_AREA if own_height > height else cv2.INTER_CUBIC
    return cv2.resize(frame, (width, height), interpolation=method)


def _likeness(regions: dict[str, np.ndarray], image_metrics: dict[str, ImageMetric]) -> dict[str, float]:
    """Those of COLUMNS that compare two pictures, of each region's pair (2, H, W, 3) uint8 RGB."""
    found = {}
    for region, pair in regions.items():
        made, true = (torch.from_numpy(pair).permute(0, 3, 1, 2) / 255).split(1)
        for name, measure in image_metrics.items():
            if f"{name}_{region}" in COLUMNS:
                found[f"{name}_{region}"] = float(measure(made, true)[0])
    return found


def _over_time(
    drawn: Landmarks, real: Landmarks, rings: dict[int, np.ndarray], waveform: np.ndarray | None
) -> dict[str, float | None]:
    """Those of LOOKS that need more than one frame.

    Args:
        rings: of every frame in which both show a face, `ring_levels` of both, (2, N).
        waveform: the sound of the dub, None if it has none.
    """
    starts_and_stops = [(max(a, c), min(b, d)) for a, b in drawn.shots for c, d in real.shots]
    runs = [slice(start, stop) for start, stop in starts_and_stops if stop - start > 2]
    moves = []
    for landmarks in (drawn, real):
        pixels = 2 * _radii(landmarks) / MOUTH_SIZE  # source pixels per pixel of the face crop
        moves.append([still_head(landmarks.raw[run])[:, LOWER_FACE] / pixels[run.start] for run in runs])
    levels = [np.stack([rings[index] for index in range(run.start, run.stop)]) for run in runs]
    found: dict[str, float | None] = {
        "tremble": jitter(moves[0]) - jitter(moves[1]),
        "flicker": flicker([run[:, 0] for run in levels], [run[:, 1] for run in levels]),
    }
    found = {name: None if np.isnan(value) else value for name, value in found.items()}
    if waveform is None:
        return found
    silent = silent_frames(waveform)
    length = min(len(silent), len(drawn.points), len(real.points))
    openings = [mouth_opening(landmarks.points[:length]) for landmarks in (drawn, real)]
    return found | opening_in_silence(*openings, silent[:length])


def _sound(video: Path) -> np.ndarray | None:
    """(N,) the sound of a video at 16 kHz, None if it has none."""
    try:
        return load_audio(video)
    except UserError:
        return None


def _radii(landmarks: Landmarks) -> np.ndarray:
    """(T,) the crop radius of the shot each frame lies in, NaN outside of all."""
    radii = np.full(len(landmarks.points), np.nan)
    for start, stop in landmarks.shots:
        radii[start:stop] = crop_radius(landmarks.points[start:stop])
    return radii


def _sync_scores(
    video: Path, landmarks: Landmarks, waveform: np.ndarray | None, official: SyncNetV2 | None
) -> dict[str, float | None]:
    """SYNCHRONY: how the lips of a video's longest shot fit its own sound; None where that or the sound is too
    short, or the official SyncNet is not there."""
    scores: dict[str, float | None] = dict.fromkeys(SYNC_COLUMNS)
    if waveform is None:  # a video without sound has no synchrony
        return scores
    start, stop = max(landmarks.shots, key=lambda shot: shot[1] - shot[0])
    stop = min(stop, start + LSE_FRAMES, len(waveform) // SAMPLES_PER_FRAME)
    if stop - start < MIN_SYNC_FRAMES:
        return scores
    points = landmarks.points[start:stop]
    offset = measure_offset(video, [(start, points, crop_radius(points))], waveform)
    scores |= {"sync_confidence": offset.confidence, "sync_late_ms": float(offset.audio_delay_ms)}
    if official:
        frames = zip(read_frames(video, start, stop), face_tracks(points), strict=True)
        faces = np.stack([track_crop(frame, track) for frame, track in frames])
        sound = waveform[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME]
        found = lip_sync_error(official, faces, sound)
        scores |= {"lse_d": found.distance, "lse_c": found.confidence, "lse_offset": float(found.offset)}
    return scores


def compare_folders(
    generated: Path, reference: Path, count: int, device: torch.device, *, own_crops: bool = False
) -> dict[str, Any]:
    """Score all videos of two folders, as `compare`; one that fails is named and does not stop the rest.

    Returns:
        What was measured, ready for JSON: 'means' of all videos with bootstrap intervals, 'videos' with the scores
        of each, 'failed' with the reasons, 'unmatched'. Only 'strips', of each video, are pictures.

    Raises:
        UserError: a folder is missing, no names match, or no video could be scored.
    """
    pairs, alone = find_pairs(generated, reference)
    judges = MetricNetworks(device)
    videos, failed, strips = {}, {}, {}
    for name, made, true in tqdm(pairs, unit="video", disable=None):
        try:
            found = compare_videos(made, true, judges, count, own_crops=own_crops)
        except UserError as error:
            failed[name] = str(error)
            continue
        videos[name] = {"frames": found.faces.shape[1], "unpaired_frames": found.unpaired_frames, **found.scores}
        strips[name] = found.strip()
        if judges.fid:
            judges.fid.add(*(torch.from_numpy(found.faces).permute(0, 1, 4, 2, 3) / 255))
    if not videos:
        raise UserError(f"--generated: no video of {generated} could be scored: {next(iter(failed.values()))}")
    means = means_over(videos)
    if judges.fid and (distance := judges.fid.value()) is not None:
        means["fid"] = {"mean": distance, "interval": None, "videos": len(videos)}
    return {
        "generated": str(generated),
        "reference": str(reference),
        "mouth_size": MOUTH_SIZE,
        "frames_per_video": count,
        "cropped_by": "each one's own landmarks" if own_crops else "the real video's landmarks",
        "means": means,
        "videos": videos,
        "failed": failed,
        "unmatched": alone,
        "strips": strips,
    }


def score_synchrony(folder: Path, device: torch.device) -> dict[str, Any]:
    """SYNCHRONY of all videos of a folder, each by itself; a report like `compare_folders`, without pictures.

    Raises:
        UserError: the folder is missing or empty, or no video could be judged.
    """
    official = official_syncnet(device)
    videos, failed = {}, {}
    for name, path in tqdm(find_videos(folder, "--generated").items(), unit="video", disable=None):
        try:
            videos[name] = _sync_scores(path, find_landmarks(path), _sound(path), official)
        except UserError as error:
            failed[name] = str(error)
    if not videos:
        raise UserError(f"--generated: no video of {folder} could be judged: {next(iter(failed.values()))}")
    means = means_over(videos)
    return {
        "generated": str(folder),
        "means": means,
        "videos": videos,
        "failed": failed,
        "unmatched": [],
    }
