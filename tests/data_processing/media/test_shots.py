"""Shot boundaries of made frames: two images joined, mixed, lit, moved and coloured in known ways."""

from functools import cache

import cv2
import numpy as np
import pytest
import skimage.data

from data_processing.media.frame import RgbFrame
from data_processing.media.shots import ShotDetector

FIRST = cv2.resize(skimage.data.astronaut(), (96, 64), interpolation=cv2.INTER_AREA)
SECOND = cv2.resize(skimage.data.coffee(), (96, 64), interpolation=cv2.INTER_AREA)
SEPIA = np.array([1.05, 0.95, 0.75])
NUM_FRAMES = 60
INDEX = np.arange(NUM_FRAMES)


def detect(frames, fps=25, live=False) -> tuple[list[int], list[int]]:
    """Frames that start a shot, and blended frames."""
    detector, states = ShotDetector(fps, live), []
    for frame in frames:
        detector.add(RgbFrame(frame))
        states += detector.decide()
    states += detector.decide(ended=True)
    assert len(states) == len(frames)
    starts = [index for index, state in enumerate(states) if state.starts]
    return starts, [index for index, state in enumerate(states) if state.blended]


@cache
def moving(second: bool) -> np.ndarray:
    image = SECOND if second else FIRST
    frames = image + np.random.default_rng(0).normal(0, 2, (NUM_FRAMES, *image.shape)).astype(np.float32)
    for index, frame in enumerate(frames):
        top = 30 + round(2 * np.sin(index / 2))
        frame[top : top + 10, 45:55] = image[30:40, 45:55]
    return frames


def talking(second: bool = False) -> np.ndarray:
    """(T, H, W, 3) float32: one of two images with noise, in which a small part moves up and down."""
    return moving(second).copy()


def to_uint8(frames) -> np.ndarray:
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def ramp(start: int, length: int) -> np.ndarray:
    """0 before `start`, then `length` values between 0 and 1, then 1; (NUM_FRAMES, 1, 1, 1)."""
    return np.clip((INDEX - start + 1) / (length + 1), 0, 1)[:, None, None, None]


def gray(frames) -> np.ndarray:
    return np.repeat((frames @ [0.299, 0.587, 0.114])[..., None], 3, axis=-1)


def per_frame(values) -> np.ndarray:
    return np.asarray(values, float)[:, None, None, None]


# --- boundaries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "offset"), [(1, 0), (0.1, 0), (0.1, 200)])
def test_cut(gain, offset):
    """Also where the frame is dark, or bright and of low contrast."""
    frames = np.concatenate([talking()[:30], talking(second=True)[:30]])
    assert detect(to_uint8(frames * gain + offset)) == ([30], [])


def test_cut_to_equal_brightness():
    """Both have the same histogram, so that neither brightness nor colour changes."""
    frames = talking()
    frames[30:] = frames[30:, :, ::-1]
    assert detect(to_uint8(frames))[0] == [30]


def test_cut_in_camera_movement():
    """The camera moves by one pixel of 96 in each frame, before the cut and after it."""
    images = [np.hstack([image, image[:, ::-1]]) for image in (FIRST, SECOND)]
    frames = [images[index // 30][:, index : index + 96] for index in range(NUM_FRAMES)]
    assert detect(frames)[0] == [30]


@pytest.mark.parametrize(("fps", "repeat"), [(10, 1), (50, 2), (60, 1)])
def test_cut_at_other_rates(fps, repeat):
    """`repeat`: each frame is shown twice, as in a video of 25 fps stored at 50."""
    frames = np.concatenate([talking()[:30], talking(second=True)[:30]]).repeat(repeat, axis=0)
    assert detect(to_uint8(frames), fps)[0] == [30 * repeat]


@pytest.mark.parametrize("length", [3, 5, 12, 25])
def test_dissolve(length):
    weight = ramp(20, length)
    starts, blended = detect(to_uint8(talking() * (1 - weight) + talking(second=True) * weight))
    assert blended == list(range(blended[0], blended[-1] + 1))
    assert starts == [blended[0], blended[-1] + 1]  # each side is a shot
    weights = weight.ravel()
    both = np.flatnonzero((weights > 0.3) & (weights < 0.7))
    assert set(both) <= set(blended) <= set(np.flatnonzero((weights > 0) & (weights < 1)))


@pytest.mark.parametrize("direction", [-1, 1])
def test_wipe(direction):
    """The second image replaces the first from one side within half a second."""
    replaced = np.linspace(0, 1, 96)[::direction, None] < ramp(25, 12)
    starts, blended = detect(to_uint8(np.where(replaced, talking(second=True), talking())))
    assert starts == [blended[0], blended[-1] + 1]
    assert set(blended) <= set(range(25, 37)) and 31 in blended


def test_slow_dissolve():
    frames = np.concatenate([talking()] * 2)
    weight = np.clip((np.arange(len(frames)) - 35) / 50, 0, 1)[:, None, None, None]
    starts, blended = detect(to_uint8(frames * (1 - weight) + np.concatenate([talking(second=True)] * 2) * weight))
    assert len(starts) == 2 and 35 < starts[0] < 60 < starts[1] < 85
    assert len(blended) > 15


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("length", [3, 10])
def test_dip_to_one_colour_and_another_image(level, length):
    away = per_frame(np.clip(1.2 - np.abs(INDEX - 29.5) / length, 0, 1))
    frames = np.where(per_frame(INDEX < 30), talking(), talking(second=True))
    (start,), _ = detect(to_uint8(frames * (1 - away) + level * away))
    assert abs(start - 30) < length


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("length", [0, 25])
@pytest.mark.parametrize("tint", [1, SEPIA], ids=["gray", "sepia"])
def test_colour_arrives_or_leaves(arrives, length, tint):
    weight = ramp(20, length) if arrives else 1 - ramp(20, length)
    frames = gray(talking()) * tint * (1 - weight) + talking() * weight
    (start,), blended = detect(to_uint8(frames))
    assert 20 <= start <= 20 + length and not blended


# --- no boundary -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 3, 5])
@pytest.mark.parametrize("strength", [80, 255])
def test_flash_is_no_cut(length, strength):
    flash = per_frame((INDEX >= 30) & (30 + length > INDEX))
    assert detect(to_uint8(talking() * (1 + 0.3 * flash) + strength * flash)) == ([], [])


@pytest.mark.parametrize(
    "gain",
    [
        np.where(INDEX < 30, 1, 0.4),
        np.where(INDEX < 30, 0.4, 1),
        0.7 + 0.3 * np.sin(INDEX / 4),
        np.clip(INDEX / 25, 0, 1),
        np.clip((59 - INDEX) / 25, 0, 1),
    ],
    ids=["darker", "brighter", "clouds", "fade in", "fade out"],
)
def test_light_is_no_cut(gain):
    assert detect(to_uint8(talking() * per_frame(gain))) == ([], [])
    assert detect(to_uint8(255 - (255 - talking()) * per_frame(gain))) == ([], [])  # the same to white


@pytest.mark.parametrize("length", [0, 20])
def test_lamp_at_one_side_is_no_cut(length):
    lit = 0.3 + 0.7 * np.linspace(0, 1, FIRST.shape[1])[:, None]
    weight = ramp(20, length)
    assert detect(to_uint8(talking() * (0.3 * (1 - weight) + lit * weight))) == ([], [])


@pytest.mark.parametrize("level", [0, 255])
def test_dip_to_one_colour_and_back(level):
    away = per_frame(np.clip(1.5 - np.abs(INDEX - 29.5) / 10, 0, 1))
    assert detect(to_uint8(talking() * (1 - away) + level * away)) == ([], [])


def test_colour_of_the_light_is_no_cut():
    weight = ramp(20, 10)
    assert detect(to_uint8(talking() * (1 - weight + weight * [1.1, 0.9, 0.6]))) == ([], [])


@pytest.mark.parametrize("speed", [0.3, 1, 3])
def test_pan_is_no_cut(speed):
    """`speed`: pixels per frame, of 96; the camera starts and stops."""
    wide = np.hstack([FIRST, FIRST[:, ::-1], FIRST])
    offsets = np.clip((INDEX - 20) * speed, 0, 30 * speed).astype(int)
    assert detect([wide[:, offset : offset + 96] for offset in offsets]) == ([], [])


def test_shaking_camera_is_no_cut():
    wide = cv2.resize(FIRST, (116, 84))
    x, y = np.random.default_rng(1).integers(0, 20, (2, NUM_FRAMES))
    assert detect([wide[b : b + 64, a : a + 96] for a, b in zip(x, y, strict=True)]) == ([], [])


def test_zoom_is_no_cut():
    large = skimage.data.astronaut()
    crops = [large[i : 512 - i, i : 512 - i] for i in 2 * INDEX]
    assert detect([cv2.resize(crop, (96, 96), interpolation=cv2.INTER_AREA) for crop in crops]) == ([], [])


def test_captions_and_insets_are_no_cuts():
    frames = talking()
    for index in INDEX[INDEX >= 20]:
        frames[index, 50:62] = [20, 30, 90]
        frames[index, 53:59, 10 : 10 + 6 * (index // 5 % 10)] = 255
        if index >= 40:
            frames[index, 2:18, 2:26] = cv2.resize(SECOND, (24, 16), interpolation=cv2.INTER_AREA)
    assert detect(to_uint8(frames)) == ([], [])


# --- streaming -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [1, 10, 25, 60])
def test_decided_within_half_a_second_and_little_is_held(fps):
    detector, num_decided = ShotDetector(fps), 0
    for index in range(10 * fps):
        detector.add(RgbFrame(FIRST))
        num_decided += len(list(detector.decide()))
        assert index + 1 - num_decided <= max(2, 0.55 * fps)
        assert len(detector._frames) <= max(8, 1.5 * fps)
    assert num_decided + len(list(detector.decide(ended=True))) == 10 * fps


@pytest.mark.parametrize("fps", [10, 25, 60])
def test_live_frames_are_decided_sooner(fps):
    detector, num_decided = ShotDetector(fps, live=True), 0
    for index in range(4 * fps):
        detector.add(RgbFrame(FIRST))
        num_decided += len(list(detector.decide()))
        assert index + 1 - num_decided <= max(1, 0.13 * fps)


def test_live_stream_has_cuts_only():
    frames = talking()
    frames[20:] = talking(second=True)[20:]
    frames[40:42] = 255  # a flash
    assert detect(to_uint8(frames), live=True) == ([20], [])
    dissolve = talking() * (1 - ramp(20, 15)) + talking(second=True) * ramp(20, 15)
    assert detect(to_uint8(dissolve))[1] and not detect(to_uint8(dissolve), live=True)[1]


def test_sudden_changes_are_known_at_once():
    detector = ShotDetector()
    sudden = [detector.add(RgbFrame(frame)) for frame in [FIRST] * 5 + [SECOND] * 5 + [SECOND]]
    assert sudden == [index == 5 for index in range(11)]


def test_frames_that_show_nothing():
    """The first of them and the first after them: a face is searched at once."""
    black = np.zeros_like(FIRST)
    detector = ShotDetector()
    sudden = [detector.add(RgbFrame(frame)) for frame in [FIRST] * 5 + [black] * 3 + [FIRST] * 4]
    assert np.flatnonzero(sudden).tolist() == [5, 8]


def test_known_start():
    detector = ShotDetector()
    sudden = [detector.add(RgbFrame(FIRST), starts=index == 20) for index in range(40)]
    assert np.flatnonzero(sudden) == [20]
    assert np.flatnonzero([state.starts for state in detector.decide(ended=True)]) == [20]
