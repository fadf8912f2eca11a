"""Frames with their planes as decoded: samples, RGB of regions, and changes of regions."""

from functools import partial
from itertools import product
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from data_processing.media.frame import SITINGS, Frame, PlanarFrame, RgbFrame, planes_of
from data_processing.media.frame_conversion import to_rgb
from data_processing.media.video_reader import probe, read_frames, read_video, read_video_backward
from data_processing.media.video_writer import VideoWriter
from tests.support import media

HEIGHT, WIDTH = 96, 128
FORMATS = ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le")


def blobs(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """A smooth image in many colours, (H, W, 3) uint8."""
    small = np.random.default_rng(seed).integers(20, 236, (height // 16, width // 16, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def frame_of(path: Path) -> Frame:
    return next(read_video(path))


def decoded(path: Path) -> list[list[np.ndarray]]:
    """The planes of all frames."""
    with av.open(str(path)) as container:
        return [[plane.copy() for plane in planes_of(image)] for image in container.decode(video=0)]


@pytest.mark.parametrize("pix_fmt", FORMATS)
@pytest.mark.parametrize("color_range", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize("matrix", [Colorspace.ITU601, Colorspace.ITU709, Colorspace.BT2020])
def test_rgb_is_that_of_swscale(tmp_path, pix_fmt, color_range, matrix):
    path = media.tagged(tmp_path / "clip.mp4", matrix, color_range, pix_fmt=pix_fmt, frames=[blobs()])
    frame, expected = frame_of(path), next(read_frames(path)).astype(int)
    assert isinstance(frame, PlanarFrame)
    assert np.array_equal(frame.rgb(), expected)
    whole = frame.region(0, 0, WIDTH, HEIGHT)
    error = np.abs(whole - expected)
    assert error.mean() < 0.7 and error.max() <= 6  # swscale interpolates chroma with another kernel
    assert np.array_equal(frame.region(31, 17, 98, 64), whole[17:64, 31:98])
    luma = frame.luma.astype(float)
    assert frame.luma.dtype == np.uint8 and luma.shape == (HEIGHT, WIDTH)
    black, white = frame.luma_range
    weights = {Colorspace.ITU601: (0.299, 0.114), Colorspace.ITU709: (0.2126, 0.0722)}.get(matrix, (0.2627, 0.0593))
    brightness = expected @ [weights[0], 1 - sum(weights), weights[1]]
    assert np.abs((luma - black) * 255 / (white - black) - brightness).mean() < 1


@pytest.mark.parametrize("pix_fmt", FORMATS)
@pytest.mark.parametrize("color_range", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize("scale", [2, 5])
def test_thumbnail_of_planes_is_that_of_rgb(tmp_path, pix_fmt, color_range, scale):
    image = cv2.resize(blobs(), None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    path = media.tagged(tmp_path / "clip.mp4", Colorspace.ITU709, color_range, pix_fmt=pix_fmt, frames=[image])
    frame = frame_of(path)
    small, expected = frame.thumbnail(48), RgbFrame(frame.rgb()).thumbnail(48)
    assert small.shape == (48, 48, 3) and small.dtype == expected.dtype == np.float32
    assert np.abs(small - expected).mean() < 1.5 and np.abs(small - expected).max() < 12
    assert np.abs(expected - cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA)).mean() < 3


@pytest.mark.parametrize(("siting", "name"), SITINGS.items())
def test_chroma_is_where_the_stream_states_it(tmp_path, siting, name):
    """A coloured edge whose chroma samples are made for a siting appears where it is."""
    path = media.write_video(tmp_path / "clip.mp4", [blobs()], options={"chroma_sample_location": name, "crf": "0"})
    frame = frame_of(path)
    assert frame.layout.siting == siting
    error = np.abs(frame.region(0, 0, WIDTH, HEIGHT).astype(int) - to_rgb(frame.image))
    assert error.mean() < 0.7 and error.max() <= 6  # a wrong siting would give a mean of 1 and more


def test_formats_that_are_converted_as_a_whole(tmp_path):
    for make in (
        partial(media.rotated, degrees=180),
        media.gray,
        media.wide_gamut,
        partial(media.hdr, transfer=16),
        media.gif,
        partial(media.transparent, codec="png", pix_fmt="rgba"),
    ):
        path = make(tmp_path / ("clip.gif" if make is media.gif else "clip.mov"))
        frame = frame_of(path)
        assert isinstance(frame, RgbFrame) and probe(path).layout is None
        assert np.array_equal(frame.rgb(), next(read_frames(path)))
        assert np.array_equal(frame.luma, cv2.cvtColor(frame.rgb(), cv2.COLOR_RGB2GRAY))


@pytest.mark.parametrize("pix_fmt", FORMATS)
@pytest.mark.parametrize("color_range", [ColorRange.MPEG, ColorRange.JPEG])
def test_a_change_changes_that_much_and_nothing_else(tmp_path, pix_fmt, color_range):
    path = media.tagged(tmp_path / "clip.mp4", Colorspace.ITU709, color_range, pix_fmt=pix_fmt, frames=[blobs()])
    frame = frame_of(path)
    before = [plane.copy() for plane in frame.planes]
    x0, y0, height, width = 31, 17, 40, 51
    change = np.zeros((height, width, 3), np.float32)
    change[8:-8, 8:-8] = (14, -9, 6)
    change = cv2.GaussianBlur(change, (0, 0), 3)
    changed = frame.changed(x0, y0, change)
    assert all(np.array_equal(plane, old) for plane, old in zip(frame.planes, before, strict=True))
    expected = frame.region(0, 0, WIDTH, HEIGHT).astype(float)
    expected[y0 : y0 + height, x0 : x0 + width] += change
    assert np.abs(changed.rgb() - expected).max() <= 2.5
    # what does not change is exactly the same
    for plane, old in zip(changed.planes, before, strict=True):
        step_y, step_x = (HEIGHT // old.shape[0], WIDTH // old.shape[1])
        outside = np.ones(old.shape, bool)
        outside[y0 // step_y : (y0 + height) // step_y + 1, x0 // step_x : (x0 + width) // step_x + 1] = False
        assert np.array_equal(plane[outside], old[outside])
    none = frame.changed(x0, y0, np.zeros_like(change))
    assert all(np.array_equal(plane, old) for plane, old in zip(none.planes, before, strict=True))


@pytest.mark.parametrize("size", [(97, 131), (96, 128)])
@pytest.mark.parametrize("name", SITINGS.values())
def test_a_change_of_the_whole_frame(tmp_path, name, size):
    """Up to all edges, for odd sizes too."""
    image = np.full((*size, 3), 120, np.uint8)
    options = {"chroma_sample_location": name, "auto-alt-ref": "0"}
    codec = "libvpx-vp9" if size[0] % 2 else "libx264"
    path = media.write_video(tmp_path / "clip.mkv", [image] * 2, codec=codec, options=options)
    frame = frame_of(path)
    changed = frame.changed(0, 0, np.full((*size, 3), (20, 10, -15), np.float32))
    difference = changed.rgb().astype(int) - frame.region(0, 0, size[1], size[0])
    assert np.abs(difference - (20, 10, -15)).max() <= 1.5


def test_changes_are_clipped_to_the_range_of_samples(tmp_path):
    for pix_fmt in ("yuv444p", "yuv444p10le"):
        path = media.tagged(
            tmp_path / "clip.mp4", Colorspace.ITU709, ColorRange.JPEG, pix_fmt=pix_fmt, frames=[blobs()]
        )
        frame = frame_of(path)
        largest = 2**frame.layout.bits - 1
        for value, limit in ((1000.0, largest), (-1000.0, 0)):
            assert (frame.changed(0, 0, np.full((9, 9, 3), value, np.float32)).planes[0][:9, :9] == limit).all()
    pixels = np.full((8, 8, 3), 250, np.uint8)
    changed = RgbFrame(pixels).changed(2, 3, np.full((4, 5, 3), (9, 2, -260), np.float32))
    assert (changed.rgb()[3:7, 2:7] == (255, 252, 0)).all()
    assert (changed.rgb()[:3] == 250).all() and (pixels == 250).all()


# --- from file to file ---------------------------------------------------------------------------------------

KINDS = {
    f"{matrix.name} {'full' if color_range == ColorRange.JPEG else 'limited'} {pix_fmt}": partial(
        media.tagged, matrix=matrix, color_range=color_range, pix_fmt=pix_fmt
    )
    for (matrix, color_range), pix_fmt in product(
        [
            (Colorspace.ITU601, ColorRange.MPEG),
            (Colorspace.ITU709, ColorRange.MPEG),
            (Colorspace.ITU709, ColorRange.JPEG),
            (Colorspace.BT2020, ColorRange.MPEG),
        ],
        FORMATS,
    )
}
KINDS |= {
    "odd size": media.odd_size,
    "cropped": partial(media.write_video, codec="libx264"),  # 16 × 16 blocks of which a part is shown
    "mpeg4": partial(media.write_video, codec="mpeg4"),
    "untagged hevc": partial(media.write_video, codec="libx265"),
    "top left": partial(media.write_video, options={"chroma_sample_location": "topleft"}),
    "anamorphic": media.anamorphic,
}


@pytest.mark.parametrize("kind", KINDS)
def test_samples_survive_lossless_encoding(tmp_path, kind):
    height, width = {"odd size": (97, 131), "cropped": (90, 122)}.get(kind, (HEIGHT, WIDTH))
    images = [blobs(seed=seed)[:height, :width] for seed in range(3)]
    if kind == "odd size":
        images = [np.pad(image, ((0, 1), (0, 3), (0, 0)), mode="reflect") for image in images]
    source, copy = tmp_path / "source.mkv", tmp_path / "copy.mkv"
    KINDS[kind](source, frames=images)
    info = probe(source)
    with VideoWriter(copy, info.width, info.height, info.fps, crf=0, layout=info.layout) as writer:
        for frame in read_video(source, fps=info.fps):
            assert isinstance(frame, PlanarFrame)
            writer.write(frame)
    assert probe(copy).layout == info.layout
    before, after = decoded(source), decoded(copy)
    assert len(before) == len(after) == 3
    for planes, copied in zip(before, after, strict=True):
        for plane, other in zip(planes, copied, strict=True):
            assert np.array_equal(plane, other[: plane.shape[0], : plane.shape[1]])


@pytest.mark.parametrize(("degrees", "turns", "siting"), [(90, 1, (0.5, 1.0)), (-90, -1, (0.5, 0.0))])
def test_rotated_samples_survive_lossless_encoding(tmp_path, degrees, turns, siting):
    source = media.rotated(tmp_path / "source.mp4", degrees, frames=[blobs(seed=seed) for seed in range(3)])
    info = probe(source)
    assert (info.width, info.height, info.layout.siting) == (WIDTH, HEIGHT, siting)
    with VideoWriter(tmp_path / "copy.mp4", info.width, info.height, crf=0, layout=info.layout) as writer:
        for frame in read_video(source):
            error = np.abs(frame.region(0, 0, WIDTH, HEIGHT).astype(int) - blobs(seed=writer.num_frames))
            assert error.mean() < 4
            writer.write(frame)
    assert probe(tmp_path / "copy.mp4").layout == info.layout
    for planes, copied in zip(decoded(source), decoded(tmp_path / "copy.mp4"), strict=True):
        assert all(
            np.array_equal(np.rot90(plane, turns), other) for plane, other in zip(planes, copied, strict=True)
        )


def test_only_the_changed_region_differs_after_lossless_encoding(tmp_path):
    source = media.h264(tmp_path / "source.mkv", [blobs(seed=seed) for seed in range(3)])
    copy = tmp_path / "copy.mp4"
    info = probe(source)
    with VideoWriter(copy, info.width, info.height, info.fps, crf=0, layout=info.layout) as writer:
        for frame in read_video(source):
            writer.write(frame.changed(40, 32, np.full((20, 24, 3), 12, np.float32)))
    for planes, copied in zip(decoded(source), decoded(copy), strict=True):
        changed = [plane != other for plane, other in zip(planes, copied, strict=True)]
        rows, columns = np.nonzero(changed[0])
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (32, 51, 40, 63)
        assert not changed[1].any() and not changed[2].any()  # grey


def test_what_has_no_planes_is_written_in_the_layout_of_the_video(tmp_path):
    source = media.tagged(tmp_path / "source.mp4", Colorspace.ITU601, ColorRange.JPEG, frames=[blobs()] * 2)
    info = probe(source)
    with VideoWriter(tmp_path / "copy.mp4", WIDTH, HEIGHT, layout=info.layout, crf=1) as writer:
        for frame in (blobs(), frame_of(source), RgbFrame(blobs())):
            writer.write(frame)
    assert probe(tmp_path / "copy.mp4").layout == info.layout
    for frame in read_frames(tmp_path / "copy.mp4"):
        assert np.abs(frame.astype(int) - blobs()).mean() < 4
    with pytest.raises(ValueError, match="expected"), VideoWriter(tmp_path / "other.mp4", 64, 64) as writer:
        writer.write(frame_of(source))


def test_frames_of_another_size_are_fitted_and_frames_that_come_twice_are_one(tmp_path):
    path = media.write_video(tmp_path / "clip.mp4", [blobs(seed=seed) for seed in range(3)], 12)
    frames = list(read_video(path, fps=24))
    assert len(frames) == 6
    assert len(set(map(id, frames))) == 3
    backward = list(read_video_backward(path, 6, chunk=4, fps=24))
    for frame, other in zip(frames, reversed(backward), strict=True):
        assert np.array_equal(frame.rgb(), other.rgb())
    sizes = tmp_path / "sizes.ts"
    grays = [np.full((size, size, 3), 99, np.uint8) for size in (64, 96)]
    parts = [media.write_video(tmp_path / f"{len(image)}.ts", [image] * 3) for image in grays]
    sizes.write_bytes(b"".join(part.read_bytes() for part in parts))
    shapes = {(type(frame), frame.width, frame.height) for frame in read_video(sizes)}
    assert shapes == {(PlanarFrame, 64, 64), (RgbFrame, 64, 64)}
