"""What somebody wants to see before a dub: which faces there are, and one generated mouth."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from data_processing.face.detectors import no_face_reason, track_landmarks
from data_processing.face.selection import face_selector
from data_processing.media.audio_io import SAMPLE_RATE, read_audio, save_wav
from data_processing.media.frame import RgbFrame
from data_processing.media.video_reader import read_frames, read_video
from dubbing.pipeline import DubbingPipeline
from dubbing.settings import DubSettings
from utils.errors import NoFaceError
from utils.limits import DEFAULT_LIMITS, Limits

SEARCHED_S = 30  # seconds of a video that are searched for faces, one frame a second
PREVIEW_S = 0.6  # seconds that are dubbed for one mouth, around the loudest moment of the first SEARCHED_S
YELLOW = (255, 221, 0)


def find_faces(video: Path, limits: Limits = DEFAULT_LIMITS) -> tuple[np.ndarray, np.ndarray]:
    """The first frame with a face, (H, W, 3) uint8 RGB, and the boxes (K, 4) of its faces from left to right.

    Args:
        video: video or photo.
        limits: sanity limits.

    Returns:
        Boxes are left, top, right, bottom in pixels.

    Raises:
        MediaError: the file cannot be read. NoFaceError: no face detected.
    """
    found: list[np.ndarray] = []
    num_frames = 0

    def record(boxes: np.ndarray, *_: object) -> int:
        found.append(boxes)
        return 0

    for frame in read_video(video, 0, SEARCHED_S, fps=1, limits=limits):
        num_frames += 1
        next(track_landmarks(iter([frame]), "dlib", choose=record))
        if found:
            return frame.rgb(), found[-1][np.argsort(found[-1][:, 0] + found[-1][:, 2])]
    raise NoFaceError(video, no_face_reason(num_frames, "dlib"))


def numbered_faces(frame: np.ndarray, boxes: np.ndarray, longer_side: int = 960) -> tuple[np.ndarray, float]:
    """A frame (H, W, 3) uint8 RGB with its faces framed and numbered from 1, and pixels per source pixel.

    Args:
        boxes: (K, 4), as `find_faces` returns them.
        longer_side: pixels that the result has at most.
    """
    scale = min(1.0, longer_side / max(frame.shape[:2]))
    image = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for number, box in enumerate(np.rint(boxes * scale).astype(int).tolist(), 1):
        left, top, right, bottom = box
        cv2.rectangle(image, (left, top), (right, bottom), YELLOW, 3)
        cv2.rectangle(image, (left, top), (left + 34, top + 38), YELLOW, -1)
        cv2.putText(image, str(number), (left + 8, top + 29), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 0, 0), 2)
    return image, scale


def preview_mouth(
    pipeline: DubbingPipeline,
    video: Path,
    audio: Path,
    folder: Path,
    settings: DubSettings,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray | None:
    """Source and dubbed lower face beside each other, (H, 2H, 3) uint8 RGB, at a loud moment of the audio.

    Args:
        pipeline: dubs PREVIEW_S of the audio on the beginning of the video.
        folder: for temporary files.
        settings: options of the dub, of whose faces the first is shown.
        progress: as of `DubbingPipeline.dub`.

    Returns:
        None if there is no face at the beginning of the video.
    """
    blocks, length = [], 0
    for block in read_audio(audio, settings.limits):
        blocks.append(block)
        length += len(block)
        if length >= SEARCHED_S * SAMPLE_RATE:
            break
    window = round(PREVIEW_S * SAMPLE_RATE)
    waveform = np.concatenate(blocks)
    energy = np.concatenate([[0], np.cumsum(np.square(waveform, dtype=np.float64))])
    loudest = int(np.argmax(energy[window:] - energy[:-window])) if len(waveform) > window else 0
    save_wav(folder / "preview.wav", waveform[loudest : loudest + window])
    dubbed = folder / "preview.mp4"
    options = replace(settings, faces=settings.faces[:1], when_short="stop", resume=False, soundtrack=None)
    options = replace(options, side_by_side=True)
    try:
        result = pipeline.dub(video, folder / "preview.wav", dubbed, options, progress)
    except NoFaceError:
        return None
    middle = result.num_frames // 2
    both = next(read_frames(dubbed, middle, middle + 1, result.fps))
    source, generated = np.split(both[:, : both.shape[1] // 2 * 2], 2, axis=1)
    choose = face_selector(settings.faces[0], settings.limits)
    points, _ = next(track_landmarks(iter([RgbFrame(source)]), "dlib", choose=choose))
    if np.isnan(points).any():
        return None
    reach = 0.5 * np.ptp(points[:, 0])
    x, y = points[48:].mean(axis=0)
    x0, y0 = int(max(0, x - reach)), int(max(0, y - reach))
    part = np.s_[y0 : int(y + reach), x0 : int(x + reach)]
    scale = 360 / source[part].shape[0]
    both = np.concatenate([source[part], generated[part]], axis=1)
    return cv2.resize(both, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
