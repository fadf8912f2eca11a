"""Videos written with PyAV, whose frames show their number as black and white stripes."""

import gc
import os
import signal
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import skimage.data
from av.video.reformatter import ColorRange, Colorspace
from PIL import ExifTags, Image, ImageOps

from data_processing.media.audio_io import load_audio
from data_processing.media.frame_conversion import to_rgb
from data_processing.media.video_reader import (
    check_readable,
    first_frame_time,
    probe,
    read_frames,
    read_video,
    read_video_backward,
)
from tests.support.media import text_file, truncated_mp4, video_without_audio, write_video
from tests.support.numbered_media import SIZE, numbered, numbers, write_audio, write_numbered
from utils.errors import MediaError

# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [24, Fraction(30000, 1001), 30, 50, 60])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_frames_nearest_in_time(tmp_path, fps, suffix):
    num_frames = round(2 * fps)
    path = write_numbered(tmp_path / f"clip.{suffix}", num_frames, fps, g="12")
    times = np.arange(num_frames) / float(fps)
    nearest = [int(np.argmin(np.abs(times - k / 25))) for k in range(50)]
    assert numbers(read_frames(path)) == nearest
    assert numbers(read_frames(path, 17, 23)) == nearest[17:23]
    assert numbers(read_frames(path, only={3, 17, 49})) == [nearest[k] for k in (3, 17, 49)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate(tmp_path, suffix):
    steps = np.random.default_rng(0).choice([0.013, 0.033, 0.051, 0.127, 0.201], 40)
    times = np.concatenate([[0], np.cumsum(steps)])
    path = write_numbered(tmp_path / f"clip.{suffix}", 41, times=times, g="8")
    count = int(times[-1] * 25)
    distance = np.abs(times[None] - np.arange(count)[:, None] / 25)
    read = numbers(read_frames(path))
    # if two frames are equally near, either is correct
    assert np.allclose(distance[np.arange(count), read[:count]], distance.min(axis=1), atol=1e-9)
    assert numbers(read_frames(path, 30, 40)) == read[30:40]


@pytest.mark.parametrize("num_frames", [1, 2, 7])
def test_number_of_frames_is_duration(tmp_path, num_frames):
    path = write_numbered(tmp_path / "clip.mp4", num_frames)
    assert numbers(read_frames(path)) == list(range(num_frames))
    assert probe(path).duration_s == pytest.approx(num_frames / 25)


@pytest.mark.slow
@pytest.mark.parametrize("read", [read_frames, read_video])
def test_frames_are_freed_without_the_garbage_collector(tmp_path, read):
    """A 1080p frame is three megabytes, and the garbage collector runs after hundreds of them only."""
    path = write_numbered(tmp_path / "clip.mp4", 60)
    gc.collect()
    gc.disable()
    try:
        held = {
            index: sum(issubclass(type(it), av.VideoFrame) for it in gc.get_objects())
            for index, _ in enumerate(read(path))
            if index in (10, 40)
        }
    finally:
        gc.enable()
    assert 1 <= held[40] <= held[10] + 2  # at the end the decoder gives several at once


FORMATS = {
    "short_groups.mp4": {"g": "12"},
    "one_key_frame.mp4": {"g": "1000", "bf": "3"},
    "open_gop.mp4": {"x264-params": "open-gop=1:keyint=10"},
    "intra_refresh.mp4": {"x264-params": "intra-refresh=1:keyint=12"},
    "matroska.mkv": {"g": "12"},
    "stream.ts": {"g": "12"},
    "mpeg4.avi": {"codec": "mpeg4", "g": "12"},
    "b_frames.avi": {"codec": "mpeg4", "g": "12", "bf": "2"},
    "h264.avi": {"g": "12"},  # no presentation times although the frames are reordered
    "mpeg1.mpg": {"codec": "mpeg1video", "g": "12"},
    "mpeg2.mpg": {"codec": "mpeg2video", "g": "12", "bf": "2"},
    "vp9.webm": {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": "8", "g": "12"},
    "windows.wmv": {"codec": "wmv2", "g": "12"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_slices_and_backward(tmp_path, name):
    path = write_numbered(tmp_path / name, **FORMATS[name])
    assert numbers(read_frames(path)) == list(range(60))
    for start, stop in [(0, 5), (1, 3), (12, 14), (13, 20), (35, 49), (47, 60), (59, 65), (70, 72)]:
        assert numbers(read_frames(path, start, stop)) == list(range(60))[start:stop], (start, stop)
    assert numbers(read_frames(path, 50)) == list(range(50, 60))
    assert numbers(frame.rgb() for frame in read_video_backward(path, 60, chunk=16)) == list(range(60))[::-1]


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_rotation(tmp_path, degrees):
    path = tmp_path / "clip.mp4"
    image = np.zeros((*SIZE[::-1], 3), np.uint8)
    image[:16, :16] = 235  # bright in the upper left corner
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.set_display_rotation(degrees)  # counterclockwise
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    frame = next(read_frames(path))
    expected = {  # the upper left corner after a counterclockwise rotation
        0: (slice(0, 16), slice(0, 16)),
        90: (slice(-16, None), slice(0, 16)),
        180: (slice(-16, None), slice(-16, None)),
        -90: (slice(0, 16), slice(-16, None)),
    }[degrees]
    assert frame.shape == ((64, 48, 3) if degrees % 180 else (48, 64, 3))
    assert frame[expected].mean() > 200
    assert frame.mean() == pytest.approx(235 * 16 * 16 / (64 * 48), abs=4)
    info = probe(path)
    assert (info.height, info.width) == frame.shape[:2]


@pytest.mark.parametrize(
    ("size", "tag", "red"),
    [
        # the luma of pure red differs between BT.601 and BT.709; the tag decides, without a tag the size
        ((64, 48), None, (81, 90, 240)),
        ((1280, 720), None, (63, 102, 240)),
        ((64, 48), Colorspace.ITU709, (63, 102, 240)),
        ((1280, 720), Colorspace.ITU601, (81, 90, 240)),
    ],
)
def test_untagged_colours(size, tag, red):
    width, height = size
    planes = [np.full(n, value, np.uint8) for n, value in zip((4, 1, 1), red, strict=True)]
    data = np.concatenate([np.repeat(plane, width * height // 4) for plane in planes])
    frame = av.VideoFrame.from_ndarray(data.reshape(height * 3 // 2, width), format="yuv420p")
    frame.color_range = ColorRange.MPEG
    if tag is not None:
        frame.colorspace = tag
    assert np.abs(to_rgb(frame).reshape(-1, 3).astype(int) - (255, 0, 0)).max() <= 3


def damaged_frames(path: Path, damaged: Collection[int]) -> Path:
    """A numbered video of 40 frames, some of which cannot be decoded: PNG, intra-coded and with checksums."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "rgb24"
        for index in range(40):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(numbered(index)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for index in damaged:
        position, size = packets[index]
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    return path


def test_damaged_frames_in_the_middle_are_replaced(tmp_path):
    """By their neighbours."""
    shown = numbers(read_frames(damaged_frames(tmp_path / "clip.mov", (20, 21))))
    assert shown == [*range(20), 19, 22, *range(22, 40)]


def test_time_0_is_that_of_the_first_frame_that_can_be_decoded(tmp_path):
    path = damaged_frames(tmp_path / "clip.mov", range(5))
    assert numbers(read_frames(path)) == list(range(5, 40))
    assert first_frame_time(path) == 0.2


def test_truncated_recording(tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", g="12")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    shown = numbers(read_frames(path))
    assert 20 < len(shown) < 60
    assert shown[:20] == list(range(20))


def test_video_without_audio(tmp_path):
    path = video_without_audio(tmp_path / "clip.mp4", 5)
    assert len(list(read_frames(path))) == 5
    assert probe(path).notes == ()


# --- stills and slow video ------------------------------------------------------------------------------------

STILL = skimage.data.astronaut()[:96, 160:288]


@pytest.mark.parametrize("fps", [Fraction(1, 5), 1, 5, 25, 60])
@pytest.mark.parametrize("name", ["still.mp4", "still.mkv", "still.ts", "still.gif", "still.avi"])
def test_one_frame_is_shown_at_25_fps(name, fps, tmp_path):
    pix_fmt = "rgb8" if name == "still.gif" else "yuv420p"
    codec = {"still.gif": "gif", "still.avi": "mpeg4"}.get(name, "libx264")
    path = write_video(tmp_path / name, [STILL], fps, codec=codec, pix_fmt=pix_fmt)
    info = probe(path)
    assert info.fps == 25
    assert "a still image: only the mouth moves, at 25 fps" in info.notes
    frames = list(read_frames(path, fps=info.fps))
    assert abs(len(frames) - max(1, 25 / fps)) <= 1  # as long as the container says
    assert all(np.array_equal(frame, frames[0]) for frame in frames)


@pytest.mark.parametrize(
    ("fps", "expected", "notes"),
    [
        (Fraction(1, 5), 25, ("0.2 fps are too few for lips; the output has 25 fps",)),
        (1, 25, ("1 fps are too few for lips; the output has 25 fps",)),
        (10, 25, ("10 fps are too few for lips; the output has 25 fps",)),
        (12, 12, ()),
        (15, 15, ()),
        (24, 24, ()),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_slow_video_is_shown_at_25_fps(fps, expected, notes, suffix, tmp_path):
    path = write_numbered(tmp_path / f"slow.{suffix}", 5, fps)
    info = probe(path)
    assert (info.fps, info.notes) == (expected, notes)
    shown = numbers(read_frames(path, fps=info.fps))
    assert sorted(set(shown)) == list(range(5))
    assert shown == sorted(shown)
    assert len(shown) == pytest.approx(5 * info.fps / fps, abs=1)


PHOTOS = {
    "rgb.jpg": ("RGB", {}),
    "progressive.jpg": ("RGB", {"progressive": True}),
    "gray.jpg": ("L", {}),
    "cmyk.jpg": ("CMYK", {}),
    "phone.jpg": ("RGB", {"format": "MPO", "save_all": True, "append_images": [Image.new("RGB", (128, 96))]}),
    "rgb.png": ("RGB", {}),
    "gray.png": ("L", {}),
    "palette.png": ("P", {}),
    "bits.png": ("1", {}),
    "palette.gif": ("P", {}),
    "rgb.webp": ("RGB", {}),
    "rgb.avif": ("RGB", {"quality": 90}),
    "rgb.bmp": ("RGB", {}),
    "rgb.tif": ("RGB", {}),
    "jpeg_in_a_video.mp4": ("RGB", {"format": "JPEG"}),
    "no_suffix": ("RGB", {"format": "PNG"}),
    "100%d [1]*.jpg": ("RGB", {}),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_photos(name, tmp_path):
    """As Pillow shows them."""
    mode, options = PHOTOS[name]
    Image.fromarray(STILL).convert(mode).save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    info = probe(tmp_path / name)
    assert (info.width, info.height, info.fps) == (128, 96, 25)
    assert np.abs(next(read_frames(tmp_path / name)) - expected).mean() < 2


def test_photo_of_16_bits(tmp_path):
    Image.fromarray(STILL[..., 0].astype(np.uint16) * 257).save(tmp_path / "photo.png")
    assert np.abs(next(read_frames(tmp_path / "photo.png")) - STILL[..., :1].astype(int)).max() <= 1
    assert "16 bits per colour are reduced to 8" in probe(tmp_path / "photo.png").notes


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.webp", "photo.tif", "photo.avif"])
def test_photos_are_upright(name, tmp_path):
    """EXIF orientations, as of a phone held upright (6) and of a front camera (2, 4, 5, 7)."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        Image.fromarray(STILL).save(tmp_path / name, exif=exif)
        with Image.open(tmp_path / name) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
        frame, info = next(read_frames(tmp_path / name)), probe(tmp_path / name)
        assert frame.shape == expected.shape == (info.height, info.width, 3)
        assert np.abs(frame - expected).mean() < 3, orientation


@pytest.mark.parametrize("suffix", ["gif", "png", "avif"])
def test_animated_images_are_videos(suffix, tmp_path):
    path, images = tmp_path / f"animated.{suffix}", [Image.fromarray(np.roll(STILL, 40 * k, 1)) for k in range(3)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=200)
    assert probe(path).fps == 25
    frames = list(read_frames(path))
    assert len(frames) == 15
    for frame, image in zip(frames[2::5], images, strict=True):
        assert np.abs(frame - np.asarray(image).astype(int)).mean() < 25  # a GIF has 256 colours


def test_animated_webp_is_named(tmp_path):
    images = [Image.fromarray(STILL), Image.fromarray(255 - STILL)]
    images[0].save(tmp_path / "animated.webp", save_all=True, append_images=images[1:], duration=200)
    with pytest.raises(MediaError, match="no frame can be decoded; if it is an animated WebP, convert it"):
        probe(tmp_path / "animated.webp")


def test_large_photos_are_noted(tmp_path):
    Image.new("RGB", (4032, 3024)).save(tmp_path / "large.png")
    assert any(note.startswith("4032 x 3024 pixels are more than") for note in probe(tmp_path / "large.png").notes)


# --- bad input ----------------------------------------------------------------------------------------------


def bad_input(kind: str, folder: Path) -> Path:
    path = folder / "input.mp4"
    if kind == "text":
        text_file(path)
    elif kind == "truncated":
        truncated_mp4(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "audio only":
        write_audio(path, "aac")
    elif kind == "unknown codec":
        path = write_numbered(folder / "input.avi", 3, codec="mpeg4")
        path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    return path


BAD_INPUTS = {
    "text": "not a media file",
    "truncated": "not a media file",
    "missing": "no such file",
    "directory": "is a folder, not a file",
    "empty": "the file is empty",
    "audio only": "no video stream",
    "unknown codec": "no frame can be decoded",
}


@pytest.mark.parametrize("read", [probe, lambda path: next(read_frames(path))])
@pytest.mark.parametrize(("kind", "reason"), BAD_INPUTS.items())
def test_bad_input(tmp_path, kind, reason, read):
    path = bad_input(kind, tmp_path)
    with pytest.raises(MediaError, match=reason) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert error.value.path == path
    assert "\n" not in str(error.value)


def test_check_readable(tmp_path):
    check_readable(write_numbered(tmp_path / "clip.mp4", 1))
    with pytest.raises(MediaError, match=r"absent\.mp4: no such file"):
        check_readable(tmp_path / "absent.mp4")
    with pytest.raises(MediaError, match="is a device, which cannot be read twice"):
        check_readable(Path("/dev/zero"))


@pytest.mark.parametrize("read", [check_readable, probe, lambda path: next(read_frames(path)), load_audio])
def test_pipes_are_refused_at_once(tmp_path, read):
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    with at_most_s(10), pytest.raises(MediaError, match=r"is a pipe, .*; write it to a file first"):
        read(path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.mp4"))
        with pytest.raises(MediaError, match="is a socket, which cannot be read twice"):
            read(tmp_path / "socket.mp4")


@contextmanager
def at_most_s(seconds: float) -> Iterator[None]:
    """Raises TimeoutError if the body waits for longer."""

    def end(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- a stream that changes its size ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 128), (256, 128), (192, 192)])
def test_stream_that_changes_its_size(tmp_path, size):
    """Later frames keep their aspect ratio, on black; so they do after seeking."""
    width, height = size
    disc = np.hypot(*(np.mgrid[:height, :width] - np.array([height, width])[:, None, None] / 2)) < 24
    parts = [np.full((128, 128), 90, np.uint8), np.where(disc, 250, 120).astype(np.uint8)]
    streams = [
        write_video(tmp_path / f"{index}.ts", [np.dstack([part] * 3)] * 10) for index, part in enumerate(parts)
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(stream.read_bytes() for stream in streams))
    resized = []
    frames = np.stack(list(read_frames(path, resized=resized)))
    assert frames.shape == (20, 128, 128, 3) and resized == [10]
    assert np.abs(frames[:10] - 90.0).max() < 6
    scale = min(128 / width, 128 / height)
    bright = frames[15, ..., 1] > 200
    extent = np.ptp(np.argwhere(bright), axis=0) + 1
    assert np.abs(extent - 48 * scale).max() <= 3  # still a disc, in the middle
    assert np.abs(np.argwhere(bright).mean(axis=0) - 63.5).max() < 1
    visible = (frames[15] > 60).any(axis=-1)
    assert abs(visible.mean() - width * height * scale**2 / 128**2) < 0.02
    assert (np.stack(list(read_frames(path, 14, 17))) == frames[14:17]).all()
