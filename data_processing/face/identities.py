"""Whose face a video shows: groups of videos by face recognition."""

import zlib
from functools import cache
from pathlib import Path

import numpy as np

from data_processing.face.detectors import track_landmarks
from data_processing.face.identity import IdentityEncoder
from data_processing.media.frame import RgbFrame
from data_processing.media.video_reader import FPS, probe, read_frames
from utils.errors import MediaError

NUM_FRAMES = 5  # of a video, evenly spaced; one may be blurred or in profile
# Of 18 videos of 7 training speakers, those of one were at most 0.45 apart, those of two at least 0.51. Rather too
# high: a person split into two identities may be trained on and held out, two people joined are in one split.
SAME_IDENTITY_MEAN = 0.48  # distance of mean descriptors up to which two videos show one identity


def mean_descriptor(path: Path) -> np.ndarray | None:
    """The mean descriptor (128,) of the largest face in each of NUM_FRAMES frames of a video.

    None if none of them shows a face or the video cannot be read.

    Raises:
        WeightsError: the weights of the detector or of the recognition network cannot be obtained.
    """
    vectors = []
    try:
        num_frames = max(1, int(probe(path).duration_s * FPS))
        for number in ((np.arange(NUM_FRAMES) + 0.5) * num_frames / NUM_FRAMES).astype(int).tolist():
            for frame in read_frames(path, number, number + 1):
                points, _ = next(track_landmarks(iter([RgbFrame(frame)]), "dlib"))
                if not np.isnan(points).any():
                    vectors.append(_encoder().vector(frame, points))
    except MediaError:
        pass  # `prepare_video` says what is wrong with it
    return np.mean(vectors, axis=0) if vectors else None


@cache
def _encoder() -> IdentityEncoder:
    return IdentityEncoder()


def assign_identities(descriptors: dict[str, np.ndarray | None], known: dict[str, str]) -> dict[str, str]:
    """Name the identity in each video: the nearest one of the videos before, or a new one, named after the video.

    An identity is the mean of the descriptors of its videos. Identities that are known do not change, so that they
    do not when videos are added.

    Args:
        descriptors: of `mean_descriptor`, by path of the video. A video without one has an identity of its own.
        known: identity of some of the videos, by path.

    Returns:
        The identity of each video, by path.
    """
    numbers: dict[str, int] = {}  # by identity
    sums, counts = np.zeros((len(descriptors), 128)), np.zeros((len(descriptors), 1))
    identities = {}
    for video in sorted(descriptors, key=lambda video: (video not in known, video)):
        descriptor = descriptors[video]
        identity = (
            known.get(video) or f"{Path(video).stem}-{zlib.crc32(video.encode(errors='surrogateescape')):08x}"
        )
        if descriptor is not None:
            if video not in known and numbers:
                means = sums[: len(numbers)] / counts[: len(numbers)]
                distances = np.linalg.norm(means - descriptor, axis=1)
                if distances.min() <= SAME_IDENTITY_MEAN:
                    identity = list(numbers)[distances.argmin()]
            number = numbers.setdefault(identity, len(numbers))
            sums[number] += descriptor
            counts[number] += 1
        identities[video] = identity
    return identities
