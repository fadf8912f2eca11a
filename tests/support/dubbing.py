"""Videos and comparisons for tests of dubbing."""

from pathlib import Path

import cv2
import numpy as np

from data_processing.media.video_reader import read_frames
from data_processing.media.video_writer import VideoWriter

LIPS = slice(140, 160), slice(110, 145)  # of the synthetic portrait


def lips_change(output: np.ndarray, source: np.ndarray) -> float:
    """Mean absolute difference of the lips of two frames of the synthetic portrait, in grey levels."""
    return float(np.abs(output[LIPS].astype(int) - source[LIPS]).mean())


def small_and_large_face(portrait: Path, path: Path) -> Path:
    """Ten frames that show the same face twice, the right one larger."""
    with VideoWriter(path, 576, 320) as writer:
        for frame in read_frames(portrait, 0, 10):
            both = np.zeros((320, 576, 3), np.uint8)
            both[:256, :256] = frame
            both[:, 256:] = cv2.resize(frame, (320, 320))
            writer.write(both)
    return path
