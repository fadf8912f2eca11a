"""Dubbing-artifact metrics: seam, colour shift, jitter, flicker, sharpness and mouth opening.

Each compares a dubbed video with its source. Both must show the same frames in the same framing. Face crops have
one mouth size S (a multiple of 64) and are extracted by the source's landmarks. Equal videos score 0; in sharpness,
opening range and opening correlation 1.
"""

import cv2
import numpy as np
from scipy.ndimage import binary_erosion
from skimage.color import deltaE_ciede2000, rgb2lab

from data_processing.audio.silence import MIN_SILENCE
from data_processing.face.crop import FaceCrop
from data_processing.media.video_reader import FPS
from models.crop_layout import mouth_box, mouth_size_of

NUM_BLOCKS = 8  # blocks per side of the mouth box; averaging over them cancels skin texture but not a seam
RING_SIZE = 64  # mouth size at which flicker is measured: fine enough for skin, too coarse for camera noise
HEAD = [27, 28, 29, *range(36, 48)]  # landmarks outside the mouth box: eyes and upper nose
LOWER_FACE = [*range(6, 11), *range(48, 68)]  # landmarks of chin and lips
OPENING_PERCENTILES = (5, 95)  # of the source's mouth openings: closed and open mouth
MIN_OPENING_FRAMES = FPS  # with a face, for opening range and correlation: one second
# Standard deviation of the openings below which a mouth does not move: that of landmarks on a still face is 0.002,
# of speech 0.015 and more.
MIN_MOVEMENT = 0.004
MEDIAN_DIFFERENCE = 0.6745 * 6**0.5  # median absolute second difference of normal noise with standard deviation 1
# Column name: label, number of decimals, whether higher is better (None: neither).
ARTIFACTS = {
    "seam": ("seam, grey levels", 2, False),
    "colour_shift": ("colour shift, ΔE", 2, False),
    "jitter": ("jitter of lips and chin, face-crop pixels", 2, False),
    "flicker": ("flicker, grey levels", 2, False),
    "sharpness": ("lip sharpness, 1: as the source", 2, None),
    "opening_range": ("mouth opening range, 1: as the source", 2, None),
    "opening_correlation": ("mouth opening correlation", 2, True),
    "opening_in_silence": ("mouth opening in silence, 0: closed mouth of the source, 1: open mouth", 2, None),
    "opening_in_silence_source": ("mouth opening of the source in silence", 2, None),
    "silent_frames": ("silent frames", 1, None),
}


def seam(dubbed: np.ndarray, source: np.ndarray) -> float:
    """How much larger the step across the border of the mouth box is than in the source, in grey levels.

    A step is the difference between the means of the pixels 2 to 6 (at S = 256) inside and outside the border, per
    block of one eighth of a side. The seam is the root mean square over these 32 blocks of the amount by which the
    step of the dub exceeds that of the source. A hard edge on all four sides counts fully, an edge feathered over
    S/8 a quarter, an edge on one side half.

    Args:
        dubbed, source: (13S/8, 5S/4, 3) uint8 RGB face crops.
    """
    size = mouth_size_of(dubbed.shape[0])
    near, far, border = size // 128, size // 128 + size // 64, size // 8
    steps = []
    for crop in (dubbed, source):
        sides = _sides(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None])
        inside, outside = sides[:, border + near : border + far], sides[:, border - far : border - near]
        steps.append(np.abs(_block_means(inside) - _block_means(outside)))
    return float(np.sqrt(np.square(np.maximum(steps[0] - steps[1], 0)).mean()))


def colour_shift(dubbed: np.ndarray, source: np.ndarray) -> float:
    """Mean CIEDE2000 colour difference (about 1 is just noticeable) in a ring that speech hardly changes.

    The ring lies S/16 to S/8 inside the border of the mouth box, at its top, left and right; at its bottom the chin
    moves. Colours are averaged over blocks of one eighth of a side before comparison, so that texture cancels out.

    Args:
        dubbed, source: (13S/8, 5S/4, 3) uint8 RGB face crops.
    """
    colours = [_block_means(rgb2lab(_ring(crop))) for crop in (dubbed, source)]
    return float(deltaE_ciede2000(*colours).mean())


def ring_levels(crop: np.ndarray) -> np.ndarray:
    """Grey levels in the ring of `colour_shift`: (13S/8, 5S/4, 3) uint8 RGB -> (3 S²/16,) float32."""
    return _ring(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)[..., None]).astype(np.float32).ravel()


def _sides(crop: np.ndarray) -> np.ndarray:
    """The mouth box with a margin of S/8 above and below, rotated so that its top, right, bottom and left side in
    this order is at the top with the border above row S/8: (13S/8, 5S/4, C) -> (4, 5S/4, S, C)."""
    size = mouth_size_of(crop.shape[0])
    margin, (rows, _) = size // 8, mouth_box(size)
    square = crop[rows.start - margin : rows.stop + margin]
    return np.stack([np.rot90(square, turns)[:, margin:-margin] for turns in range(4)])


def _ring(crop: np.ndarray) -> np.ndarray:
    """Strips S/16 to S/8 inside the top, right and left of the mouth box: (13S/8, 5S/4, C) -> (3, S/16, S, C)."""
    size = mouth_size_of(crop.shape[0])
    return _sides(crop)[[0, 1, 3], size * 3 // 16 : size // 4]


def _block_means(bands: np.ndarray) -> np.ndarray:
    """Means over NUM_BLOCKS blocks of bands along the border: (N, depth, S, C) -> (N, NUM_BLOCKS, C)."""
    return bands.reshape(*bands.shape[:2], NUM_BLOCKS, -1, bands.shape[3]).mean(axis=(1, 3))


def sharpness(dubbed: np.ndarray, source: np.ndarray, crop: FaceCrop) -> float:
    """Variance of the Laplacian in the lips box, in source pixels, relative to that of the source.

    Args:
        dubbed, source: (H, W, 3) uint8 RGB frames.
        crop: the face crop in these frames.
    """
    variances = []
    for frame in (dubbed, source):
        lips = cv2.cvtColor(crop.lips_region(frame), cv2.COLOR_RGB2GRAY)
        variances.append(float(cv2.Laplacian(lips, cv2.CV_32F).var()))
    return variances[0] / max(variances[1], 1e-6)


def stabilise_head(points: np.ndarray) -> np.ndarray:
    """Landmarks (T, 68, 2) without head movement, NaN where missing.

    Each frame is translated, rotated and scaled so that eyes and upper nose fit their mean position best (least
    squares).
    """
    plane = points[..., 0] + 1j * points[..., 1]
    head = plane[:, HEAD]
    mean = np.nanmean(head, axis=0)
    centred, target = head - head.mean(axis=1, keepdims=True), mean - mean.mean()
    with np.errstate(invalid="ignore"):  # missing frames are NaN
        similarity = (target * centred.conj()).sum(axis=1) / np.square(np.abs(centred)).sum(axis=1)
    stabilised = (plane - head.mean(axis=1, keepdims=True)) * similarity[:, None] + mean.mean()
    return np.stack([stabilised.real, stabilised.imag], axis=-1)


def jitter(segments: list[np.ndarray]) -> float:
    """Standard deviation, in the unit of the values, of the white noise between frames that they contain.

    It is estimated from the median absolute second difference over time. A steady movement has second difference 0,
    and the movements of speech come in bursts and change the median little.

    Args:
        segments: consecutive frames, (T, ...) each, NaN where missing.

    Returns:
        NaN if there are no three consecutive frames.
    """
    differences = [np.abs(np.diff(segment, 2, axis=0)).ravel() for segment in segments]
    sizes = np.concatenate([np.zeros(0), *(part[~np.isnan(part)] for part in differences)])
    return float(np.median(sizes) / MEDIAN_DIFFERENCE) if len(sizes) else float("nan")


def flicker(dubbed: list[np.ndarray], source: list[np.ndarray]) -> float:
    """How much more pixels vary from frame to frame than in the source, in their unit.

    The variation of a pixel is the root mean square of its second differences over time, divided by √6: for white
    noise its standard deviation. The flicker is the root mean square over all pixels of the amount by which the
    variation in the dub exceeds that in the source. Pixels that vary less than in the source count 0.

    Args:
        dubbed, source: segments of consecutive frames, (T, N) each.

    Returns:
        NaN if there are no three consecutive frames.
    """
    if all(len(segment) < 3 for segment in dubbed):
        return float("nan")
    variation = [
        np.sqrt(np.square(np.concatenate([np.diff(segment, 2, axis=0) for segment in segments])).mean(axis=0) / 6)
        for segments in (dubbed, source)
    ]
    return float(np.sqrt(np.square(np.maximum(variation[0] - variation[1], 0)).mean()))


def opening_agreement(dubbed: np.ndarray, source: np.ndarray) -> dict[str, float | None]:
    """How far and how alike the mouths of a dub and its source open, over the frames in which both show a face.

    Args:
        dubbed, source: (T,) mouth openings, NaN without a face.

    Returns:
        'opening_range', the standard deviation of the dub's openings divided by that of the source's, and
        'opening_correlation', Pearson's. Both are None if there are less than MIN_OPENING_FRAMES frames or the
        source's mouth does not move; the correlation also if the dub's mouth stands still.
    """
    scores: dict[str, float | None] = {"opening_range": None, "opening_correlation": None}
    has_face = ~np.isnan(dubbed + source)
    if has_face.sum() < MIN_OPENING_FRAMES or source[has_face].std() < MIN_MOVEMENT:
        return scores
    scores["opening_range"] = float(dubbed[has_face].std() / source[has_face].std())
    if scores["opening_range"] > 1e-6:
        scores["opening_correlation"] = float(np.corrcoef(dubbed[has_face], source[has_face])[0, 1])
    return scores


def opening_in_silence(dubbed: np.ndarray, source: np.ndarray, silent: np.ndarray) -> dict[str, float | None]:
    """Mean mouth opening in silence, relative to the source.

    0 is the source's closed mouth (5th percentile of its openings), 1 its open mouth (95th percentile). The first
    and last MIN_SILENCE frames of each silence are left out: lips need time to close, and they open before speech
    begins. The source need not be silent when the dub is; if it is not, 'opening_in_silence_source' means nothing.

    Args:
        dubbed, source: (T,) mouth openings, NaN without a face.
        silent: (T,) bool, whether the driving audio is silent in each frame.

    Returns:
        'opening_in_silence', 'opening_in_silence_source' and 'silent_frames' (those with a face) of ARTIFACTS. The
        first two are None if there are no silent frames or if the source's mouth does not move.
    """
    has_face = ~np.isnan(dubbed + source)
    counted = has_face & binary_erosion(silent, np.ones(2 * MIN_SILENCE + 1), border_value=1)
    scores: dict[str, float | None] = {"opening_in_silence": None, "opening_in_silence_source": None}
    closed, opened = np.percentile(source[has_face], OPENING_PERCENTILES) if has_face.any() else (0, 0)
    if counted.any() and opened > closed:
        scores["opening_in_silence"] = float((dubbed[counted].mean() - closed) / (opened - closed))
        scores["opening_in_silence_source"] = float((source[counted].mean() - closed) / (opened - closed))
    return scores | {"silent_frames": int(counted.sum())}
