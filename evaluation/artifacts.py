"""What shows that a dub is one: a measure for each way, of the dubbed video beside its source.

Both show the same frames in the same framing. Pictures are face crops at one mouth size S (a multiple of 64), both
cut out by the source's landmarks. A video beside itself scores 0, in sharpness 1.
"""

import cv2
import numpy as np
from scipy.ndimage import binary_erosion
from skimage.color import deltaE_ciede2000, rgb2lab

from data_processing.audio.silence import MIN_SILENCE
from data_processing.face.crop import FaceCrop, sample_region
from models.crop_layout import lips_box, mouth_box

BANDS = 8  # of each side of the mouth box, averaged along it: a seam goes on, the skin's texture does not
RING_SIZE = 64  # mouth size at which flicker is measured: fine enough for skin, too coarse for a camera's noise
HEAD = [27, 28, 29, *range(36, 48)]  # eyes and upper nose: outside of the mouth box
LOWER_FACE = [*range(6, 11), *range(48, 68)]  # chin and lips
OPENINGS = (5, 95)  # percentiles of the source's: closed and open
MEDIAN_SIZE = 0.6745 * 6**0.5  # of second differences of normal noise with a deviation of 1
# What is measured; the number of decimals; whether more is better.
ARTIFACTS = {
    "seam": ("seam, grey levels", 2, False),
    "colour_shift": ("colour shift, ΔE", 2, False),
    "tremble": ("tremble of lips and chin, pixels of the face crop", 2, False),
    "flicker": ("flicker, grey levels", 2, False),
    "sharpness": ("sharpness of the lips, 1 is the source's", 2, None),
    "opening_in_silence": ("mouth opening in silence, 0 is the source's closed, 1 its open", 2, None),
    "opening_in_silence_real": ("the source's in silence", 2, None),
    "silent_frames": ("silent frames", 1, None),
}


def seam(dubbed: np.ndarray, source: np.ndarray) -> float:
    """How much higher the step across the border of the mouth box is than the source's own, in grey levels.

    Pixels 2 to 6 (at S = 256) inside of the border less those as far outside, averaged along eighths of each side;
    of these 32 steps the root mean square of what the dub's are higher by. A hard edge all around counts in full,
    one feathered evenly over S/8 with a quarter, one along a single side with half.

    Args:
        dubbed, source: (13S/8, 5S/4, 3) uint8 RGB face crops.
    """
    size = dubbed.shape[1] * 4 // 5
    near, far, border = size // 128, size // 128 + size // 64, size // 8
    steps = []
    for crop in (dubbed, source):
        sides = _sides(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None])
        inside, outside = sides[:, border + near : border + far], sides[:, border - far : border - near]
        steps.append(np.abs(_pieces(inside) - _pieces(outside)))
    return float(np.sqrt(np.square(np.maximum(steps[0] - steps[1], 0)).mean()))


def colour_shift(dubbed: np.ndarray, source: np.ndarray) -> float:
    """Difference of colour (CIEDE2000, about 1 is just seen) in a ring where no speech should change the picture.

    The ring lies S/16 to S/8 inside of the border of the mouth box, above and on both sides: below, the chin moves.
    Colours are averaged over eighths of each side before they are compared, so that texture does not count.

    Args:
        dubbed, source: (13S/8, 5S/4, 3) uint8 RGB face crops.
    """
    colours = [_pieces(rgb2lab(_ring(crop))) for crop in (dubbed, source)]
    return float(deltaE_ciede2000(*colours).mean())


def ring_levels(crop: np.ndarray) -> np.ndarray:
    """Grey levels in the ring of `colour_shift`: (13S/8, 5S/4, 3) uint8 RGB -> (3 S²/16,) float32."""
    return _ring(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)[..., None]).astype(np.float32).ravel()


def _sides(crop: np.ndarray) -> np.ndarray:
    """The mouth box with S/8 above and below, turned so that its top, right, bottom and left side lies on top, its
    border above row S/8: (13S/8, 5S/4, C) -> (4, 5S/4, S, C)."""
    size = crop.shape[1] * 4 // 5
    margin, (rows, _) = size // 8, mouth_box(size)
    square = crop[rows.start - margin : rows.stop + margin]
    return np.stack([np.rot90(square, turns)[:, margin:-margin] for turns in range(4)])


def _ring(crop: np.ndarray) -> np.ndarray:
    """S/16 to S/8 inside of the mouth box's top, right and left: (13S/8, 5S/4, C) -> (3, S/16, S, C)."""
    size = crop.shape[1] * 4 // 5
    return _sides(crop)[[0, 1, 3], size * 3 // 16 : size // 4]


def _pieces(bands: np.ndarray) -> np.ndarray:
    """Means over the PIECES of bands along the border: (N, depth, S, C) -> (N, PIECES, C)."""
    return bands.reshape(*bands.shape[:2], BANDS, -1, bands.shape[3]).mean(axis=(1, 3))


def sharpness(dubbed: np.ndarray, source: np.ndarray, crop: FaceCrop) -> float:
    """Fine detail of the lips' region over the source's: variances of the Laplacian, in the source's own pixels.

    Args:
        dubbed, source: (H, W, 3) uint8 RGB frames.
        crop: where the face lies in them.
    """
    rows, columns = lips_box(crop.mouth_size)
    corner = round(crop.left + columns.start * crop.pixel_size), round(crop.top + rows.start * crop.pixel_size)
    height, width = (max(3, round((box.stop - box.start) * crop.pixel_size)) for box in (rows, columns))
    found = []
    for frame in (dubbed, source):
        lips = cv2.cvtColor(sample_region(frame, *corner, 1.0, (height, width)), cv2.COLOR_RGB2GRAY)
        found.append(float(cv2.Laplacian(lips, cv2.CV_32F).var()))
    return found[0] / max(found[1], 1e-6)


def still_head(points: np.ndarray) -> np.ndarray:
    """Landmarks (T, 68, 2), NaN where missing, moved, turned and scaled so that eyes and upper nose stand still,
    where they are on average."""
    plane = points[..., 0] + 1j * points[..., 1]
    head = plane[:, HEAD]
    mean = np.nanmean(head, axis=0)
    centred, wanted = head - head.mean(axis=1, keepdims=True), mean - mean.mean()
    with np.errstate(invalid="ignore"):  # of missing frames
        turn = (wanted * centred.conj()).sum(axis=1) / np.square(np.abs(centred)).sum(axis=1)  # least squares
    still = (plane - head.mean(axis=1, keepdims=True)) * turn[:, None] + mean.mean()
    return np.stack([still.real, still.imag], axis=-1)


def jitter(runs: list[np.ndarray]) -> float:
    """How much values tremble from frame to frame: the deviation, in their unit, of noise that would do the same.

    It is told from the median size of second differences. A steady movement has none, and those of speech, which
    come in bursts, move the median little.

    Args:
        runs: consecutive frames, (T, ...) each, NaN where missing.

    Returns:
        NaN if there are no three frames in a row.
    """
    found = [np.abs(np.diff(run, 2, axis=0)).ravel() for run in runs]
    sizes = np.concatenate([np.zeros(0), *(part[~np.isnan(part)] for part in found)])
    return float(np.median(sizes) / MEDIAN_SIZE) if len(sizes) else float("nan")


def flicker(dubbed: list[np.ndarray], source: list[np.ndarray]) -> float:
    """How much more pixels change from frame to frame than the source's: the deviation, in their unit, of noise
    that would do the same.

    Each pixel's is the root mean square of its second differences over √6; of what these are higher by in the dub,
    it is the root mean square over all pixels. Where the source moves more nothing is made up for.

    Args:
        dubbed, source: runs of consecutive frames, (T, N) each.

    Returns:
        NaN if there are no three frames in a row.
    """
    if all(len(run) < 3 for run in dubbed):
        return float("nan")
    size = [
        np.sqrt(np.square(np.concatenate([np.diff(run, 2, axis=0) for run in runs])).mean(axis=0) / 6)
        for runs in (dubbed, source)
    ]
    return float(np.sqrt(np.square(np.maximum(size[0] - size[1], 0)).mean()))


def opening_in_silence(dubbed: np.ndarray, source: np.ndarray, silent: np.ndarray) -> dict[str, float | None]:
    """How far the mouth is open in silence, between the source's closed (0, its 5th percentile) and open mouth (1,
    its 95th).

    Of a silence the first and last MIN_SILENCE frames are left out: lips need time to close, and open before they
    are heard. The source need not be silent where the dub is, so a dub with another sound is measured too; only its
    'opening_in_silence_real' then says nothing.

    Args:
        dubbed, source: (T,) mouth openings, NaN without a face.
        silent: (T,) bool, frames in which the sound that drives the dub is silent.

    Returns:
        'opening_in_silence', 'opening_in_silence_real' and 'silent_frames' (those with a face) of LOOKS; the first
        two are None if there are none, or if the source's mouth does not move.
    """
    seen = ~np.isnan(dubbed + source)
    quiet = seen & binary_erosion(silent, np.ones(2 * MIN_SILENCE + 1), border_value=1)
    found: dict[str, float | None] = {"opening_in_silence": None, "opening_in_silence_real": None}
    closed, opened = np.percentile(source[seen], OPENINGS) if seen.any() else (0, 0)
    if quiet.any() and opened > closed:
        found["opening_in_silence"] = float((dubbed[quiet].mean() - closed) / (opened - closed))
        found["opening_in_silence_real"] = float((source[quiet].mean() - closed) / (opened - closed))
    return found | {"silent_frames": int(quiet.sum())}
