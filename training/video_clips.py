"""Clips of a video in memory, with the audio in sync: what data_processing.prepare writes to a folder."""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from data_processing.audio.features import extract_features
from data_processing.audio.framing import SAMPLES_PER_FRAME
from data_processing.av_sync import MAX_FRAMES, common_offset, load_syncnet
from data_processing.clips import MIN_SYNC_CONFIDENCE, MIN_SYNC_FRAMES, rejection_reason
from data_processing.dataset import Clip
from data_processing.face.crop import FaceCrop
from data_processing.face.detectors import FaceSelector, no_face_reason, track_landmarks
from data_processing.face.radius import crop_radii
from data_processing.face.tracking import Landmarks, clean_landmarks, find_jumps
from data_processing.media.audio_io import SAMPLE_RATE, read_audio
from data_processing.media.frame import Frame
from data_processing.media.video_reader import FPS, probe, read_frames, read_video
from models.crop_layout import crop_size, mouth_box, mouth_size_of
from models.syncnet import CLIP_LENGTH
from utils.errors import AudioError, MediaError, NoFaceError, TruncatedMediaError
from utils.limits import DEFAULT_LIMITS, Limits

MAX_PARTS = 4
PART_FRAMES = 15 * FPS  # of a video longer than MAX_PARTS of them, only evenly spaced parts are read
MARGIN = FPS  # frames of audio on either side of a part: more than the largest A/V offset
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoClips:
    """The usable shots of one video.

    clips: one for each shot; their features are zeros if the audio does not fit.
    audio_delay_ms: the A/V offset that was removed; None if the audio does not fit.
    no_audio_reason: why the audio does not fit the lips; None if it does.
    """

    clips: list[Clip]
    audio_delay_ms: float | None
    no_audio_reason: str | None


@dataclass(frozen=True)
class _Part:
    """Consecutive frames of the video from `start` on, at 25 fps."""

    start: int
    landmarks: Landmarks

    @property
    def stop(self) -> int:
        return self.start + len(self.landmarks.points)


def read_clips(
    video: Path,
    mouth_size: int,
    audio_features: str,
    backend: str,
    select_face: FaceSelector,
    limits: Limits = DEFAULT_LIMITS,
    progress: Callable[[str, int, int], None] = lambda stage, done, expected: None,
) -> VideoClips:
    """The face crops of a video with its audio features, without its A/V offset.

    A video longer than a minute is read in four evenly spaced parts of 15 s. Memory does not grow with its length.

    Args:
        video: source video.
        mouth_size: S of the crops.
        audio_features: kind of audio features.
        backend: landmark detector.
        select_face: the face, among several.
        limits: sanity limits of the video.
        progress: called with "tracking the face", the frames read, and those to be read.

    Raises:
        MediaError: the video cannot be read, or no shot can be used.
        NoFaceError: no face in any frame that is read.
        LimitError: the video exceeds `limits`.
    """
    ranges = part_ranges(round(probe(video, limits).duration_s * FPS))
    expected = sum(stop - start for start, stop in ranges)
    parts: list[_Part] = []
    num_read = 0

    def counted(frames: Iterator[Frame]) -> Iterator[Frame]:
        nonlocal num_read
        for frame in frames:
            num_read += 1
            progress("tracking the face", num_read, max(expected, num_read))
            yield frame

    for start, stop in ranges:
        landmarks = _track(video, start, stop, backend, select_face, limits, counted)
        if landmarks is not None:
            parts.append(_Part(start, landmarks))
    if num_read == 1:
        raise MediaError(video, "a photo, or a video of one frame: nothing to adapt to")
    if not parts:
        raise NoFaceError(video, no_face_reason(num_read, backend))
    if len(ranges) > 1:
        message = "%s: adapting on %d parts of %d s, evenly spaced"
        logger.info(message, video, len(ranges), PART_FRAMES // FPS, extra={"path": video})

    clips, starts, reasons = [], [], []
    for number, part in enumerate(parts):
        for start, stop in part.landmarks.shots:
            if reason := rejection_reason(part.landmarks, start, stop):
                reasons.append(reason)
                continue
            points = part.landmarks.points[start:stop]
            frames = _read_crops(video, part.start + start, points, mouth_size, limits)
            clips.append(Clip(f"{video.stem}-{len(clips):02d}", video.stem, frames, np.zeros(0), points))
            starts.append((number, start))
    if not clips:
        raise MediaError(video, f"no usable shot ({'; '.join(dict.fromkeys(reasons))})")

    delay_ms, reason = None, None
    try:
        waveforms = _read_waveforms(video, parts, limits)
    except AudioError as error:
        reason = str(error).removeprefix(f"{video}: ")
    else:
        if sum(len(clip.frames) for clip in clips) < MIN_SYNC_FRAMES:
            reason = f"less than {MIN_SYNC_FRAMES / FPS:g} s of a face, too little to measure the A/V sync"
        elif (delay_ms := _audio_delay_ms(clips, starts, waveforms)) is None:
            reason = "no speech in sync with the lips was found"
    if delay_ms is None:
        features = [np.zeros((MARGIN + part.stop - part.start, 1), np.float32) for part in parts]
    else:
        delay = round(delay_ms * SAMPLE_RATE / 1000)
        features = [extract_features(_advanced(waveform, delay), audio_features) for waveform in waveforms]
    clips = [
        replace(clip, features=features[number][MARGIN + start : MARGIN + start + len(clip.frames)])
        for clip, (number, start) in zip(clips, starts, strict=True)
    ]
    return VideoClips(clips, delay_ms, reason)


def part_ranges(num_frames: int) -> list[tuple[int, int]]:
    """Ranges [start, stop) of the frames to read of a video of about `num_frames` frames at 25 fps."""
    if num_frames <= MAX_PARTS * PART_FRAMES:
        return [(0, MAX_PARTS * PART_FRAMES)]  # the container may state less than there is
    starts = np.linspace(0, num_frames - PART_FRAMES, MAX_PARTS).astype(int).tolist()
    return [(start, start + PART_FRAMES) for start in starts]


def _track(
    video: Path,
    start: int,
    stop: int,
    backend: str,
    select_face: FaceSelector,
    limits: Limits,
    counted: Callable[[Iterator[Frame]], Iterator[Frame]],
) -> Landmarks | None:
    """Landmarks of frames [start, stop); None without a face."""
    in_video: list[int] = []
    resized: list[int] = []

    def frames() -> Iterator[Frame]:
        try:
            for frame in counted(read_video(video, start, stop, limits=limits, resized=in_video)):
                resized[:] = [index - start for index in in_video]
                yield frame
        except TruncatedMediaError as error:
            logger.warning("%s; using what precedes it", error, extra={"path": video})

    tracked = list(track_landmarks(frames(), backend, video, first=start, choose=select_face, resized=resized))
    raw = np.array([points for points, _ in tracked])
    if not len(raw) or np.isnan(raw).all():
        return None
    cuts = {index for index, (_, cut) in enumerate(tracked) if cut}
    return clean_landmarks(raw, sorted(cuts | find_jumps(raw)))


def _read_crops(video: Path, start: int, points: np.ndarray, mouth_size: int, limits: Limits) -> np.ndarray:
    """Face crops (T, 13S/8, 5S/4, 3) of the frames from `start` on, one for each row of `points` (T, 68, 2)."""
    crops = np.empty((len(points), *crop_size(mouth_size), 3), np.uint8)
    frames = read_frames(video, start, start + len(points), limits=limits)
    for index, (frame, radius_px) in enumerate(zip(frames, crop_radii(points), strict=True)):
        crops[index] = FaceCrop.from_landmarks(points[index], radius_px, mouth_size).extract(frame)
    return crops


def _read_waveforms(video: Path, parts: list[_Part], limits: Limits) -> list[np.ndarray]:
    """The audio (N,) of each part with MARGIN frames on either side; silent where there is none.

    Raises AudioError without an audio track.
    """
    starts = [(part.start - MARGIN) * SAMPLES_PER_FRAME for part in parts]
    waveforms = [np.zeros((part.stop - part.start + 2 * MARGIN) * SAMPLES_PER_FRAME, np.float32) for part in parts]
    end = max(start + len(waveform) for start, waveform in zip(starts, waveforms, strict=True))
    position = 0
    with closing(read_audio(video, limits)) as blocks:
        for block in blocks:
            for start, waveform in zip(starts, waveforms, strict=True):
                first, last = max(position, start), min(position + len(block), start + len(waveform))
                if first < last:
                    waveform[first - start : last - start] = block[first - position : last - position]
            position += len(block)
            if position >= end:
                break
    return waveforms


def _audio_delay_ms(clips: list[Clip], starts: list[tuple[int, int]], waveforms: list[np.ndarray]) -> float | None:
    """The A/V offset by the bundled SyncNet; None if its confidence is too low.

    Args:
        clips: with their frames.
        starts: the part of each clip, and its first frame in that part.
        waveforms: of `_read_waveforms`.
    """
    syncnet = load_syncnet()
    features = [extract_features(waveform, syncnet.audio_features) for waveform in waveforms]
    rows, columns = mouth_box(mouth_size_of(clips[0].frames.shape[1]))
    size = (syncnet.mouth_size, syncnet.mouth_size)

    def mouths() -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        num_left = MAX_FRAMES
        for clip, (number, start) in zip(clips, starts, strict=True):
            frames = clip.frames[:num_left, rows, columns]
            if len(frames) < CLIP_LENGTH:
                return
            num_left -= len(frames)
            resized = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
            yield np.stack(resized), features[number], MARGIN + start

    offset = common_offset(mouths())
    return offset.audio_delay_ms if offset.confidence >= MIN_SYNC_CONFIDENCE else None


def _advanced(waveform: np.ndarray, delay: int) -> np.ndarray:
    """The waveform (N,) moved forward by `delay` samples, which may be negative, at the same length."""
    moved = np.zeros_like(waveform)
    if delay >= 0:
        moved[: len(waveform) - delay] = waveform[delay:]
    else:
        moved[-delay:] = waveform[:delay]
    return moved
