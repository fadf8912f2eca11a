"""Decoded video frames -> upright SDR images as a player shows them: (H, W, 3) uint8 RGB, BT.709.

    PQ and HLG      tone-mapped to SDR: linear up to KNEE of reference white, rolled off above
    wide gamuts     BT.2020 and Display P3 converted to BT.709
    more bits       rounded to 8
    interlaced      deinterlaced with bwdif, one output frame per input frame
    transparent     composited on black, as players do
    display matrix  rotated and mirrored

FFmpeg does all of this except the tone mapping: PyAV's build has no zscale, which the tonemap filter needs for
linear light, and swscale either clips at reference white or darkens everything for a peak of 10 000 cd/m².
Therefore the tone curve is stored in a 3D lookup table for FFmpeg's lut3d filter.
"""

import tempfile
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation

# without these flags swscale darkens every conversion by one level and halves the chroma resolution
EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# matrix coefficients of ITU-T H.273 that PyAV does not name
RGB, UNSPECIFIED, SMPTE170M, BT2020_CONSTANT = 0, 2, 6, 10
MATRICES = {*Colorspace, SMPTE170M}  # supported by swscale
HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
WIDE_GAMUTS = {ColorPrimaries.BT2020: "BT.2020", ColorPrimaries.SMPTE432: "Display P3"}
TO_BT709 = {  # for linear light; all with white point D65
    ColorPrimaries.BT2020: [
        [1.660491, -0.587641, -0.072850],
        [-0.124550, 1.132900, -0.008350],
        [-0.018151, -0.100579, 1.118730],
    ],
    ColorPrimaries.SMPTE432: [[1.224940, -0.224940, 0], [-0.042057, 1.042057, 0], [-0.019638, -0.078636, 1.098274]],
}
REFERENCE_WHITE = 203.0  # cd/m² of diffuse white in HDR (ITU-R BT.2408), which becomes white in SDR
HLG_PEAK = 1000.0  # cd/m², nominal peak of an HLG display
KNEE = 0.75  # fraction of reference white; faces stay below it
SDR_GAMMA = 2.4  # of an SDR display (ITU-R BT.1886)
TABLE_SIZE = 49
LIMITED_GRAY = np.clip(np.rint((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)
_TABLE_LOCK = threading.Lock()  # a filter graph processes one frame at a time


def _unnamed_type(cls: type[SideDataType], value: int) -> SideDataType:
    member = object.__new__(cls)
    member._name_, member._value_ = f"TYPE_{value}", value
    return member


# PyAV 18.1 fails on a frame with a type of side data that it does not name, such as the EXIF of photos
SideDataType._missing_ = classmethod(_unnamed_type)


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """A decoded frame -> upright (H, W, 3) uint8 RGB, BT.709. Untagged colours are interpreted as players do."""
    options = {"src_colorspace": matrix_of(frame), "interpolation": EXACT}
    if needs_colour_table(frame):
        table = _colour_table(frame.color_trc, frame.color_primaries, frame.width, frame.height)
        with _TABLE_LOCK:
            table.push(frame.reformat(format="gbrp16le", **options))
            image = table.pull().reformat(format="rgb24", interpolation=EXACT).to_ndarray()
    else:
        # same values as through rgb24, in half the time; not correct for fewer than 8 bits
        planar = all(component.bits >= 8 for component in frame.format.components)
        image = frame.reformat(format="gbrp" if planar else "rgb24", **options).to_ndarray()
    if frame.format.name.startswith("gray") and frame.color_range == ColorRange.MPEG:
        image = cv2.LUT(image, LIMITED_GRAY)  # swscale assumes full range for gray formats
    alpha = _alpha(frame)
    if alpha is not None:
        image = cv2.multiply(image, cv2.merge([alpha] * 3), scale=1 / 255)
    return turned(image, orientation(frame))


def describe_conversions(frame: av.VideoFrame, is_converted: bool = True) -> list[str]:
    """The conversions by `to_rgb` and `deinterlace` that the user may want to know of, one sentence each.

    Args:
        frame: the first one.
        is_converted: whether frames are converted by `to_rgb`; if not, they keep their bits.
    """
    notes = []
    if _is_hdr(frame):
        notes.append(f"HDR ({HDR[frame.color_trc]}) is converted to SDR")
    elif frame.color_primaries in WIDE_GAMUTS:
        notes.append(f"wide-gamut colours ({WIDE_GAMUTS[frame.color_primaries]}) are converted to BT.709")
    if frame.colorspace not in MATRICES | {RGB, UNSPECIFIED, BT2020_CONSTANT}:
        notes.append(f"the colour matrix {frame.colorspace} is not supported; {matrix_of(frame).name} is used")
    bits = max(component.bits for component in frame.format.components)
    if bits > 8 and is_converted:
        notes.append(f"{bits} bits per colour are reduced to 8")
    if frame.interlaced_frame:
        notes.append("interlaced frames are deinterlaced")
    alpha = _alpha(frame)
    if alpha is not None and alpha.min() < 255:
        notes.append("transparent pixels are shown on black")
    a, b, c, d = _display_matrix(frame)
    if a * d - b * c < 0:
        notes.append("frames are mirrored as the display matrix requires")
    elif abs(b) > abs(a) or a < 0:
        notes.append("frames are rotated as the display matrix requires")
    return notes


def matrix_of(frame: av.VideoFrame) -> Colorspace | int:
    """The tagged YUV matrix; if there is no tag, it follows from the tagged primaries, else from the frame size."""
    if frame.colorspace in MATRICES:
        return frame.colorspace
    if frame.colorspace == BT2020_CONSTANT or _is_hdr(frame) or frame.color_primaries == ColorPrimaries.BT2020:
        return Colorspace.BT2020
    return Colorspace.ITU709 if frame.height > 576 or frame.width >= 1280 else Colorspace.ITU601


def _is_hdr(frame: av.VideoFrame) -> bool:
    return frame.color_trc in HDR


def needs_colour_table(frame: av.VideoFrame) -> bool:
    """Whether the colours of a frame are not those of SDR in BT.709."""
    return _is_hdr(frame) or frame.color_primaries in TO_BT709


def to_sdr(rgb: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Convert colours (…, 3) in [0, 1], encoded with `transfer` and `primaries`, to SDR BT.709 (…, 3) in [0, 1].

    Luminance is absolute: REFERENCE_WHITE is 1. Above KNEE the largest component of a colour is rolled off towards
    1 (reached at infinity) and the other two are scaled by the same factor, which preserves the hue.
    """
    light = _light(rgb, transfer)
    if transfer in HDR and primaries == ColorPrimaries.UNSPECIFIED:
        primaries = ColorPrimaries.BT2020
    if primaries in TO_BT709:
        light = np.maximum(light @ np.transpose(TO_BT709[primaries]), 0)
    if transfer in HDR:
        peak = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
        over = np.maximum(peak - KNEE, 0) / (1 - KNEE)
        light *= (np.minimum(peak, KNEE) + (1 - KNEE) * over / (1 + over)) / peak
    return np.clip(light, 0, 1) ** (1 / SDR_GAMMA)


def _light(rgb: np.ndarray, transfer: int) -> np.ndarray:
    """Linear display light relative to reference white (ITU-R BT.2100; BT.1886 for SDR)."""
    if transfer == ColorTrc.SMPTE2084:
        root = rgb ** (32 / 2523)
        ratio = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
        return 10000 / REFERENCE_WHITE * ratio ** (16384 / 2610)
    if transfer == ColorTrc.ARIB_STD_B67:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(rgb <= 0.5, rgb**2 / 3, (np.exp((rgb - c) / a) + b) / 12)
        luma = scene @ np.array([[0.2627], [0.6780], [0.0593]])
        return HLG_PEAK / REFERENCE_WHITE * luma**0.2 * scene
    return rgb**SDR_GAMMA


@lru_cache(maxsize=4)
def _colour_table(transfer: int, primaries: int, width: int, height: int) -> av.filter.Graph:
    """`to_sdr` as a lut3d filter for gbrp16le frames: TABLE_SIZE steps per axis, tetrahedral interpolation."""
    steps = np.linspace(0, 1, TABLE_SIZE)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")  # .cube order: red changes fastest
    table = to_sdr(np.stack([red, green, blue], axis=-1), transfer, primaries)
    graph = av.filter.Graph()
    graph.threads = 1  # threads of a cached graph do not survive a fork
    source = graph.add("buffer", video_size=f"{width}x{height}", pix_fmt="gbrp16le", time_base="1/1")
    with tempfile.TemporaryDirectory() as folder:
        cube = Path(folder) / "table.cube"
        with cube.open("w") as file:
            file.write(f"LUT_3D_SIZE {TABLE_SIZE}\n")
            np.savetxt(file, table.reshape(-1, 3), fmt="%.6f")
        graph.link_nodes(source, graph.add("lut3d", file=str(cube)), graph.add("buffersink"))
    graph.configure()
    return graph


def _alpha(frame: av.VideoFrame) -> np.ndarray | None:
    """The alpha channel (H, W) uint8, 255 is opaque; None for formats without one."""
    if not frame.format.has_palette and not any(component.is_alpha for component in frame.format.components):
        return None
    return frame.reformat(format="rgba").to_ndarray()[..., 3]


def deinterlace(
    frames: Iterator[tuple[float, av.VideoFrame]], after_seek: bool = False
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Deinterlace the interlaced ones of (time, frame) pairs, using the previous and the next frame.

    Each output depends on these three frames only, so it is the same wherever reading started. After a seek the
    first frame, if interlaced, is skipped, since the frame before it is unknown.
    """
    before, current = None, next(frames, None)
    if after_seek and current is not None and current[1].interlaced_frame:
        before, current = current[1], next(frames, None)
    while current is not None:
        after = next(frames, None)
        time, frame = current
        yield (
            time,
            _deinterlace_frame(before, frame, after[1] if after else None) if frame.interlaced_frame else frame,
        )
        before, current = frame, after


def _deinterlace_frame(
    before: av.VideoFrame | None, frame: av.VideoFrame, after: av.VideoFrame | None
) -> av.VideoFrame:
    """A progressive frame: the earlier field, and the lines between interpolated in space and time (bwdif)."""
    if min(frame.width, frame.height) < 16:
        return frame  # too small for the filter
    graph = av.filter.Graph()
    size = f"{frame.width}x{frame.height}"
    source = graph.add("buffer", video_size=size, pix_fmt=frame.format.name, time_base="1/1")
    graph.link_nodes(source, graph.add("bwdif", mode="send_frame", deint="interlaced"), graph.add("buffersink"))
    graph.configure()
    use_before, use_after = (other is not None and _shape(other) == _shape(frame) for other in (before, after))
    if use_before:
        graph.push(before)
    graph.push(frame)
    graph.push(after if use_after else None)
    if use_before:
        graph.pull()
    output = graph.pull()
    output.duration = frame.duration  # the filter uses another time base
    return output


def _shape(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def _display_matrix(frame: av.VideoFrame) -> tuple[float, float, float, float]:
    """(a, b, c, d): a pixel at (x, y) is shown at (a·x + c·y, b·x + d·y), up to translation and scale."""
    # not frame.side_data: it creates a reference cycle, so that frames stay in memory until the garbage collector
    # runs, which is after hundreds of frames
    matrix = SideDataContainer(frame).get("DISPLAYMATRIX")
    if matrix is None:
        return 1.0, 0.0, 0.0, 1.0
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).astype(float)
    return a, b, c, d


class Orientation(NamedTuple):
    """How a stored image is shown: rows and columns exchanged, then flipped."""

    transposed: bool
    flipped_x: bool
    flipped_y: bool


def orientation(frame: av.VideoFrame) -> Orientation:
    """Rotation by the nearest multiple of 90°, and mirroring, of the display matrix."""
    a, b, c, d = _display_matrix(frame)
    transposed = abs(b) > abs(a)
    if transposed:
        a, d = c, b
    return Orientation(transposed, a < 0, d < 0)


def is_transposed(frame: av.VideoFrame) -> bool:
    """Whether the frame is shown with width and height exchanged."""
    return orientation(frame).transposed


def turned(image: np.ndarray, shown: Orientation) -> np.ndarray:
    """An image (H, W[, 3]) as it is shown."""
    image = cv2.transpose(image) if shown.transposed else image
    image = cv2.flip(image, 1) if shown.flipped_x else image
    return cv2.flip(image, 0) if shown.flipped_y else image
