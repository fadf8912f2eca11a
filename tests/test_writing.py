"""writing: files of VideoWriter, read back with PyAV and by their numbered frames."""

import errno
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from made_media import text_file, tone_wav
from numbered_media import SIZE, click_time, numbered, numbers, open_files, write_numbered, write_sound, write_with

from data_processing.audio import load_audio
from data_processing.errors import UserError
from data_processing.video import read_frames
from data_processing.writing import VideoWriter, check_writable


def test_name_that_looks_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tone_wav(Path("say:hello.wav"), 0.5)
    path = write_with(Path("take:1.mp4"), 3, audio_path=Path("say:hello.wav"))
    with av.open(str(path.absolute())) as container:
        assert container.streams.audio
    assert numbers(read_frames(path)) == [0, 1, 2]


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
