"""Detector backends: dlib on a portrait moved by known amounts, OpenFace's CSV, a fake face_alignment."""

import csv
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import skimage.data

from data_processing.face import detectors
from data_processing.face.detectors import (
    DETECTION_INTERVAL,
    fit_landmarks,
    largest_face,
    no_face_reason,
    track_landmarks,
)
from data_processing.face.tracking import find_landmarks
from data_processing.media.frame import RgbFrame
from data_processing.media.video_reader import read_frames, read_video
from data_processing.media.video_writer import VideoWriter
from tests.support.media import no_face_video, write_video
from utils.errors import FileError, MediaError, NoFaceError, ParameterError

FACE = skimage.data.astronaut()  # 512 x 512; the centre of the mouth is at (223, 147)


def write_frames(path: Path, frames) -> Path:
    writer = None
    for frame in frames:
        if writer is None:
            writer = VideoWriter(path, frame.shape[1], frame.shape[0]).__enter__()
        writer.write(frame)
    writer.__exit__(None, None, None)
    return path


@pytest.fixture
def black_clip(tmp_path) -> Path:
    """A video of 50 black frames."""
    return write_frames(tmp_path / "clip.mp4", [np.zeros((32, 32, 3), np.uint8)] * 50)


# --- dlib ---------------------------------------------------------------------------------------------------


def test_dlib_on_the_portrait(portrait_clip):
    result = find_landmarks(portrait_clip)
    assert result.points.shape == (40, 68, 2) and result.points.dtype == np.float32
    assert result.found.all() and result.usable.all()
    assert result.shots == [(0, 40)]
    # `talking_portrait` moves the image by `sway`; its mouth then opens downwards by up to 6 pixels
    times = np.arange(40) / 25
    sway = np.stack([-3 * np.sin(2 * np.pi * 0.7 * times), -2 * np.sin(2 * np.pi * 0.9 * times)], axis=-1)
    upper_lip, nose = result.points[:, 51], result.points[:, 30]
    assert np.abs(upper_lip - sway - (127, 142)).max() < 5
    centred = nose - sway
    assert np.abs(centred - centred.mean(axis=0)).max() < 1.5
    left_eye, right_eye = result.points[:, 36:42].mean(axis=(0, 1)), result.points[:, 42:48].mean(axis=(0, 1))
    assert left_eye[0] < 127 < right_eye[0]  # order of the 68 points in a frontal view
    assert max(left_eye[1], right_eye[1]) < nose[:, 1].min() < result.points[:, 8, 1].min()


def test_dlib_tracks_a_moving_face(tmp_path):
    """The image moves 3 pixels left and 1 up per frame, and the detector runs on every fifth frame only."""
    frames = (FACE[t : t + 256, 3 * t + 60 : 3 * t + 316] for t in range(30))
    result = find_landmarks(write_frames(tmp_path / "clip.mp4", frames))
    assert result.found.all() and result.shots == [(0, 30)]
    t = np.arange(30)[:, None]
    still = result.points.mean(axis=1) + t * [3, 1]
    assert np.abs(still - still.mean(axis=0))[4:-4].max() < 0.75
    slope = np.polyfit(t[4:-4, 0], result.points.mean(axis=1)[4:-4], 1)[0]
    assert np.abs(slope - [-3, -1]).max() < 0.05


def test_dlib_is_independent_of_the_resolution(tmp_path):
    """A face four times as large has landmarks four times as large."""
    small = FACE[:256, 96:352]
    large = np.kron(small, np.ones((4, 4, 1), np.uint8))
    a, b = (
        find_landmarks(write_frames(tmp_path / f"{len(frame)}.mp4", [frame] * 2)).points[0]
        for frame in (small, large)
    )
    assert np.abs(a - b / 4).mean() < 0.8  # of a face 90 pixels wide


def test_cut_is_detected(tmp_path):
    first, second = FACE[:256, 96:352], FACE[:256, 30:286][:, ::-1]
    frames = [*[first] * 12, *[255 - (255 - second) // 3] * 12]
    result = find_landmarks(write_frames(tmp_path / "clip.mp4", frames))
    assert result.shots == [(0, 12), (12, 24)]
    noses = result.points[:, 30, 0]
    assert np.ptp(noses[:12]) < 1 and np.ptp(noses[12:]) < 1  # no smoothing across the cut
    assert abs(noses[0] - noses[-1]) > 10


def test_dissolve_between_two_faces(tmp_path):
    """Its middle belongs to neither shot and has no landmarks, which are not interpolated either."""
    first, second = FACE[:256, 96:352].astype(float), FACE[:256, 30:286][:, ::-1].astype(float)
    weights = np.clip((np.arange(40) - 14) / 9, 0, 1)  # frames 15 to 22 show both
    path = tmp_path / "clip.mp4"
    write_frames(path, ((first * (1 - w) + second * w).astype(np.uint8) for w in weights))
    result = find_landmarks(path)
    (start, end), (next_start, stop) = result.shots
    assert start == 0 and 15 <= end <= 18 and 20 <= next_start <= 23 and stop == 40
    assert np.flatnonzero(~result.usable).tolist() == list(range(end, next_start))
    noses = result.points[:, 30, 0]
    assert np.ptp(noses[:end]) < 3 and np.ptp(noses[next_start:]) < 3 and abs(noses[0] - noses[-1]) > 10


def test_dissolve_from_a_title_to_a_face(tmp_path):
    """There is only one face in it, which is tracked from where it is detected, in one shot."""
    face, title = FACE[:256, 96:352].astype(float), np.full((256, 256, 3), 16.0)
    title[20:50, 40:200:9] = 240
    weights = np.clip((np.arange(40) - 5) / 20, 0, 1)
    path = tmp_path / "clip.mp4"
    write_frames(path, ((title * (1 - w) + face * w).astype(np.uint8) for w in weights))
    result = find_landmarks(path)
    ((start, stop),) = result.shots
    assert start < 18 and stop == 40
    assert result.usable[start:].all()


def test_light_does_not_end_a_shot(tmp_path):
    """A flash of two frames, and then half the light."""
    frames = [FACE[:256, 96:352]] * 40
    frames[12:14] = [np.clip(frame * 1.3 + 120.0, 0, 255).astype(np.uint8) for frame in frames[12:14]]
    frames[26:] = [frame // 2 for frame in frames[26:]]
    result = find_landmarks(write_frames(tmp_path / "clip.mp4", frames))
    assert result.shots == [(0, 40)]
    assert np.ptp(result.points[:, 30], axis=0).max() < 3


def test_colour_starts_a_shot(tmp_path):
    color = FACE[:256, 96:352]
    gray = np.repeat((color @ [0.299, 0.587, 0.114]).astype(np.uint8)[..., None], 3, axis=2)
    assert find_landmarks(write_frames(tmp_path / "clip.mp4", [gray] * 15 + [color] * 15)).shots == [
        (0, 15),
        (15, 30),
    ]


def test_change_of_the_stream_size_starts_a_shot(tmp_path):
    """Two joined transport streams that show the same at different resolutions: the contents do not tell."""
    frames = [FACE[:256, 96:352]] * 15
    parts = [frames, [frame[::2, ::2] for frame in frames]]
    parts = [write_video(tmp_path / f"{index}.ts", part).read_bytes() for index, part in enumerate(parts)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    result = find_landmarks(path)
    assert result.shots == [(0, 15), (15, 30)]
    assert np.abs(result.points[0] - result.points[-1]).max() < 6


@pytest.mark.parametrize(("live", "longest"), [(False, 11 + 4), (True, 3 + 1)])
def test_frames_wait_for_the_shot_detector_and_the_face_detector(live, longest):
    read = []
    frames = (read.append(None) or RgbFrame(FACE[:256, 96:352]) for _ in range(40))
    delays = [len(read) - index for index, _ in enumerate(track_landmarks(frames, "dlib", live=live), 1)]
    assert len(delays) == 40 and max(delays) == longest


def test_face_that_appears_later(tmp_path):
    blank = np.full((256, 256, 3), FACE[:256, 96:352].mean(axis=(0, 1)), np.uint8)
    frames = [*[blank] * 20, *[FACE[:256, 96:352]] * 10]
    result = find_landmarks(write_frames(tmp_path / "clip.mp4", frames))
    assert result.shots == [(20, 30)]
    assert (result.usable == (np.arange(30) >= 20)).all()


class LumaOnly(RgbFrame):
    """A grey frame that cannot be converted to RGB."""

    def region(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        raise AssertionError("a region is converted to RGB")

    def rgb(self) -> np.ndarray:
        raise AssertionError("a whole frame is converted to RGB")


def test_dlib_needs_no_colours():
    tracked = list(track_landmarks((LumaOnly(FACE[t : t + 256, 96:352]) for t in range(6)), "dlib"))
    assert np.isfinite([points for points, _ in tracked]).all()


def test_landmarks_on_luma_are_those_on_rgb(portrait_clip):
    """The samples of the video are limited to 16 … 235, those of RGB are not."""
    planar, rgb = (
        np.array([points for points, _ in track_landmarks(frames, "dlib")])
        for frames in (read_video(portrait_clip, stop=12), map(RgbFrame, read_frames(portrait_clip, stop=12)))
    )
    distances = np.linalg.norm(planar - rgb, axis=2) / np.ptp(rgb[0, :, 0])
    assert distances.mean() < 0.0025 and distances.max() < 0.02


def test_range_of_luma_does_not_move_landmarks():
    """Black at 16 and white at 144: without regard to that, they move by 0.5 % of the width of the face."""
    image = FACE[:256, 96:352]
    frames = RgbFrame(image), RgbFrame(image)
    frames[1].luma_range = (16, 144)
    frames[1].luma = np.rint(16 + frames[0].luma * (128 / 255)).astype(np.uint8)
    box = detectors._detect(frames[0], largest_face)
    full, limited = (fit_landmarks(frame, box) for frame in frames)
    assert np.linalg.norm(limited - full, axis=1).mean() < 0.0025 * np.ptp(full[:, 0])


def test_edge_pixels_are_repeated_beside_the_frame():
    image = FACE[60:200, 180:340]  # the left and the lower part of the face are outside
    box = np.array([-10.0, 10, 110, 130])
    padded = RgbFrame(cv2.copyMakeBorder(image, 200, 200, 200, 200, cv2.BORDER_REPLICATE))
    np.testing.assert_allclose(fit_landmarks(RgbFrame(image), box), fit_landmarks(padded, box + 200) - 200)


@pytest.mark.parametrize(("fps", "num_boxes", "num_frames"), [(12, 4, 1), (25, 4, 1), (30, 3, 4), (50, 2, 2)])
def test_boxes_of_a_frame_in_turns(monkeypatch, fps, num_boxes, num_frames):
    """Fewer at a higher frame rate; all of them equally often in `num_frames` frames."""
    used = []
    fit = detectors.fit_landmarks
    monkeypatch.setattr(detectors, "fit_landmarks", lambda *args: used.append(args[2]) or fit(*args))
    frames = (RgbFrame(FACE[:256, 96:352]) for _ in range(8))
    assert len(list(track_landmarks(frames, "dlib", fps=fps))) == len(used) == 8
    assert {len(shifts) for shifts in used} == {num_boxes}
    together = [shift for shifts in used[:num_frames] for shift in shifts]
    assert {shift: together.count(shift) for shift in together} == dict.fromkeys(
        detectors.BOX_SHIFTS, num_frames * num_boxes // 4
    )


def test_frames_without_a_face_are_searched_now_and_then(monkeypatch):
    searched = []
    detect = detectors._detect
    monkeypatch.setattr(detectors, "_detect", lambda frame, choose: searched.append(frame) or detect(frame, choose))
    blank = np.full((256, 256, 3), FACE[:256, 96:352].mean(axis=(0, 1)), np.uint8)
    frames = [RgbFrame(image) for image in [*[blank] * 18, *[FACE[:256, 96:352]] * 6, *[blank] * 20]]
    tracked = [np.isfinite(points).all() for points, _ in track_landmarks(iter(frames), "dlib")]
    assert tracked == [18 <= index < 24 for index in range(44)]  # at once where it appears
    assert [frames.index(frame) for frame in searched] == [*range(11), 15, 18, *range(24, 34), 35, 40]


def test_no_face(tmp_path):
    path = no_face_video(tmp_path / "clip.mp4")
    with pytest.raises(NoFaceError, match=re.escape(f"{path}: no face detected in 10 frames (dlib)")) as error:
        find_landmarks(path)
    assert error.value.path == path


def test_invalid_arguments(tmp_path, portrait_clip):
    with pytest.raises(ParameterError, match=r"^expected one of dlib, .*, found mediapipe") as error:
        find_landmarks(portrait_clip, "mediapipe")
    assert error.value.parameter == "landmarks"
    with pytest.raises(MediaError, match=r"absent\.mp4: no such file"):
        find_landmarks(tmp_path / "absent.mp4")


# --- OpenFace -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "found"), [(0.03, False), (0.06, True)])
@pytest.mark.parametrize("size", [(640, 360), (360, 640), (1920, 1080)])
def test_smallest_face_that_the_message_states(size, ratio, found):
    """`ratio`: width of the landmarks as a part of the longer side of the frame; 1/20 is about the limit."""
    (points, _) = next(track_landmarks(iter([RgbFrame(FACE)]), "dlib"))
    scale = ratio * max(size) / np.ptp(points[:, 0])
    small = cv2.resize(FACE, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    frame = np.full((size[1], size[0], 3), 128, np.uint8)
    frame[20 : 20 + len(small), 30 : 30 + len(small)] = small[: size[1] - 20, : size[0] - 30]
    (points, _) = next(track_landmarks(iter([RgbFrame(frame)]), "dlib"))
    assert np.isfinite(points).all() == found
    assert "wider than about 1/20 of the longer side" in no_face_reason(1, "dlib")


def openface_rows(num_rows: int, fps: float) -> list[dict]:
    """Landmark k at (k + 60 s, 3 k − 30 s) for the time s in seconds; headers as OpenFace writes them."""
    rows = []
    for index in range(num_rows):
        s = index / fps
        row = {"frame": index + 1, " face_id": 0, " timestamp": f"{s:.3f}", " confidence": 0.98, " success": 1}
        row |= {f" x_{k}": f"{k + 60 * s:.1f}" for k in range(68)}
        row |= {f" y_{k}": f"{3 * k - 30 * s:.1f}" for k in range(68)}
        rows.append(row)
    return rows


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("fps", [25, 30, 50])
def test_openface(black_clip, fps):
    write_csv(black_clip.with_suffix(".csv"), openface_rows(2 * fps, fps))
    result = find_landmarks(black_clip, "openface")
    s, k = np.arange(50)[:, None] / 25, np.arange(68)
    truth = np.stack(np.broadcast_arrays(k + 60 * s, 3 * k - 30 * s), axis=-1)
    assert result.points.shape == (50, 68, 2)
    nearest_row = 60 * 0.5 / fps if fps % 25 else 0  # pixels that the face moves in half the time between two rows
    assert np.abs(result.points - truth)[6:-6].max() < nearest_row + 0.1


def test_openface_splits_at_cuts(tmp_path):
    path = write_frames(tmp_path / "clip.mp4", [FACE[:256, :256]] * 15 + [FACE[256:, 256:]] * 15)
    write_csv(path.with_suffix(".csv"), openface_rows(30, 25))
    assert find_landmarks(path, "openface").shots == [(0, 15), (15, 30)]


def test_openface_without_a_face_and_with_missing_rows(black_clip):
    rows = openface_rows(30, 25)
    for row in rows[10:13]:
        row[" success"] = 0
    write_csv(black_clip.with_suffix(".csv"), rows)
    result = find_landmarks(black_clip, "openface")
    assert not result.found[10:13].any() and result.usable[10:13].all()
    assert result.found[[*range(10), *range(13, 30)]].all()
    assert not result.usable[35:].any()


def drop_column(rows):
    for row in rows:
        del row[" y_67"]


def break_all_rows(rows):
    for row in rows:
        row[" x_5"] = "n/a"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (drop_column, "no column y_67"),
        (break_all_rows, "no row has a number in every cell"),
        (lambda rows: rows.__delitem__(slice(1, None)) or rows[0].__delitem__(" timestamp"), "no column timestamp"),
    ],
)
def test_openface_invalid_csv(black_clip, damage, reason):
    rows = openface_rows(50, 25)
    damage(rows)
    write_csv(black_clip.with_suffix(".csv"), rows)
    with pytest.raises(MediaError, match=reason) as error:
        find_landmarks(black_clip, "openface")
    assert str(black_clip.with_suffix(".csv")) in str(error.value)
    assert error.value.path == black_clip.with_suffix(".csv")


def shift_cells(line):
    return line.replace(",", ",,", 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace("0.98,1,", "0.98,n/a,"),
        lambda line: line.rsplit(",", 1)[0] + ",1e300",
        lambda line: line.rsplit(",", 1)[0] + ",-nan(ind)",
        lambda line: line[: len(line) // 2],
        lambda line: "5",
        lambda line: "some text, and more",
        lambda line: line.replace("0.98", '"0.98'),  # an open quote
        lambda line: line.replace("0.98,1,", "0.98,\0\udcff,"),
        shift_cells,
        lambda line: line.replace(line.split(",")[2], "?"),
    ],
)
@pytest.mark.parametrize("damaged", [[7], [7, 8, 31], [0], [0, 1], [49]])
def test_openface_damaged_rows_are_frames_without_a_face(black_clip, caplog, damage, damaged):
    path = black_clip.with_suffix(".csv")
    write_csv(path, openface_rows(50, 25))

    def read() -> np.ndarray:
        return np.stack([points for points, _ in track_landmarks(read_video(black_clip), "openface", black_clip)])

    whole = read()
    assert not caplog.records and np.isfinite(whole).all()
    header, *lines = path.read_text().splitlines()
    lines = [damage(line) if index in damaged else line for index, line in enumerate(lines)]
    path.write_text("\n".join([header, *lines]), errors="surrogateescape")
    result = read()
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{path}: {len(damaged)} of 50 rows are damaged")
    others = [index for index in range(50) if index not in damaged]
    np.testing.assert_array_equal(result[others], whole[others])
    assert np.isnan(result[damaged]).all()


def test_openface_rows_without_a_face_need_no_landmarks(black_clip, caplog):
    rows = openface_rows(50, 25)
    for row in rows[:5]:
        row.update({" success": 0, " x_0": "-nan(ind)"})
    write_csv(black_clip.with_suffix(".csv"), rows)
    assert find_landmarks(black_clip, "openface").found.sum() == 45
    assert not caplog.records


def test_openface_missing_csv(black_clip):
    with pytest.raises(FileError, match=r"clip\.csv: no such file"):
        find_landmarks(black_clip, "openface")
    black_clip.with_suffix(".csv").write_text("")
    with pytest.raises(MediaError, match="no rows"):
        find_landmarks(black_clip, "openface")
    black_clip.with_suffix(".csv").write_bytes(b"\xff\xfe\x00\x80" * 20)
    with pytest.raises(MediaError, match="not a valid CSV file"):
        find_landmarks(black_clip, "openface")


def test_openface_has_selected_a_face_and_requires_a_file(black_clip):
    with pytest.raises(ParameterError, match="already selected a face") as error:
        track_landmarks(iter([]), "openface", black_clip, choose=lambda boxes, fit, frame: 0)
    assert error.value.parameter == "face"
    with pytest.raises(ParameterError, match="requires a video file") as error:
        track_landmarks(iter([]), "openface")
    assert error.value.parameter == "landmarks"


# --- face_alignment (a fake with its interface, because the weights may be missing) --------------------------


class FakeFaceAlignment:
    """Detects a small face and a large one, which moves right by 2 pixels per call; no face in calls 7 and 8."""

    def __init__(self, kind, device):
        self.boxes = []

    def get_landmarks_from_image(self, image, detected_faces=None):
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        index = len(self.boxes)
        self.boxes.append(detected_faces)
        if index in (7, 8):
            return None
        unit = np.random.default_rng(0).random((68, 2))
        return [5 * unit, 100 * unit + [2 * index, 0]]


@pytest.fixture
def fresh_model():
    detectors._face_alignment_model.cache_clear()
    yield
    detectors._face_alignment_model.cache_clear()


def test_face_alignment(black_clip, monkeypatch, fresh_model):
    module = SimpleNamespace(FaceAlignment=FakeFaceAlignment, LandmarksType=SimpleNamespace(TWO_D=1))
    monkeypatch.setitem(sys.modules, "face_alignment", module)
    result = find_landmarks(black_clip, "face_alignment")
    assert (np.flatnonzero(~result.found) == [7, 8]).all()
    truth = 100 * np.random.default_rng(0).random((68, 2)) + 2 * np.arange(50)[:, None, None] * [1, 0]
    assert np.abs(result.points - truth)[6:-6].max() < 1e-3
    boxes = detectors._face_alignment_model().boxes
    detected = [index for index, box in enumerate(boxes) if box is None]
    assert detected == sorted({*range(0, 50, DETECTION_INTERVAL), 8, 9})  # and after each frame without a face
    left, top, right, bottom = boxes[21][0]
    assert (
        np.abs([(left + right) / 2 - truth[20, :, 0].mean(), (top + bottom) / 2 - truth[20, :, 1].mean()]).max()
        < 10
    )
    assert 90 < right - left < 120


def test_face_alignment_unavailable(black_clip, monkeypatch, fresh_model):
    monkeypatch.setitem(sys.modules, "face_alignment", None)
    with pytest.raises(ParameterError, match="pip install face-alignment") as error:
        find_landmarks(black_clip, "face_alignment")
    assert error.value.parameter == "landmarks"

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    module = SimpleNamespace(FaceAlignment=offline, LandmarksType=SimpleNamespace(TWO_D=1))
    monkeypatch.setitem(sys.modules, "face_alignment", module)
    with pytest.raises(ParameterError, match="no route to host"):
        find_landmarks(black_clip, "face_alignment")


def test_weights_of_a_backend_are_fetched_before_the_first_video(monkeypatch) -> None:
    fetched = []
    monkeypatch.setattr(detectors, "weight_path", fetched.append)
    monkeypatch.setattr(detectors, "_face_alignment_model", lambda: fetched.append("face_alignment"))
    for backend in detectors.BACKENDS:
        detectors.check_available(backend)
    assert fetched == ["landmarks68", "face_alignment"]  # openface reads a CSV
