"""Silence in the driving audio, and mouth closure there.

Driven by Whisper's features of silence, the generator often leaves the mouth half open, as many speakers do. The
mouth opening depends approximately linearly on the features, so adding a fixed vector (CLOSED_LIPS, made by
scripts/closed_lips.py) closes it. In music and noise, a linear function of the same features (SPEECH_DETECTOR, made
by scripts/speech_detector.py) tells speech from the rest. checkpoints/README.md has the figures.
"""

import cv2
import numpy as np

from data_processing.media.audio_io import SAMPLE_RATE
from data_processing.media.video_reader import FPS
from utils.bundled import CLOSED_LIPS, SPEECH_DETECTOR

SILENCE_DB = 35.0  # a silent frame is at least this much below the level of the loud frames
LOUD_PERCENTILE = 95  # of the frame levels: the level of the loud frames
# The absolute floor is for audio without any speech. Speech recorded so quietly that its peak is 45 dB below full
# scale has a frame above -66 dB in every two seconds.
FLOOR_DB = -67.0  # RMS relative to full scale
FLOOR = 10 ** (FLOOR_DB / 20)
FLOOR_REACH = 25  # frames: all of those within this distance of a silent frame are below the floor
NO_SPEECH = -1.0  # score of SPEECH_DETECTOR above which there is no speech; at 0, more pauses in music are missed
HUM_HZ = 200  # what is below it is attenuated: mains hum is no speech however loud
MIN_SILENCE = 5  # frames: a shorter pause is not silence
SPEECH_MARGIN = 2  # frames of silence beside speech that keep their features: they are in audio windows of speech
FADE = 3  # frames over which the mouth closes or opens next to that margin


def with_noise_floor(waveform: np.ndarray) -> np.ndarray:
    """Audio (N,) at 16 kHz that is below the floor throughout, with faint noise added; other audio as it is.

    Whisper's features of digital silence are unlike those of pauses in speech, and the mouth does not close on them
    as far as on those of noise.
    """
    if (_level_without_hum(waveform) >= FLOOR).any():
        return waveform
    noise = np.random.default_rng(0).standard_normal(len(waveform), np.float32)
    return waveform + np.float32(FLOOR / 2) * noise


def _level_without_hum(waveform: np.ndarray) -> np.ndarray:
    """`loudness` (N // 640,) of what is above mains hum."""
    size = SAMPLE_RATE // FPS
    if len(waveform) < size:
        return np.zeros(0)
    # a Butterworth filter of second order, run forward and backward; as a product of spectra it needs no library
    # that takes a second to load
    padded = np.pad(waveform, size, mode="reflect", reflect_type="odd")
    frequencies = np.fft.rfftfreq(len(padded), 1 / SAMPLE_RATE)
    passed = frequencies**4 / (frequencies**4 + HUM_HZ**4)
    return loudness(np.fft.irfft(np.fft.rfft(padded) * passed, len(padded))[size:-size])


def loudness(waveform: np.ndarray) -> np.ndarray:
    """RMS of every complete frame at 25 fps: waveform (N,) at 16 kHz -> (N // 640,)."""
    size = SAMPLE_RATE // FPS
    frames = waveform[: len(waveform) // size * size].reshape(-1, size)
    return np.sqrt(np.square(frames).mean(axis=1))


def loud_level(level: np.ndarray) -> float:
    """Level of the loud frames, from the `loudness` (T,) of all frames."""
    return float(np.percentile(level, LOUD_PERCENTILE)) if len(level) else 0.0


def silent_frames(
    waveform: np.ndarray, loud: float | None = None, features: np.ndarray | None = None
) -> np.ndarray:
    """Complete frames that belong to silence: waveform (N,) at 16 kHz -> (N // 640,) bool.

    Silence is MIN_SILENCE or more consecutive frames that are SILENCE_DB below the level of the loud frames, or lie
    where nothing within FLOOR_REACH frames exceeds FLOOR_DB, or, with `features`, without speech.

    Args:
        waveform: (N,) at 16 kHz.
        loud: level of the loud frames, if it is known from more audio than this; None to measure it here.
        features: Whisper features (T, 384), T >= N // 640, of the same audio.
    """
    level = loudness(waveform)
    if not len(level):
        return np.zeros(0, bool)
    loud = loud_level(level) if loud is None else loud
    loudest_near = cv2.dilate(_level_without_hum(waveform)[None], np.ones((1, 2 * FLOOR_REACH + 1)))[0]
    quiet = (level < loud * 10 ** (-SILENCE_DB / 20)) | (loudest_near < FLOOR)
    if features is not None:
        quiet |= _without_speech(features[: len(quiet)])
    at_least, outside = np.ones((1, MIN_SILENCE)), {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}
    return cv2.morphologyEx(np.uint8(quiet)[None], cv2.MORPH_OPEN, at_least, **outside)[0] > 0


def _without_speech(features: np.ndarray) -> np.ndarray:
    """Frames without speech, whatever else is heard: Whisper features (T, 384) -> (T,) bool."""
    detector = np.load(SPEECH_DETECTOR)
    return features @ detector[:-1] + detector[-1] > NO_SPEECH


def closure_weight(silent: np.ndarray) -> np.ndarray:
    """Weight of mouth closure per frame: silent frames (T,) bool -> (T,) float32 in [0, 1].

    0 in speech and up to SPEECH_MARGIN frames from it, then rising to 1. Audio that starts or ends with silence has
    weight 1 there.
    """
    if not silent.any() or silent.all():
        return silent.astype(np.float32)
    # Padded with silence, so that distances are measured from speech only.
    padded = np.pad(np.uint8(silent), len(silent), constant_values=1)
    distance = cv2.distanceTransform(padded[None], cv2.DIST_C, 3)[0, len(silent) : -len(silent)]
    return np.clip((distance - SPEECH_MARGIN) / (FADE + 1), 0, 1).astype(np.float32)


class SilenceMouthClosure:
    """Shifts Whisper features in silence so that the mouth closes; works on consecutive chunks of audio.

    Args:
        beginning: (N,) at 16 kHz, from which the level of the loud frames is measured; None to use the maximum over
            the chunks so far, as is done if the beginning is below the floor.
    """

    def __init__(self, beginning: np.ndarray | None = None) -> None:
        self._loud = 0.0 if beginning is None else loud_level(loudness(beginning))
        self._level_known = self._loud >= FLOOR
        self._closed_lips = np.load(CLOSED_LIPS)

    def __call__(self, features: np.ndarray, waveform: np.ndarray) -> np.ndarray:
        """Shift the features of one chunk.

        Args:
            features: (T, 384), Whisper features of the chunk, T = ceil(N / 640).
            waveform: (N,) at 16 kHz.

        Returns:
            (T, 384); rows outside of silence are unchanged.
        """
        if not self._level_known:
            self._loud = max(self._loud, loud_level(loudness(waveform)))
        silent = silent_frames(waveform, self._loud, features)
        # An incomplete frame at the end is silent if the frame before it is.
        silent = np.pad(silent, (0, len(features) - len(silent)), "edge" if len(silent) else "constant")
        return features + closure_weight(silent)[:, None] * self._closed_lips
