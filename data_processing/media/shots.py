"""Shot boundaries from frames alone: cuts, dissolves, wipes, dips to one colour, colour that arrives or leaves.

Thumbnails are compared block by block and whatever their brightness and contrast, so that a change of light is no
cut, and at the best shift, so that a moving camera is none. A change is a cut if it is large beside those around it
and lasts longer than a flash. The thresholds were chosen on real videos, with `tests/tools/shot_table.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import NamedTuple, Optional

import cv2
import numpy as np

from data_processing.media.frame import Frame
from data_processing.media.video_reader import FPS

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in brightness (BT.601)
SIDE = 48  # pixels of a thumbnail
MARGIN = 12  # pixels by which two thumbnails are shifted against each other
NOISE = 0.3  # grey levels², variance that sensor and codec leave in a block
MIN_CONTRAST = 1.0  # grey levels, mean deviation within the blocks of a frame that shows anything
SUDDEN = 0.3  # change above which the face is searched again
MIN_CHANGE = 0.1  # a smaller change is no cut
MIN_CHANGE_IN_THE_DARK = 0.25  # the same, across frames that show nothing
MIN_CUT = 0.7  # change of a cut, times its ratio to the largest change around it
LASTING = 0.5  # part of its change by which a cut differs from all frames around it
MIN_BLEND_CHANGE = 0.3  # change between the frames before and after a frame of a dissolve
MAX_BLEND_ERROR = 0.2  # squared error of that frame as a blend of the two, relative to the better one alone
MIN_BLEND_WEIGHT = 0.15  # of each of the two
MIN_WIPE_CHANGE = 0.5  # change across a wipe, and at least twice that on either side of it
MIN_LOCAL_CHANGE = 0.6  # sum over the frames of a wipe: one part changes at a time, the rest stays in place
GRAY, COLOUR = 0.03, 0.08  # largest colour spread of a grey frame, smallest of a coloured one

# Numbers of frames at 25 fps
AROUND = 6  # before and after a cut: changes to compare with; longer than a flash
BLEND_SPANS = ((3, 3), (5, 5), (10, 10), (20, 10))  # before and after a frame of a dissolve
LIVE_AHEAD = 3  # after a cut in a live stream: no more is waited for
WIPE_SPANS = (16, 6, 6, 10)  # from a frame of a wipe: two frames back and two forward
MIN_BLEND = 2  # in a dissolve; a single one is a cut


class FrameState(NamedTuple):
    """starts: a shot starts here. blended: the frame shows two shots at once, in a dissolve or a wipe."""

    starts: bool
    blended: bool


@dataclass
class _Frame:
    """What is kept of a frame.

    gray: (SIDE, SIDE) float32, grey levels. small: the same at half the size.
    visible: whether it shows anything, or is of one colour.
    colour: spread of the colours that brightness does not explain, relative to the spread of brightness.
    before: the last visible frame before it; None once it is no longer needed.
    change: from `before`; 0 without it.
    is_cut, is_blend: known when the frames after it are.
    """

    gray: np.ndarray
    small: np.ndarray
    visible: bool
    colour: float
    before: Optional["_Frame"] = None
    change: float = 0.0
    is_cut: bool = False
    is_blend: bool = False


class ShotDetector:
    """Finds shot boundaries in a stream, half a second behind it, or less if `live`.

    It holds thumbnails of about a second.

    Args:
        fps: frame rate.
        live: find cuts only, neither dissolves nor wipes, LIVE_AHEAD behind the stream. A flash that lasts longer
            counts as two cuts.
    """

    def __init__(self, fps: Fraction | float = FPS, live: bool = False) -> None:
        def scaled(frames: int) -> int:
            return max(1, round(frames * fps / FPS))

        self._around = scaled(AROUND)
        self._spans = [(scaled(back), scaled(ahead)) for back, ahead in BLEND_SPANS]
        self._live = live
        self._ahead = scaled(LIVE_AHEAD) if live else max(ahead for _, ahead in self._spans)
        signs = (-1, -1, 1, 1)
        self._wipe_offsets = [sign * scaled(span) for sign, span in zip(signs, WIPE_SPANS, strict=True)]
        self._min_blend = 1 if live else max(2, scaled(MIN_BLEND))
        self._frames: dict[int, _Frame] = {}
        self._num_added, self._num_examined, self._num_decided = 0, 0, 0
        self._last_visible: _Frame | None = None
        self._is_gray: bool | None = None
        self._was_blended = False

    def add(self, image: Frame, starts: bool = False) -> bool:
        """Take the next frame; `starts` if it is known to start a shot.

        Returns:
            Whether it differs suddenly from the frame before, or only one of them shows anything.
        """
        frame = _reduce(image)
        frame.is_cut = starts
        previous = self._frames.get(self._num_added - 1)
        blank_changed = previous is not None and previous.visible != frame.visible
        if frame.visible:
            frame.before = self._last_visible
            frame.change = 0.0 if frame.before is None else _change(frame.before, frame)
            self._last_visible = frame
        self._frames[self._num_added] = frame
        self._num_added += 1
        return starts or blank_changed or frame.change > SUDDEN

    def decide(self, ended: bool = False) -> Iterator[FrameState]:
        """The states of the next frames, in order, as far as they are known; of all of them if the stream ended."""
        num_examined = self._num_added + (self._min_blend if ended else -self._ahead)
        while self._num_examined < min(num_examined, self._num_added):
            frame = self._frames[self._num_examined]
            frame.is_cut |= self._is_cut(self._num_examined) | self._changes_colour(self._num_examined)
            if not self._live:
                frame.is_blend = self._is_blend(self._num_examined) or self._is_wipe(self._num_examined)
            frame.before = None
            self._num_examined += 1
        while self._num_decided < min(num_examined - self._min_blend + 1, self._num_added):
            index = self._num_decided
            blended = self._blend_length(index) >= self._min_blend
            starts = blended != self._was_blended or (self._frames[index].is_cut and not blended)
            self._was_blended = blended
            self._num_decided += 1
            self._frames.pop(index - self._spans[-1][0] - 1, None)
            yield FrameState(starts, blended)

    def _is_cut(self, index: int) -> bool:
        frame = self._frames[index]
        others = [*range(index - self._around, index - 1), *range(index + 2, index + self._around + 1)]
        largest = max((self._frames[i].change for i in others if i in self._frames), default=0.0)
        adjacent = [self._frames[i].change for i in (index - 1, index + 1) if i in self._frames]
        previous = self._frames.get(index - 1)
        least = MIN_CHANGE if previous is None or previous.visible else MIN_CHANGE_IN_THE_DARK
        if frame.change < max([least, *adjacent]) or frame.change**2 < MIN_CUT * (largest + 0.01):
            return False
        before = [self._frames.get(i) for i in range(index - 1 - self._around, index - 1)]
        after = [self._frames.get(i) for i in range(index + 1, index + self._around + 1)]
        pairs = [(other, frame) for other in before] + [(frame.before, other) for other in after]
        shown = ((a, b) for a, b in pairs if a is not None and b is not None and a.visible and b.visible)
        return all(_change(a, b) > LASTING * frame.change for a, b in shown)

    def _changes_colour(self, index: int) -> bool:
        """Whether colour arrives in the frame or leaves it, and stays so."""
        window = [self._frames.get(i) for i in range(index, index + self._around + 1)]
        spreads = [frame.colour for frame in window if frame is not None and frame.visible]
        if not spreads or not self._frames[index].visible:
            return False
        was_gray = self._is_gray
        if max(spreads) < GRAY:
            self._is_gray = True
        elif min(spreads) > COLOUR:
            self._is_gray = False
        return was_gray is not None and was_gray != self._is_gray

    def _is_blend(self, index: int) -> bool:
        """Whether the frame is a blend of an earlier and a later one that show different things."""
        frame = self._frames[index]
        for back, ahead in self._spans:
            first = self._frames[max(index - back, min(self._frames))]
            last = self._frames[min(index + ahead, self._num_added - 1)]
            visible = first.visible and last.visible
            if visible and _blends(first, frame, last) and _change(first, last) > MIN_BLEND_CHANGE:
                return True
        return False

    def _is_wipe(self, index: int) -> bool:
        """Whether one image replaces another part by part around the frame."""
        oldest, newest = min(self._frames), self._num_added - 1
        indices = [min(max(index + offset, oldest), newest) for offset in self._wipe_offsets]
        frames = [self._frames[i] for i in indices]
        if not all(frame.visible for frame in frames):
            return False
        change = _change(frames[1], frames[2])
        if change < MIN_WIPE_CHANGE or change < 2 * max(_change(*frames[:2]), _change(*frames[2:])):
            return False
        path = pairwise(self._frames[i].small for i in range(indices[1], indices[2] + 1))
        return sum(_local_change(a, b) for a, b in path) > MIN_LOCAL_CHANGE

    def _blend_length(self, index: int) -> int:
        """Length of the run of blended frames around a frame, counted up to `_min_blend` each way."""
        if not self._frames[index].is_blend:
            return 0
        length = 1
        for step in (-1, 1):
            for distance in range(1, self._min_blend):
                other = self._frames.get(index + step * distance)
                if other is None or not other.is_blend:
                    break
                length += 1
        return length


def _reduce(image: Frame) -> _Frame:
    """Thumbnails and colour of a frame."""
    rgb = image.thumbnail(SIDE)
    gray = rgb @ np.float32(LUMA)
    small = cv2.resize(gray, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA)
    contrast = float(_blocks(small, SIDE // 6).std(axis=-1).mean())
    luma = gray.ravel() - gray.mean()
    energy = float(luma @ luma) + 1e-3
    left = 0.0
    for channel in (0, 2):
        chroma = (rgb[..., channel] - gray).ravel()
        chroma -= chroma.mean()
        left += float(chroma @ chroma) - float(chroma @ luma) ** 2 / energy
    return _Frame(gray, small, contrast >= MIN_CONTRAST, float(np.sqrt(max(left, 0.0) / energy)))


def _blocks(image: np.ndarray, side: int) -> np.ndarray:
    """(S, S) -> (number of blocks, side²)."""
    count = len(image) // side
    return image.reshape(count, side, count, side).swapaxes(1, 2).reshape(count**2, side**2)


def _change(first: _Frame, second: _Frame) -> float:
    """How differently two visible frames are structured, in place or shifted, in [0, 2]."""
    in_place = _dissimilarity(first.small, second.small, SIDE // 6)
    if in_place < MIN_CHANGE / 2:
        return in_place
    inner = np.ascontiguousarray(first.gray[MARGIN:-MARGIN, MARGIN:-MARGIN])
    match = np.nan_to_num(cv2.matchTemplate(second.gray, inner, cv2.TM_CCOEFF_NORMED), posinf=0, neginf=0)
    row, column = np.unravel_index(np.argmax(match), match.shape)
    shifted = second.gray[row : row + len(inner), column : column + len(inner)]
    return min(in_place, _dissimilarity(inner, shifted, SIDE // 2 - MARGIN))


def _local_change(first: np.ndarray, second: np.ndarray) -> float:
    """How much the most different third adds to the change of an image (S, S), less the change of the rest."""
    return _dissimilarity(first, second, SIDE // 6, 0) - 2 * _dissimilarity(first, second, SIDE // 6)


def _dissimilarity(first: np.ndarray, second: np.ndarray, side: int, left_out: float = 1 / 3) -> float:
    """1 − correlation of two images (S, S), mean of blocks weighted by their contrast, in [0, 2].

    Each block is taken without its mean and slope, in which light differs. The part `left_out` of them that differs
    most does not count: a caption or an inset is no cut.
    """
    a, b = _blocks(first, side) @ _detrend(side), _blocks(second, side) @ _detrend(side)
    variances = (a * a).mean(axis=1), (b * b).mean(axis=1)
    correlation = ((a * b).mean(axis=1) + NOISE) / np.sqrt((variances[0] + NOISE) * (variances[1] + NOISE))
    contrast = np.sqrt(np.maximum(*variances))
    weight = contrast / (contrast + MIN_CONTRAST) + 1e-6
    kept = np.argsort(correlation)[round(left_out * len(correlation)) :]
    return float(1 - (correlation[kept] * weight[kept]).sum() / weight[kept].sum())


@cache
def _detrend(side: int) -> np.ndarray:
    """(side², side²) projection of a block onto what is left without its mean and slopes."""
    row, column = np.mgrid[:side, :side].reshape(2, -1)
    basis, _ = np.linalg.qr(np.stack([np.ones(side**2), row, column], axis=1))
    return (np.eye(side**2) - basis @ basis.T).astype(np.float32)


def _blends(first: _Frame, middle: _Frame, last: _Frame) -> bool:
    """Whether `middle` is a sum of the two others, whatever its brightness, and neither of them alone."""
    a, x, b = (frame.small.ravel() - frame.small.mean() for frame in (first, middle, last))
    aa, bb, ab, ax, bx, xx = a @ a, b @ b, a @ b, a @ x, b @ x, x @ x
    determinant = aa * bb - ab * ab + 1e-3
    weights = (ax * bb - bx * ab) / determinant, (bx * aa - ax * ab) / determinant
    if min(weights) < MIN_BLEND_WEIGHT:
        return False
    error = xx - weights[0] * ax - weights[1] * bx
    alone = xx - max(ax * ax / (aa + 1e-3), bx * bx / (bb + 1e-3))
    floor = NOISE * len(x)
    return bool(error + floor < MAX_BLEND_ERROR * (alone + floor))
