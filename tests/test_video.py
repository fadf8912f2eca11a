"""video: files written here with PyAV, whose frames carry their number as black and white stripes."""

import errno
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from made_media import text_file, tone_wav, truncated_mp4

from data_processing.audio import load_audio
from data_processing.errors import UserError
from data_processing.video import (
    VideoWriter,
    check_readable,
    check_writable,
    probe,
    read_frames,
    read_frames_backward,
    to_rgb,
)

SIZE = (64, 48)  # width, height
BITS = 8


def numbered(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame that shows its number: bit b is the b-th of eight vertical stripes, from the left."""
    width, height = size
    bits = number >> (np.arange(width) * BITS // width) & 1
    return np.broadcast_to(np.where(bits, 235, 20).astype(np.uint8)[None, :, None], (height, width, 3))


def number_of(frame: np.ndarray) -> int:
    stripes = frame[len(frame) // 4 : -len(frame) // 4].mean(axis=(0, 2)).reshape(BITS, -1).mean(axis=1)
    return int(((stripes > 128) << np.arange(BITS)).sum())


def numbers(frames) -> list[int]:
    return [number_of(frame) for frame in frames]


def write_numbered(
    path: Path,
    num_frames: int = 60,
    fps: float | Fraction = 25,
    times: np.ndarray | None = None,
    codec: str = "libx264",
    **options: str,
) -> Path:
    """Frame k at k / fps seconds, or at times[k] (whole milliseconds)."""
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = options
        time_base = 1 / rate if times is None else Fraction(1, 1000)
        if times is not None:
            stream.codec_context.time_base = time_base
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(numbered(index)), format="rgb24")
            frame.pts, frame.time_base = index if times is None else round(times[index] * 1000), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def click(rate: int, at: float, seconds: float = 2.0) -> np.ndarray:
    """(N,) silence but for 10 ms of a tone from `at` seconds on."""
    waveform = np.zeros(round(rate * seconds), np.float32)
    length = rate // 100
    waveform[round(at * rate) :][:length] = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(length) / rate)
    return waveform


def write_sound(
    path: Path,
    codec: str,
    rate: int = 44100,
    num_frames: int = 0,
    audio_start: float = 0.0,
    video_start: float = 0.0,
) -> Path:
    """2 s with a click 0.5 s after the sound's start; with `num_frames`, numbered 25 fps video goes along."""
    with av.open(str(path), "w") as container:
        video = None
        if num_frames:
            video = container.add_stream("libx264", rate=25)
            video.width, video.height = SIZE
            video.pix_fmt = "yuv420p"
        audio = container.add_stream(codec, rate=rate, layout="mono")
        for index in range(num_frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(numbered(index)), format="rgb24")
            picture.pts, picture.time_base = index + round(video_start * 25), Fraction(1, 25)
            container.mux(video.encode(picture))
        if video:
            container.mux(video.encode(None))
        waveform = click(rate, at=0.5)
        resampler = av.AudioResampler(audio.format.name, "mono", rate)
        for start in range(0, len(waveform), 1024):
            data = np.ascontiguousarray(waveform[None, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(data, format="fltp", layout="mono")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = round(audio_start * rate) + start
            for part in resampler.resample(frame):
                container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    return path


def click_time(path: Path) -> float:
    """When the click is heard, in seconds after the first video frame."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        origin = float(video.start_time * video.time_base)
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()[0]) > 0.2)
            if len(loud):
                return frame.time + loud[0] / frame.sample_rate - origin
    raise AssertionError(f"no click in {path}")


def write_with(path: Path, num_frames: int, **options) -> Path:
    with VideoWriter(path, *SIZE, **options) as writer:
        for index in range(num_frames):
            writer.write(numbered(index))
    return path


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


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate(tmp_path, suffix):
    steps = np.random.default_rng(0).choice([0.013, 0.033, 0.051, 0.127, 0.201], 40)
    times = np.concatenate([[0], np.cumsum(steps)])
    path = write_numbered(tmp_path / f"clip.{suffix}", 41, times=times, g="8")
    count = int(times[-1] * 25)
    distance = np.abs(times[None] - np.arange(count)[:, None] / 25)
    read = numbers(read_frames(path))
    # where two frames are equally near, either may be shown
    assert np.allclose(distance[np.arange(count), read[:count]], distance.min(axis=1), atol=1e-9)
    assert numbers(read_frames(path, 30, 40)) == read[30:40]


@pytest.mark.parametrize("num_frames", [1, 2, 7])
def test_number_of_frames_is_duration(tmp_path, num_frames):
    path = write_numbered(tmp_path / "clip.mp4", num_frames)
    assert numbers(read_frames(path)) == list(range(num_frames))
    assert probe(path).duration_s == pytest.approx(num_frames / 25)


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
    assert numbers(read_frames_backward(path, 60, chunk=16)) == list(range(60))[::-1]


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_rotation(tmp_path, degrees):
    path = tmp_path / "clip.mp4"
    picture = np.zeros((*SIZE[::-1], 3), np.uint8)
    picture[:16, :16] = 235  # bright in the upper left corner
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.set_display_rotation(degrees)  # counterclockwise
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    frame = next(read_frames(path))
    expected = {  # where a counterclockwise turn takes the upper left corner
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
        # BT.601 and BT.709 give pure red another luma; the tag decides, and without one the size
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


def test_a_file_damaged_in_the_middle_gives_its_good_frames(tmp_path):
    path = tmp_path / "clip.mov"
    with av.open(str(path), "w") as container:  # PNG: every frame alone, damage is noticed
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "rgb24"
        for index in range(40):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(numbered(index)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        sizes = {
            packet.pts * 25 * packet.time_base: (packet.pos, packet.size)
            for packet in container.demux(video=0)
            if packet.size
        }
    data = bytearray(path.read_bytes())
    for damaged in (20, 21):
        position, size = sizes[damaged]
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    shown = numbers(read_frames(path))
    assert shown == [*range(20), 19, 22, *range(22, 40)]  # the two are replaced by their neighbours


def test_recording_cut_off(tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", g="12")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    shown = numbers(read_frames(path))
    assert 20 < len(shown) < 60
    assert shown[:20] == list(range(20))


def test_name_that_looks_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tone_wav(Path("say:hello.wav"), 0.5)
    path = write_with(Path("take:1.mp4"), 3, audio_path=Path("say:hello.wav"))
    with av.open(str(path.absolute())) as container:
        assert container.streams.audio
    assert numbers(read_frames(path)) == [0, 1, 2]


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
    elif kind == "only sound":
        write_sound(path, "aac")
    elif kind == "unknown codec":
        path = write_numbered(folder / "input.avi", 3, codec="mpeg4")
        path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    return path


BAD_INPUTS = {
    "text": "expected a video, found something else",
    "truncated": "expected a video, found something else",
    "missing": "no such file",
    "directory": "found a directory",
    "empty": "0 bytes",
    "only sound": "found no picture",
    "unknown codec": "can be decoded",
}


@pytest.mark.parametrize("read", [probe, lambda path, flag: next(read_frames(path, flag=flag))])
@pytest.mark.parametrize(("kind", "words"), BAD_INPUTS.items())
def test_bad_input(tmp_path, kind, words, read):
    path = bad_input(kind, tmp_path)
    with pytest.raises(UserError, match=words) as error:
        read(path, "--input")
    assert str(error.value).startswith("--input: ")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_check_readable(tmp_path):
    check_readable(write_numbered(tmp_path / "clip.mp4", 1), "--video")
    with pytest.raises(UserError, match="--video: no such file"):
        check_readable(tmp_path / "absent.mp4", "--video")


def test_check_writable(tmp_path):
    check_writable(tmp_path / "out.mp4", "--output")
    check_writable(tmp_path / "OUT.MOV", "--output")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder.mp4").mkdir()
    for path, words in [
        (tmp_path / "folder.mp4", "found a directory"),
        (tmp_path / "out.wmv", "ending in .mp4, .mov or .mkv"),
        (tmp_path / "absent" / "out.mp4", "no such folder"),
        (Path("/proc/out.mp4"), "cannot write into /proc"),
    ]:
        with pytest.raises(UserError, match=words):
            check_writable(path, "--output")


# --- writing ------------------------------------------------------------------------------------------------


def test_colours_come_back(tmp_path):
    colours = [(r, g, b) for r in (0, 128, 255) for g in (0, 128, 255) for b in (0, 128, 255)]
    colours += [(level, level, level) for level in range(5, 255, 12)] + [(224, 172, 140), (90, 56, 37)]
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, *SIZE, crf=1) as writer:
        for colour in colours:
            writer.write(np.full((SIZE[1], SIZE[0], 3), colour, np.uint8))
    error = np.array([f.reshape(-1, 3).mean(axis=0) for f in read_frames(path)]) - np.array(colours)
    assert np.abs(error).max() <= 3
    assert np.abs(error.mean(axis=0)).max() < 0.5  # swscale's default would be one level too dark


def test_written_stream(tmp_path):
    path = write_with(tmp_path / "clip.mp4", 5, fps=Fraction(30000, 1001))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == Fraction(30000, 1001)
        assert frame.format.name == "yuv420p"
        assert (frame.colorspace, frame.color_range) == (Colorspace.ITU709, ColorRange.MPEG)
        assert (stream.codec_context.color_primaries, stream.codec_context.color_trc) == (1, 1)  # BT.709
        assert not container.streams.audio


def test_odd_size_is_padded_with_its_own_edge(tmp_path):
    path = tmp_path / "clip.mp4"
    picture = np.zeros((47, 63, 3), np.uint8)
    picture[:, 31:] = 200
    with VideoWriter(path, 63, 47) as writer:
        writer.write(picture)
    frame = next(read_frames(path)).astype(int)
    assert frame.shape == (48, 64, 3)
    assert np.abs(frame[:47, :63] - picture).mean() < 3
    assert np.abs(frame[:, 40:] - 200).max() < 8


def test_wrong_frames_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected"), VideoWriter(tmp_path / "clip.mp4", *SIZE) as writer:
        writer.write(np.zeros((SIZE[0], SIZE[1], 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_aac_packets_are_copied(tmp_path):
    source = write_sound(tmp_path / "source.mp4", "aac", num_frames=50)

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size and packet.pts >= 0]

    original, copied = packets(source), packets(write_with(tmp_path / "out.mp4", 50, audio_path=source))
    assert len(copied) >= 2 * 44100 // 1024 - 1
    assert copied == original[: len(copied)]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize(
    ("name", "codec", "options", "expected"),
    [
        ("pcm.wav", "pcm_s16le", {"rate": 16000}, 0.5),
        ("no_aac_rate.wav", "pcm_s16le", {"rate": 18900}, 0.5),
        ("studio.wav", "pcm_s16le", {"rate": 96000}, 0.5),
        ("music.mp3", "libmp3lame", {}, 0.5),
        ("lossless.flac", "flac", {}, 0.5),
        ("aac.m4a", "aac", {}, 0.5),
        ("aac_video.mp4", "aac", {"num_frames": 50}, 0.5),
        ("aac_stream.ts", "aac", {"num_frames": 50}, 0.5),
        ("aac_late.mp4", "aac", {"num_frames": 50, "audio_start": 0.3}, 0.8),
        ("aac_early.mp4", "aac", {"num_frames": 50, "video_start": 0.2}, 0.3),
        ("pcm_late.mkv", "pcm_s16le", {"num_frames": 50, "audio_start": 0.3}, 0.8),
        ("pcm_early.mkv", "pcm_s16le", {"num_frames": 50, "video_start": 0.2}, 0.3),
    ],
)
def test_sound_keeps_its_time_and_ends_with_the_picture(tmp_path, suffix, name, codec, options, expected):
    source = write_sound(tmp_path / name, codec, **options)
    path = write_with(tmp_path / f"out.{suffix}", 40, audio_path=source)  # 1.6 of the 2 s
    assert click_time(path) == pytest.approx(expected, abs=0.025)
    assert len(load_audio(path)) / 16000 == pytest.approx(1.6, abs=0.065)  # a packet is up to 64 ms
    assert numbers(read_frames(path)) == list(range(40))
    assert not list(tmp_path.glob(".*"))


def test_sound_shorter_than_picture(tmp_path):
    path = write_with(tmp_path / "out.mp4", 60, audio_path=tone_wav(tmp_path / "tone.wav", 1.0))
    assert len(list(read_frames(path))) == 60
    assert len(load_audio(path)) / 16000 == pytest.approx(1.0, abs=0.065)


def test_damaged_sound_is_used_as_far_as_it_goes(tmp_path):
    source = write_sound(tmp_path / "sound.wav", "adpcm_ima_wav")  # whose blocks have headers to be damaged
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2] + np.random.default_rng(0).bytes(len(data) // 2))
    with pytest.raises(av.error.InvalidDataError), av.open(str(source)) as container:
        list(container.decode(audio=0))
    path = write_with(tmp_path / "out.mp4", 40, audio_path=source)
    assert len(list(read_frames(path))) == 40
    assert click_time(path) == pytest.approx(0.5, abs=0.025)


@pytest.mark.parametrize("kind", ["text", "missing", "no sound"])
def test_unusable_sound(tmp_path, kind):
    sound = tmp_path / "sound.mp4"
    if kind == "text":
        text_file(sound)
    elif kind == "no sound":
        write_numbered(sound, 3)
    with pytest.raises(UserError, match=str(sound)):
        VideoWriter(tmp_path / "out.mp4", *SIZE, audio_path=sound)
    assert [path for path in tmp_path.iterdir() if path != sound] == []


def open_files() -> set[str]:
    return {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}


def test_output_appears_only_when_whole(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"the file before")
    with VideoWriter(path, *SIZE) as writer:
        for index in range(30):
            writer.write(numbered(index))
        assert path.read_bytes() == b"the file before"
    assert numbers(read_frames(path)) == list(range(30))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
@pytest.mark.parametrize("num_frames", [0, 30])
def test_nothing_is_left_after_an_exception(tmp_path, codec, num_frames):
    source = write_sound(tmp_path / "source.mkv", codec, num_frames=50)
    with pytest.raises(ZeroDivisionError), VideoWriter(tmp_path / "out.mp4", *SIZE, audio_path=source) as writer:
        for index in range(num_frames):
            writer.write(numbered(index))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [source]
    assert str(source) not in open_files()  # although `writer` still lives


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
@pytest.mark.parametrize("num_frames", [2, 60])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_full_disk(tmp_path, suffix, num_frames):
    path = tmp_path / f"out.{suffix}"
    writer = VideoWriter(path, *SIZE)
    assert not writer.partial_path.exists()
    writer.partial_path.symlink_to("/dev/full")
    noise = np.random.default_rng(0).integers(0, 256, (num_frames, SIZE[1], SIZE[0], 3), np.uint8)
    with pytest.raises(UserError, match=f"{path}.*([Nn]o space left|disk is full)"), writer:
        for frame in noise:
            writer.write(frame)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_while_muxing(tmp_path, monkeypatch):
    class Full:
        def __init__(self, container):
            self.container = container

        def mux(self, packets):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            self.container.close()

    with pytest.raises(UserError, match="No space left"), VideoWriter(tmp_path / "out.mp4", *SIZE) as writer:
        writer._container = Full(writer._container)
        writer.write(numbered(0))
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_gone(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UserError, match=r"out\.mp4"), VideoWriter(folder / "out.mp4", *SIZE) as writer:
        writer.write(numbered(0))
        shutil.rmtree(folder)
