"""Selection of one face: by size, side, position and photo."""

import os

import cv2
import numpy as np
import pytest

from data_processing.face.detectors import largest_face, track_landmarks
from data_processing.face.selection import face_selector
from data_processing.media.frame import RgbFrame
from data_processing.media.video_reader import read_frames
from tests.support.heif import tiled_photo
from utils.errors import LimitError, NoFaceError, ParameterError
from utils.limits import Limits

BOXES = np.array([[200.0, 10, 240, 50], [0, 0, 60, 60], [90, 100, 170, 180]])


def test_selection_by_size_side_and_position() -> None:
    def selected(text: str) -> int | None:
        frame = RgbFrame(np.zeros((200, 300, 3), np.uint8))
        return face_selector(text)(BOXES, lambda box: np.zeros((68, 2)), frame)

    assert face_selector("largest") is largest_face
    assert [selected(text) for text in ("largest", "left", "right")] == [2, 1, 0]
    assert [selected(text) for text in ("210,40", "0,0", "140,120")] == [0, 1, 2]


def test_selection_by_photo(portrait_clip, tmp_path, monkeypatch) -> None:
    """Two tinted copies of a face side by side; the identity encoder is replaced by the mean colour."""
    frame = next(read_frames(portrait_clip))
    red, blue = (np.clip(frame * tint, 0, 255).astype(np.uint8) for tint in ([1, 0.4, 0.4], [0.4, 0.4, 1]))
    cv2.imwrite(str(tmp_path / "red.png"), red[..., ::-1])

    class MeanColour:
        def vector(self, frame: np.ndarray, points: np.ndarray) -> np.ndarray:
            x, y = points[33].astype(int)
            return frame[y - 20 : y + 20, x - 20 : x + 20].mean(axis=(0, 1)) / 50

    monkeypatch.setattr("data_processing.face.selection.IdentityEncoder", MeanColour)
    choose = face_selector(str(tmp_path / "red.png"))
    for images, expected in (((blue, red), 1), ((red, blue), 0), ((blue, blue), None)):
        points, _ = next(track_landmarks(iter([RgbFrame(np.hstack(images))]), "dlib", choose=choose))
        if expected is None:
            assert np.isnan(points).all()
        else:
            assert 256 * expected < points[33, 0] < 256 * (expected + 1)


def test_invalid_selection(tmp_path) -> None:
    for text in ("middle", str(tmp_path / "missing.png"), "3,"):
        with pytest.raises(ParameterError, match=r"^expected largest, left, right, X,Y or an image file") as error:
            face_selector(text)
        assert error.value.parameter == "face"
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ParameterError, match=r"text\.png: no frame can be decoded") as error:
        face_selector(str(tmp_path / "text.png"))
    assert error.value.parameter == "face"
    cv2.imwrite(str(tmp_path / "gray.png"), np.full((200, 200, 3), 128, np.uint8))
    with pytest.raises(NoFaceError, match=r"gray\.png: no face detected") as error:
        face_selector(str(tmp_path / "gray.png"))
    assert error.value.path == tmp_path / "gray.png"


def test_photo_of_a_phone(portrait_clip, tmp_path) -> None:
    """Made of tiles and lying on its side."""
    frame = next(read_frames(portrait_clip))
    path = tiled_photo(tmp_path / "phone.heic", np.rot90(frame), transforms=[("irot", 3)])
    choose = face_selector(str(path))
    points, _ = next(track_landmarks(iter([RgbFrame(frame)]), "dlib", choose=choose))
    assert not np.isnan(points).any()


def test_pipe_in_place_of_a_photo_is_refused_at_once(tmp_path) -> None:
    os.mkfifo(tmp_path / "photo.png")
    with pytest.raises(ParameterError, match=r"photo\.png: is a pipe") as error:
        face_selector(str(tmp_path / "photo.png"))
    assert error.value.parameter == "face"


def test_size_of_the_photo_is_limited(portrait_clip, tmp_path) -> None:
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), next(read_frames(portrait_clip))[..., ::-1])
    with pytest.raises(LimitError, match="at most 200 pixels a side"):
        face_selector(str(path), Limits(max_side_px=200))
