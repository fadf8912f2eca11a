"""Conversion of frames of all kinds of videos, whose colours, edges and times are known."""

from fractions import Fraction
from functools import partial

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from data_processing.media.frame_conversion import deinterlace, to_rgb, to_sdr
from data_processing.media.video_reader import probe, read_frames
from tests.support import media

SIZE = 64  # width and height of a patch


def patches(colours: np.ndarray, count: int = 3) -> list[np.ndarray]:
    """`count` equal images with patches of 64 × 64 of the colours (N, C) beside each other."""
    return [
        np.broadcast_to(np.repeat(colours, SIZE, axis=0), (SIZE, SIZE * len(colours), colours.shape[1]))
    ] * count


def colours_of(image: np.ndarray) -> np.ndarray:
    """(N, 3), the mean colours of the centres of the patches."""
    middle = image[SIZE // 4 : -SIZE // 4].reshape(SIZE // 2, -1, SIZE, 3)[:, :, SIZE // 4 : -SIZE // 4]
    return middle.mean(axis=(0, 2))


def grays(num_frames: int, size: tuple[int, int] = (64, 64)) -> list[np.ndarray]:
    """Frame k has the grey level 20 + 7k."""
    return [np.full((*size, 3), 20 + 7 * index, np.uint8) for index in range(num_frames)]


def shown(frames) -> list[int]:
    """The numbers of frames made by `grays`."""
    return [round((float(frame[16:-16, 16:-16].mean()) - 20) / 7) for frame in frames]


COLOURS = np.array(
    [(0, 0, 0), (128, 128, 128), (255, 255, 255), (224, 172, 140), (90, 56, 37), (200, 30, 40), (20, 90, 180)],
    np.uint8,
)


# --- HDR ----------------------------------------------------------------------------------------------------

# linear BT.709 light relative to reference white (203 cd/m²): greys to the knee, white, a lamp, skin, saturated red
LIGHT = np.array(
    [(0, 0, 0), (0.1,) * 3, (0.5,) * 3, (0.75,) * 3, (1,) * 3, (4.9,) * 3, (0.6, 0.4, 0.3), (0.5, 0.02, 0.03)]
)


def sdr_code(light: np.ndarray) -> np.ndarray:
    """Code values of an SDR display of gamma 2.4; 1 − 0.25 / (1 + (peak − 0.75) / 0.25) above 0.75."""
    peak = light.max(axis=-1, keepdims=True)
    shoulder = 1 - 0.25 / (1 + np.maximum(peak - 0.75, 0) / 0.25)
    return 255 * (light * np.where(peak > 0.75, shoulder / np.maximum(peak, 1e-9), 1)) ** (1 / 2.4)


@pytest.mark.parametrize("transfer", [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_hdr_keeps_light_up_to_the_knee(tmp_path, transfer, suffix):
    light = 203 * LIGHT @ np.transpose(media.BT709_TO_BT2020)
    path = media.hdr(tmp_path / f"clip.{suffix}", transfer, patches(light))
    frames = list(read_frames(path))
    assert len(frames) == 3
    colours = colours_of(frames[1])
    assert np.abs(colours - sdr_code(LIGHT)).max() <= 3
    assert 238 <= colours[4].min() <= colours[4].max() <= 244  # reference white is nearly white
    assert 250 <= colours[5].min() <= colours[5].max() < 255  # and a colour five times as bright still differs
    kind = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}[transfer]
    assert probe(path).notes == (f"HDR ({kind}) is converted to SDR", "10 bits per colour are reduced to 8")


def test_hdr_levels_of_the_standards():
    """Levels from the standards (BT.2408: HDR reference white is 58 % PQ and 75 % HLG)."""
    white = 0.875 ** (1 / 2.4)
    for transfer, code in [(ColorTrc.SMPTE2084, 0.5807), (ColorTrc.ARIB_STD_B67, 0.75)]:
        assert to_sdr(np.full(3, code), transfer, ColorPrimaries.BT2020) == pytest.approx(white, abs=0.001)
        assert to_sdr(np.full(3, code), transfer, ColorPrimaries.UNSPECIFIED) == pytest.approx(white, abs=0.001)
        steps = to_sdr(np.linspace(0, 1, 500)[:, None].repeat(3, 1), transfer, ColorPrimaries.BT2020)
        assert (np.diff(steps[:, 0]) >= 0).all() and steps[0, 0] == 0 and 0.98 < steps[-1, 0] < 1


@pytest.mark.parametrize("transfer", [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67, ColorTrc.BT709])
def test_the_lookup_table_approximates_the_formula(transfer):
    codes = np.random.default_rng(0).uniform(0, 1, (40, 64, 3))
    frame = av.VideoFrame.from_ndarray(np.rint(65535 * codes).astype(np.uint16), format="rgb48le")
    frame.color_trc, frame.color_primaries = transfer, ColorPrimaries.BT2020
    difference = np.abs(to_rgb(frame) - 255 * to_sdr(codes, transfer, ColorPrimaries.BT2020))
    assert np.median(difference) < 0.5
    assert np.percentile(difference, 95) < 3


def test_wide_gamut_sdr(tmp_path):
    path = media.wide_gamut(tmp_path / "clip.mkv", patches(COLOURS))
    assert np.abs(colours_of(next(read_frames(path))) - COLOURS).max() <= 4
    assert probe(path).notes == ("wide-gamut colours (BT.2020) are converted to BT.709",)


# --- bits, matrix, range, chroma ----------------------------------------------------------------------------

COLOUR_KINDS = {
    "601": partial(media.tagged, matrix=Colorspace.ITU601),
    "709": partial(media.tagged, matrix=Colorspace.ITU709),
    "2020 matrix": partial(media.tagged, matrix=Colorspace.BT2020),
    "full range": partial(media.tagged, matrix=Colorspace.ITU709, color_range=ColorRange.JPEG),
    "full range 601": partial(media.tagged, matrix=Colorspace.ITU601, color_range=ColorRange.JPEG),
    "4:2:2": partial(media.tagged, matrix=Colorspace.ITU601, pix_fmt="yuv422p"),
    "4:4:4": partial(media.tagged, matrix=Colorspace.ITU709, pix_fmt="yuv444p"),
    "10 bits": partial(media.tagged, matrix=Colorspace.ITU709, pix_fmt="yuv420p10le"),
    "10 bits 4:2:2": partial(media.tagged, matrix=Colorspace.ITU709, pix_fmt="yuv422p10le"),
    "10 bits full": partial(
        media.tagged, matrix=Colorspace.ITU709, color_range=ColorRange.JPEG, pix_fmt="yuv420p10le"
    ),
}


@pytest.mark.parametrize("kind", COLOUR_KINDS)
def test_colours_of_every_encoding(tmp_path, kind):
    path = COLOUR_KINDS[kind](tmp_path / "clip.mp4", frames=patches(COLOURS))
    assert np.abs(colours_of(next(read_frames(path))) - COLOURS).max() <= 4
    assert probe(path).notes == ()


def test_ten_bits_are_rounded_not_truncated():
    levels = np.arange(64, 941, 12)
    planes = np.concatenate(
        [np.repeat(levels, 64)[None].repeat(64, 0).ravel(), np.full(len(levels) * 64 * 32, 512)]
    )
    frame = av.VideoFrame.from_ndarray(planes.astype(np.uint16).reshape(96, -1), format="yuv420p10le")
    frame.color_range, frame.colorspace = ColorRange.MPEG, Colorspace.ITU709
    error = colours_of(to_rgb(frame))[:, 1] - (levels - 64) * 255 / 876
    assert np.abs(error).max() <= 1 and abs(error.mean()) < 0.3


def test_gray_of_limited_range(tmp_path):
    levels = np.repeat(np.arange(0, 256, 15, dtype=np.uint8)[:, None], 3, axis=1)
    path = media.gray(tmp_path / "clip.mkv", patches(levels))
    assert np.abs(colours_of(next(read_frames(path))) - levels).max() <= 2


def test_an_unsupported_matrix_is_noted(tmp_path):
    path = media.write_video(tmp_path / "clip.mp4", patches(COLOURS), options={"x264-params": "colormatrix=YCgCo"})
    assert next(read_frames(path)).shape == (64, 448, 3)
    assert probe(path).notes == ("the colour matrix 8 is not supported; ITU601 is used",)


def test_palette(tmp_path):
    path = media.gif(tmp_path / "clip.gif", patches(COLOURS[:3], 10))
    frames = list(read_frames(path))
    assert len(frames) == 10 and probe(path).fps == 25 and probe(path).notes == ()
    assert np.abs(colours_of(frames[5]) - COLOURS[:3]).max() <= 20  # 8 levels of red and green, 4 of blue


# --- transparency -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prores.mov", "animation.mov", "png.mov", "vp9.webm"])
def test_transparent_pixels_are_shown_on_black(tmp_path, name):
    codec, pix_fmt = {
        "prores.mov": ("prores_ks", "yuva444p10le"),
        "animation.mov": ("qtrle", "argb"),
        "png.mov": ("png", "rgba"),
        "vp9.webm": ("libvpx-vp9", "yuva420p"),
    }[name]
    colours = np.concatenate([np.repeat(COLOURS[2:5], 3, axis=0), np.tile([[0], [128], [255]], (3, 1))], axis=1)
    path = media.transparent(tmp_path / name, codec, pix_fmt, patches(colours.astype(np.uint8), 5))
    frames = list(read_frames(path))
    assert len(frames) == 5
    for frame in frames:
        assert np.abs(colours_of(frame) - colours[:, :3] * (colours[:, 3:] / 255)).max() <= 4
    assert "transparent pixels are shown on black" in probe(path).notes
    opaque = media.transparent(tmp_path / f"opaque_{name}", codec, pix_fmt, patches(colours[2::3].astype(np.uint8)))
    assert "transparent pixels are shown on black" not in probe(opaque).notes


# --- interlacing --------------------------------------------------------------------------------------------


def moving_edge(num_frames: int) -> list[np.ndarray]:
    """White up to column 20 + 4k, black to the right of it."""
    images = np.zeros((num_frames, 96, 256, 3), np.uint8)
    for index, image in enumerate(images):
        image[:, : 20 + 4 * index] = 235
    return list(images)


def edge_columns(image: np.ndarray) -> np.ndarray:
    """(H,), the number of white pixels of each row."""
    return (image[..., 1] > 118).sum(axis=1)


@pytest.mark.parametrize("top_first", [True, False])
@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_no_combing(tmp_path, suffix, top_first):
    path = media.interlaced(tmp_path / f"clip.{suffix}", moving_edge(50), top_first)
    frames = list(read_frames(path))
    assert len(frames) == 25  # one frame per frame
    for index, frame in enumerate(frames):
        columns = edge_columns(frame[8:-8])
        assert np.ptp(columns) <= 1, index
        assert np.abs(columns - (20 + 8 * index)).max() <= 1  # the earlier field
    assert probe(path).notes == ("interlaced frames are deinterlaced",)


def test_deinterlacing_does_not_depend_on_the_start(tmp_path):
    path = media.interlaced(tmp_path / "clip.mkv")
    with av.open(str(path)) as container:
        frames = [(frame.time, frame) for frame in container.decode(video=0)]
    complete = [(time, to_rgb(frame)) for time, frame in deinterlace(iter(frames))]
    later = [(time, to_rgb(frame)) for time, frame in deinterlace(iter(frames[9:]), after_seek=True)]
    assert [time for time, _ in complete] == [time for time, _ in frames]
    assert [time for time, _ in later] == [time for time, _ in frames[10:]]
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(complete[10:], later, strict=True))
    assert list(deinterlace(iter([]))) == []


def test_progressive_frames_are_unchanged(tmp_path):
    path = media.h264(tmp_path / "clip.mp4", moving_edge(5))
    with av.open(str(path)) as container:
        expected = [to_rgb(frame) for frame in container.decode(video=0)]
    assert np.array_equal(list(read_frames(path)), expected)


# --- orientation and shape ----------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotated_and_mirrored_frames_become_upright(tmp_path, degrees, mirrored):
    colours = COLOURS[2:6].reshape(2, 2, 3).repeat(48, axis=0).repeat(32, axis=1)
    path = media.rotated(tmp_path / "clip.mp4", degrees, mirrored, [colours] * 3)
    frame = next(read_frames(path))
    assert frame.shape == (96, 64, 3)
    middles = frame[24::48, 16::32].astype(int)
    assert np.abs(middles - COLOURS[2:6].reshape(2, 2, 3)).max() <= 4
    info = probe(path)
    assert (info.width, info.height) == (64, 96)
    assert len(info.notes) == (mirrored or degrees != 0)


@pytest.mark.parametrize(
    ("make", "name", "size"),
    [
        (media.odd_size, "clip.webm", (97, 131)),
        (partial(media.tagged, matrix=Colorspace.ITU709, pix_fmt="yuv444p"), "clip.mp4", (97, 131)),
        (media.h264, "clip.mp4", (320, 180)),
        (media.h264, "clip.mkv", (16, 16)),
    ],
)
def test_sizes(tmp_path, make, name, size):
    path = make(tmp_path / name, frames=grays(3, size))
    frames = list(read_frames(path))
    assert shown(frames) == [0, 1, 2] if size[0] > 40 else len(frames) == 3
    assert frames[0].shape == (*size, 3)
    assert (probe(path).height, probe(path).width) == size


def test_anamorphic(tmp_path):
    info = probe(media.anamorphic(tmp_path / "clip.mp4", grays(2)))
    assert (info.width, info.height, info.pixel_aspect) == (192, 256, Fraction(4, 3))


# --- number and times of frames ----------------------------------------------------------------------------

VIDEOS = {
    "23.976.mp4": partial(media.at_rate, fps=Fraction(24000, 1001)),
    "29.97.mp4": partial(media.at_rate, fps=Fraction(30000, 1001)),
    "50.mkv": partial(media.at_rate, fps=50),
    "60.mp4": partial(media.at_rate, fps=60),
    "webm.webm": media.webm,
    "odd.webm": media.odd_size,
    "avi.avi": media.avi,
    "matroska.mkv": media.h264,
    "stream.ts": media.h264,
    "gray.mkv": media.gray,
    "10_bit.mov": partial(media.tagged, matrix=Colorspace.ITU709, pix_fmt="yuv420p10le"),
    "gif.gif": media.gif,
}


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_at_their_times(tmp_path, name):
    """At the rate of the video each frame once; at 25 fps the frames nearest in time."""
    path = VIDEOS[name](tmp_path / name, frames=grays(30))
    info = probe(path)
    fps = VIDEOS[name].keywords.get("fps", Fraction(25)) if isinstance(VIDEOS[name], partial) else Fraction(25)
    assert info.fps == fps
    if name == "gif.gif":  # its colours are too coarse to distinguish the frames
        assert len(list(read_frames(path, fps=fps))) == 30
        return
    assert shown(read_frames(path, fps=fps)) == list(range(30))
    nearest = [int(np.argmin(np.abs(np.arange(30) / float(fps) - k / 25))) for k in range(round(30 / fps * 25))]
    assert shown(read_frames(path)) == nearest


def test_variable_rate(tmp_path):
    path = media.variable_frame_rate(tmp_path / "clip.mp4", grays(30))
    times = np.round(media.uneven_times(30), 3)
    read = shown(read_frames(path))
    distance = np.abs(times[None] - np.arange(len(read))[:, None] / 25)
    assert np.allclose(distance[np.arange(len(read)), read], distance.min(axis=1), atol=1e-9)
    assert read[-1] == 29


SEEKABLE = {
    "interlaced.mp4": lambda path: media.interlaced(path, moving_edge(50)),
    "interlaced.ts": lambda path: media.interlaced(path, moving_edge(50), False),
    "interlaced.mkv": lambda path: media.interlaced(path, moving_edge(50)),
    "hdr.mp4": partial(media.hdr, transfer=ColorTrc.SMPTE2084),
    "alpha.webm": partial(media.transparent, codec="libvpx-vp9", pix_fmt="yuva420p"),
    "rotated.mp4": media.rotated,
}


@pytest.mark.parametrize("name", SEEKABLE)
def test_seeking_returns_the_same_frames(tmp_path, name):
    path = SEEKABLE[name](tmp_path / name)
    frames = list(read_frames(path))
    for start, stop in [(1, 3), (11, 14), (12, 13), (13, 15), (23, 25)]:
        assert np.array_equal(list(read_frames(path, start, stop)), frames[start:stop]), (start, stop)
