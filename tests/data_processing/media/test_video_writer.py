"""Files of VideoWriter, read back with PyAV; numbered frames show what is where."""

import errno
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace

from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import probe, read_frames
from data_processing.media.video_writer import VideoWriter, check_writable, concatenate_videos
from tests.support.media import tone_wav, truncated_mp4
from tests.support.numbered_media import (
    SIZE,
    decoded,
    numbered,
    numbers,
    open_files,
    write_audio,
    write_with,
)
from utils.errors import MediaError, OutputError
from utils.files import partial_path


def test_file_name_that_looks_like_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tone_wav(Path("say:hello.wav"), 0.5)
    path = write_with(Path("take:1.mp4"), 3, audio_paths=[Path("say:hello.wav")])
    with av.open(str(path.absolute())) as container:
        assert container.streams.audio
    assert numbers(read_frames(path)) == [0, 1, 2]


def test_key_frame_interval(tmp_path):
    path = write_with(tmp_path / "out.mp4", 60, key_frame_interval=10)
    with av.open(str(path)) as container:
        key_frames = [index for index, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert np.diff([*key_frames, 60]).max() <= 10  # by its own choice the encoder has gaps of 16


def test_check_writable(tmp_path):
    check_writable(tmp_path / "out.mp4")
    check_writable(tmp_path / "OUT.MOV")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder.mp4").mkdir()
    for path, words in [
        (tmp_path / "folder.mp4", "is a folder, not a file name"),
        (tmp_path / "out.wmv", "must end in .mp4, .mov or .mkv"),
        (tmp_path / "absent" / "out.mp4", "no such folder"),
        (Path("/proc/out.mp4"), "cannot write into /proc"),
    ]:
        with pytest.raises(OutputError, match=words):
            check_writable(path)


def test_outputs_that_cannot_be_opened(tmp_path):
    loop, lost = tmp_path / "loop.mp4", tmp_path / "lost.mp4"
    loop.symlink_to(loop)
    lost.symlink_to(tmp_path / "absent" / "out.mp4")
    for path, words in [
        (loop, "the symbolic link points to itself"),
        (lost, f"no such folder: {tmp_path}/absent"),
        (tmp_path / ("x" * 252 + ".mp4"), "File name too long"),
    ]:
        with pytest.raises(OutputError, match=f"{path}: .*{words}"):
            check_writable(path)
        with pytest.raises(OutputError, match=f"{path}: cannot be written"):
            VideoWriter(path, *SIZE)


@pytest.mark.parametrize("name", ["x" * 251 + ".mp4", "口" * 83 + "yz.mkv"])
def test_longest_name(tmp_path, name):
    check_writable(tmp_path / name)
    write_with(tmp_path / name, 2)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("exists", [True, False])
def test_symbolic_link_stays(tmp_path, exists):
    store = tmp_path / "store"
    store.mkdir()
    if exists:
        (store / "video").write_bytes(b"old")
    (tmp_path / "out.mkv").symlink_to("store/video")
    check_writable(tmp_path / "out.mkv")
    write_with(tmp_path / "out.mkv", 3)
    assert (tmp_path / "out.mkv").readlink() == Path("store/video")
    assert numbers(read_frames(store / "video")) == [0, 1, 2]
    with av.open(str(store / "video")) as container:
        assert container.format.name == "matroska,webm"
    assert [path.name for path in store.iterdir()] == ["video"]


def test_colours_survive(tmp_path):
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


def test_odd_size_is_padded_by_replication(tmp_path):
    path = tmp_path / "clip.mp4"
    image = np.zeros((47, 63, 3), np.uint8)
    image[:, 31:] = 200
    with VideoWriter(path, 63, 47) as writer:
        writer.write(image)
    frame = next(read_frames(path)).astype(int)
    assert frame.shape == (48, 64, 3)
    assert np.abs(frame[:47, :63] - image).mean() < 3
    assert np.abs(frame[:, 40:] - 200).max() < 8


def test_frames_of_another_shape_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="expected"), VideoWriter(tmp_path / "clip.mp4", *SIZE) as writer:
        writer.write(np.zeros((SIZE[0], SIZE[1], 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_output_appears_only_when_complete(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"the previous file")
    with VideoWriter(path, *SIZE) as writer:
        for index in range(30):
            writer.write(numbered(index))
        assert path.read_bytes() == b"the previous file"
    assert numbers(read_frames(path)) == list(range(30))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
@pytest.mark.parametrize("num_frames", [0, 30])
def test_no_file_is_left_after_an_exception(tmp_path, codec, num_frames):
    source = write_audio(tmp_path / "source.mkv", codec, num_frames=50)
    with pytest.raises(ZeroDivisionError), VideoWriter(tmp_path / "out.mp4", *SIZE, audio_paths=[source]) as writer:
        for index in range(num_frames):
            writer.write(numbered(index))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [source]
    assert str(source) not in open_files()  # although `writer` still exists


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
@pytest.mark.parametrize("num_frames", [2, 60])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_full_disk(tmp_path, suffix, num_frames):
    path = tmp_path / f"out.{suffix}"
    writer = VideoWriter(path, *SIZE)
    partial_path(path).unlink()
    partial_path(path).symlink_to("/dev/full")
    noise = np.random.default_rng(0).integers(0, 256, (num_frames, SIZE[1], SIZE[0], 3), np.uint8)
    with pytest.raises(OutputError, match=f"{path}.*the disk is full"), writer:
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

    with pytest.raises(OutputError, match="the disk is full"), VideoWriter(tmp_path / "out.mp4", *SIZE) as writer:
        writer._container = Full(writer._container)
        writer.write(numbered(0))
    assert list(tmp_path.iterdir()) == []


def test_folder_deleted_while_writing(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OutputError, match=r"out\.mp4"), VideoWriter(folder / "out.mp4", *SIZE) as writer:
        writer.write(numbered(0))
        shutil.rmtree(folder)


# --- concatenation ------------------------------------------------------------------------------------------


def write_moving(path: Path, first: int, num_frames: int, **options) -> Path:
    """A gradient that moves over noise, which x264 encodes with B-frames."""
    noise = np.random.default_rng(first).integers(0, 30, (SIZE[1], SIZE[0], 3))
    x = np.arange(SIZE[0])[None, :, None]
    with VideoWriter(path, *SIZE, **options) as writer:
        for index in range(first, first + num_frames):
            writer.write((100 + 100 * np.sin((x - 3 * index) / 9) + noise).astype(np.uint8))
    return path


@pytest.mark.parametrize("fps", [25, Fraction(24000, 1001), Fraction(617, 50)])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_concatenated_segments_keep_their_frames(tmp_path, suffix, fps):
    lengths, first = [37, 1, 1, 50, 3], 0
    segments = []
    for length in lengths:
        segments.append(write_moving(tmp_path / f"{first}.mp4", first, length, fps=fps))
        first += length
    tone, output = tone_wav(tmp_path / "tone.wav", 20), tmp_path / f"out.{suffix}"
    concatenate_videos(segments, output, [tone])
    with av.open(str(segments[0])) as container:
        assert PictureType.B in {frame.pict_type for frame in container.decode(video=0)}
    times, images = zip(*decoded(output), strict=True)
    assert list(images) == [image for segment in segments for _, image in decoded(segment)]
    rounding = Fraction(1, 2000) if suffix == "mkv" else 0  # Matroska counts milliseconds
    assert all(abs(time - index / Fraction(fps)) <= rounding for index, time in enumerate(times))
    assert len(load_audio(output)) / 16000 == pytest.approx(float(92 / fps), abs=0.065)
    assert set(tmp_path.iterdir()) == {*segments, tone, output}
    # the properties that players use equal those of a file written at once
    expected = write_moving(tmp_path / f"expected.{suffix}", 0, 92, fps=fps, audio_paths=[tone])
    assert probe(output) == probe(expected)
    with av.open(str(output)) as concatenated, av.open(str(expected)) as plain:
        for name in ("average_rate", "duration", "frames", "sample_aspect_ratio"):
            assert getattr(concatenated.streams.video[0], name) == getattr(plain.streams.video[0], name), name
        for name in ("color_range", "colorspace", "color_primaries", "color_trc", "has_b_frames", "pix_fmt"):
            contexts = (file.streams.video[0].codec_context for file in (concatenated, plain))
            assert len({getattr(context, name) for context in contexts}) == 1, name
        assert [bytes(packet) for packet in concatenated.demux(audio=0)] == [
            bytes(packet) for packet in plain.demux(audio=0)
        ]


def test_concatenated_hevc_is_tagged_as_quicktime_needs_it(tmp_path):
    segment = write_moving(tmp_path / "segment.mp4", 0, 5, codec="hevc")
    concatenate_videos([segment], tmp_path / "out.mp4")
    for path in (segment, tmp_path / "out.mp4"):
        assert b"hvc1" in path.read_bytes()
        assert b"hev1" not in path.read_bytes()


def test_audio_and_video_are_interleaved_after_concatenation(tmp_path):
    segment = write_moving(tmp_path / "segment.mp4", 0, 25)
    concatenate_videos([segment] * 4, tmp_path / "out.mp4", [tone_wav(tmp_path / "tone.wav", 5)])
    with av.open(str(tmp_path / "out.mp4")) as container:
        packets = [(p.pos, p.stream.type, float(p.dts * p.time_base)) for p in container.demux() if p.size]
    times = {"video": 0.0, "audio": 0.0}
    for _, kind, time in sorted(packets):
        times[kind] = time
        assert abs(times["video"] - times["audio"]) < 1


def test_one_segment_repeated(tmp_path):
    segment = write_moving(tmp_path / "segment.mp4", 0, 12, pixel_aspect=Fraction(4, 3))
    concatenate_videos([segment] * 30, tmp_path / "out.mp4")
    shown = decoded(tmp_path / "out.mp4")
    assert [image for _, image in shown] == 30 * [image for _, image in decoded(segment)]
    assert [time for time, _ in shown] == [Fraction(index, 25) for index in range(360)]
    assert probe(tmp_path / "out.mp4").pixel_aspect == Fraction(4, 3)
    # in the middle, reached by seeking
    assert decoded(segment)[7][1] == shown[127][1]
    assert np.array_equal(
        *(next(read_frames(path, at)) for path, at in [(segment, 7), (tmp_path / "out.mp4", 127)])
    )


def test_segments_that_cannot_be_concatenated(tmp_path):
    segment = write_with(tmp_path / "segment.mp4", 3)
    others = {
        "rate.mp4": {"fps": 30},
        "crf.mp4": {"crf": 20},
        "aspect.mp4": {"pixel_aspect": Fraction(4, 3)},
    }
    others = [write_with(tmp_path / name, 3, **options) for name, options in others.items()]
    others += [truncated_mp4(tmp_path / "truncated.mp4"), tmp_path / "missing.mp4"]
    others += [write_audio(tmp_path / "audio.mp4", "aac")]
    for other in others:
        with pytest.raises(MediaError, match=str(other)):
            concatenate_videos([segment, other], tmp_path / "out.mp4")
        assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "out"))]
    assert not any(str(tmp_path) in name for name in open_files())


# --- codecs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["hevc", "av1"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_other_codecs(tmp_path, codec, suffix, capfd):
    """Lossless at crf 0, about like H.264 at 16, concatenated without a loss; the encoders print nothing."""
    lossless = write_moving(tmp_path / f"lossless.{suffix}", 0, 6, codec=codec, crf=0)
    expected = write_moving(tmp_path / f"h264.{suffix}", 0, 6, crf=0)
    assert [image for _, image in decoded(lossless)] == [image for _, image in decoded(expected)]
    parts = [(0, 9), (9, 4)]
    segments = [write_moving(tmp_path / f"{first}.mp4", first, count, codec=codec) for first, count in parts]
    output = tmp_path / f"out.{suffix}"
    concatenate_videos(segments, output)
    with av.open(str(output)) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == codec
    images = [image for _, image in decoded(output)]
    assert images == [image for segment in segments for _, image in decoded(segment)]
    truth = write_moving(tmp_path / "truth.mkv", 0, 13, crf=0)
    pairs = zip(read_frames(output), read_frames(truth), strict=True)
    assert np.mean([np.abs(frame.astype(int) - true).mean() for frame, true in pairs]) < 5
    assert capfd.readouterr() == ("", "")
