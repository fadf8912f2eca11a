"""Placements of faces, in memory and in the spool."""

from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pytest

from dubbing.placements import NO_SHOT, FacePlacement, PlacementSpool, same_face
from utils.errors import OutputError


def placement(x: float, radius_px: float = 50, shot: int = 0, strength: float = 0.25) -> FacePlacement:
    points = np.random.default_rng(round(x)).normal(x, 1, (68, 2)).astype(np.float32)
    return FacePlacement(points, radius_px, shot, strength)


def test_spool_returns_what_was_appended() -> None:
    frames = [[placement(10 * index), placement(500, shot=NO_SHOT, strength=0)] for index in range(7)]
    with TemporaryFile() as file:
        spool = PlacementSpool(file, 2)
        for frame in frames:
            spool.append(frame)
        for index in (3, 0, 6, 6):
            for found, expected in zip(spool[index], frames[index], strict=True):
                assert np.array_equal(found.points, expected.points)
                assert found[1:] == expected[1:]


def test_same_face() -> None:
    assert same_face(placement(100), placement(120))
    assert not same_face(placement(100), placement(300))
    assert not same_face(placement(100), placement(100, shot=NO_SHOT))
    assert not same_face(placement(100, shot=NO_SHOT), placement(100))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_full_disk() -> None:
    with Path("/dev/full").open("r+b", buffering=0) as file, pytest.raises(OutputError, match="temporary file"):
        PlacementSpool(file, 1).append([placement(1)])
