"""Light and colours of a face. The generator sees all crops of a shot in one light; each output frame has its own.

Fades, flashes, lamps and clouds change the light within a shot, but its reference frames have one light. So every
source crop is brought to the light of the reference frames before the generator, and back after it. Grey, tinted
and flat video is brought to the colours of natural skin in the same way, and monochrome video keeps its tint.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from data_processing.media.frame import Frame

# The hull of these landmarks is skin that speech does not move. It is shrunk, to leave out hair and background.
CHEEKS, CHEEKS_SIZE = [1, 2, 31, 33, 35, 14, 15, 29], 0.8
UPPER_FACE = [0, *range(16, 27), *range(31, 36)]  # from the brows to the end of the nose
FACTOR_ONLY = 0.2  # logarithm of the change of contrast beyond that of brightness up to which light is a factor
FACTOR_AND_OFFSET = 0.4  # from here on it also has an offset, like white in front of the face
IGNORED, FULL = 0.03, 0.08  # logarithm of the change of a colour that is ignored, and from where it counts fully
MAX_GAIN = 50.0  # of an almost black face, which is hardly visible
LIGHT_HEIGHT = 104  # rows of a face crop in which light is measured
# of skin in natural light; real videos of 60 people: 1.19 to 1.67, 0.92 to 2.5, and a contrast of 0.14 and more
RED_TO_GREEN, GREEN_TO_BLUE = (1.15, 1.75), (0.92, 2.5)
MIN_CONTRAST = 0.12  # relative to the brightness
# contrast of a face in grey levels: below the first it is invisible, above the second visible
VISIBLE = (2.0, 5.0)
NUM_SAMPLES = 24  # pixels per row and per column of a face that `face_levels` reads
TINT_LEVELS = 16  # of brightness
TINT_PERCENTILES = (0.5, 99.5)
MAX_TINT_RANGE = (
    0.35  # of the hue at one brightness, by the deviation of brightness: sepia 0.2, colour 0.6 and more
)


@dataclass(frozen=True)
class FaceLight:
    """The light of a face in an image.

    colour: (3,) mean of the cheeks, RGB, 0 to 255.
    contrast: standard deviation of the brightness of the upper face, in grey levels.
    """

    colour: np.ndarray
    contrast: float

    @classmethod
    def of(cls, image: np.ndarray, points: np.ndarray) -> "FaceLight":
        """The light of the face with landmarks (68, 2) in the pixels of an image (H, W, 3)."""
        step = max(1, image.shape[0] // LIGHT_HEIGHT)  # light has no detail
        image, points = image[::step, ::step], points / step
        cheeks = points[CHEEKS]
        cheeks = cheeks.mean(axis=0) + CHEEKS_SIZE * (cheeks - cheeks.mean(axis=0))
        return cls(
            _pixels(image, cheeks).mean(axis=0), float(_pixels(image, points[UPPER_FACE]).mean(axis=1).std())
        )

    @classmethod
    def median(cls, lights: Sequence["FaceLight"]) -> "FaceLight":
        """The median of several."""
        colour = np.median([light.colour for light in lights], axis=0)
        return cls(colour, float(np.median([light.contrast for light in lights])))

    def natural(self) -> "FaceLight":
        """The nearest light in which skin has its natural colour, at the same brightness."""
        red, green, blue = self.colour + 1
        red_to_green = np.clip(red / green, *RED_TO_GREEN)
        green_to_blue = np.clip(green / blue, *GREEN_TO_BLUE)
        colour = np.array([red_to_green, 1, 1 / green_to_blue])
        colour *= (self.colour.mean() + 1) / colour.mean()
        return FaceLight(colour - 1, max(self.contrast, MIN_CONTRAST * float(self.colour.mean())))


@dataclass(frozen=True)
class LightChange:
    """A change of light: image · gain + offset.

    gain, offset: (3,) for red, green and blue.
    """

    gain: np.ndarray
    offset: np.ndarray

    @classmethod
    def between(cls, found: FaceLight, wanted: FaceLight) -> "LightChange":
        """The change from one light to another.

        Lamps, and fades to black, multiply: the gain is the ratio of the colours. In fades to white, and in fog,
        contrast and brightness change differently: the gain is that of the contrast, and there is an offset.
        Small changes, which are those of head poses, are ignored, so that steady light gives a steady output.
        """
        gain = (wanted.colour + 1) / (found.colour + 1)
        excess = np.log((wanted.contrast + 0.5) / (found.contrast + 0.5) / gain.mean())
        weight = np.clip((abs(excess) - FACTOR_ONLY) / (FACTOR_AND_OFFSET - FACTOR_ONLY), 0, 1)
        gain = np.clip(gain * np.exp(weight * excess), 1 / MAX_GAIN, MAX_GAIN)
        offset = wanted.colour - gain * found.colour
        size = np.abs(np.log((wanted.colour + 1) / (found.colour + 1))).max() + weight
        part = np.clip((size - IGNORED) / (FULL - IGNORED), 0, 1)
        return cls(1 + part * (gain - 1), part * offset)

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return bool((self.gain == 1).all() and (self.offset == 0).all())

    def apply(self, image: np.ndarray) -> np.ndarray:
        """(..., 3) -> (..., 3), float32 unless nothing changes."""
        if self.is_identity:
            return image
        return image * self.gain.astype(np.float32) + self.offset.astype(np.float32)

    def revert(self, image: np.ndarray) -> np.ndarray:
        """The inverse of `apply`."""
        if self.is_identity:
            return image
        return (image - self.offset.astype(np.float32)) / self.gain.astype(np.float32)


@dataclass(frozen=True)
class Tint:
    """The colours of monochrome video, grey or toned: for each brightness one hue, within a narrow range.

    brightness: (K,) rising, mean of the three colours; black and white, which have no hue, at the ends.
    low, high: (K, 2) red minus green, and green minus blue.
    """

    brightness: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, images: Sequence[np.ndarray]) -> "Tint | None":
        """The tint of images (H, W, 3); None if they are not monochrome."""
        colours = np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float32)
        brightness = colours.mean(axis=1)
        parts = np.array_split(colours[np.argsort(brightness, kind="stable")], TINT_LEVELS)
        ranges = np.array([np.percentile(_hue(part), TINT_PERCENTILES, axis=0) for part in parts])
        if np.median(ranges[:, 1] - ranges[:, 0], axis=0).max() > MAX_TINT_RANGE * brightness.std():
            return None
        low, high = np.pad(ranges, ((1, 1), (0, 0), (0, 0))).swapaxes(0, 1)
        middles = np.clip([part.mean() for part in parts], 1, 254)
        return cls(np.array([0, *middles, 255]), low, high)

    def apply(self, images: np.ndarray) -> np.ndarray:
        """The nearest colours of this tint with the same brightness: (..., 3) -> (..., 3) float32."""
        images = images.astype(np.float32)  # differences of uint8 would wrap around
        brightness, hue = images.mean(axis=-1), _hue(images)
        for column in range(2):
            low, high = (np.interp(brightness, self.brightness, ends[:, column]) for ends in (self.low, self.high))
            hue[..., column] = np.clip(hue[..., column], low, high)
        red_green, green_blue = hue[..., 0], hue[..., 1]
        green = brightness - (red_green - green_blue) / 3
        return np.stack([green + red_green, green, green - green_blue], axis=-1).astype(np.float32)


def _hue(colours: np.ndarray) -> np.ndarray:
    """Red minus green, and green minus blue: (..., 3) -> (..., 2)."""
    return np.stack([colours[..., 0] - colours[..., 1], colours[..., 1] - colours[..., 2]], axis=-1)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round (..., 3) in 0 to 255 to uint8; values outside are clipped."""
    if image.dtype == np.uint8:
        return image
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def face_levels(luma: np.ndarray, luma_range: tuple[int, int], points: np.ndarray) -> tuple[float, float]:
    """Brightness from 0 to 255 of the face with landmarks (68, 2): mean and standard deviation.

    Faster than `FaceLight.of` and less exact, since hair and background count too.

    Args:
        luma: (H, W), of a `Frame` or of every n-th row and column of it.
        luma_range: black and white in it.
        points: in its pixels.
    """
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    columns = np.linspace(left, right, NUM_SAMPLES).clip(0, luma.shape[1] - 1).astype(int)
    rows = np.linspace(top, bottom, NUM_SAMPLES).clip(0, luma.shape[0] - 1).astype(int)
    black, white = luma_range
    brightness = (luma[np.ix_(rows, columns)].astype(np.float32) - black) * 255 / (white - black)
    return float(brightness.mean()), float(brightness.std())


def visibility(frame: Frame, points: np.ndarray) -> float:
    """How visible the face with landmarks (68, 2) is in a frame: 0 in black or white, 1 usually."""
    low, high = VISIBLE
    contrast = face_levels(frame.luma, frame.luma_range, points)[1]
    return float(np.clip((contrast - low) / (high - low), 0, 1))


def _pixels(image: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """The pixels (N, 3) float32 in the convex hull of points (K, 2) in the pixels of an image (H, W, 3)."""
    mask = np.zeros(image.shape[:2], np.uint8)
    hull = cv2.convexHull((corners - 0.5).astype(np.float32))
    cv2.fillConvexPoly(mask, np.rint(hull).astype(np.int32), 1)
    found = image[mask.astype(bool)]
    return (found if len(found) else image.reshape(-1, 3)).astype(np.float32)
