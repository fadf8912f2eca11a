"""Sanity limits against corrupt headers: one wrong bit can turn a few kilobytes into gigabytes or days."""

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Limits:
    """What a media file may require before it is rejected as damaged.

    max_side_px: width and height of a frame.
    max_gap_s: time between two frames.
    max_delay_s: time by which the audio track may start after the video stream.
    max_duration_s: length of a dub, as the containers state it.
    """

    max_side_px: float = 8192
    max_gap_s: float = 60
    max_delay_s: float = 3600
    max_duration_s: float = 12 * 3600


DEFAULT_LIMITS = Limits()
NO_LIMITS = Limits(inf, inf, inf, inf)
