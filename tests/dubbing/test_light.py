"""Light and colours of a face: changes of light are found and reverted; the source's colours are kept."""

from collections.abc import Callable

import numpy as np
import pytest

from data_processing.media.frame import RgbFrame
from dubbing.light import (
    GREEN_TO_BLUE,
    MIN_CONTRAST,
    RED_TO_GREEN,
    FaceLight,
    LightChange,
    Tint,
    to_uint8,
    visibility,
)
from tests.dubbing.test_references import made_points

POINTS = made_points() - [28, 48]
POINTS[[1, 2, 14, 15], 1] = 85, 92, 92, 85  # the jaw beside the nose
rng = np.random.default_rng(0)
BRIGHTNESS = np.clip(rng.normal(130, 35, (200, 160, 1)), 20, 220)
FACE = to_uint8(np.concatenate([1.25 * BRIGHTNESS, BRIGHTNESS, 0.8 * BRIGHTNESS], axis=2) * rng.normal(1, 0.03, 3))
SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])

CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "faded to black": lambda image: 0.3 * image,
    "nearly black": lambda image: 0.06 * image,
    "brighter": lambda image: 1.1 * image,
    "another lamp": lambda image: image * np.array([0.9, 0.6, 0.4]),
    "faded to white": lambda image: 0.25 * image + 0.75 * 255,
    "fog": lambda image: 0.5 * image + 60,
    "unchanged": lambda image: image.astype(float),
}


@pytest.mark.parametrize("name", CHANGES)
def test_change_of_light_is_reverted(name: str) -> None:
    changed = CHANGES[name](FACE)
    change = LightChange.between(FaceLight.of(changed, POINTS), FaceLight.of(FACE, POINTS))
    assert np.abs(change.apply(changed) - FACE).mean() < 4
    assert np.abs(change.revert(change.apply(changed)) - changed).max() < 1e-2


def test_light_does_not_depend_on_the_mouth() -> None:
    opened = FACE.copy()
    lips = np.rint(POINTS[48:68].mean(axis=0)).astype(int)
    opened[lips[1] - 6 : lips[1] + 6, lips[0] - 20 : lips[0] + 20] = 10
    change = LightChange.between(FaceLight.of(opened, POINTS), FaceLight.of(FACE, POINTS))
    assert np.allclose(change.gain, 1, atol=1e-6) and np.allclose(change.offset, 0, atol=1e-4)


@pytest.mark.parametrize("skin", [(231, 188, 152), (196, 144, 120), (90, 58, 44), (255, 219, 190)])
def test_natural_skin_is_left_as_it_is(skin: tuple[int, int, int]) -> None:
    light = FaceLight(np.array(skin, float), 45.0)
    change = LightChange.between(light, light.natural())
    assert np.allclose(change.gain, 1) and np.allclose(change.offset, 0)


@pytest.mark.parametrize("colour", [(150, 150, 150), (58, 103, 152), (60, 200, 80), (180, 30, 20)])
def test_other_colours_become_natural_at_the_same_brightness(colour: tuple[int, int, int]) -> None:
    natural = FaceLight(np.array(colour, float), 5.0).natural()
    red, green, blue = natural.colour + 1
    assert RED_TO_GREEN[0] - 1e-6 <= red / green <= RED_TO_GREEN[1] + 1e-6
    assert GREEN_TO_BLUE[0] - 1e-6 <= green / blue <= GREEN_TO_BLUE[1] + 1e-6
    assert natural.colour.mean() == pytest.approx(np.mean(colour))
    assert natural.contrast == pytest.approx(MIN_CONTRAST * np.mean(colour))


def test_grey_faces_have_no_hue() -> None:
    grey = np.repeat(FACE.mean(axis=2, keepdims=True).round().astype(np.uint8), 3, axis=2)
    toned = Tint.of([grey]).apply(FACE.astype(np.float32))
    assert np.abs(toned - FACE.mean(axis=2, keepdims=True)).max() < 1e-3


def test_tint_of_toned_video() -> None:
    """Also where a colour is clipped."""
    colourful = to_uint8(FACE + rng.normal(0, 25, FACE.shape))
    sepia = to_uint8(colourful @ SEPIA.T)
    toned = Tint.of([sepia]).apply(colourful.astype(np.float32))
    brightness = colourful.mean(axis=2)
    known = (brightness > 60) & (brightness < 200)
    for first, second in ((0, 1), (1, 2)):
        expected = np.interp(brightness, *_mean_hue(sepia, first, second))
        error = np.abs(toned[..., first] - toned[..., second] - expected)[known]
        assert np.percentile(error, 99) < 15


def _mean_hue(image: np.ndarray, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels of brightness, and the mean difference of two colours at each."""
    brightness = image.mean(axis=2).ravel()
    difference = image[..., first].ravel().astype(float) - image[..., second].ravel()
    levels = np.arange(10, 250, 10)
    near = [np.abs(brightness - level) < 8 for level in levels]
    return (
        np.array([level for level, part in zip(levels, near, strict=True) if part.any()]),
        np.array([difference[part].mean() for part in near if part.any()]),
    )


def test_colour_video_has_no_tint() -> None:
    """Skin, lips and hair of one brightness differ in hue; also in coloured light and in flat video."""
    colourful = FACE + rng.normal(0, 10, FACE.shape)
    for image in (colourful, colourful * [0.3, 0.6, 1.0], 60 + 0.4 * colourful):
        assert Tint.of([to_uint8(image)]) is None


def test_visibility() -> None:
    assert visibility(RgbFrame(FACE), POINTS) == 1
    assert visibility(RgbFrame(to_uint8(0.01 * FACE)), POINTS) == 0
    assert visibility(RgbFrame(to_uint8(255 - 0.01 * FACE)), POINTS) == 0
    assert 0 < visibility(RgbFrame(to_uint8(0.1 * FACE)), POINTS) < 1
