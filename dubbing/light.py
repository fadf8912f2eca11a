"""Light and colours of a face. The generator sees all crops of a shot in one light; each output frame has its own.

Fades, flashes, lamps and clouds change the light within a shot, but its reference frames have one light. So every
source crop is brought to the light of the reference frames before the generator, and back after it. Grey, tinted
and flat video is brought to the colours of natural skin in the same way. The output keeps to the colours that the
reference frames have.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

# The hull of these landmarks is skin that speech does not move. It is shrunk, to leave out hair and background.
CHEEKS, CHEEKS_SIZE = [1, 2, 31, 33, 35, 14, 15, 29], 0.8
UPPER_FACE = [0, *range(16, 27), *range(31, 36)]  # from the brows to the end of the nose
FACTOR_ONLY = 0.25  # logarithm of the change of contrast beyond that of brightness up to which light is a factor
FACTOR_AND_OFFSET = 0.5  # from here on it also has an offset, like white in front of the face
IGNORED, FULL = 0.03, 0.08  # logarithm of the change of a colour that is ignored, and from where it counts fully
MAX_GAIN = 50.0
RED_TO_GREEN = (1.15, 1.75)  # of skin in natural light
GREEN_TO_BLUE = (0.92, 2.5)
MIN_CONTRAST = 0.12  # of a face in natural light, relative to its brightness
VISIBLE = (
    2.0,
    5.0,
)  # contrast of a face, in grey levels: below the first it is invisible, above the second visible
NUM_SAMPLES = 24  # pixels per row and per column of a face that `face_levels` reads
PALETTE_SIZE = 16  # levels of brightness
PALETTE_PERCENTILES = (0.5, 99.5)


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
        cheeks = points[CHEEKS]
        cheeks = cheeks.mean(axis=0) + CHEEKS_SIZE * (cheeks - cheeks.mean(axis=0))
        return cls(
            _pixels(image, cheeks).mean(axis=0), float(_pixels(image, points[UPPER_FACE]).mean(axis=1).std())
        )

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

    def apply(self, image: np.ndarray) -> np.ndarray:
        """(..., 3) -> (..., 3) float32."""
        return image * self.gain.astype(np.float32) + self.offset.astype(np.float32)

    def revert(self, image: np.ndarray) -> np.ndarray:
        """The inverse of `apply`."""
        return (image - self.offset.astype(np.float32)) / self.gain.astype(np.float32)


@dataclass(frozen=True)
class Palette:
    """The colours of face crops: for each brightness a range of red minus green and of green minus blue.

    brightness: (K,) rising, mean of the three colours; black and white, which have no hue, at the ends.
    low, high: (K, 2).
    """

    brightness: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, images: Sequence[np.ndarray]) -> "Palette":
        """The colours of images (H, W, 3)."""
        colours = np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float32)
        order = np.argsort(colours.mean(axis=1), kind="stable")
        parts = np.array_split(colours[order], min(PALETTE_SIZE, len(colours)))
        ranges = [np.percentile(_hue(part), PALETTE_PERCENTILES, axis=0) for part in parts]
        low, high = (np.pad(np.array(ends), ((1, 1), (0, 0))) for ends in zip(*ranges, strict=True))
        middles = np.clip([part.mean() for part in parts], 1, 254)
        return cls(np.array([0, *middles, 255]), low, high)

    def limit(self, images: np.ndarray) -> np.ndarray:
        """The nearest colours of the palette with the same brightness: (..., 3) -> (..., 3) float32."""
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
    """Round (..., 3) float in 0 to 255 to uint8; values outside are clipped."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def face_levels(frame: np.ndarray, points: np.ndarray) -> tuple[float, float]:
    """Brightness of the face with landmarks (68, 2) in a frame (H, W, 3): mean and standard deviation.

    Faster than `FaceLight.of` and less exact, since hair and background count too.
    """
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    columns = np.linspace(left, right, NUM_SAMPLES).clip(0, frame.shape[1] - 1).astype(int)
    rows = np.linspace(top, bottom, NUM_SAMPLES).clip(0, frame.shape[0] - 1).astype(int)
    brightness = frame[np.ix_(rows, columns)].mean(axis=2)
    return float(brightness.mean()), float(brightness.std())


def visibility(frame: np.ndarray, points: np.ndarray) -> float:
    """How visible the face with landmarks (68, 2) is in a frame (H, W, 3): 0 in black or white, 1 usually."""
    low, high = VISIBLE
    return float(np.clip((face_levels(frame, points)[1] - low) / (high - low), 0, 1))


def _pixels(image: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """The pixels (N, 3) float32 in the convex hull of points (K, 2) in the pixels of an image (H, W, 3)."""
    mask = np.zeros(image.shape[:2], np.uint8)
    hull = cv2.convexHull((corners - 0.5).astype(np.float32))
    cv2.fillConvexPoly(mask, np.rint(hull).astype(np.int32), 1)
    found = image[mask.astype(bool)]
    return (found if len(found) else image.reshape(-1, 3)).astype(np.float32)
