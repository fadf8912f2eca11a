"""writing: files of VideoWriter, read back with PyAV and by their numbered frames."""

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
from made_media import text_file, tone_wav, truncated_mp4
from numbered_media import (
    SIZE,
    click_time,
    decoded,
    numbered,
    numbers,
    open_files,
    write_numbered,
    write_sound,
    write_with,
)

from data_processing import soundtrack
from data_processing.audio import load_audio
from data_processing.errors import UserError
from data_processing.soundtrack import check_sounds
from data_processing.video import probe, read_frames
from data_processing.writing import VideoWriter, check_writable, join


def test_name_that_looks_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tone_wav(Path("say:hello.wav"), 0.5)
    path = write_with(Path("take:1.mp4"), 3, sounds=[Path("say:hello.wav")])
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

    original, copied = packets(source), packets(write_with(tmp_path / "out.mp4", 50, sounds=[source]))
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
    path = write_with(tmp_path / f"out.{suffix}", 40, sounds=[source])  # 1.6 of the 2 s
    assert click_time(path) == pytest.approx(expected, abs=0.025)
    assert len(load_audio(path)) / 16000 == pytest.approx(1.6, abs=0.065)  # a packet is up to 64 ms
    assert numbers(read_frames(path)) == list(range(40))
    assert not list(tmp_path.glob(".*"))


def test_sound_shorter_than_picture(tmp_path):
    path = write_with(tmp_path / "out.mp4", 60, sounds=[tone_wav(tmp_path / "tone.wav", 1.0)])
    assert len(list(read_frames(path))) == 60
    assert len(load_audio(path)) / 16000 == pytest.approx(1.0, abs=0.065)


def test_damaged_sound_is_used_as_far_as_it_goes(tmp_path):
    source = write_sound(tmp_path / "sound.wav", "adpcm_ima_wav")  # whose blocks have headers to be damaged
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2] + np.random.default_rng(0).bytes(len(data) // 2))
    with pytest.raises(av.error.InvalidDataError), av.open(str(source)) as container:
        list(container.decode(audio=0))
    path = write_with(tmp_path / "out.mp4", 40, sounds=[source])
    assert len(list(read_frames(path))) == 40
    assert click_time(path) == pytest.approx(0.5, abs=0.025)


def unusable_sound(kind: str, folder: Path) -> Path:
    sound = folder / "sound.mp4"
    if kind == "text":
        text_file(sound)
    elif kind == "no sound":
        write_numbered(sound, 3)
    return sound


def write_sine(path: Path, hertz: float, amplitude: float, seconds: float, rate: int = 16000) -> Path:
    """Mono 16 bit PCM."""
    samples = amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    frame = av.AudioFrame.from_ndarray(np.rint(samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
    frame.sample_rate = rate
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def amplitude_of(waveform: np.ndarray, hertz: float) -> float:
    """Of a sine in (N,) samples at 16 kHz, N a whole number of its periods."""
    return 2 * abs(np.mean(waveform * np.exp(-2j * np.pi * hertz * np.arange(len(waveform)) / 16000)))


def test_sounds_are_added_as_they_are(tmp_path):
    sines = [(440, 0.3, 1.0, 16000), (1000, 0.2, 2.5, 44100), (1500, 0.1, 2.0, 48000)]
    sounds = [write_sine(tmp_path / f"{sine[0]}.wav", *sine) for sine in sines]
    path = write_with(tmp_path / "out.mp4", 75, sounds=sounds)  # 3 s
    with av.open(str(path)) as container:
        (track,) = container.streams.audio
        assert (track.codec_context.name, track.rate, track.channels) == ("aac", 48000, 2)
        left, right = np.concatenate([frame.to_ndarray() for frame in container.decode(track)], axis=1)
    assert np.abs(left - right).max() < 0.01
    waveform = load_audio(path)
    assert len(waveform) / 16000 == pytest.approx(2.5, abs=0.025)
    for start, heard in [(0.2, (440, 1000, 1500)), (1.2, (1000, 1500)), (2.1, (1000,))]:
        part = waveform[round(start * 16000) :][:4800]
        for hertz, amplitude, *_ in sines:
            expected = amplitude if hertz in heard else 0
            assert amplitude_of(part, hertz) == pytest.approx(expected, abs=0.005), (start, hertz)


def test_the_sum_of_sounds_is_cut_off_at_full_scale(tmp_path):
    sounds = [write_sine(tmp_path / f"{name}.wav", 250, 0.8, 1.0) for name in "ab"]
    waveform = load_audio(write_with(tmp_path / "out.mkv", 25, sounds=sounds))[3200:12800]
    cut_off = np.clip(1.6 * np.sin(2 * np.pi * 250 * np.arange(16000) / 16000), -1, 1)
    first, third = ([amplitude_of(sound, hertz) for sound in (waveform, cut_off)] for hertz in (250, 750))
    assert first[0] == pytest.approx(first[1], rel=0.1)  # the AAC encoder turns down what is so near full scale
    assert third[0] / first[0] == pytest.approx(third[1] / first[1], rel=0.03)


def test_sounds_are_mixed_each_on_its_own_time(tmp_path):
    late = write_sound(tmp_path / "late.mkv", "pcm_s16le", num_frames=50, audio_start=0.3)
    early = write_sound(tmp_path / "early.ts", "aac", num_frames=50, video_start=0.2)
    path = write_with(
        tmp_path / "out.mp4", 40, sounds=[late, early, write_sound(tmp_path / "own.mp3", "libmp3lame")]
    )
    loud = np.flatnonzero(np.abs(load_audio(path)) > 0.2) / 16000
    heard = loud[np.diff(loud, prepend=-1) > 0.1]
    assert heard == pytest.approx([0.3, 0.5, 0.8], abs=0.025)


def test_long_sounds_are_mixed_as_the_picture_goes(tmp_path, monkeypatch):
    sounds = [write_sine(tmp_path / f"{hertz}.wav", hertz, 0.3, 60) for hertz in (440, 1000)]
    read, plain = [], soundtrack.resampled
    monkeypatch.setattr(
        soundtrack, "resampled", lambda *args: (read.append(part.samples) or part for part in plain(*args))
    )
    write_with(tmp_path / "out.mp4", 5, sounds=sounds)
    assert 0 < sum(read) < 2 * 48000


@pytest.mark.parametrize("kind", ["text", "missing", "no sound"])
def test_one_of_several_sounds_is_unusable(tmp_path, kind):
    good, bad = tone_wav(tmp_path / "good.wav", 1.0), unusable_sound(kind, tmp_path)
    for check in (
        lambda: VideoWriter(tmp_path / "out.mp4", *SIZE, sounds=[good, bad]),
        lambda: check_sounds([bad]),
    ):
        with pytest.raises(UserError, match=str(bad)) as error:
            check()
        assert str(good) not in str(error.value)
    assert set(tmp_path.iterdir()) <= {good, bad}
    assert not any(str(tmp_path) in name for name in open_files())


@pytest.mark.parametrize("kind", ["text", "missing", "no sound"])
def test_unusable_sound(tmp_path, kind):
    sound = unusable_sound(kind, tmp_path)
    with pytest.raises(UserError, match=str(sound)):
        VideoWriter(tmp_path / "out.mp4", *SIZE, sounds=[sound])
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
    with pytest.raises(ZeroDivisionError), VideoWriter(tmp_path / "out.mp4", *SIZE, sounds=[source]) as writer:
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
    with pytest.raises(UserError, match=f"{path}.*the disk is full"), writer:
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

    with pytest.raises(UserError, match="the disk is full"), VideoWriter(tmp_path / "out.mp4", *SIZE) as writer:
        writer._container = Full(writer._container)
        writer.write(numbered(0))
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_gone(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UserError, match=r"out\.mp4"), VideoWriter(folder / "out.mp4", *SIZE) as writer:
        writer.write(numbered(0))
        shutil.rmtree(folder)


# --- joining ------------------------------------------------------------------------------------------------


def write_moving(path: Path, first: int, num_frames: int, **options) -> Path:
    """A gradient that moves over noise, which x264 predicts from both sides."""
    noise = np.random.default_rng(first).integers(0, 30, (SIZE[1], SIZE[0], 3))
    x = np.arange(SIZE[0])[None, :, None]
    with VideoWriter(path, *SIZE, **options) as writer:
        for index in range(first, first + num_frames):
            writer.write((100 + 100 * np.sin((x - 3 * index) / 9) + noise).astype(np.uint8))
    return path


@pytest.mark.parametrize("fps", [25, Fraction(24000, 1001), Fraction(617, 50)])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_joined_pieces_show_their_frames_one_after_the_other(tmp_path, suffix, fps):
    lengths, first = [37, 1, 1, 50, 3], 0
    pieces = []
    for length in lengths:
        pieces.append(write_moving(tmp_path / f"{first}.mp4", first, length, fps=fps))
        first += length
    tone, output = tone_wav(tmp_path / "tone.wav", 20), tmp_path / f"out.{suffix}"
    join(pieces, output, [tone])
    with av.open(str(pieces[0])) as container:
        assert PictureType.B in {frame.pict_type for frame in container.decode(video=0)}
    times, pictures = zip(*decoded(output), strict=True)
    assert list(pictures) == [picture for piece in pieces for _, picture in decoded(piece)]
    rounding = Fraction(1, 2000) if suffix == "mkv" else 0  # Matroska counts milliseconds
    assert all(abs(time - index / Fraction(fps)) <= rounding for index, time in enumerate(times))
    assert len(load_audio(output)) / 16000 == pytest.approx(float(92 / fps), abs=0.065)
    assert set(tmp_path.iterdir()) == {*pieces, tone, output}
    # what players go by is the same as of a file written at once
    whole = write_moving(tmp_path / f"whole.{suffix}", 0, 92, fps=fps, sounds=[tone])
    assert probe(output) == probe(whole)
    with av.open(str(output)) as joined, av.open(str(whole)) as plain:
        for name in ("average_rate", "duration", "frames", "sample_aspect_ratio"):
            assert getattr(joined.streams.video[0], name) == getattr(plain.streams.video[0], name), name
        for name in ("color_range", "colorspace", "color_primaries", "color_trc", "has_b_frames", "pix_fmt"):
            contexts = (file.streams.video[0].codec_context for file in (joined, plain))
            assert len({getattr(context, name) for context in contexts}) == 1, name
        assert [bytes(packet) for packet in joined.demux(audio=0)] == [
            bytes(packet) for packet in plain.demux(audio=0)
        ]


def test_sound_and_picture_are_interleaved_when_joined(tmp_path):
    piece = write_moving(tmp_path / "piece.mp4", 0, 25)
    join([piece] * 4, tmp_path / "out.mp4", [tone_wav(tmp_path / "tone.wav", 5)])
    with av.open(str(tmp_path / "out.mp4")) as container:
        packets = [(p.pos, p.stream.type, float(p.dts * p.time_base)) for p in container.demux() if p.size]
    times = {"video": 0.0, "audio": 0.0}
    for _, kind, time in sorted(packets):
        times[kind] = time
        assert abs(times["video"] - times["audio"]) < 1


def test_a_piece_many_times(tmp_path):
    piece = write_moving(tmp_path / "piece.mp4", 0, 12, pixel_aspect=Fraction(4, 3))
    join([piece] * 30, tmp_path / "out.mp4")
    shown = decoded(tmp_path / "out.mp4")
    assert [picture for _, picture in shown] == 30 * [picture for _, picture in decoded(piece)]
    assert [time for time, _ in shown] == [Fraction(index, 25) for index in range(360)]
    assert probe(tmp_path / "out.mp4").pixel_aspect == Fraction(4, 3)
    # in the middle of it, by seeking
    assert decoded(piece)[7][1] == shown[127][1]
    assert np.array_equal(*(next(read_frames(path, at)) for path, at in [(piece, 7), (tmp_path / "out.mp4", 127)]))


def test_pieces_that_cannot_be_joined(tmp_path):
    piece = write_with(tmp_path / "piece.mp4", 3)
    others = {
        "rate.mp4": {"fps": 30},
        "crf.mp4": {"crf": 20},
        "aspect.mp4": {"pixel_aspect": Fraction(4, 3)},
    }
    others = [write_with(tmp_path / name, 3, **options) for name, options in others.items()]
    others += [truncated_mp4(tmp_path / "truncated.mp4"), tmp_path / "missing.mp4"]
    others += [write_sound(tmp_path / "sound.mp4", "aac")]
    for other in others:
        with pytest.raises(UserError, match=str(other)):
            join([piece, other], tmp_path / "out.mp4")
        assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "out"))]
    assert not any(str(tmp_path) in name for name in open_files())
