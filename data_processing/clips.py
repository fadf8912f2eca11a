"""TODO."""

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_processing.audio.features import extract_features
from data_processing.av_sync import MAX_SHIFT, measure_offset
from data_processing.face.crop import FaceCrop, crop_radius, frame_radii
from data_processing.face.tracking import Landmarks, find_landmarks
from data_processing.media.audio_io import SAMPLE_RATE, load_audio, save_wav
from data_processing.media.video_reader import FPS, probe, read_frames
from data_processing.media.video_writer import VideoWriter
from data_processing.sources import Source
from models.crop_layout import crop_size
from utils.errors import UserError

MIN_FRAMES = 20  # shorter shots cannot give five references apart from the frame to draw
MIN_RADIUS_PX = 24  # smaller faces have no teeth to learn
MAX_RADIUS_RATIO = 1.5  # the authors' limit on how much a face may grow within one shot
MIN_FOUND = 0.8  # share of frames in which the face was seen, not interpolated
CROP_CRF = 12  # training data: nearly lossless
# On held-out people SyncNet was within 42 ms of the known offset for all clips of 2.4 s and more, with confidences
# from 0.10 up; with somebody else's sound clips of 15 s had 0.06 and less. Shorter ones cannot be told.
MIN_SYNC_CONFIDENCE = 0.08
MIN_SYNC_FRAMES = 60


@dataclass(frozen=True)
class Settings:
    """What every clip of a dataset has in common; stored in dataset.json and compared on resuming.

    min_sync_confidence: SyncNet's, below which a video is rejected; None to take every sound as it is. Videos of
        less than MIN_SYNC_FRAMES are always taken so.
    """

    mouth_size: int
    landmarks: str
    audio_features: str
    min_sync_confidence: float | None = None


def prepare_video(source: Source, output: Path, settings: Settings) -> tuple[list[dict], list[str]]:
    """Cut one video into face-crop clips, one a shot, and write them.

    Returns:
        The manifest lines of the clips accepted, and why the other shots were not.

    Raises:
        UserError: the video as a whole is of no use (unreadable, no face, no sound).
    """
    probe(source.path)
    waveform = load_audio(source.path)
    landmarks = find_landmarks(source.path, settings.landmarks)
    waveform = _earlier(waveform, source.audio_late_ms)
    audio_delay_ms, confidence = source.audio_late_ms, None
    if settings.min_sync_confidence is not None:
        shots = _usable_shots(landmarks, waveform)[0]
        if sum(stop - start for _, start, stop in shots) >= MIN_SYNC_FRAMES:
            offset = measure_offset(
                source.path,
                [(a, landmarks.points[a:b], crop_radius(landmarks.points[a:b])) for _, a, b in shots],
                waveform,
            )
            confidence = offset.confidence
            if confidence < settings.min_sync_confidence:
                raise UserError(
                    f"the sound fits the picture nowhere within {MAX_SHIFT} frames "
                    f"(confidence below {settings.min_sync_confidence})"
                )
            waveform = _earlier(waveform, offset.audio_delay_ms)
            audio_delay_ms += offset.audio_delay_ms
    features = extract_features(waveform, settings.audio_features, len(landmarks.points))

    clips = []
    usable, reasons = _usable_shots(landmarks, waveform)
    for number, start, stop in usable:
        digest = zlib.crc32(str(source.path.resolve()).encode())
        name = source.path.stem.replace(".", "_")[:60]  # a dot would be taken for the start of a suffix
        clip_id = f"{name}-{digest:08x}-{number:02d}"
        points = landmarks.points[start:stop]
        radius_px = crop_radius(points)
        sound = waveform[start * SAMPLE_RATE // FPS : stop * SAMPLE_RATE // FPS]
        clip_path = output / "clips" / f"{clip_id}.mp4"
        _write_clip(clip_path, source.path, start, points, radius_px, sound, settings)
        _save_arrays(
            output / "clips" / f"{clip_id}.npz",
            landmarks=points,
            features=features[start:stop],
            found=landmarks.found[start:stop],
        )
        clips.append(
            {
                "id": clip_id,
                "source": str(source.path.resolve()),
                "person": source.speaker,
                "start_frame": start,
                "num_frames": stop - start,
                "radius_px": round(radius_px, 2),
                "found": round(float(landmarks.found[start:stop].mean()), 3),
                "audio_features": settings.audio_features,
                "audio_late_ms": round(audio_delay_ms, 1),
                "sync_confidence": None if confidence is None else round(confidence, 3),
            }
        )
    return clips, reasons


def _earlier(waveform: np.ndarray, audio_delay_ms: float) -> np.ndarray:
    """The sound as it is without `audio_delay_ms` of delay."""
    late = round(audio_delay_ms * SAMPLE_RATE / 1000)
    return waveform[late:] if late >= 0 else np.concatenate([np.zeros(-late, np.float32), waveform])


def _usable_shots(landmarks: Landmarks, waveform: np.ndarray) -> tuple[list[tuple[int, int, int]], list[str]]:
    """Number, first frame and end of the shots to train on, as far as there is sound; and why not the others."""
    num_frames = min(len(landmarks.points), len(waveform) * FPS // SAMPLE_RATE)
    usable, reasons = [], []
    for number, (start, stop) in enumerate(landmarks.shots):
        stop = min(stop, num_frames)
        if reason := unfit_reason(landmarks, start, stop):
            reasons.append(reason)
        else:
            usable.append((number, start, stop))
    return usable, reasons


def unfit_reason(landmarks: Landmarks, start: int, stop: int) -> str | None:
    """Why frames [start, stop) are of no use for training, or None."""
    if stop - start < MIN_FRAMES:
        return f"shot shorter than {MIN_FRAMES} frames"
    if landmarks.found[start:stop].mean() < MIN_FOUND:
        return f"face seen in less than {MIN_FOUND:.0%} of the shot"
    radii = frame_radii(landmarks.points[start:stop])
    if radii.max() < MIN_RADIUS_PX:
        return f"face radius below {MIN_RADIUS_PX} px"
    if radii.max() > MAX_RADIUS_RATIO * radii.min():
        return f"face size changes by more than {MAX_RADIUS_RATIO} times within the shot"
    return None


def _write_clip(
    path: Path, video: Path, start: int, points: np.ndarray, radius_px: float, sound: np.ndarray, settings: Settings
) -> None:
    height, width = crop_size(settings.mouth_size)
    wav = path.with_name(f".{path.stem}.{os.getpid()}.wav")
    try:
        save_wav(wav, sound)
        with VideoWriter(path, width, height, crf=CROP_CRF, audio_paths=[wav]) as writer:
            frames = read_frames(video, start, start + len(points))
            for frame, frame_points in zip(frames, points, strict=True):
                crop = FaceCrop.from_landmarks(frame_points, radius_px, settings.mouth_size)
                writer.write(crop.extract(frame))
    finally:
        wav.unlink(missing_ok=True)


def _save_arrays(path: Path, **arrays: np.ndarray) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial.npz")
    np.savez(partial, **arrays)
    partial.replace(path)
