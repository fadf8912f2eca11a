"""The one place with crop maths: where the face crop and its mouth box lie, and the way there and back.

Coordinates are (x, y) in source pixels, pixel k covering [k, k + 1). With mouth size S and radius r the crop
covers rows [y29 − r, y29 + 2.25 r) and columns [x33 − 1.25 r, x33 + 1.25 r), 13S/8 × 5S/4 crop pixels, so one
crop pixel is 2r / S source pixels wide. The mouth box is rows [S/2, 3S/2), columns [S/8, 9S/8) of the crop.
"""

from dataclasses import dataclass
from math import ceil, floor

import cv2
import numpy as np

from models.crop_layout import crop_size, lips_box, mouth_box, mouth_margin_top

RADIUS_SCALE = 1.05  # room around the measured face
COARSE_SIZE = 64  # mouth size at which what has no detail is computed
SPOKEN = [*range(5, 12), *range(48, 60)]  # landmarks of chin and lips: what speech moves
FACE = [*range(2, 15), *range(27, 36)]  # of jaw and nose: the face below the eyes
DETAIL_TOLERANCE = 12.0  # grey levels of change up to which the skin's own fine texture is kept


def frame_radii(landmarks: np.ndarray, scale: float = RADIUS_SCALE) -> np.ndarray:
    """Radius in pixels that each frame alone would ask for: (T, 68, 2) -> (T,)."""
    height = landmarks[:, :, 1].max(axis=1) - landmarks[:, 29, 1]
    mouth_width = np.abs(landmarks[:, 54, 0] - landmarks[:, 48, 0])
    return np.maximum(height, mouth_width) * scale / 2


def crop_radius(landmarks: np.ndarray, scale: float = RADIUS_SCALE) -> float:
    """The one radius in pixels for all frames of a shot, (T, 68, 2): per frame the pasted box would breathe."""
    return float(frame_radii(landmarks, scale).max())


def sample_region(
    image: np.ndarray, left: float, top: float, pixel_size: float, size: tuple[int, int]
) -> np.ndarray:
    """The region of an image (H, W[, 3]) uint8 with its corner at (left, top), as `size` = (height, width) pixels.

    Each of them is `pixel_size` source pixels wide. Beyond the image its edge pixels go on.
    """
    height, width = size
    # sampled finer than needed and averaged, so that shrinking does not alias
    finer = max(1, ceil(pixel_size - 0.25))
    step = pixel_size / finer
    region = cv2.warpAffine(
        image,
        np.array([[step, 0, left + step / 2 - 0.5], [0, step, top + step / 2 - 0.5]]),
        (width * finer, height * finer),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return cv2.resize(region, (width, height), interpolation=cv2.INTER_AREA) if finer > 1 else region


@dataclass(frozen=True)
class FaceCrop:
    """Where one frame's face crop lies.

    left, top: source coordinates of the crop's corner.
    pixel_size: source pixels per crop pixel.
    mouth_size: S.
    """

    left: float
    top: float
    pixel_size: float
    mouth_size: int

    @classmethod
    def from_landmarks(cls, landmarks: np.ndarray, radius_px: float, mouth_size: int) -> "FaceCrop":
        """The crop of one frame from its landmarks (68, 2) and the shot's radius."""
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

    def to_crop(self, points: np.ndarray) -> np.ndarray:
        """Source coordinates (..., 2) to crop coordinates."""
        return (points - np.array([self.left, self.top])) / self.pixel_size

    def extract(self, frame: np.ndarray) -> np.ndarray:
        """Cut the face crop out of a frame.

        Args:
            frame: (H, W, 3) uint8 RGB. Beyond its border the edge pixels go on.

        Returns:
            (13S/8, 5S/4, 3) uint8 RGB.
        """
        return sample_region(frame, self.left, self.top, self.pixel_size, crop_size(self.mouth_size))

    def lips_region(self, frame: np.ndarray) -> np.ndarray:
        """The lips box of a frame (H, W, 3) uint8 at source resolution, (h, w, 3), at least 3 × 3 pixels."""
        rows, columns = lips_box(self.mouth_size)
        left = round(self.left + columns.start * self.pixel_size)
        top = round(self.top + rows.start * self.pixel_size)
        height, width = (max(3, round((box.stop - box.start) * self.pixel_size)) for box in (rows, columns))
        return sample_region(frame, left, top, 1.0, (height, width))

    def paste(
        self, frame: np.ndarray, generated: np.ndarray, landmarks: np.ndarray | None = None, strength: float = 1
    ) -> np.ndarray:
        """Put a generated crop's mouth region into its frame.

        First the generated colours are moved to the frame's: what they are off by around the mouth box, where both
        are known, is continued smoothly into it. Then the change against the frame's own crop is what is pasted,
        through a mask that falls from 1 to 0 across the border of the mouth box. So where nothing changed nothing
        is touched, and the fine texture that a crop of low resolution cannot carry stays; where much changed the
        old texture fades with it. With landmarks, what lies beside the face is left alone, and away from lips and
        chin only the coarse change is pasted: moles, folds and nostrils stay as they are.

        Args:
            frame: (H, W, 3) uint8 RGB.
            generated: (13S/8, 5S/4, 3) uint8 RGB.
            landmarks: (68, 2) of the frame; None to paste the whole mouth box.
            strength: 0 to leave the frame as it is, 1 to redraw it, between them to fade.

        Returns:
            A new (H, W, 3) uint8 RGB frame.

        Raises:
            ValueError: `generated` is not of this crop's size.
        """
        if generated.shape != (*crop_size(self.mouth_size), 3):
            raise ValueError(f"expected {(*crop_size(self.mouth_size), 3)}, found {generated.shape}")
        left, top, right, bottom = self.mouth_bounds()
        margin = self.mouth_size / 16 * self.pixel_size
        x0, x1 = max(0, floor(left - margin)), min(frame.shape[1], ceil(right + margin))
        y0, y1 = max(0, floor(top - margin)), min(frame.shape[0], ceil(bottom + margin))
        pasted = frame.copy()
        if x0 >= x1 or y0 >= y1:  # the mouth lies outside the picture
            return pasted
        bounds = (x0, y0, x1, y1)
        mask = self._feather(y0, y1, top, bottom, margin)[:, None] * self._feather(x0, x1, left, right, margin)
        region = frame[y0:y1, x0:x1].astype(np.float32)
        own = self.extract(frame).astype(np.float32)
        change = generated.astype(np.float32) - own
        change -= self._colour_cast(change)
        lips = 1.0
        if landmarks is not None:
            spoken = self._around(landmarks[SPOKEN], grow=1 / 16, soft=1 / 24)
            coarse = self._blurred(change, 1 / 16)
            change = coarse + spoken[..., None] * (change - coarse)
            lips = self._enlarge(spoken, bounds)
            mask *= self._enlarge(self._around(landmarks[FACE], grow=1 / 32, soft=1 / 48), bounds)
        change = self._enlarge(change, bounds)
        texture = region - self._enlarge(own, bounds)
        amount = cv2.GaussianBlur(np.abs(change).max(axis=2), (0, 0), max(1.0, 1.5 * self.pixel_size))
        fading = lips * (1 - np.exp(-((amount / DETAIL_TOLERANCE) ** 2)))
        region += (strength * mask)[..., None] * (change - fading[..., None] * texture)
        pasted[y0:y1, x0:x1] = np.clip(np.rint(region), 0, 255).astype(np.uint8)
        return pasted

    def _colour_cast(self, change: np.ndarray) -> np.ndarray:
        """The change (13S/8, 5S/4, 3) around the mouth box, smoothly continued into the box from its borders."""
        known = np.ones(change.shape[:2], np.float32)
        known[: mouth_margin_top(self.mouth_size)] = 0
        known[mouth_box(self.mouth_size)] = 0
        total = self._blurred(change * known[..., None], 1 / 4)
        return total / np.maximum(self._blurred(known, 1 / 4), 1e-3)[..., None]

    def _blurred(self, crop: np.ndarray, deviation: float) -> np.ndarray:
        """A float32 crop without its detail, of `deviation` · S pixels; found at S = 64 at most, because a blur
        that wide takes as long as a small generator."""
        size = min(self.mouth_size, COARSE_SIZE)
        small = cv2.resize(crop, crop_size(size)[::-1], interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), deviation * size, borderType=cv2.BORDER_REPLICATE)
        return cv2.resize(small, crop.shape[1::-1], interpolation=cv2.INTER_LINEAR)

    def _around(self, points: np.ndarray, grow: float, soft: float) -> np.ndarray:
        """Mask (13S/8, 5S/4) float32: 1 in the hull of source points (K, 2) and `grow` · S pixels around it,
        falling to 0 across an edge of deviation `soft` · S."""
        size = min(self.mouth_size, COARSE_SIZE)
        mask = np.zeros(crop_size(size), np.float32)
        hull = cv2.convexHull((self.to_crop(points) * size / self.mouth_size - 0.5).astype(np.float32))
        corners = np.rint(16 * hull).astype(np.int32)  # in sixteenths of a pixel
        cv2.fillConvexPoly(mask, corners, 1.0, cv2.LINE_AA, shift=4)
        cv2.polylines(mask, [corners], True, 1.0, max(1, round(2 * grow * size)), cv2.LINE_AA, shift=4)
        mask = cv2.GaussianBlur(mask, (0, 0), soft * size)
        return cv2.resize(mask, crop_size(self.mouth_size)[::-1], interpolation=cv2.INTER_LINEAR)

    def _enlarge(self, crop: np.ndarray, bounds: tuple[int, int, int, int]) -> np.ndarray:
        """A float32 crop as seen in the source pixels of `bounds` (x0, y0, x1, y1)."""
        x0, y0, x1, y1 = bounds
        pixel_x = pixel_y = self.pixel_size
        if self.pixel_size < 1:  # the crop is finer than the source: average first, so that it does not alias
            height, width = (max(1, round(size * self.pixel_size)) for size in crop.shape[:2])
            pixel_x, pixel_y = pixel_x * crop.shape[1] / width, pixel_y * crop.shape[0] / height
            crop = cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA)
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
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )

    @staticmethod
    def _feather(start: int, stop: int, low: float, high: float, margin: float) -> np.ndarray:
        """Weights of the pixels start … stop−1: 1 between low and high, falling to 0 within ± margin of them."""
        centre = np.arange(start, stop) + 0.5
        inside = np.minimum(centre - low, high - centre)
        ramp = np.clip((inside + margin) / (2 * margin), 0, 1).astype(np.float32)
        return ramp * ramp * (3 - 2 * ramp)
