"""Frames on their way from the decoder to the encoder. What is not drawn on is not converted.

A `PlanarFrame` keeps the planes of YUV samples that the decoder made; only regions of it become RGB. A `RgbFrame`
is RGB: a live frame, or one that had to be converted as a whole (frame_conversion.py). Both have the interface of
`Frame`, and are never changed: `changed` returns a new frame.

    frame.width, frame.height       in pixels
    frame.luma, frame.luma_range    brightness (H, W) uint8, and its values of black and white
    frame.region(x0, y0, x1, y1)    (y1 − y0, x1 − x0, 3) uint8 RGB of a part
    frame.rgb()                     (H, W, 3) uint8 RGB
    frame.changed(x0, y0, change)   a new frame, with (h, w, 3) float32 added to its RGB

`read_video` (video_reader.py) yields them, `VideoWriter.write` takes them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache, cached_property
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from data_processing.media.frame_conversion import (
    EXACT,
    SMPTE170M,
    UNSPECIFIED,
    Orientation,
    matrix_of,
    needs_colour_table,
    orientation,
    to_rgb,
    turned,
)

STEPS = {"yuv420p": (2, 2), "yuv422p": (2, 1), "yuv444p": (1, 1)}  # luma samples per chroma sample, along x and y
# FFmpeg's names of chroma sitings: column and row of the first chroma sample, in luma samples
SITINGS = {
    (0.0, 0.5): "left",
    (0.5, 0.5): "center",
    (0.0, 0.0): "topleft",
    (0.5, 0.0): "top",
    (0.0, 1.0): "bottomleft",
    (0.5, 1.0): "bottom",
}
LUMA_WEIGHTS = {  # of red and blue, by matrix (ITU-T H.273)
    Colorspace.ITU709: (0.2126, 0.0722),
    Colorspace.FCC: (0.30, 0.11),
    Colorspace.ITU601: (0.299, 0.114),
    SMPTE170M: (0.299, 0.114),
    Colorspace.SMPTE240M: (0.212, 0.087),
    Colorspace.BT2020: (0.2627, 0.0593),
}


class PlaneLayout(NamedTuple):
    """How planes store an image.

    pix_fmt: a key of STEPS, with "10le" at its end for 10 bits in uint16.
    matrix: a key of LUMA_WEIGHTS.
    full_range: whether black and white are the smallest and largest numbers.
    siting: column and row of the first chroma sample, in luma samples; (0, 0) for 4:4:4.
    tags: matrix, primaries and transfer as the stream states them, in numbers of ITU-T H.273; range in FFmpeg's.
    """

    pix_fmt: str
    matrix: int
    full_range: bool
    siting: tuple[float, float]
    tags: tuple[int, int, int, int]

    @property
    def steps(self) -> tuple[int, int]:
        """Luma samples per chroma sample, along x and y."""
        return STEPS[self.pix_fmt.removesuffix("10le")]

    @property
    def description(self) -> str:
        """Such as "4:2:2 with 10 bits"."""
        chroma = {(2, 2): "4:2:0", (2, 1): "4:2:2", (1, 1): "4:4:4"}[self.steps]
        return f"{chroma} with {self.bits} bits"

    @property
    def bits(self) -> int:
        return 10 if self.pix_fmt.endswith("10le") else 8


# of what is converted to RGB as a whole; a conversion from RGB by swscale sites chroma samples in the centre
SDR_LAYOUT = PlaneLayout(
    "yuv420p",
    Colorspace.ITU709,
    False,
    (0.5, 0.5),
    (Colorspace.ITU709, ColorPrimaries.BT709, ColorTrc.BT709, ColorRange.MPEG),
)


class Frame(ABC):
    """An upright SDR image.

    width, height: in pixels.
    luma_range: black and white in `luma`: (16, 235) in most videos, (0, 255) in RGB.
    """

    width: int
    height: int
    luma_range: tuple[int, int] = (0, 255)

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Memory that its samples take."""

    @abstractmethod
    def copy(self) -> "Frame":
        """The same image, which holds no memory of the decoder."""

    @property
    @abstractmethod
    def luma(self) -> np.ndarray:
        """Brightness (H, W) uint8, read only."""

    @abstractmethod
    def region(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Columns x0 to x1 and rows y0 to y1 (exclusive), inside the frame: (y1 − y0, x1 − x0, 3) uint8 RGB."""

    @abstractmethod
    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""

    @abstractmethod
    def thumbnail(self, side: int) -> np.ndarray:
        """The whole frame as (side, side, 3) float32 RGB from 0 to 255. Of a large frame not all pixels count."""

    @abstractmethod
    def changed(self, x0: int, y0: int, change: np.ndarray) -> "Frame":
        """A new frame with (h, w, 3) float32 added to its RGB (0 to 255) from column x0 and row y0 on.

        Samples for which the change is 0 stay exactly as they are.
        """


class RgbFrame(Frame):
    """A frame in RGB.

    Args:
        pixels: (H, W, 3) uint8; not copied, must not be written to later.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    @property
    def num_bytes(self) -> int:
        return self.pixels.nbytes

    def copy(self) -> "RgbFrame":
        return RgbFrame(self.pixels.copy())

    @cached_property
    def luma(self) -> np.ndarray:
        return cv2.cvtColor(self.pixels, cv2.COLOR_RGB2GRAY)

    def region(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return self.pixels[y0:y1, x0:x1]

    def rgb(self) -> np.ndarray:
        return self.pixels

    def thumbnail(self, side: int) -> np.ndarray:
        return _shrunk(self.pixels, side).astype(np.float32)

    def changed(self, x0: int, y0: int, change: np.ndarray) -> "RgbFrame":
        pixels = self.pixels.copy()
        region = pixels[y0 : y0 + change.shape[0], x0 : x0 + change.shape[1]]
        region[...] = cv2.add(region, change, dtype=cv2.CV_8U)
        return RgbFrame(pixels)


class PlanarFrame(Frame):
    """A frame in YUV.

    Args:
        image: planar YUV, not written to later.
        layout: how it stores the image.
        is_own: whether nothing else uses `image`, such as a decoder.
    """

    def __init__(self, image: av.VideoFrame, layout: PlaneLayout, is_own: bool = False) -> None:
        self.image, self.layout, self.is_own = image, layout, is_own
        self.width, self.height = image.width, image.height
        self.luma_range = (0, 255) if layout.full_range else (16, 235)
        self.planes = planes_of(image)
        for plane in self.planes:
            plane.flags.writeable = False

    @property
    def num_bytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes)

    def copy(self) -> "PlanarFrame":
        image, planes = new_image(self.layout.pix_fmt, self.width, self.height)
        for plane, own in zip(planes, self.planes, strict=True):
            np.copyto(plane, own)
        return PlanarFrame(image, self.layout, is_own=True)

    @cached_property
    def luma(self) -> np.ndarray:
        luma = self.planes[0]
        return luma if self.layout.bits == 8 else cv2.convertScaleAbs(luma, alpha=0.25)

    def region(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        (step_x, step_y), (siting_x, siting_y) = self.layout.steps, self.layout.siting
        left, right = x0 // step_x, -(-x1 // step_x)
        top, bottom = y0 // step_y, -(-y1 // step_y)
        parts = [self.planes[0][y0:y1, x0:x1].astype(np.float32)]
        for plane in self.planes[1:]:
            part = _with_neighbours(plane, left, top, right, bottom).astype(np.float32)
            part = _doubled(part, 0, siting_y) if step_y == 2 else part[1:-1]
            part = _doubled(part, 1, siting_x) if step_x == 2 else part[:, 1:-1]
            parts.append(part[y0 - top * step_y :, x0 - left * step_x :][: y1 - y0, : x1 - x0])
        rgb = cv2.transform(cv2.merge(parts), _to_rgb(self.layout))
        return cv2.add(rgb, 0, dtype=cv2.CV_8U)  # rounds, and clips to 0 … 255

    def rgb(self) -> np.ndarray:
        # swscale is faster, but knows the chroma siting of decoded images only
        return self.region(0, 0, self.width, self.height) if self.is_own else to_rgb(self.image)

    def thumbnail(self, side: int) -> np.ndarray:
        planes = [_shrunk(plane, side).astype(np.float32) for plane in self.planes]
        return cv2.transform(cv2.merge(planes), _to_rgb(self.layout)).clip(0, 255)

    def changed(self, x0: int, y0: int, change: np.ndarray) -> "PlanarFrame":
        changed = self.copy()
        planes = planes_of(changed.image)
        height, width = change.shape[:2]
        luma, *chroma = cv2.split(cv2.transform(change, _from_rgb(self.layout)))
        _add(planes[0][y0 : y0 + height, x0 : x0 + width], luma, self.layout.bits)
        (step_x, step_y), (siting_x, siting_y) = self.layout.steps, self.layout.siting
        # the chroma samples that the change has an influence on
        left, right = x0 // step_x, min(planes[1].shape[1], (x0 + width) // step_x + 1)
        top, bottom = y0 // step_y, min(planes[1].shape[0], (y0 + height) // step_y + 1)
        # the pixels of these samples, and those of one more on each side
        border = (
            y0 - (top - 1) * step_y,
            (bottom + 1) * step_y - y0 - height,
            x0 - (left - 1) * step_x,
            (right + 1) * step_x - x0 - width,
        )
        at_edge = y0 == 0, y0 + height == self.height, x0 == 0, x0 + width == self.width
        for plane, part in zip(planes[1:], chroma, strict=True):
            part = _with_border(part, border, at_edge)
            part = _halved(part, siting_x) if step_x == 2 else part
            part = _halved(part.T, siting_y).T if step_y == 2 else part
            _add(plane[top:bottom, left:right], part[1:-1, 1:-1], self.layout.bits)
        return changed


class FrameConverter:
    """Makes frames of what a decoder returns for one stream."""

    def __init__(self) -> None:
        self._siting: tuple[float, float] | None = None

    def layout(self, image: av.VideoFrame) -> PlaneLayout | None:
        """How an image is stored; None if it needs to be converted as a whole."""
        pix_fmt = image.format.name.replace("yuvj", "yuv")
        steps = STEPS.get(pix_fmt.removesuffix("10le"))
        is_known = image.colorspace in LUMA_WEIGHTS or image.colorspace == UNSPECIFIED
        if steps is None or not is_known or needs_colour_table(image):
            return None
        if self._siting is None:
            self._siting = _siting(image)
        siting = self._siting[0] * (steps[0] - 1), self._siting[1] * (steps[1] - 1)
        shown = orientation(image)
        if any(shown):
            siting = _turned_siting(siting, steps, shown)
            if steps == (2, 1) or image.width % steps[0] or image.height % steps[1] or siting not in SITINGS:
                return None
        full_range = image.color_range == ColorRange.JPEG or "yuvj" in image.format.name
        color_range = ColorRange.JPEG if full_range else image.color_range
        tags = image.colorspace, image.color_primaries, image.color_trc, color_range
        return PlaneLayout(pix_fmt, matrix_of(image), full_range, siting, tags)

    def frame(self, image: av.VideoFrame) -> Frame:
        """The frame with an image in it; upright, of SDR."""
        layout, shown = self.layout(image), orientation(image)
        if layout is None:
            return RgbFrame(to_rgb(image))
        if not any(shown):
            return PlanarFrame(image, layout)
        size = (image.height, image.width) if shown.transposed else (image.width, image.height)
        upright, planes = new_image(layout.pix_fmt, *size)
        for plane, stored in zip(planes, planes_of(image), strict=True):
            plane[...] = turned(stored, shown)
        return PlanarFrame(upright, layout, is_own=True)


def planes_of(image: av.VideoFrame) -> list[np.ndarray]:
    """The planes of an image of a `PlaneLayout`: Y (H, W), U and V (h, w), uint8 or uint16, not copied."""
    dtype = np.dtype(np.uint16 if image.format.name.endswith("10le") else np.uint8)
    arrays = []
    for plane in image.planes:
        line = plane.line_size  # negative if the last line comes first in memory
        start = 0 if line > 0 else (plane.height - 1) * -line
        arrays.append(np.ndarray((plane.height, plane.width), dtype, plane, start, (line, dtype.itemsize)))
    return arrays


def new_image(pix_fmt: str, width: int, height: int) -> tuple[av.VideoFrame, list[np.ndarray]]:
    """An image with undefined content, and its planes."""
    image = av.VideoFrame(width, height, pix_fmt)
    return image, planes_of(image)


def _siting(image: av.VideoFrame) -> tuple[float, float]:
    """Column and row of the first chroma sample of 4:2:0 in luma samples, for the siting that an image states.

    PyAV does not tell it, but conversions by swscale follow it. Here it interpolates chroma samples that rise by 8.
    """
    probe = image.reformat(32, 32, "yuva420p")  # a new image with the siting of `image`
    ramp = np.arange(64, 192, 8, np.uint8)
    planes = planes_of(probe)
    planes[1][...], planes[2][...] = ramp, ramp[:, None]
    _, columns, rows = planes_of(probe.reformat(format="yuv444p", interpolation=EXACT))
    return 16 - (int(columns[16, 16]) - 64) / 4, 16 - (int(rows[16, 16]) - 64) / 4


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """An image (H, W[, 3]) resized to (side, side). Reading all pixels of a large one would take milliseconds."""
    step = max(1, min(image.shape[:2]) // (3 * side))
    return cv2.resize(image[::step, ::step], (side, side), interpolation=cv2.INTER_AREA)


def _turned_siting(siting: tuple[float, float], steps: tuple[int, int], shown: Orientation) -> tuple[float, float]:
    """Column and row of the first chroma sample in the image as it is shown."""
    x, y = siting[::-1] if shown.transposed else siting
    return (steps[0] - 1 - x if shown.flipped_x else x), (steps[1] - 1 - y if shown.flipped_y else y)


@cache
def _to_rgb(layout: PlaneLayout) -> np.ndarray:
    """(3, 4): the matrix that makes RGB from 0 to 255 of (Y, U, V, 1)."""
    red, blue = LUMA_WEIGHTS[layout.matrix]
    green = 1 - red - blue
    rgb = np.array(
        [
            [1, 0, 2 * (1 - red)],
            [1, -2 * blue * (1 - blue) / green, -2 * red * (1 - red) / green],
            [1, 2 * (1 - blue), 0],
        ]
    )
    unit = 2 ** (layout.bits - 8)
    if layout.full_range:
        black, gray, scale = 0, 128 * unit, np.full(3, 255 / (256 * unit - 1))
    else:
        black, gray, scale = 16 * unit, 128 * unit, np.array([255 / 219, 255 / 224, 255 / 224]) / unit
    rgb = rgb * scale
    return np.column_stack([rgb, -rgb @ [black, gray, gray]])


@cache
def _from_rgb(layout: PlaneLayout) -> np.ndarray:
    """(3, 3): the matrix that makes a change of (Y, U, V) of a change of RGB."""
    return np.linalg.inv(_to_rgb(layout)[:, :3]).astype(np.float32)


def _with_neighbours(plane: np.ndarray, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """A part of a plane with one more sample on each side; at the edges of the plane the last one is repeated."""
    height, width = plane.shape
    part = plane[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1]
    missing = top == 0, bottom == height, left == 0, right == width
    return cv2.copyMakeBorder(part, *map(int, missing), cv2.BORDER_REPLICATE) if any(missing) else part


def _doubled(part: np.ndarray, axis: int, siting: float) -> np.ndarray:
    """Linear interpolation along an axis: (h, w) float32 -> twice as many rows (axis 0) or columns (1), without
    those of the first and the last one, which are neighbours. `siting`: place of the first of the others."""
    if axis == 0:
        before, middle, after = part[:-2], part[1:-1], part[2:]
    else:
        before, middle, after = part[:, :-2], part[:, 1:-1], part[:, 2:]
    even = cv2.addWeighted(middle, 1 - siting / 2, before, siting / 2, 0)
    odd = cv2.addWeighted(middle, (1 + siting) / 2, after, (1 - siting) / 2, 0)
    height, width = middle.shape
    if axis == 0:
        return np.stack([even, odd], axis=1).reshape(2 * height, width)
    return cv2.merge([even, odd]).reshape(height, 2 * width)


def _with_border(part: np.ndarray, widths: Sequence[int], at_edge: Sequence[bool]) -> np.ndarray:
    """(h, w) with a border of some widths at top, bottom, left and right: of the values beside it if the part is at
    that edge of the frame, else of zeros."""
    outside = [width * edge for width, edge in zip(widths, at_edge, strict=True)]
    part = cv2.copyMakeBorder(part, *outside, cv2.BORDER_REPLICATE)
    inside = [width * (not edge) for width, edge in zip(widths, at_edge, strict=True)]
    return cv2.copyMakeBorder(part, *inside, cv2.BORDER_CONSTANT, value=0)


def _halved(part: np.ndarray, siting: float) -> np.ndarray:
    """Every second column of (h, w): the mean of two for a siting between them (0.5), else of three, around the
    first (0) or the second (1) of the two."""
    first, second = part[:, ::2], part[:, 1::2]
    if siting == 0.5:
        return (first + second) / 2
    middle, other = (first, second) if siting == 0 else (second, first)
    outer = np.roll(other, 1 if siting == 0 else -1, axis=1)  # the column at the end is wrong and not used
    return middle / 2 + (other + outer) / 4


def _add(region: np.ndarray, change: np.ndarray, bits: int) -> None:
    """Add a float32 change to samples, rounded and within their range."""
    dtype = cv2.CV_8U if bits == 8 else cv2.CV_16U
    total = cv2.add(region, np.ascontiguousarray(change), dtype=dtype)
    region[...] = total if bits == 8 else np.minimum(total, 2**bits - 1)
