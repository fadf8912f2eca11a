"""Cut one video into clips of a prepared dataset: face crops with synchronised audio, landmarks and features."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data_processing.audio.features import extract_features
from data_processing.audio.framing import SAMPLES_PER_FRAME
from data_processing.av_sync import MAX_SHIFT, measure_offset
from data_processing.face.crop import FaceCrop
from data_processing.face.radius import crop_radii, frame_radii
from data_processing.face.tracking import Landmarks, find_landmarks
from data_processing.frame_store import BLOCK_FRAMES
from data_processing.media.audio_io import SAMPLE_RATE, load_audio, save_wav
from data_processing.media.video_reader import probe, read_frames
from data_processing.media.video_writer import VideoWriter
from data_processing.sources import Source
from models.crop_layout import crop_size
from utils.errors import MediaError
from utils.files import cut_name, write_atomically

MIN_FRAMES = 20  # a shorter shot has no five reference frames at a distance from the target frame
MIN_RADIUS_PX = 24  # too few pixels to resolve teeth
MAX_RADIUS_RATIO = 1.5  # of a face to its crop within one shot; the authors' limit, whose crops do not follow zooms
MIN_FOUND = 0.8  # fraction of frames in which the face is detected rather than interpolated
CROP_CRF = 12  # nearly lossless, because the clips are training data
# On held-out speakers SyncNet was within 42 ms of the known offset for all clips of 2.4 s or more, with confidences
# from 0.10 upwards; with mismatched audio, clips of 15 s had 0.06 and less. Shorter clips cannot be decided.
MIN_SYNC_CONFIDENCE = 0.08
MIN_SYNC_FRAMES = 60


@dataclass(frozen=True)
class Settings:
    """What all clips of a dataset have in common; stored in dataset.json and compared when a dataset is continued.

    mouth_size: S of the face crops.
    landmarks: landmark detector, one of BACKENDS.
    audio_features: kind of audio features.
    min_sync_confidence: videos with a lower sync confidence are rejected. None to skip measuring the A/V offset. It
        is never measured for videos with fewer than MIN_SYNC_FRAMES usable frames.
    """

    mouth_size: int
    landmarks: str
    audio_features: str
    min_sync_confidence: float | None = None


def prepare_video(source: Source, output: Path, settings: Settings) -> tuple[list[dict], list[str]]:
    """Cut one video into clips, one per usable shot, and write them to `output`/clips.

    Returns:
        The manifest lines of the clips (without "split"), and why the other shots were rejected, one reason each.

    Raises:
        MediaError: the whole video is rejected: it cannot be read, has no audio track or no face, or its audio does
            not match.
        OutputError: a clip cannot be written.
        WeightsError: the weights of a network are missing.
    """
    probe(source.path)
    waveform = load_audio(source.path)
    landmarks = find_landmarks(source.path, settings.landmarks)
    waveform, audio_delay_ms, confidence = _synchronise(source, landmarks, waveform, settings.min_sync_confidence)
    features = extract_features(waveform, settings.audio_features, len(landmarks.points))

    clips = []
    shots, reasons = _usable_shots(landmarks, waveform)
    digest = zlib.crc32(str(source.path.resolve()).encode(errors="surrogateescape"))
    name = cut_name(source.path.stem.replace(".", "_"), 60)  # a dot would be taken for the start of a suffix
    for number, start, stop in shots:
        clip_id = f"{name}-{digest:08x}-{number:02d}"
        path = output / "clips" / f"{clip_id}.mp4"
        points, found = landmarks.points[start:stop], landmarks.found[start:stop]
        radii = crop_radii(points)
        audio = waveform[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME]
        _write_video(path, source.path, start, points, radii, audio, settings.mouth_size)
        arrays = {"landmarks": points, "radii": radii, "features": features[start:stop], "found": found}
        _write_arrays(path.with_suffix(".npz"), arrays)
        clips.append(
            {
                "id": clip_id,
                "source": str(source.path.resolve()),
                "person": source.speaker,
                "start_frame": start,
                "num_frames": stop - start,
                "radius_px": round(float(np.median(radii)), 2),
                "found": round(float(found.mean()), 3),
                "audio_features": settings.audio_features,
                "audio_late_ms": round(audio_delay_ms, 1),
                "sync_confidence": None if confidence is None else round(confidence, 3),
            }
        )
    return clips, reasons


def _synchronise(
    source: Source, landmarks: Landmarks, waveform: np.ndarray, min_confidence: float | None
) -> tuple[np.ndarray, float, float | None]:
    """Remove the A/V offset given in `source`, then the offset that SyncNet measures.

    Returns:
        The waveform in sync with the video, the sum of the offsets in milliseconds, and the sync confidence (None
        if it was not measured).

    Raises:
        MediaError: the confidence is below `min_confidence`.
    """
    waveform = _remove_audio_delay(waveform, source.audio_delay_ms)
    if min_confidence is None:
        return waveform, source.audio_delay_ms, None
    shots = [(start, landmarks.points[start:stop]) for _, start, stop in _usable_shots(landmarks, waveform)[0]]
    if sum(len(points) for _, points in shots) < MIN_SYNC_FRAMES:
        return waveform, source.audio_delay_ms, None
    offset = measure_offset(source.path, shots, waveform)
    if offset.confidence < min_confidence:
        reason = f"no A/V sync within ±{MAX_SHIFT} frames (confidence below {min_confidence})"
        raise MediaError(source.path, reason)
    waveform = _remove_audio_delay(waveform, offset.audio_delay_ms)
    return waveform, source.audio_delay_ms + offset.audio_delay_ms, offset.confidence


def _remove_audio_delay(waveform: np.ndarray, audio_delay_ms: float) -> np.ndarray:
    """Move audio (N,) forward by its delay; with a negative delay, pad it with zeros at the start."""
    delay = round(audio_delay_ms * SAMPLE_RATE / 1000)
    return waveform[delay:] if delay >= 0 else np.concatenate([np.zeros(-delay, np.float32), waveform])


def _usable_shots(landmarks: Landmarks, waveform: np.ndarray) -> tuple[list[tuple[int, int, int]], list[str]]:
    """The shots to train on, as (number, first frame, end), and why the others are rejected.

    Frames after the end of the audio are left out.
    """
    num_frames = min(len(landmarks.points), len(waveform) // SAMPLES_PER_FRAME)
    shots, reasons = [], []
    for number, (start, stop) in enumerate(landmarks.shots):
        stop = min(stop, num_frames)
        if reason := rejection_reason(landmarks, start, stop):
            reasons.append(reason)
        else:
            shots.append((number, start, stop))
    return shots, reasons


def rejection_reason(landmarks: Landmarks, start: int, stop: int) -> str | None:
    """Why frames [start, stop) cannot be used for training; None if they can."""
    if stop - start < MIN_FRAMES:
        return f"shot shorter than {MIN_FRAMES} frames"
    if landmarks.found[start:stop].mean() < MIN_FOUND:
        return f"face detected in less than {MIN_FOUND:.0%} of the shot"
    points = landmarks.points[start:stop]
    radii = crop_radii(points)
    if radii.max() < MIN_RADIUS_PX:
        return f"face radius below {MIN_RADIUS_PX} px"
    # not the extremes, which are those of badly detected frames
    smallest, largest = np.percentile(frame_radii(points) / radii, [5, 95])
    if largest > MAX_RADIUS_RATIO * smallest:
        return f"face size changes by more than a factor of {MAX_RADIUS_RATIO} within its crop"
    return None


def _write_video(
    path: Path,
    video: Path,
    start: int,
    points: np.ndarray,
    radii: np.ndarray,
    audio: np.ndarray,
    mouth_size: int,
) -> None:
    """Write the face crops of the frames from `start` on with their audio.

    There is one frame for each row of `points` (T, 68, 2) and `radii` (T,).
    """
    height, width = crop_size(mouth_size)
    with TemporaryDirectory() as folder:
        wav = Path(folder) / "audio.wav"
        save_wav(wav, audio)
        options = {"crf": CROP_CRF, "audio_paths": [wav], "key_frame_interval": BLOCK_FRAMES}
        with VideoWriter(path, width, height, **options) as writer:
            frames = read_frames(video, start, start + len(points))
            for frame, frame_points, radius_px in zip(frames, points, radii, strict=True):
                writer.write(FaceCrop.from_landmarks(frame_points, radius_px, mouth_size).extract(frame))


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_atomically(path, lambda file: np.savez(file, **arrays))
