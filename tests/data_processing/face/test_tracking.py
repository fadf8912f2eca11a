"""Face tracks: interpolation, smoothing and shots in closed form; chunks against the whole video."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from data_processing.face.detectors import DETECTION_INTERVAL
from data_processing.face.tracking import (
    MAX_GAP,
    SMOOTHING,
    clean_landmarks,
    find_jumps,
    mouth_in_view,
    track_chunks,
)


def linear_motion(num_frames: int) -> np.ndarray:
    """(T, 68, 2): landmark k at (k + 2 t, 50 − t)."""
    t, k = np.arange(num_frames)[:, None], np.arange(68)
    return np.stack(np.broadcast_arrays(k + 2.0 * t, 50.0 - t), axis=-1)


# --- whole video ---------------------------------------------------------------------------------------------


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
    assert (clean_landmarks(raw, []).points[18:22] % 100 != 0).all()  # without the cut, the step is smoothed


def test_gap_across_a_cut_is_not_interpolated():
    raw = np.zeros((50, 68, 2))
    raw[20:], raw[18:23] = 100, np.nan
    result = clean_landmarks(raw, [20])
    assert (result.points[:20] == 0).all() and (result.points[20:] == 100).all()


# --- jumps ---------------------------------------------------------------------------------------------------

FACE = np.random.default_rng(3).normal(0, 40, (68, 2))
JUMPS = {
    "enlarged": lambda points: 1.12 * points,
    "reduced": lambda points: points / 1.12,
    "moved": lambda points: points + np.array([120, 0]),
}


def moving_face(num_frames: int = 100) -> np.ndarray:
    """(T, 68, 2): a face that sways and comes closer by a fifth, with noise."""
    rng = np.random.default_rng(4)
    scales = np.linspace(1, 1.2, num_frames)[:, None, None]
    sway = 30 * np.sin(np.arange(num_frames) / 5)[:, None, None] * [1, 0.3]
    return 500 + FACE * scales + sway + rng.normal(0, 0.5, (num_frames, 68, 2))


@pytest.mark.parametrize("change", JUMPS)
@pytest.mark.parametrize("missing", [0, 1])
def test_jump_starts_a_shot(change: str, missing: int) -> None:
    raw = moving_face()
    assert find_jumps(raw) == set()
    raw[40:] = JUMPS[change](raw[40:] - 500) + 500
    raw[40 - missing : 40] = np.nan
    assert find_jumps(raw) == {40}
    tracked = iter([(points, False) for points in raw])
    assert np.concatenate([chunk.numbers for chunk in track_chunks(tracked, 25, 200)]).tolist() == 40 * [0] + 60 * [
        1
    ]


def test_bad_landmarks_and_fast_movements_are_no_jumps() -> None:
    raw = moving_face()
    raw[40] = 500 + 1.3 * (raw[40] - 500)  # one frame with bad landmarks
    raw[60:] += 120 * np.minimum(np.arange(40), 4)[:, None, None]  # a fast movement in four frames
    assert find_jumps(raw) == set()


def test_shot_without_a_face_is_skipped():
    raw = linear_motion(60)
    raw[20:40] = np.nan
    result = clean_landmarks(raw, [20, 40])
    assert result.shots == [(0, 20), (40, 60)]
    assert not result.usable[20:40].any()


# --- chunks --------------------------------------------------------------------------------------------------


def random_track(seed: int, num_frames: int = 400) -> tuple[np.ndarray, list[int]]:
    """A random walk of landmarks (T, 68, 2) with gaps of different lengths, and a few cuts."""
    rng = np.random.default_rng(seed)
    raw = 1000 * FACE + rng.normal(0, 1, (num_frames, 68, 2)).cumsum(axis=0)
    for _ in range(8):
        first = int(rng.integers(num_frames))
        raw[first : first + int(rng.integers(1, 40))] = np.nan
    return raw, sorted({int(cut) for cut in rng.integers(1, num_frames, 4)})


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("length", "fps", "first_length"),
    [(50, 25, None), (75, 30, None), (1000, 25, None), (8, 1, None), (200, 25, 12)],
)
def test_chunks_equal_the_landmarks_of_the_whole_video(
    seed: int, length: int, fps: int, first_length: int | None
) -> None:
    raw, cuts = random_track(seed)
    whole = clean_landmarks(raw, cuts, fps)
    tracked = iter([(points, index in cuts) for index, points in enumerate(raw)])
    chunks = list(track_chunks(tracked, fps, length, first_length))
    assert [chunk.start for chunk in chunks] == [0, *(chunk.stop for chunk in chunks[:-1])]
    assert chunks[-1].stop == len(raw)
    points = np.stack([chunk.points(frame) for chunk in chunks for frame in range(chunk.start, chunk.stop)])
    np.testing.assert_allclose(points, whole.points, atol=2e-3)
    numbers = np.concatenate([chunk.numbers for chunk in chunks])
    strengths = np.concatenate([chunk.strengths for chunk in chunks])
    shot = 0
    for first, last in whole.shots:
        appears = first > 0 and first not in cuts
        is_lost = last < len(raw) and last not in cuts
        if (appears or is_lost) and last - first < 0.4 * fps:
            assert (numbers[first:last] == -1).all() and (strengths[first:last] == 0).all()
            continue
        assert (numbers[first:last] == shot).all()
        shot += 1
        steps = np.abs(np.diff(strengths[first:last]))
        assert steps.max(initial=0) < 1 / (0.2 * fps)
        if last - first > 0.5 * fps:
            assert (strengths[first] < 1, strengths[last - 1] < 1) == (appears, is_lost)
            assert strengths[first:last].max() == 1
    missing = np.isnan(whole.points[:, 0, 0])
    assert (numbers[missing] == -1).all()


@pytest.mark.parametrize("fps", [25, 50])
def test_intermittent_detection_does_not_flicker(fps: int) -> None:
    """The face is detected and missed for random numbers of detection intervals, as with a hand before the mouth.

    Dubbing lasts at least 0.4 s or a whole shot. So does each interruption, unless a cut ends it.
    """
    rng = np.random.default_rng(fps)
    switches = 0
    for _ in range(30):
        found = np.concatenate(
            [np.full(DETECTION_INTERVAL * rng.integers(1, 6), number % 2) for number in range(30)]
        )
        cuts = {int(cut) for cut in rng.choice(np.arange(1, len(found)), 2)}
        raw = np.where(found[:, None, None], np.zeros((68, 2)), np.nan)
        tracked = iter([(points, index in cuts) for index, points in enumerate(raw)])
        dubbed = np.concatenate([chunk.strengths for chunk in track_chunks(tracked, fps, 60)]) > 0
        changes = np.flatnonzero(np.diff(np.pad(dubbed, 1)))
        switches += len(changes)
        edges = cuts | {0, len(found)}
        for first, second in itertools.pairwise(changes.tolist()):
            at_edges = {first, second} & edges
            assert second - first >= 0.4 * fps or len(at_edges) == 2 or (at_edges and not dubbed[first])
    assert switches > 50


def test_chunks_are_read_one_second_ahead_at_most() -> None:
    read = 0

    def tracked() -> Iterator[tuple[np.ndarray, bool]]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield np.zeros((68, 2)), False

    chunks = track_chunks(tracked(), 25, 100, 12)
    assert next(chunks).stop == 12
    assert read <= 12 + 25
    assert next(chunks).stop == 112
    assert read <= 112 + 25
    assert next(chunks).stop == 212
    assert read <= 212 + 25


def live_track(raw: np.ndarray, cuts: set[int] = frozenset(), ahead: int = 8) -> tuple[np.ndarray, ...]:
    """Landmarks, shot numbers and strengths of (T, 68, 2) raw landmarks in chunks of 2; checks how much is read."""
    read = 0

    def tracked() -> Iterator[tuple[np.ndarray, bool]]:
        nonlocal read
        for index, points in enumerate(raw):
            read += 1
            yield points, index in cuts

    chunks = []
    for chunk in track_chunks(tracked(), 25, 2, ahead=ahead):
        assert read == min(chunk.start + 2 + ahead, len(raw))
        chunks.append(chunk)
    points = np.stack([chunk.points(frame) for chunk in chunks for frame in range(chunk.start, chunk.stop)])
    numbers = np.concatenate([chunk.numbers for chunk in chunks])
    return points, numbers, np.concatenate([chunk.strengths for chunk in chunks])


def test_short_look_ahead_is_enough_for_smoothing() -> None:
    raw = moving_face()
    raw[40:] += 200
    points, numbers, strengths = live_track(raw, {40})
    np.testing.assert_allclose(points, clean_landmarks(raw, [40]).points, atol=2e-3)
    assert numbers.tolist() == 40 * [0] + 60 * [1] and (strengths == 1).all()


@pytest.mark.parametrize("ahead", [0, 4, 8])
@pytest.mark.parametrize("gap", [3, 10, 30])
def test_gap_with_a_short_look_ahead(ahead: int, gap: int) -> None:
    """A face that is lost fades out where there is time for it, and fades in again, never suddenly; after a long
    gap it is another shot."""
    raw = moving_face()
    raw[40 : 40 + gap] = np.nan
    points, numbers, strengths = live_track(raw, ahead=ahead)
    assert not np.isnan(points[strengths > 0]).any() and ((strengths > 0) == (numbers >= 0)).all()
    assert np.diff(strengths).max() < 1 / 5
    assert (strengths[:30] == 1).all() and (strengths[40 + gap + 25 :] == 1).all()
    assert numbers[-1] == (gap == 30)
    if gap == 30:
        assert (strengths[47:70] == 0).all()
        assert np.diff(strengths).min() > (-0.7 if ahead == 8 else -1.01)
    if gap == 3:
        assert (strengths == 1).all()


def test_history_of_a_chunk() -> None:
    tracked = iter([(np.zeros((68, 2)), False)] * 200)
    chunks = list(track_chunks(tracked, 25, 2, ahead=8, history=60))
    assert all(chunk.offset == max(0, chunk.start - 60) for chunk in chunks)


def test_shot_is_read_before_its_first_frame_is_returned() -> None:
    tracked = iter([(np.zeros((68, 2)), index == 95) for index in range(300)])
    first, second, *_ = track_chunks(tracked, 25, 100)
    assert (first.stop, second.start) == (95, 95)
    assert second.numbers[0] == 1
    assert second.shot_rows(95) == (95 - second.offset, second.stop - second.offset + 24)


def test_mouth_in_view() -> None:
    points = np.stack([np.linspace(0, 160, 68), np.linspace(0, 100, 68)], axis=1)
    points[[0, 16, 30], 0] = [0, 160, 80]
    assert mouth_in_view(points, 200, 200)
    assert not mouth_in_view(points, 150, 200)  # lips outside the right edge
    assert not mouth_in_view(points, 200, 90)
    turned = points.copy()
    turned[30, 0] = 8
    assert not mouth_in_view(turned, 200, 200)
    assert not mouth_in_view(points * [-1, 1] + [200, 0], 200, 200)  # ears in the wrong order
    assert not mouth_in_view(np.full((68, 2), np.nan), 200, 200)
