"""Dubbing-artifact metrics on synthetic images, movements and silences with known values."""

import cv2
import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from data_processing.face.crop import FaceCrop
from evaluation.artifacts import (
    HEAD,
    LOWER_FACE,
    colour_shift,
    flicker,
    jitter,
    opening_agreement,
    opening_in_silence,
    ring_levels,
    seam,
    sharpness,
    stabilise_head,
)
from models.crop_layout import crop_size, lips_box, mouth_box

SIZE = 128
BOX = mouth_box(SIZE)


def plain(*colour: int) -> np.ndarray:
    return np.full((*crop_size(SIZE), 3), colour, np.uint8)


def textured() -> np.ndarray:
    """Noise like skin texture, with a horizontal edge that crosses the mouth box."""
    image = np.random.default_rng(0).normal(120, 12, plain(0).shape)
    image[: image.shape[0] // 2] += 30
    return np.clip(image, 0, 255).astype(np.uint8)


def test_equal_crops_have_no_artifacts() -> None:
    crop = FaceCrop(left=0, top=0, pixel_size=1, mouth_size=SIZE)
    assert seam(textured(), textured()) == colour_shift(textured(), textured()) == 0
    assert sharpness(textured(), textured(), crop) == 1


def test_the_seam_of_a_hard_edge_is_its_step() -> None:
    dubbed = plain(120, 120, 120)
    dubbed[BOX] += 20
    assert seam(dubbed, plain(120, 120, 120)) == pytest.approx(20)
    rough = textured()
    rough[BOX] += 20  # texture hardly changes the result
    assert seam(rough, textured()) == pytest.approx(20, rel=0.15)
    assert seam(plain(120, 120, 120), dubbed) == 0  # a step of the source that the dub lacks is no seam


def test_an_edge_on_one_of_four_sides_is_half_a_seam() -> None:
    dubbed = plain(120, 120, 120)
    dubbed[BOX[0], : BOX[1].start] += 20
    assert seam(dubbed, plain(120, 120, 120)) == pytest.approx(10)


def test_a_feathered_seam_is_lower() -> None:
    """A ramp of 64 grey levels over S/8 = 16 pixels differs by 16 between the bands; one side counts half."""
    inside = np.arange(crop_size(SIZE)[0]) + 0.5 - BOX[0].start
    ramp = np.rint(64 * np.clip(inside / 16 + 0.5, 0, 1)).astype(np.uint8)
    dubbed = plain(120, 120, 120) + ramp[:, None, None]
    assert seam(dubbed, plain(120, 120, 120)) == pytest.approx(8)


def test_colour_shift_is_the_ciede2000_difference() -> None:
    colour, shifted = (180, 130, 110), (172, 134, 118)
    dubbed = plain(*colour)
    dubbed[BOX] = shifted
    expected = deltaE_ciede2000(*(rgb2lab(np.uint8([[rgb]])) for rgb in (colour, shifted))).item()
    assert expected > 3
    assert colour_shift(dubbed, plain(*colour)) == pytest.approx(expected)


def test_changes_of_lips_and_chin_are_no_colour_shift() -> None:
    dubbed = plain(180, 130, 110)
    rows, columns = BOX
    inner = slice(columns.start + SIZE // 8, columns.stop - SIZE // 8)
    dubbed[rows.start + SIZE // 8 : rows.stop, inner] = 40  # lips and chin
    assert colour_shift(dubbed, plain(180, 130, 110)) == 0


def test_half_the_contrast_has_a_quarter_of_the_sharpness() -> None:
    crop = FaceCrop(left=10.3, top=5.8, pixel_size=1.6, mouth_size=SIZE)
    checkerboard = np.indices((400, 400)).sum(axis=0)[..., None].repeat(3, axis=2) % 2
    source = (100 + 40 * checkerboard).astype(np.uint8)
    assert sharpness((110 + 20 * checkerboard).astype(np.uint8), source, crop) == pytest.approx(0.25)
    assert sharpness(cv2.GaussianBlur(source, (0, 0), 2), source, crop) < 0.01
    elsewhere = source.copy()
    rows, columns = lips_box(SIZE)
    left, top = 10.3 + columns.start * 1.6, 5.8 + rows.start * 1.6
    elsewhere[: int(top) - 1] = elsewhere[:, : int(left) - 1] = 7
    assert sharpness(elsewhere, source, crop) == 1


def moving_head(frames: int) -> np.ndarray:
    """Landmarks (frames, 68, 2) of a rigid face with random translation, rotation and scale in each frame."""
    rng = np.random.default_rng(1)
    face = rng.uniform(0, 300, 68) + 1j * rng.uniform(0, 300, 68)
    turns = rng.normal(1, 0.03, frames) * np.exp(1j * rng.normal(0, 0.05, frames))
    plane = face * turns[:, None] + (rng.normal(0, 20, frames) + 1j * rng.normal(0, 20, frames))[:, None]
    return np.stack([plane.real, plane.imag], axis=-1)


def test_jitter_is_the_standard_deviation_of_noise() -> None:
    noise = np.random.default_rng(2).normal(0, 0.7, (400, len(LOWER_FACE), 2))
    points = moving_head(400)
    assert jitter([stabilise_head(points)[:, LOWER_FACE]]) < 1e-9
    points = stabilise_head(points)
    points[:, LOWER_FACE] += noise
    assert jitter([stabilise_head(points)[:, LOWER_FACE]]) == pytest.approx(0.7, rel=0.03)
    alternating = np.resize([0.5, -0.5], 30)
    assert jitter([alternating]) == pytest.approx(4 * 0.5 / 6**0.5 / 0.6745)


def test_a_steady_movement_is_no_jitter_and_gaps_are_ignored() -> None:
    steady = np.arange(20.0)
    steady[7] = np.nan
    assert jitter([steady, steady[::-1] * 3 + 50]) == 0  # nor is the gap between two segments
    assert np.isnan(jitter([steady[6:10]]))
    assert np.isnan(jitter([steady[:2]]))
    assert np.isnan(jitter([]))


def test_stabilising_the_head_keeps_the_movement_of_the_mouth() -> None:
    points = moving_head(1).repeat(10, axis=0)
    points[:, 57, 1] += np.arange(10)
    assert stabilise_head(points) == pytest.approx(points)
    points[3, :] = np.nan
    assert np.isnan(stabilise_head(points)[3]).all()
    assert not np.isnan(stabilise_head(points)[4:]).any()
    assert set(HEAD).isdisjoint(LOWER_FACE)


def test_flicker_is_the_standard_deviation_of_noise() -> None:
    """Noise that is new in every frame counts in the ring, not where speech changes the image."""
    rng = np.random.default_rng(3)
    rows, columns = BOX
    still = np.stack([ring_levels(plain(120, 120, 120))] * 60)
    everywhere, middle = [], []
    for _ in still:
        image = plain(120, 120, 120)
        noise = rng.normal(0, 5, (*image.shape[:2], 1))
        everywhere.append(ring_levels(np.rint(image + noise).astype(np.uint8)))
        inner = slice(columns.start + SIZE // 8, columns.stop - SIZE // 8)
        image[rows.start + SIZE // 8 :, inner] = rng.integers(0, 255)
        middle.append(ring_levels(image))
    assert everywhere[0].shape == (3 * SIZE**2 // 16,)
    assert flicker([np.stack(everywhere)], [still]) == pytest.approx(5, rel=0.03)
    assert flicker([still, np.stack(everywhere)], [still, np.stack(everywhere)]) == 0
    assert flicker([still], [np.stack(everywhere)]) == 0  # less variation than the source is no flicker
    assert flicker([np.stack(middle)], [still]) == 0
    assert np.isnan(flicker([still[:2]], [still[:2]]))
    quarter = still.copy()
    quarter[:, ::4] = np.stack(everywhere)[:, ::4]
    assert flicker([quarter], [still]) == pytest.approx(5 / 2, rel=0.03)


def test_opening_in_silence() -> None:
    """Relative to the source's closed and open mouth. The first and last 0.2 s of the silence do not count."""
    silent = np.array([False] * 21 + [True] * 16 + [False] * 24)
    source = np.tile([0.1, 0.3], 31)[:61]
    dubbed = np.full(61, 0.5)
    dubbed[26:32] = 0.15
    dubbed[31] = np.nan
    scores = opening_in_silence(dubbed, source, silent)
    assert scores["opening_in_silence"] == pytest.approx(0.25)
    assert scores["opening_in_silence_source"] == pytest.approx(0.4)  # open in two of five frames
    assert scores["silent_frames"] == 5
    nothing = {"opening_in_silence": None, "opening_in_silence_source": None, "silent_frames": 0}
    assert opening_in_silence(dubbed, source, np.zeros(61, bool)) == nothing
    assert opening_in_silence(dubbed, np.full(61, np.nan), silent) == nothing
    still = opening_in_silence(dubbed, np.full(61, 0.2), silent)
    assert still == nothing | {"silent_frames": 5}


def test_opening_range_and_correlation() -> None:
    """A part `a` of the source's openings and a part `b` of others that are as large and uncorrelated with them."""
    times = np.arange(100) * 2 * np.pi / 25
    source, other = 0.05 * np.sin(times), 0.05 * np.cos(times)
    scores = opening_agreement(0.1 + 0.6 * source + 0.3 * other, source)
    assert scores["opening_range"] == pytest.approx((0.6**2 + 0.3**2) ** 0.5)
    assert scores["opening_correlation"] == pytest.approx(0.6 / (0.6**2 + 0.3**2) ** 0.5)
    assert opening_agreement(source, source) == pytest.approx({"opening_range": 1, "opening_correlation": 1})
    assert opening_agreement(-source, source)["opening_correlation"] == pytest.approx(-1)
    still = opening_agreement(np.full(100, 0.2), source)
    assert still == {"opening_range": pytest.approx(0), "opening_correlation": None}


def test_opening_range_needs_a_moving_source_and_a_second_of_both_faces() -> None:
    nothing = {"opening_range": None, "opening_correlation": None}
    openings = np.resize([0.1, 0.2], 40)
    assert opening_agreement(openings, np.resize([0.1, 0.104], 40)) == nothing  # of landmarks on a still face
    assert opening_agreement(openings[:24], openings[:24]) == nothing
    with_gaps = openings.copy()
    with_gaps[:5] = np.nan
    dubbed = openings.copy()
    dubbed[-11:] = np.nan
    assert opening_agreement(dubbed, with_gaps) == nothing
    dubbed[-11] = openings[-11]
    assert opening_agreement(dubbed, with_gaps)["opening_range"] == pytest.approx(1)
