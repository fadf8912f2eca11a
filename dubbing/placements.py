"""Where faces are in output frames, in memory and on disk."""

from os import SEEK_END
from pathlib import Path
from tempfile import gettempdir
from typing import BinaryIO, NamedTuple

import numpy as np

from utils.errors import OutputError, error_reason

NO_SHOT = -1  # shot of a placement where no face is to be generated


class FacePlacement(NamedTuple):
    """Where and how the face of one speaker is generated in a frame.

    points: (68, 2) landmarks in source pixels.
    radius_px: radius of the face crop.
    shot: number of the selection of reference frames; NO_SHOT if no face is generated.
    strength: opacity of the generated mouth, 0 to 1.
    fade: share of the mouth that follows from the selection before, 0 to 1.
    """

    points: np.ndarray
    radius_px: float
    shot: int
    strength: float
    fade: float = 0.0


def same_face(placement: FacePlacement, other: FacePlacement) -> bool:
    """Whether two placements in a frame are on the same face."""
    distance = np.linalg.norm(placement.points[33] - other.points[33])
    return placement.shot >= 0 and other.shot >= 0 and bool(distance < other.radius_px)


class PlacementSpool:
    """The placements of all frames, in a temporary file: an hour of them takes 70 MB for each speaker.

    Args:
        file: an empty file, open for reading and writing.
        num_speakers: placements in each frame.
    """

    def __init__(self, file: BinaryIO, num_speakers: int) -> None:
        self._file, self._shape = file, (num_speakers, 68 * 2 + 4)

    def append(self, placements: list[FacePlacement]) -> None:
        """Add the placements of the next frame, one for each speaker.

        Raises:
            OutputError: the disk is full.
        """
        rows = [[*one.points.ravel(), one.radius_px, one.shot, one.strength, one.fade] for one in placements]
        try:
            self._file.seek(0, SEEK_END)
            self._file.write(np.array(rows, np.float32).tobytes())
        except OSError as error:
            folder = Path(gettempdir())
            raise OutputError(folder, f"cannot write a temporary file: {error_reason(error)}") from None

    def __getitem__(self, index: int) -> list[FacePlacement]:
        rows = np.zeros(self._shape, np.float32)
        self._file.seek(index * rows.nbytes)
        self._file.readinto(rows)
        return [
            FacePlacement(row[:136].reshape(68, 2), float(row[136]), int(row[137]), *map(float, row[138:]))
            for row in rows
        ]
