"""Damaged media: a few cases of tests/tools/fuzz.py, and the defects that earlier runs found."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import first_frame_time, probe, read_frames
from tests.support.media import text_file, tone_wav
from tests.support.numbered_media import SIZE, click_time, open_files, write_audio, write_numbered, write_with
from tests.tools.fuzz import PASSED, READERS, SEEDS, damage, make_seeds, read_one, run, table
from utils.errors import GapError, LimitError, UserError
from utils.limits import DEFAULT_LIMITS, NO_LIMITS, Limits

MAX_SIDE, MAX_GAP_S = DEFAULT_LIMITS.max_side_px, DEFAULT_LIMITS.max_gap_s


@pytest.mark.slow
def test_no_defect():
    results = list(run(range(60), seed=0))
    assert sorted(result.case for result in results) == list(range(60))
    assert {result.kind for result in results} == set(SEEDS)
    assert {result.outcome for result in results} == PASSED, table(results)
    assert "sum" in table(results)


@pytest.mark.slow
def test_undamaged_files_are_read_and_damage_is_deterministic(tmp_path):
    seeds = make_seeds()
    assert make_seeds() == seeds
    for name, data in seeds.items():
        (tmp_path / name).write_bytes(data)
        for read in READERS if SEEDS[name][0] else READERS[2:]:
            read(tmp_path / name)
        (tmp_path / name).unlink()
    cases = [damage(case, 1, seeds) for case in range(30)]
    assert cases == [damage(case, 1, seeds) for case in range(30)]
    assert sum(data != seeds[name] for name, data, _ in cases) > 25


def test_defects_are_reported(monkeypatch, tmp_path):
    def breaks(path):
        raise ZeroDivisionError

    monkeypatch.setattr("tests.tools.fuzz.READERS", [breaks])
    monkeypatch.setattr("tests.tools.fuzz.tempfile.tempdir", str(tmp_path))
    result = read_one(3, 0)
    assert result.outcome == "error" and "ZeroDivisionError" in result.detail
    assert len(list(tmp_path.glob("fuzz_*/*"))) == 1


# --- fixed defects ----------------------------------------------------------------------------------------


def test_title_in_another_encoding(tmp_path):
    path = write_audio(tmp_path / "clip.mp4", "aac", num_frames=50)
    data = path.read_bytes()
    assert data.count(b"iso2") == 1  # FFmpeg reads it as metadata
    path.write_bytes(data.replace(b"iso2", b"\xe9so2"))
    assert probe(path).width == SIZE[0]
    assert len(list(read_frames(path, 10, 13))) == 3
    assert len(load_audio(path)) > 16000
    assert click_time(write_with(tmp_path / "out.mp4", 50, audio_paths=[path])) == pytest.approx(0.5, abs=0.025)


def test_text_file_has_no_first_frame(tmp_path):
    assert first_frame_time(text_file(tmp_path / "clip.mp4")) is None


def audio_with_unknown_codec(path: Path) -> Path:
    """A WAV whose codec tag is not assigned."""
    tone_wav(path, 1)
    data = bytearray(path.read_bytes())
    data[20:22] = b"\xee\xee"
    path.write_bytes(data)
    return path


def audio_with_rate(path: Path, rate: int) -> Path:
    tone_wav(path, 1)
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", rate)
    path.write_bytes(data)
    return path


def audio_without_packets(path: Path) -> Path:
    """A transport stream that declares an AAC track without packets."""
    write_audio(path, "aac", num_frames=50)
    data = path.read_bytes()
    packets = [data[start : start + 188] for start in range(0, len(data), 188)]
    path.write_bytes(b"".join(packet for packet in packets if packet[1:3] not in (b"\x41\x01", b"\x01\x01")))
    return path


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (audio_with_unknown_codec, "audio.wav", "decode"),
        (audio_without_packets, "audio.ts", "."),
        (lambda path: audio_with_rate(path, 1), "audio.wav", "."),  # 1 s becomes 4 h
    ],
)
def test_audio_that_cannot_be_read(tmp_path, make, name, words):
    path = make(tmp_path / name)
    with pytest.raises(UserError, match=words):
        load_audio(path)
    with pytest.raises(UserError, match=str(path)):
        write_with(tmp_path / "out.mp4", 1, audio_paths=[path])
    assert not any(str(tmp_path) in name for name in open_files())
    assert list(tmp_path.iterdir()) == [path]


def test_audio_that_changes_its_sample_rate(tmp_path):
    path = tmp_path / "audio.mp2"
    halves = [write_audio(tmp_path / f"{rate}.mp2", "mp2", rate) for rate in (44100, 48000)]
    path.write_bytes(b"".join(half.read_bytes() for half in halves))
    assert len(load_audio(path)) / 16000 == pytest.approx(4, abs=0.2)
    copy = write_with(tmp_path / "out.mp4", 110, audio_paths=[path])
    assert len(load_audio(copy)) / 16000 == pytest.approx(4, abs=0.2)


def test_damaged_packet_of_copied_audio_is_skipped(tmp_path):
    path = write_audio(tmp_path / "audio.ts", "aac", num_frames=50)
    parts = path.read_bytes().split(b"\xff\xf1")  # the header of each packet
    path.write_bytes(b"\xff\xf1".join(parts[:9]) + b"\0\0" + b"\xff\xf1".join(parts[9:]))
    out = write_with(tmp_path / "out.mp4", 50, audio_paths=[path])
    assert len(list(read_frames(out))) == 50
    assert click_time(out) == pytest.approx(0.5, abs=0.025)


def test_audio_that_starts_long_after_the_video(tmp_path):
    path = write_audio(tmp_path / "clip.mkv", "pcm_s16le", num_frames=50, audio_start=1.5)
    assert len(load_audio(path)) / 16000 == pytest.approx(3.5, abs=0.01)
    with pytest.raises(LimitError, match=f"{path}.*starts 2 s after"):
        load_audio(path, Limits(max_delay_s=1))


def test_too_large_frames(tmp_path):
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = MAX_SIDE + 16, 16, "yuvj420p"
        image = np.zeros((16, MAX_SIDE + 16, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    for read in (probe, lambda path: next(read_frames(path))):
        with pytest.raises(LimitError, match=f"{path}: .*at most 8192 pixels.*8208 x 16"):
            read(path)


def test_limits_can_be_disabled(tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", 3, times=np.array([0, 1, 3]))
    with pytest.raises(LimitError, match=r"at most 1 pixels a side"):
        probe(path, Limits(1, 1, 1, 1))
    with pytest.raises(GapError, match=r"at most 1 s between two frames"):
        list(read_frames(path, limits=Limits(max_gap_s=1)))
    assert probe(path, NO_LIMITS).width == SIZE[0]
    assert len(list(read_frames(path, limits=NO_LIMITS))) > 3 * 25


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_gaps_between_frames(tmp_path, suffix):
    short = write_numbered(tmp_path / f"short.{suffix}", 3, times=np.array([0, 0.04, MAX_GAP_S]))
    # in mp4 the last frame has the duration of the previous one
    assert 25 * MAX_GAP_S <= len(list(read_frames(short))) <= 50 * MAX_GAP_S
    long = write_numbered(tmp_path / f"long.{suffix}", 4, times=np.array([0, 0.04, 0.08, 7200]))
    frames = read_frames(long)
    next(frames)
    with pytest.raises(GapError, match=f"{long}: .*at most 60 s between two frames, found 7200 s after 0.08 s"):
        list(frames)


def test_frame_with_a_duration_of_days(tmp_path):
    path = write_numbered(tmp_path / "clip.avi", 1, codec="mpeg4")
    data = bytearray(path.read_bytes())
    header = data.index(b"vids") + 20  # the duration of a frame is scale / rate seconds
    data[header : header + 8] = struct.pack("<II", 1_000_000, 1)
    path.write_bytes(data)
    assert probe(path).fps == 25
    assert len(list(read_frames(path))) <= 25 * MAX_GAP_S
    assert Fraction(probe(path).duration_s) >= 0
