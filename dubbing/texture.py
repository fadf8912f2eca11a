"""Texture from the shot: fine detail of the shot's own frames, moved into the generated mouth.

A generator of mouth size S draws nothing finer than S pixels per mouth box, and a small one draws softly. The
shot shows the same lips, teeth and skin at full resolution, in their colours. Some of its frames are
candidates. For each generated crop the most similar candidates are aligned with it by dense optical flow, and
where they agree with it their detail replaces its own. All of this is a continuous function of the generated
crop, without a state, so the texture is as steady over time as the crop is, and the same wherever a dub is
resumed.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor

import cv2
import numpy as np

from data_processing.face.crop import FaceCrop, sample_region, times
from dubbing.light import LightChange, to_uint8
from models.crop_layout import crop_size, lips_box, mouth_margin_top

NUM_CANDIDATES = 20  # per shot; more brought nothing
NUM_BLENDED = 3  # of them per generated crop
FLOW_SIZE = 128  # mouth size at which candidates are aligned
FINEST_SCALE = 2  # of the optical flow, a quarter of FLOW_SIZE; finer flow follows the softness of generated crops
LIPS_SIZE = 16  # mouth size at which lips are compared; more detail would favour candidates that have none
COARSE_SIZE = 8  # mouth size at which the brightness stays the generator's
DRAWN_WEIGHT = 0.8  # of candidates in what the generator draws, too; a part of its own stays
TOLERANCE = 16.0  # grey levels by which an aligned candidate may differ from the generated crop
SOFTNESS = 1 / 64  # mouth sizes; standard deviation of the blur of that difference
MAX_SIZE = 512  # mouth size of the finest texture, so that faces that fill a 4K frame do not take more time
ZERO = 128  # of detail stored in 8 bits

TOP = mouth_margin_top(FLOW_SIZE)  # pasting uses no row of a crop above it
HEIGHT, WIDTH = crop_size(FLOW_SIZE)[0] - TOP, crop_size(FLOW_SIZE)[1]  # of the lower part of a face crop
_GRID = np.dstack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))).astype(np.float32)


def lower_part(frame: np.ndarray, crop: FaceCrop) -> np.ndarray:
    """The face crop of a frame (H, W, 3) at FLOW_SIZE, from row TOP on: (HEIGHT, WIDTH, 3) uint8 RGB."""
    pixel_size = _scales(crop)[0]
    return sample_region(frame, crop.left, crop.top + TOP * pixel_size, pixel_size, (HEIGHT, WIDTH))


@dataclass(frozen=True)
class Candidate:
    """A frame of the shot that texture can come from.

    image: (HEIGHT, WIDTH, 3) uint8 RGB, its `lower_part`.
    detail: (h, w) uint8, brightness that is finer than mouth size S, plus ZERO.
    left, top, pixel_size: placement of `detail` in pixels of `image`.
    """

    image: np.ndarray
    detail: np.ndarray
    left: float
    top: float
    pixel_size: float

    @classmethod
    def of(cls, frame: np.ndarray, crop: FaceCrop) -> "Candidate":
        """The candidate of a frame (H, W, 3) uint8 RGB with a face crop of mouth size S."""
        pixel_size, step = _scales(crop)
        left, top = crop.left, crop.top + TOP * pixel_size
        x0, y0 = max(0, floor(left)), max(0, floor(top))
        x1 = max(x0 + 1, min(frame.shape[1], ceil(left + WIDTH * pixel_size)))
        y1 = max(y0 + 1, min(frame.shape[0], ceil(top + HEIGHT * pixel_size)))
        detail = crop.detail(frame, (x0, y0, x1, y1)).mean(axis=2)
        size = (max(1, round((x1 - x0) / step)), max(1, round((y1 - y0) / step)))
        detail = cv2.resize(detail, size, interpolation=cv2.INTER_AREA)
        placement = ((x0 - left) / pixel_size, (y0 - top) / pixel_size, step / pixel_size)
        return cls(lower_part(frame, crop), to_uint8(detail + ZERO), *placement)

    def in_light(self, change: LightChange, to_natural: LightChange) -> "Candidate":
        """The same with `change` to the usual light of the shot, and its image as the generator would see it."""
        image = to_uint8(to_natural.apply(change.apply(self.image)))
        detail = (self.detail.astype(np.float32) - ZERO) * np.float32(change.gain.mean())
        return replace(self, image=image, detail=to_uint8(detail + ZERO))


class ShotTexture:
    """Moves the detail of candidates into generated crops of one shot."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates
        self._lips = np.stack([_lips(one.image) for one in candidates])
        self._thread = threading.local()  # optical flow keeps buffers

    def transfer(
        self, generated: np.ndarray, crop: FaceCrop, bounds: tuple[int, int, int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Texture for one generated crop.

        Args:
            generated: (13S/8, 5S/4, 3) uint8 RGB.
            crop: the face crop in the source frame.
            bounds: source pixels (x0, y0, x1, y1) for which finer detail is wanted.

        Returns:
            The generated crop, float32, with the candidates' detail in the frequencies it can represent, and the
            brightness of finer detail, (y1 − y0, x1 − x0) float32, in the usual light of the shot.
        """
        image = _resized(generated, crop_size(FLOW_SIZE))[TOP:]
        chosen, shares = self._most_similar(_lips(image))
        gray, fine = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), _fine(image)
        aligned = [self._align(self.candidates[index], image, gray) for index in chosen]
        agreement = np.stack([one for _, _, one in aligned])
        trust = agreement.max(axis=0)
        weights = agreement**4 * shares[:, None, None] + 1e-12
        weights /= weights.sum(axis=0)

        change = -fine
        for (_, warped, _), weight in zip(aligned, weights, strict=True):
            change += times(_fine(warped), weight)
        full = np.zeros((*crop_size(FLOW_SIZE), 3), np.float32)
        full[TOP:] = times(change, DRAWN_WEIGHT * trust)
        drawn = generated + _resized(full, generated.shape[:2])

        # A mean of different textures is weaker than each of them.
        weights *= trust / np.sqrt(np.square(weights).sum(axis=0))
        positions = [one for one, _, _ in aligned]
        return drawn, self._finer(chosen, positions, weights, crop, bounds)

    def _most_similar(self, lips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the candidates with the most similar lips, and their shares in (0, 1].

        A share falls to 0 where another candidate takes its place, so that none appears suddenly.
        """
        distance = np.sqrt(np.square(self._lips - lips).mean(axis=(1, 2, 3)))
        order = np.argsort(distance, kind="stable")
        chosen = order[:NUM_BLENDED]
        if len(order) <= NUM_BLENDED:
            return chosen, np.ones(len(chosen), np.float32)
        limit = distance[order[NUM_BLENDED]]
        shares = limit - distance[chosen] + 1e-6
        return chosen, (shares / shares[0]).astype(np.float32)

    def _align(
        self, candidate: Candidate, image: np.ndarray, gray: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each pixel of the image is in the candidate (…, 2), the candidate there (…, 3) uint8, and how well
        the two agree, in [0, 1]."""
        if not hasattr(self._thread, "flow"):
            self._thread.flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
            self._thread.flow.setFinestScale(FINEST_SCALE)
        flow = self._thread.flow.calc(gray, cv2.cvtColor(candidate.image, cv2.COLOR_RGB2GRAY), None)
        positions = _GRID + flow
        warped = cv2.remap(candidate.image, positions, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        difference = cv2.subtract(warped, image, dtype=cv2.CV_32F)
        difference = cv2.GaussianBlur(difference, (0, 0), SOFTNESS * FLOW_SIZE)
        squared = cv2.transform(cv2.multiply(difference, difference), np.full((1, 3), 1 / 3))
        return positions, warped, np.exp(-squared / (2 * TOLERANCE**2))

    def _finer(
        self,
        chosen: np.ndarray,
        positions: list[np.ndarray],
        weights: np.ndarray,
        crop: FaceCrop,
        bounds: tuple[int, int, int, int],
    ) -> np.ndarray:
        """Weighted sum of the detail of candidates at `positions`, in the source pixels of `bounds`."""
        x0, y0, x1, y1 = bounds
        pixel_size, step = _scales(crop)
        width, height = max(1, round((x1 - x0) / step)), max(1, round((y1 - y0) / step))
        matrix = np.array(
            [
                [step / pixel_size, 0, (x0 + step / 2 - crop.left) / pixel_size - 0.5],
                [0, step / pixel_size, (y0 + step / 2 - crop.top) / pixel_size - 0.5 - TOP],
            ]
        )
        total = np.zeros((height, width), np.float32)
        for index, where, weight in zip(chosen, positions, weights, strict=True):
            candidate = self.candidates[index]
            scale = 1 / candidate.pixel_size
            corner = np.array([candidate.left, candidate.top])
            to_detail = np.column_stack([scale * np.eye(2), (0.5 - corner) * scale - 0.5])
            x, y = cv2.split(cv2.transform(where, to_detail))
            x, y, weight, _ = cv2.split(  # four channels are resampled as fast as one
                cv2.warpAffine(
                    cv2.merge([x, y, weight, weight]),
                    matrix,
                    (width, height),
                    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                    borderMode=cv2.BORDER_REPLICATE,
                )
            )
            detail = cv2.remap(candidate.detail, x, y, cv2.INTER_CUBIC, borderValue=ZERO)
            total += weight * cv2.subtract(detail, ZERO, dtype=cv2.CV_32F)
        return cv2.resize(total, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR) if step > 1 else total


def _scales(crop: FaceCrop) -> tuple[float, float]:
    """Source pixels per pixel of the crop at FLOW_SIZE, and per pixel of detail."""
    pixel_size = crop.pixel_size * crop.mouth_size / FLOW_SIZE
    return pixel_size, max(1.0, pixel_size * FLOW_SIZE / MAX_SIZE)


def _lips(image: np.ndarray) -> np.ndarray:
    """The lips box at LIPS_SIZE of a face crop from row TOP on, float32."""
    factor = FLOW_SIZE // LIPS_SIZE
    small = cv2.resize(image, (WIDTH // factor, HEIGHT // factor), interpolation=cv2.INTER_AREA)
    rows, columns = lips_box(LIPS_SIZE)
    return small[rows.start - TOP // factor : rows.stop - TOP // factor, columns].astype(np.float32)


def _fine(image: np.ndarray) -> np.ndarray:
    """The lower part (…, 3) of a face crop at FLOW_SIZE without its brightness at COARSE_SIZE, float32."""
    factor = FLOW_SIZE // COARSE_SIZE
    image = image.astype(np.float32)
    small = cv2.resize(image, (WIDTH // factor, HEIGHT // factor), interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(small.mean(axis=2), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return cv2.subtract(image, cv2.merge([coarse] * 3))


def _resized(crop: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A face crop (h, w, 3) at another (height, width)."""
    interpolation = cv2.INTER_CUBIC if crop.shape[0] < size[0] else cv2.INTER_AREA
    return cv2.resize(crop, size[::-1], interpolation=interpolation)
