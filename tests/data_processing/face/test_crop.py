"""Face crop: extraction in closed form, and which pixels pasting changes."""

import cv2
import numpy as np
import pytest

from data_processing.face.crop import FaceCrop
from models.crop_layout import crop_size, lips_box, mouth_box

S = 64
rng = np.random.default_rng(0)
NOISE = cv2.GaussianBlur(rng.integers(0, 256, (300, 400, 3)).astype(np.uint8), (0, 0), 1.5)


def ramp(width: int, height: int) -> np.ndarray:
    """Float image: red is x, green is y of the pixel centre, blue is constant; linear interpolation is exact."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([x, y, np.full_like(x, 77)], axis=-1).astype(np.float32)


def test_placement_from_landmarks():
    points = np.zeros((68, 2))
    points[29], points[33] = (1000, 120.5), (200.25, 2000)
    crop = FaceCrop.from_landmarks(points, radius_px=48, mouth_size=S)
    # rows [y29 − r, y29 + 2.25 r), columns [x33 − 1.25 r, x33 + 1.25 r)
    corners = np.array([[200.25 - 60, 120.5 - 48], [200.25 + 60, 120.5 + 108]])
    assert np.allclose(crop.to_crop(corners), [[0, 0], [80, 104]])
    left, top, right, bottom = crop.mouth_bounds()
    assert np.allclose(crop.to_crop(np.array([[left, top], [right, bottom]])), [[8, 32], [72, 96]])
    assert (right - left, bottom - top) == (96, 96)


@pytest.mark.parametrize("pixel_size", [0.4, 0.8, 1, 1.2, 1.6, 2, 2.7, 3.5])
@pytest.mark.parametrize("shift", [0, 0.3, 0.5])
def test_extract_of_a_ramp(pixel_size, shift):
    crop = FaceCrop(left=12.2 + shift, top=5.6, pixel_size=pixel_size, mouth_size=S)
    height, width = crop_size(S)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    expected = np.stack([12.2 + shift + x * pixel_size, 5.6 + y * pixel_size, np.full_like(x, 77)], axis=-1)
    assert np.abs(crop.extract(ramp(500, 500)) - expected).max() < 0.04  # OpenCV uses steps of 1/32 pixel


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_extract_in_whole_pixels_is_slicing(factor):
    crop = FaceCrop(left=21, top=-7 + 10, pixel_size=factor, mouth_size=S)
    height, width = crop_size(S)
    frame = cv2.resize(NOISE, (400, 400))
    part = frame[3 : 3 + height * factor, 21 : 21 + width * factor]
    mean = part.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
    assert np.abs(crop.extract(frame) - mean).max() <= 0.51


def test_subpixel_shift_of_landmarks_shifts_the_crop():
    points = np.zeros((68, 2))
    points[29], points[33] = (0, 100), (150, 0)
    still = FaceCrop.from_landmarks(points, 40, S).extract(ramp(400, 300))
    moved = FaceCrop.from_landmarks(points + np.array([0.5, -0.25]), 40, S).extract(ramp(400, 300))
    assert np.abs(moved - still - [0.5, -0.25, 0]).max() < 0.04


@pytest.mark.parametrize("pixel_size", [0.5, 1, 1.7])
def test_edge_pixels_are_repeated_outside_the_frame(pixel_size):
    height, width = crop_size(S)
    crop = FaceCrop(left=-width * pixel_size / 2, top=-height * pixel_size / 2, pixel_size=pixel_size, mouth_size=S)
    extracted = crop.extract(NOISE)
    assert (extracted[: height // 2 - 1, : width // 2 - 1] == NOISE[0, 0]).all()
    far = FaceCrop(left=2000, top=10, pixel_size=1, mouth_size=S).extract(NOISE)
    assert np.abs(far.astype(int) - NOISE[10 : 10 + height, -1:]).max() <= 1


CROPS = [
    FaceCrop(left=41.3, top=20.7, pixel_size=1.37, mouth_size=S),
    FaceCrop(left=100, top=50, pixel_size=1.0, mouth_size=S),
    FaceCrop(left=130.9, top=90.2, pixel_size=0.45, mouth_size=S),  # a face smaller than the crop
    FaceCrop(left=-60.4, top=-80.5, pixel_size=2.6, mouth_size=S),  # across the upper left corner
    FaceCrop(left=350, top=250, pixel_size=1.2, mouth_size=S),  # across the lower right corner
]


@pytest.mark.parametrize("crop", CROPS)
def test_pasting_the_extracted_crop_changes_nothing(crop):
    assert (crop.paste(NOISE, crop.extract(NOISE)) == NOISE).all()


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("colour", [(255, 0, 0), (10, 200, 90)])
def test_paste_changes_the_mouth_box_only(crop, colour):
    frame = NOISE.copy()
    generated = crop.extract(frame)
    generated[mouth_box(S)] = colour
    pasted = crop.paste(frame, generated)
    assert (frame == NOISE).all()  # the argument is not modified
    assert pasted.shape == frame.shape and pasted.dtype == np.uint8

    left, top, right, bottom = crop.mouth_bounds()
    margin = S / 16 * crop.pixel_size
    x, y = np.arange(frame.shape[1]) + 0.5, np.arange(frame.shape[0]) + 0.5

    def between(grow: float) -> np.ndarray:
        columns = (x > left - grow) & (x < right + grow)
        return ((y > top - grow) & (y < bottom + grow))[:, None] & columns

    assert between(-2 * margin).any()
    assert (pasted[~between(margin)] == frame[~between(margin)]).all()
    assert np.abs(pasted[between(-2 * margin)].astype(int) - colour).max() <= 1
    # at the border of the box the two are blended
    if left > margin and crop.pixel_size >= 1:
        border = pasted[between(0) & ~between(-1.01)].astype(float)
        assert 0.2 < np.abs(border - colour).mean() / np.abs(frame.astype(float) - colour).mean() < 0.8


def test_paste_removes_a_colour_cast():
    frame = np.full((300, 400, 3), (90, 100, 110), np.uint8)
    crop = FaceCrop(left=60.25, top=30.75, pixel_size=1.5, mouth_size=S)
    cast = crop.extract(frame) + np.uint8(20)  # the generated crop is too bright by 20 everywhere
    assert np.abs(crop.paste(frame, cast).astype(int) - frame).max() <= 1
    cast[52:60, 30:50] -= 60  # with a dark patch in the middle of the mouth box
    x, y = int(60.25 + 40 * 1.5), int(30.75 + 56 * 1.5)
    np.testing.assert_allclose(crop.paste(frame, cast)[y, x], (30, 40, 50), atol=1)


def test_paste_position():
    """A bright spot in the generated crop appears at its source coordinates."""
    frame = np.full((300, 400, 3), 90, np.uint8)
    for pixel_size in (0.6, 1.0, 1.5, 2.2):
        crop = FaceCrop(left=60.25, top=30.75, pixel_size=pixel_size, mouth_size=S)
        generated = crop.extract(frame)
        x, y = np.meshgrid(np.arange(80) + 0.5, np.arange(104) + 0.5)
        spot = 120 * np.exp(-((x - 47) ** 2 + (y - 70) ** 2) / (2 * 5**2))
        generated = (generated + spot[..., None]).astype(np.uint8)
        change = crop.paste(frame, generated).astype(float)[..., 0] - 90
        assert change.max() > 100
        ys, xs = np.indices(change.shape) + 0.5
        centre = np.array([(xs * change).sum(), (ys * change).sum()]) / change.sum()
        assert np.abs(centre - (60.25 + 47 * pixel_size, 30.75 + 70 * pixel_size)).max() < 0.15


def test_small_change_keeps_fine_texture():
    """Where the change is small, detail finer than a crop pixel stays."""
    frame = np.full((300, 400, 3), 120, np.uint8)
    frame[::2, ::2] += 30
    crop = FaceCrop(left=40, top=20, pixel_size=2.0, mouth_size=S)
    pasted = crop.paste(frame, crop.extract(frame) + np.uint8(2))
    inside = pasted[120:180, 90:170].astype(int) - frame[120:180, 90:170]
    assert np.abs(inside - 2).max() <= 2


@pytest.mark.parametrize("corner", [(-500, 20), (1000, 20), (50, -900), (50, 1000)])
def test_mouth_outside_the_frame(corner):
    crop = FaceCrop(*corner, pixel_size=1.0, mouth_size=S)
    generated = np.zeros((*crop_size(S), 3), np.uint8)
    assert (crop.paste(NOISE, generated) == NOISE).all()


def test_paste_with_landmarks():
    """Pixels outside the face do not change, a mole on the cheek stays, the lips are replaced."""
    crop = FaceCrop(left=60.0, top=40.0, pixel_size=2.0, mouth_size=S)
    middle = np.array([crop.left + 40 * 2, crop.top + 62 * 2])  # of a face 96 pixels wide, in the mouth box
    angle = np.linspace(0, np.pi, 17)
    points = np.tile(middle, (68, 1))
    points[:17] = middle + np.stack([-48 * np.cos(angle), -30 + 80 * np.sin(angle)], axis=1)
    points[17:36, 1] -= 40
    mouth = middle + np.array([0, 10])
    points[48:60] = mouth + np.stack([20 * np.cos(2 * angle[:12]), 8 * np.sin(2 * angle[:12])], axis=1)
    frame = np.full((300, 400, 3), 150, np.uint8)
    mole = int(middle[0] - 34), int(middle[1] - 18)
    cv2.circle(frame, mole, 1, (60, 60, 60), -1)
    beside = int(middle[0] + 58), int(middle[1] + 40)  # inside the mouth box, outside the face
    cv2.circle(frame, beside, 3, (20, 90, 200), -1)
    generated = np.full((*crop_size(S), 3), 150, np.uint8)  # smooth skin, and darker lips
    lips = tuple(np.rint(crop.to_crop(mouth)).astype(int))
    cv2.ellipse(generated, lips, (9, 4), 0, 0, 360, (90, 40, 40), -1)
    pasted = crop.paste(frame, generated, points)
    assert np.array_equal(pasted[beside[1] - 3 : beside[1] + 4, beside[0] - 3 : beside[0] + 4, :],
                          frame[beside[1] - 3 : beside[1] + 4, beside[0] - 3 : beside[0] + 4, :])  # fmt: skip
    assert np.abs(pasted[mole[1], mole[0]].astype(int) - 60).max() < 15
    assert np.abs(pasted[int(middle[1] + 10), int(middle[0])].astype(int) - (90, 40, 40)).max() < 5
    whole = crop.paste(frame, generated)  # without landmarks both are replaced
    assert whole[mole[1], mole[0]].min() > 110
    assert np.abs(whole[beside[1], beside[0]].astype(int) - frame[beside[1], beside[0]]).max() > 40


def test_paste_strength():
    crop = FaceCrop(left=60.0, top=40.0, pixel_size=1.5, mouth_size=S)
    generated = 255 - crop.extract(NOISE)
    whole = crop.paste(NOISE, generated).astype(int)
    assert np.array_equal(crop.paste(NOISE, generated, strength=0), NOISE)
    half = crop.paste(NOISE, generated, strength=0.5).astype(int)
    inside = np.abs(whole - NOISE) < 120  # not affected by clipping
    assert np.abs(half - (whole + NOISE) / 2)[inside & (whole > 0) & (whole < 255)].max() <= 1
    assert np.abs(half - NOISE).max() > 30


def test_paste_rejects_another_size():
    with pytest.raises(ValueError, match=r"expected \(104, 80, 3\), found \(208, 160, 3\)"):
        FaceCrop(0, 0, 1.0, S).paste(NOISE, np.zeros((208, 160, 3), np.uint8))


@pytest.mark.parametrize("crop", CROPS)
def test_lips_region_is_the_lips_box_at_source_resolution(crop):
    rows, columns = lips_box(S)
    region = crop.lips_region(ramp(400, 300))
    size = np.array([columns.stop - columns.start, rows.stop - rows.start]) * crop.pixel_size
    assert np.abs(size - region.shape[1::-1]).max() <= 0.5
    if crop.left > 0 and crop.left < 300:
        first = np.array([crop.left, crop.top]) + np.array([columns.start, rows.start]) * crop.pixel_size
        assert np.abs(region[0, 0, :2] - 0.5 - first).max() <= 0.51


@pytest.mark.parametrize("crop", CROPS)
def test_what_covers_the_face_stays(crop):
    """Covered on the left, at another mouth size: the frame there, the paste without covers elsewhere."""
    generated = np.full((*crop_size(S), 3), 200, np.uint8)
    covers = np.zeros(crop_size(2 * S), np.float32)
    covers[:, : crop_size(2 * S)[1] // 2] = 1
    pasted, uncovered = crop.paste(NOISE, generated, covers=covers), crop.paste(NOISE, generated)
    x = crop.to_crop(np.stack([np.arange(NOISE.shape[1]) + 0.5, np.zeros(NOISE.shape[1])], axis=1))[:, 0]
    border = 2 + 1 / crop.pixel_size  # crop pixels over which the mask falls
    middle = crop_size(S)[1] / 2
    assert (pasted[:, x < middle - border] == NOISE[:, x < middle - border]).all()
    right = x > middle + border
    assert np.abs(pasted[:, right].astype(int) - uncovered[:, right]).max(initial=0) <= 1
    assert np.array_equal(crop.paste(NOISE, generated, covers=np.zeros_like(covers)), uncovered)


@pytest.mark.parametrize("corner", [(60.3, 40.7), (-20.5, 5.0), (330.2, 250.1)])
def test_a_part_of_the_frame_is_enough(corner):
    """The pixels of `bounds` give the same crop, and the same change of the frame."""
    crop = FaceCrop(*corner, 1.3, S)
    height, width = NOISE.shape[:2]
    x0, y0, x1, y1 = crop.bounds(width, height)
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    part, moved = NOISE[y0:y1, x0:x1], crop.moved(x0, y0)
    assert np.abs(moved.extract(part).astype(int) - crop.extract(NOISE)).max() <= 1
    generated = 255 - crop.extract(NOISE)
    (left, top, right, bottom), change = crop.change(NOISE, generated)
    bounds, moved_change = moved.change(part, generated, source=crop.extract(NOISE))
    assert bounds == (left - x0, top - y0, right - x0, bottom - y0)
    assert np.allclose(moved_change, change, atol=0.05)
