"""landmarks: cleaning against closed forms, dlib on a real face moved by known amounts, the other backends."""

import csv
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import skimage.data

from data_processing.face import detectors
from data_processing.face.detectors import DETECT_EVERY
from data_processing.face.lips import lip_features, mouth_shape
from data_processing.face.tracking import (
    MAX_GAP,
    SMOOTHING,
    clean_landmarks,
    find_landmarks,
    mouth_in_view,
    track_chunks,
)
from data_processing.media.video_writer import VideoWriter
from tests.support.media import no_face_video
from utils.errors import UserError

FACE = skimage.data.astronaut()  # 512 x 512; the mouth's middle is at (223, 147)


def linear_motion(num_frames: int) -> np.ndarray:
    """(T, 68, 2): landmark k at (k + 2 t, 50 − t)."""
    t, k = np.arange(num_frames)[:, None], np.arange(68)
    return np.stack(np.broadcast_arrays(k + 2.0 * t, 50.0 - t), axis=-1)


def write_frames(path: Path, frames) -> Path:
    writer = None
    for frame in frames:
        if writer is None:
            writer = VideoWriter(path, frame.shape[1], frame.shape[0]).__enter__()
        writer.write(frame)
    writer.__exit__(None, None, None)
    return path


# --- clean --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [1, 5, MAX_GAP])
def test_short_gap_is_interpolated(gap):
    truth = linear_motion(60)
    raw = truth.copy()
    raw[20 : 20 + gap] = np.nan
    result = clean_landmarks(raw, [])
    assert result.shots == [(0, 60)]
    assert result.usable.all()
    assert (np.flatnonzero(~result.found) == np.arange(20, 20 + gap)).all()
    inner = slice(6, -6)  # smoothing bends the ends of a line
    assert np.abs(result.points - truth)[inner].max() < 1e-3


def test_long_gap_ends_a_shot():
    raw = linear_motion(60)
    raw[20 : 20 + MAX_GAP + 1] = np.nan
    result = clean_landmarks(raw, [])
    assert result.shots == [(0, 20), (20 + MAX_GAP + 1, 60)]
    assert (np.flatnonzero(~result.usable) == np.arange(20, 20 + MAX_GAP + 1)).all()
    assert np.isnan(result.points[20 : 20 + MAX_GAP + 1]).all()
    assert (result.found == result.usable).all()


def test_gaps_at_the_ends_of_a_shot():
    raw = np.tile(linear_motion(1), (60, 1, 1))
    held, too_long = MAX_GAP // 2, MAX_GAP // 2 + 1
    raw[:held], raw[60 - too_long :] = np.nan, np.nan
    result = clean_landmarks(raw, [])
    assert result.shots == [(0, 60 - too_long)]
    assert np.allclose(result.points[: 60 - too_long], linear_motion(1))  # held
    assert np.isnan(result.points[60 - too_long :]).all()


def test_smoothing_has_no_lag_and_is_a_gaussian():
    raw = np.zeros((41, 68, 2))
    raw[20] = 1
    response = clean_landmarks(raw, []).points[:, 7, 1]
    offsets = np.arange(-20, 21)
    weights = np.exp(-(offsets**2) / (2 * SMOOTHING**2))
    assert np.allclose(response, response[::-1], atol=1e-7)
    assert np.allclose(response, weights / weights.sum(), atol=1e-3)


def test_smoothing_does_not_cross_cuts():
    raw = np.zeros((50, 68, 2))
    raw[20:] = 100
    result = clean_landmarks(raw, [20])
    assert result.shots == [(0, 20), (20, 50)]
    assert (result.points[:20] == 0).all() and (result.points[20:] == 100).all()
    assert (clean_landmarks(raw, []).points[18:22] % 100 != 0).all()  # which the step without a cut would show


def test_gap_across_a_cut_is_not_interpolated():
    raw = np.zeros((50, 68, 2))
    raw[20:], raw[18:23] = 100, np.nan
    result = clean_landmarks(raw, [20])
    assert (result.points[:20] == 0).all() and (result.points[20:] == 100).all()


def test_shot_without_a_face_is_left_out():
    raw = linear_motion(60)
    raw[20:40] = np.nan
    result = clean_landmarks(raw, [20, 40])
    assert result.shots == [(0, 20), (40, 60)]
    assert not result.usable[20:40].any()


# --- dlib ---------------------------------------------------------------------------------------------------


def test_dlib_on_the_portrait(portrait_clip):
    result = find_landmarks(portrait_clip)
    assert result.points.shape == (40, 68, 2) and result.points.dtype == np.float32
    assert result.found.all() and result.usable.all()
    assert result.shots == [(0, 40)]
    # `talking_portrait` shows the picture moved by this much; its mouth then opens downwards by up to 6 pixels
    times = np.arange(40) / 25
    sway = np.stack([-3 * np.sin(2 * np.pi * 0.7 * times), -2 * np.sin(2 * np.pi * 0.9 * times)], axis=-1)
    upper_lip, nose = result.points[:, 51], result.points[:, 30]
    assert np.abs(upper_lip - sway - (127, 142)).max() < 5
    centred = nose - sway
    assert np.abs(centred - centred.mean(axis=0)).max() < 1.5
    left_eye, right_eye = result.points[:, 36:42].mean(axis=(0, 1)), result.points[:, 42:48].mean(axis=(0, 1))
    assert left_eye[0] < 127 < right_eye[0]  # seen from the front: the order of the 68 points
    assert max(left_eye[1], right_eye[1]) < nose[:, 1].min() < result.points[:, 8, 1].min()


def test_dlib_follows_a_moving_face(tmp_path):
    """The picture moves 3 pixels left and 1 up a frame, faster than the detector looks."""
    frames = (FACE[t : t + 256, 3 * t + 60 : 3 * t + 316] for t in range(30))
    result = find_landmarks(write_frames(tmp_path / "clip.mp4", frames))
    assert result.found.all() and result.shots == [(0, 30)]
    t = np.arange(30)[:, None]
    still = result.points.mean(axis=1) + t * [3, 1]
    assert np.abs(still - still.mean(axis=0))[4:-4].max() < 0.75
    slope = np.polyfit(t[4:-4, 0], result.points.mean(axis=1)[4:-4], 1)[0]
    assert np.abs(slope - [-3, -1]).max() < 0.05


def test_dlib_is_size_independent(tmp_path):
    """The same face four times as large has the same landmarks, four times as large."""
    small = FACE[:256, 96:352]
    large = np.kron(small, np.ones((4, 4, 1), np.uint8))
    a, b = (
        find_landmarks(write_frames(tmp_path / f"{len(frame)}.mp4", [frame] * 2)).points[0]
        for frame in (small, large)
    )
    assert np.abs(a - b / 4).mean() < 0.8  # of a face 90 pixels wide


def test_cut_is_found(tmp_path):
    first, second = FACE[:256, 96:352], FACE[:256, 30:286][:, ::-1]
    frames = [*[first] * 12, *[255 - (255 - second) // 3] * 12]
    result = find_landmarks(write_frames(tmp_path / "clip.mp4", frames))
    assert result.shots == [(0, 12), (12, 24)]
    noses = result.points[:, 30, 0]
    assert np.ptp(noses[:12]) < 1 and np.ptp(noses[12:]) < 1  # nothing of one shot got into the other
    assert abs(noses[0] - noses[-1]) > 10


def test_face_that_comes_late(tmp_path):
    blank = np.full((256, 256, 3), FACE[:256, 96:352].mean(axis=(0, 1)), np.uint8)
    frames = [*[blank] * 20, *[FACE[:256, 96:352]] * 10]
    result = find_landmarks(write_frames(tmp_path / "clip.mp4", frames))
    assert result.shots == [(20, 30)]
    assert (result.usable == (np.arange(30) >= 20)).all()


def test_no_face(tmp_path):
    path = no_face_video(tmp_path / "clip.mp4")
    with pytest.raises(UserError, match=f"--source: no face found in any of the 10 frames of {path}"):
        find_landmarks(path)


def test_bad_calls(tmp_path, portrait_clip):
    with pytest.raises(UserError, match=r"--landmarks: expected one of dlib, .*, found mediapipe"):
        find_landmarks(portrait_clip, "mediapipe")
    with pytest.raises(UserError, match="--video: no such file"):
        find_landmarks(tmp_path / "absent.mp4")


# --- OpenFace -----------------------------------------------------------------------------------------------


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


@pytest.fixture
def openface_clip(tmp_path) -> Path:
    """A video of 50 frames that shows nothing."""
    return write_frames(tmp_path / "clip.mp4", [np.zeros((32, 32, 3), np.uint8)] * 50)


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("fps", [25, 30, 50])
def test_openface(openface_clip, fps):
    write_csv(openface_clip.with_suffix(".csv"), openface_rows(2 * fps, fps))
    result = find_landmarks(openface_clip, "openface")
    s, k = np.arange(50)[:, None] / 25, np.arange(68)
    truth = np.stack(np.broadcast_arrays(k + 60 * s, 3 * k - 30 * s), axis=-1)
    assert result.points.shape == (50, 68, 2)
    nearest_row = 60 * 0.5 / fps if fps % 25 else 0  # pixels that a face moves in half a row's time
    assert np.abs(result.points - truth)[6:-6].max() < nearest_row + 0.1


def test_openface_failures_and_a_csv_that_ends_early(openface_clip):
    rows = openface_rows(30, 25)
    for row in rows[10:13]:
        row[" success"] = 0
    write_csv(openface_clip.with_suffix(".csv"), rows)
    result = find_landmarks(openface_clip, "openface")
    assert not result.found[10:13].any() and result.usable[10:13].all()
    assert result.found[[*range(10), *range(13, 30)]].all()
    assert not result.usable[35:].any()


def drop_column(rows):
    for row in rows:
        del row[" y_67"]


def break_cell(rows):
    rows[3][" x_5"] = "n/a"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop_column, "no column y_67"),
        (break_cell, "a cell of .* is not a number"),
        (lambda rows: rows.__delitem__(slice(1, None)) or rows[0].__delitem__(" timestamp"), "no column timestamp"),
    ],
)
def test_openface_bad_csv(openface_clip, damage, words):
    rows = openface_rows(50, 25)
    damage(rows)
    write_csv(openface_clip.with_suffix(".csv"), rows)
    with pytest.raises(UserError, match=words) as error:
        find_landmarks(openface_clip, "openface")
    assert str(openface_clip.with_suffix(".csv")) in str(error.value)


def test_openface_no_csv(openface_clip):
    with pytest.raises(UserError, match=r"clip\.csv, found no such file"):
        find_landmarks(openface_clip, "openface")
    openface_clip.with_suffix(".csv").write_text("")
    with pytest.raises(UserError, match="has no rows"):
        find_landmarks(openface_clip, "openface")
    openface_clip.with_suffix(".csv").write_bytes(b"\xff\xfe\x00\x80" * 20)
    with pytest.raises(UserError, match="expected a CSV file"):
        find_landmarks(openface_clip, "openface")


# --- face_alignment (its weights are not at hand: a stand-in with its interface) ----------------------------


class StandIn:
    """Sees a large and a small face, the large one moving right 2 pixels a call; none in calls 7 and 8."""

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


def test_face_alignment(openface_clip, monkeypatch, fresh_model):
    module = SimpleNamespace(FaceAlignment=StandIn, LandmarksType=SimpleNamespace(TWO_D=1))
    monkeypatch.setitem(sys.modules, "face_alignment", module)
    result = find_landmarks(openface_clip, "face_alignment")
    assert (np.flatnonzero(~result.found) == [7, 8]).all()
    truth = 100 * np.random.default_rng(0).random((68, 2)) + 2 * np.arange(50)[:, None, None] * [1, 0]
    assert np.abs(result.points - truth)[6:-6].max() < 1e-3
    boxes = detectors._face_alignment_model().boxes
    detected = [index for index, box in enumerate(boxes) if box is None]
    assert detected == sorted({*range(0, 50, DETECT_EVERY), 8, 9})  # and wherever the face was lost just before
    left, top, right, bottom = boxes[21][0]
    assert (
        np.abs([(left + right) / 2 - truth[20, :, 0].mean(), (top + bottom) / 2 - truth[20, :, 1].mean()]).max()
        < 10
    )
    assert 90 < right - left < 120


def test_face_alignment_cannot_be_had(openface_clip, monkeypatch, fresh_model):
    monkeypatch.setitem(sys.modules, "face_alignment", None)
    with pytest.raises(UserError, match="pip install face-alignment"):
        find_landmarks(openface_clip, "face_alignment")

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    module = SimpleNamespace(FaceAlignment=offline, LandmarksType=SimpleNamespace(TWO_D=1))
    monkeypatch.setitem(sys.modules, "face_alignment", module)
    with pytest.raises(UserError, match="no route to host"):
        find_landmarks(openface_clip, "face_alignment")


def test_mouth_shape_does_not_change_with_the_head():
    rng = np.random.default_rng(0)
    points = rng.normal(0, 5, (7, 68, 2)) + np.linspace(50, 150, 136).reshape(68, 2)
    angle = rng.uniform(-0.5, 0.5, 7)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(7, 2, 2)
    moved = 1.7 * np.einsum("tij,tkj->tki", turn, points) + rng.normal(0, 30, (7, 1, 2))
    shape = mouth_shape(points)
    assert shape.shape == (7, 50)
    np.testing.assert_allclose(mouth_shape(moved), shape, atol=1e-4)
    np.testing.assert_allclose(shape.mean(axis=0), 0, atol=1e-5)


def test_mouth_shape_sees_the_lower_lip_fall():
    points = np.zeros((2, 68, 2))
    points[:, 36:42] = [-10, 0]
    points[:, 42:48] = [10, 0]  # the eyes are 20 apart
    points[1, 57] = [0, 4]  # the middle of the lower lip goes down by 4, a fifth of that
    expected = np.zeros((2, 50))
    expected[:, 25 + 57 - 48] = [-0.1, 0.1]
    np.testing.assert_allclose(mouth_shape(points), expected, atol=1e-6)


MIRRORED = [
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), *range(45, 41, -1), 47, 46,
    *range(39, 35, -1), 41, 40, *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1),
]  # fmt: skip


def test_lip_features_of_a_mirrored_face_are_the_same():
    rng = np.random.default_rng(0)
    face = rng.normal(0, 1, (9, 68, 2)) + np.linspace(50, 150, 136).reshape(68, 2)
    mirrored = (face * [-1, 1])[:, MIRRORED]
    features = lip_features(face)
    assert features.shape == (9, 29) and features.dtype == np.float32
    np.testing.assert_allclose(lip_features(mirrored), features, atol=1e-4)
    assert np.abs(features).max() <= 3 and features.std() > 0.1


def test_lip_features_see_the_mouth_open():
    points = np.zeros((2, 68, 2))
    points[:, 36:42] = [-10, 0]
    points[:, 42:48] = [10, 0]  # the eyes are 20 apart
    points[1, [65, 66, 67]] = [0, 2]  # the inner edge of the lower lip goes down by a tenth of that
    shut, open_ = lip_features(points)
    # opening at 66 - 62 and at 67, 65 - 61, 63; half of it to either side of the clip's mean
    np.testing.assert_allclose(open_[[25, 27]], [1, 1], atol=1e-5)
    np.testing.assert_allclose(shut, -open_, atol=1e-5)


# --- as they come -------------------------------------------------------------------------------------------


def made_track(seed: int, num_frames: int = 400) -> tuple[np.ndarray, list[int]]:
    """Landmarks that wander, with gaps of all lengths and a few cuts."""
    rng = np.random.default_rng(seed)
    raw = 100 + rng.normal(0, 1, (num_frames, 68, 2)).cumsum(axis=0)
    for _ in range(8):
        first = int(rng.integers(num_frames))
        raw[first : first + int(rng.integers(1, 40))] = np.nan
    return raw, sorted({int(cut) for cut in rng.integers(1, num_frames, 4)})


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("length", "fps"), [(50, 25), (75, 30), (1000, 25), (8, 1)])
def test_follow_gives_what_clean_gives_of_the_whole(seed: int, length: int, fps: int) -> None:
    raw, cuts = made_track(seed)
    whole = clean_landmarks(raw, cuts, fps)
    tracked = iter([(points, index in cuts) for index, points in enumerate(raw)])
    stretches = list(track_chunks(tracked, fps, length))
    assert [stretch.start for stretch in stretches] == [0, *(stretch.stop for stretch in stretches[:-1])]
    assert stretches[-1].stop == len(raw)
    points = np.stack([one.points(frame) for one in stretches for frame in range(one.start, one.stop)])
    np.testing.assert_allclose(points, whole.points, atol=1e-3)
    numbers = np.concatenate([stretch.numbers for stretch in stretches])
    strengths = np.concatenate([stretch.strengths for stretch in stretches])
    drawn = 0
    for first, last in whole.shots:
        appears = first > 0 and first not in cuts
        is_lost = last < len(raw) and last not in cuts
        if (appears or is_lost) and last - first < 0.4 * fps:
            assert (numbers[first:last] == -1).all() and (strengths[first:last] == 0).all()
            continue
        assert (numbers[first:last] == drawn).all()
        drawn += 1
        steps = np.abs(np.diff(strengths[first:last]))
        assert steps.max(initial=0) < 1 / (0.2 * fps)
        if last - first > 0.5 * fps:
            assert (strengths[first] < 1, strengths[last - 1] < 1) == (appears, is_lost)
            assert strengths[first:last].max() == 1
    unseen = np.isnan(whole.points[:, 0, 0])
    assert (numbers[unseen] == -1).all()


@pytest.mark.parametrize("fps", [25, 50])
def test_a_detector_that_hesitates_makes_nothing_flicker(fps: int) -> None:
    """A hand before the mouth: for seconds the face is found and missed, from one detection to the next or longer.
    Redrawing goes on for 0.4 s at least, or for a whole shot, and rests likewise, unless a cut ends the rest."""
    rng = np.random.default_rng(fps)
    switches = 0
    for _ in range(30):
        found = np.concatenate([np.full(DETECT_EVERY * rng.integers(1, 6), number % 2) for number in range(30)])
        cuts = {int(cut) for cut in rng.choice(np.arange(1, len(found)), 2)}
        raw = np.where(found[:, None, None], np.zeros((68, 2)), np.nan)
        tracked = iter([(points, index in cuts) for index, points in enumerate(raw)])
        redrawn = np.concatenate([stretch.strengths for stretch in track_chunks(tracked, fps, 60)]) > 0
        changes = np.flatnonzero(np.diff(np.pad(redrawn, 1)))
        switches += len(changes)
        edges = cuts | {0, len(found)}
        for first, second in itertools.pairwise(changes.tolist()):
            at_edges = {first, second} & edges
            assert second - first >= 0.4 * fps or len(at_edges) == 2 or (at_edges and not redrawn[first])
    assert switches > 50


def test_follow_does_not_read_far_ahead() -> None:
    read = 0

    def tracked() -> Iterator[tuple[np.ndarray, bool]]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield np.zeros((68, 2)), False

    stretches = track_chunks(tracked(), 25, 100)
    assert next(stretches).stop == 100
    assert read <= 100 + 25
    assert next(stretches).stop == 200
    assert read <= 200 + 25


def test_shots_are_seen_before_they_are_given() -> None:
    tracked = iter([(np.zeros((68, 2)), index == 95) for index in range(300)])
    first, second, *_ = track_chunks(tracked, 25, 100)
    assert (first.stop, second.start) == (95, 95)
    assert second.numbers[0] == 1
    assert second.shot_rows(95) == (95 - second.offset, second.stop - second.offset + 24)


def test_in_view() -> None:
    points = np.stack([np.linspace(0, 160, 68), np.linspace(0, 100, 68)], axis=1)
    points[[0, 16, 30], 0] = [0, 160, 80]
    assert mouth_in_view(points, 200, 200)
    assert not mouth_in_view(points, 150, 200)  # lips beyond the right edge
    assert not mouth_in_view(points, 200, 90)
    turned = points.copy()
    turned[30, 0] = 8
    assert not mouth_in_view(turned, 200, 200)
    assert not mouth_in_view(points * [-1, 1] + [200, 0], 200, 200)  # ears in the wrong order
    assert not mouth_in_view(np.full((68, 2), np.nan), 200, 200)
