"""TODO."""

from os import SEEK_END
from tempfile import gettempdir
from typing import BinaryIO, NamedTuple

import numpy as np

from utils.errors import UserError, error_reason


class FacePlacement(NamedTuple):
    """Where and how a face is redrawn in a frame: its landmarks (68, 2), the crop's radius, the shot whose
    references it is drawn with (−1 for not at all), and how far the new mouth covers the old one, 0 to 1."""

    points: np.ndarray
    radius_px: float
    shot: int
    strength: float


def same_face(place: FacePlacement, other: FacePlacement) -> bool:
    """Whether two places in a frame are one face."""
    distance = np.linalg.norm(place.points[33] - other.points[33])
    return place.shot >= 0 and other.shot >= 0 and bool(distance < other.radius_px)


class PlacementSpool:
    """The places of `count` speakers in every frame, in a file: those of an hour would take 70 MB of memory.

    Raises UserError where that has no room.
    """

    def __init__(self, file: BinaryIO, count: int) -> None:
        self._file, self._shape = file, (count, 68 * 2 + 3)

    def append(self, places: list[FacePlacement]) -> None:
        """The places of the next frame, as many as there are speakers."""
        rows = [[*at.points.ravel(), at.radius_px, at.shot, at.strength] for at in places]
        try:
            self._file.seek(0, SEEK_END)
            self._file.write(np.array(rows, np.float32).tobytes())
        except OSError as error:
            raise UserError(f"{gettempdir()}: no temporary file can be written: {error_reason(error)}") from None

    def __getitem__(self, index: int) -> list[FacePlacement]:
        rows = np.zeros(self._shape, np.float32)
        self._file.seek(index * rows.nbytes)
        self._file.readinto(rows)
        return [
            FacePlacement(row[:136].reshape(68, 2), float(row[136]), int(row[137]), float(row[138])) for row in rows
        ]
