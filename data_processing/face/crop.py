"""The face crop: its placement from landmarks, extraction from a frame, and pasting back.

Coordinates are (x, y) in source pixels; pixel k covers [k, k + 1). With mouth size S and radius r the crop covers
rows [y29 − r, y29 + 2.25 r) and columns [x33 − 1.25 r, x33 + 1.25 r), which are 13S/8 × 5S/4 crop pixels: one crop
pixel is 2r / S source pixels wide. models/crop_layout.py defines the mouth box in the crop, radius.py the radius.
"""

from dataclasses import dataclass, replace
from functools import cache
from math import ceil, floor

import cv2
import numpy as np

from models.crop_layout import crop_size, lips_box, mouth_box, mouth_margin_top, mouth_size_of

COARSE_SIZE = 64  # mouth size at which blurs and masks are computed: they have no detail
SPEECH_LANDMARKS = [*range(5, 12), *range(48, 60)]  # chin and lips, which speech moves
LOWER_FACE_LANDMARKS = [*range(2, 15), *range(27, 36)]  # jaw and nose: the face below the eyes
DETAIL_TOLERANCE = 12.0  # grey levels of change up to which the fine texture of the skin is kept
MARGIN = 2  # pixels around a crop that interpolation reads


def sample_region(
    image: np.ndarray, left: float, top: float, pixel_size: float, size: tuple[int, int]
) -> np.ndarray:
    """Resample a region of an image.

    Args:
        image: (H, W[, 3]) uint8. Outside the image its edge pixels are repeated.
        left, top: upper left corner of the region in source pixels.
        pixel_size: source pixels per output pixel.
        size: (height, width) of the output.

    Returns:
        (height, width[, 3]) uint8.
    """
    height, width = size
    # Sample more finely than needed and average, to avoid aliasing.
    oversampling = max(1, ceil(pixel_size - 0.25))
    step = pixel_size / oversampling
    sampled = (width * oversampling, height * oversampling)
    # four channels are resampled in half the time of three, to the same values
    is_padded = image.ndim == 3 and image.shape[0] * image.shape[1] < 2 * sampled[0] * sampled[1]
    image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA) if is_padded else image
    region = cv2.warpAffine(
        image,
        np.array([[step, 0, left + step / 2 - 0.5], [0, step, top + step / 2 - 0.5]]),
        sampled,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    region = cv2.cvtColor(region, cv2.COLOR_RGBA2RGB) if is_padded else region
    return cv2.resize(region, (width, height), interpolation=cv2.INTER_AREA) if oversampling > 1 else region


@dataclass(frozen=True)
class FaceCrop:
    """Placement of the face crop in one frame.

    left, top: upper left corner of the crop in source coordinates.
    pixel_size: source pixels per crop pixel.
    mouth_size: S.
    """

    left: float
    top: float
    pixel_size: float
    mouth_size: int

    @classmethod
    def from_landmarks(cls, landmarks: np.ndarray, radius_px: float, mouth_size: int) -> "FaceCrop":
        """The crop of one frame from its landmarks (68, 2) and its radius (radius.py)."""
        return cls(
            left=float(landmarks[33, 0]) - 1.25 * radius_px,
            top=float(landmarks[29, 1]) - radius_px,
            pixel_size=2 * radius_px / mouth_size,
            mouth_size=mouth_size,
        )

    def mouth_bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the mouth box in source coordinates."""
        rows, columns = mouth_box(self.mouth_size)
        return (
            self.left + columns.start * self.pixel_size,
            self.top + rows.start * self.pixel_size,
            self.left + columns.stop * self.pixel_size,
            self.top + rows.stop * self.pixel_size,
        )

    def bounds(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The pixels (x0, y0, x1, y1) of a frame of this size that the other methods use, at least one."""
        rows, columns = (side * self.pixel_size for side in crop_size(self.mouth_size))
        x0, x1 = (floor(self.left) - MARGIN, ceil(self.left + columns) + MARGIN)
        y0, y1 = (floor(self.top) - MARGIN, ceil(self.top + rows) + MARGIN)
        x0, y0 = min(max(0, x0), width - 1), min(max(0, y0), height - 1)
        return x0, y0, max(x0 + 1, min(width, x1)), max(y0 + 1, min(height, y1))

    def moved(self, x: float, y: float) -> "FaceCrop":
        """The same crop in a frame whose pixel (0, 0) is the pixel (x, y) of this one."""
        return replace(self, left=self.left - x, top=self.top - y)

    def to_crop(self, points: np.ndarray) -> np.ndarray:
        """Source coordinates (..., 2) to crop coordinates."""
        return (points - np.array([self.left, self.top])) / self.pixel_size

    def extract(self, frame: np.ndarray) -> np.ndarray:
        """Extract the face crop from a frame.

        Args:
            frame: (H, W, 3) uint8 RGB. Outside the frame its edge pixels are repeated.

        Returns:
            (13S/8, 5S/4, 3) uint8 RGB.
        """
        return sample_region(frame, self.left, self.top, self.pixel_size, crop_size(self.mouth_size))

    def lips_region(self, frame: np.ndarray) -> np.ndarray:
        """The lips box (models/crop_layout.py) of a frame at source resolution.

        Args:
            frame: (H, W, 3) uint8.

        Returns:
            (h, w, 3) uint8, at least 3 × 3 pixels.
        """
        rows, columns = lips_box(self.mouth_size)
        left = round(self.left + columns.start * self.pixel_size)
        top = round(self.top + rows.start * self.pixel_size)
        height, width = (max(3, round((box.stop - box.start) * self.pixel_size)) for box in (rows, columns))
        return sample_region(frame, left, top, 1.0, (height, width))

    def detail(self, frame: np.ndarray, bounds: tuple[int, int, int, int]) -> np.ndarray:
        """What a frame (H, W, 3) uint8 has in its pixels `bounds` (x0, y0, x1, y1) that is too fine for the crop:
        (y1 − y0, x1 − x0, 3) float32."""
        x0, y0, x1, y1 = bounds
        return frame[y0:y1, x0:x1] - self._to_source(self.extract(frame).astype(np.float32), bounds)

    def paste_bounds(self, frame: np.ndarray) -> tuple[int, int, int, int]:
        """The pixels (x0, y0, x1, y1) of a frame (H, W, 3) that `paste` can change; x0 ≥ x1 or y0 ≥ y1 if none."""
        left, top, right, bottom = self.mouth_bounds()
        x0, x1 = max(0, floor(left - self._margin)), min(frame.shape[1], ceil(right + self._margin))
        y0, y1 = max(0, floor(top - self._margin)), min(frame.shape[0], ceil(bottom + self._margin))
        return x0, y0, x1, y1

    @property
    def _margin(self) -> float:
        """Half the width of the blended border of the mouth box in source pixels."""
        return self.mouth_size / 16 * self.pixel_size

    def paste(
        self,
        frame: np.ndarray,
        generated: np.ndarray,
        landmarks: np.ndarray | None = None,
        strength: float = 1.0,
        contrast: float = 1.0,
        covers: np.ndarray | None = None,
        detail: np.ndarray | None = None,
    ) -> np.ndarray:
        """Blend the mouth box of a generated crop into its frame.

        What is pasted is the change from the frame's own crop to the generated crop:

        1. The colour cast of the change is subtracted. It is measured around the mouth box, where the generator
           should reproduce the source, and extrapolated smoothly into the box.
        2. With landmarks, only the low frequencies of the change are kept away from lips and chin, so that moles,
           folds and nostrils do not change, and pixels outside the face are masked out.
        3. The change is upsampled and added to the frame through a mask that falls from 1 to 0 across the border of
           the mouth box. Source texture that is too fine for the crop stays where the change is small, and fades
           out where it is large, or gives way to `detail`.

        Args:
            frame: (H, W, 3) uint8 RGB.
            generated: (13S/8, 5S/4, 3) RGB, 0 to 255.
            landmarks: (68, 2), those of the frame; None to paste the whole mouth box.
            strength: weight of the change, from 0 (the frame stays as it is) to 1.
            contrast: of the frame's light, 1 is usual; less in a dark frame, in which all changes are small.
            covers: face crop (13s/8, 5s/4) float32 of any mouth size s: 1 where something covers the face and the
                frame stays as it is, 0 elsewhere; None for a face that nothing covers.
            detail: (h, w, 3) float32 for the pixels of `paste_bounds`: texture that is too fine for the crop and
                takes the place of the frame's own where that fades out.

        Returns:
            A new (H, W, 3) uint8 RGB frame.

        Raises:
            ValueError: `generated` does not have the size of this crop.
        """
        (x0, y0, x1, y1), change = self.change(frame, generated, landmarks, strength, contrast, covers, detail)
        pasted = frame.copy()
        if change.size:
            pasted[y0:y1, x0:x1] = cv2.add(frame[y0:y1, x0:x1], change, dtype=cv2.CV_8U)
        return pasted

    def change(
        self,
        frame: np.ndarray,
        generated: np.ndarray,
        landmarks: np.ndarray | None = None,
        strength: float = 1.0,
        contrast: float = 1.0,
        covers: np.ndarray | None = None,
        detail: np.ndarray | None = None,
        source: np.ndarray | None = None,
    ) -> tuple[tuple[int, int, int, int], np.ndarray]:
        """What `paste` adds to a frame: the pixels of `paste_bounds`, and (h, w, 3) float32 for them.

        `source`: the face crop of the frame, from `extract`, if it is known.
        """
        if generated.shape != (*crop_size(self.mouth_size), 3):
            raise ValueError(f"expected {(*crop_size(self.mouth_size), 3)}, found {generated.shape}")
        bounds = x0, y0, x1, y1 = self.paste_bounds(frame)
        if x0 >= x1 or y0 >= y1:  # the mouth box lies outside the frame
            return bounds, np.zeros((0, 0, 3), np.float32)
        left, top, right, bottom = self.mouth_bounds()
        margin = self._margin
        mask = np.outer(
            strength * self._feather(y0, y1, top, bottom, margin), self._feather(x0, x1, left, right, margin)
        )
        source = (self.extract(frame) if source is None else source).astype(np.float32)
        generated = generated.astype(np.float32)
        size = max(8, int(self.mouth_size * self.pixel_size) // 8 * 8)
        if size < self.mouth_size:  # the crop is finer than the frame
            coarser = replace(self, pixel_size=self.pixel_size * self.mouth_size / size, mouth_size=size)
            shape = crop_size(size)[::-1]
            generated, source = (cv2.resize(x, shape, interpolation=cv2.INTER_AREA) for x in (generated, source))
            return coarser.change(frame, generated, landmarks, strength, contrast, covers, detail, source)
        change = generated - source
        change -= self._colour_cast(change)
        speech_mask = face_mask = np.ones(change.shape[:2], np.float32)
        if landmarks is not None:
            speech_mask = self._hull_mask(landmarks[SPEECH_LANDMARKS], grow=1 / 16, softness=1 / 24)
            coarse = _blur(change, 1 / 16)
            change = coarse + times(change - coarse, speech_mask)
            face_mask = self._hull_mask(landmarks[LOWER_FACE_LANDMARKS], grow=1 / 32, softness=1 / 48)
        if covers is not None:
            size = mouth_size_of(len(covers))
            finer = replace(self, pixel_size=self.pixel_size * self.mouth_size / size, mouth_size=size)
            mask *= 1 - finer._to_source(covers, bounds).clip(0, 1)
        amount = cv2.GaussianBlur(_largest(change), (0, 0), 1.5)
        fading = speech_mask * (1 - np.exp(-np.square(amount / (contrast * DETAIL_TOLERANCE))))
        # four channels are resampled as fast as one
        *change, fading = cv2.split(self._to_source(cv2.merge([*cv2.split(change), fading]), bounds))
        *source, face_mask = cv2.split(self._to_source(cv2.merge([*cv2.split(source), face_mask]), bounds))
        mask *= face_mask
        texture = cv2.subtract(frame[y0:y1, x0:x1], cv2.merge(source), dtype=cv2.CV_32F)
        if detail is not None:
            texture -= detail
        return bounds, times(cv2.merge(change) - times(texture, fading), mask)

    def _colour_cast(self, change: np.ndarray) -> np.ndarray:
        """The change (13S/8, 5S/4, 3) around the mouth box, extrapolated smoothly into the box."""
        known, share = _around_mouth(self.mouth_size)
        return _blur(times(change, known), 1 / 4) / share

    def _hull_mask(self, points: np.ndarray, grow: float, softness: float) -> np.ndarray:
        """Mask (13S/8, 5S/4) float32: 1 in the convex hull of source points (K, 2) dilated by `grow` · S crop
        pixels, 0 outside, with edges blurred by a standard deviation of `softness` · S."""
        size = min(self.mouth_size, COARSE_SIZE)
        mask = np.zeros(crop_size(size), np.float32)
        hull = cv2.convexHull((self.to_crop(points) * size / self.mouth_size - 0.5).astype(np.float32))
        corners = np.rint(16 * hull).astype(np.int32)  # in sixteenths of a pixel
        cv2.fillConvexPoly(mask, corners, 1.0, cv2.LINE_AA, shift=4)
        cv2.polylines(mask, [corners], True, 1.0, max(1, round(2 * grow * size)), cv2.LINE_AA, shift=4)
        mask = cv2.GaussianBlur(mask, (0, 0), softness * size)
        return cv2.resize(mask, crop_size(self.mouth_size)[::-1], interpolation=cv2.INTER_LINEAR)

    def _to_source(self, crop: np.ndarray, bounds: tuple[int, int, int, int]) -> np.ndarray:
        """Resample a float32 crop to the source pixels of `bounds` (x0, y0, x1, y1)."""
        x0, y0, x1, y1 = bounds
        pixel_x = pixel_y = self.pixel_size
        method = cv2.INTER_CUBIC
        if self.pixel_size < 1:  # the crop is finer than the source: average first, to avoid aliasing
            height, width = (max(1, round(size * self.pixel_size)) for size in crop.shape[:2])
            pixel_x, pixel_y = pixel_x * crop.shape[1] / width, pixel_y * crop.shape[0] / height
            crop = cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA)
        elif self.pixel_size > 3:  # the same as cubic interpolation at once, in a third of the time
            crop = cv2.resize(crop, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
            pixel_x = pixel_y = self.pixel_size / 4
            method = cv2.INTER_LINEAR
        matrix = np.array(
            [
                [1 / pixel_x, 0, (x0 + 0.5 - self.left) / pixel_x - 0.5],
                [0, 1 / pixel_y, (y0 + 0.5 - self.top) / pixel_y - 0.5],
            ]
        )
        return cv2.warpAffine(
            crop,
            matrix,
            (x1 - x0, y1 - y0),
            flags=method | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )

    @staticmethod
    def _feather(start: int, stop: int, low: float, high: float, margin: float) -> np.ndarray:
        """Weights of the pixels start … stop − 1: 1 between low and high, falling to 0 within ± margin of them."""
        centre = np.arange(start, stop) + 0.5
        inside = np.minimum(centre - low, high - centre)
        ramp = np.clip((inside + margin) / (2 * margin), 0, 1).astype(np.float32)
        return ramp * ramp * (3 - 2 * ramp)


@cache
def _around_mouth(mouth_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a face crop shows what is around the mouth box, (13S/8, 5S/4) float32, 0 or 1, and (13S/8, 5S/4, 1) its
    share of a wide neighbourhood."""
    known = np.ones(crop_size(mouth_size), np.float32)
    known[: mouth_margin_top(mouth_size)] = 0
    known[mouth_box(mouth_size)] = 0
    return known, np.maximum(_blur(known, 1 / 4), 1e-3)[..., None]


def _blur(crop: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian blur of a float32 face crop of mouth size S; its standard deviation is `deviation` · S crop pixels.

    Computed at COARSE_SIZE at most: at full size so wide a blur would take as long as a small generator.
    """
    mouth_size = mouth_size_of(len(crop))
    size = min(mouth_size, COARSE_SIZE)
    small = cv2.resize(crop, crop_size(size)[::-1], interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), deviation * size, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, crop.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def _largest(image: np.ndarray) -> np.ndarray:
    """The largest absolute value of three channels: (h, w, 3) -> (h, w)."""
    red, green, blue = cv2.split(np.abs(image))
    return cv2.max(cv2.max(red, green), blue)


def times(image: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """(h, w, 3) times (h, w), float32; faster than NumPy."""
    return cv2.multiply(image, cv2.merge([factor] * 3))
