"""Damaged media: a short run of -m tests.tools.fuzz, and every defect that long runs found."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import first_frame_time, probe, read_frames
from tests.support.media import text_file, tone_wav
from tests.support.numbered_media import SIZE, click_time, open_files, write_numbered, write_sound, write_with
from tests.tools.fuzz import FINE, SEEDS, WAYS, damage, make_seeds, read_one, run, table
from utils.errors import TruncatedMediaError, UserError
from utils.limits import limits


def test_no_defect():
    results = list(run(range(60), seed=0))
    assert sorted(result.case for result in results) == list(range(60))
    assert {result.kind for result in results} == set(SEEDS)
    assert {result.outcome for result in results} == FINE, table(results)
    assert "sum" in table(results)


def test_undamaged_files_are_read_and_damage_is_repeated(tmp_path):
    seeds = make_seeds()
    assert make_seeds() == seeds
    for name, data in seeds.items():
        (tmp_path / name).write_bytes(data)
        for way in WAYS if SEEDS[name][0] else WAYS[2:]:
            way(tmp_path / name)
        (tmp_path / name).unlink()
    cases = [damage(case, 1, seeds) for case in range(30)]
    assert cases == [damage(case, 1, seeds) for case in range(30)]
    assert sum(data != seeds[name] for name, data, _ in cases) > 25


def test_defects_are_told(monkeypatch, tmp_path):
    def breaks(path):
        raise ZeroDivisionError

    monkeypatch.setattr("tests.tools.fuzz.WAYS", [breaks])
    monkeypatch.setattr("tests.tools.fuzz.tempfile.tempdir", str(tmp_path))
    result = read_one(3, 0)
    assert result.outcome == "error" and "ZeroDivisionError" in result.detail
    assert len(list(tmp_path.glob("fuzz_*/*"))) == 1


# --- what was mended ----------------------------------------------------------------------------------------


def test_a_title_in_another_encoding(tmp_path):
    path = write_sound(tmp_path / "clip.mp4", "aac", num_frames=50)
    whole = path.read_bytes()
    assert whole.count(b"iso2") == 1  # of the words that ffmpeg reads as metadata
    path.write_bytes(whole.replace(b"iso2", b"\xe9so2"))
    assert probe(path).width == SIZE[0]
    assert len(list(read_frames(path, 10, 13))) == 3
    assert len(load_audio(path)) > 16000
    assert click_time(write_with(tmp_path / "out.mp4", 50, audio_paths=[path])) == pytest.approx(0.5, abs=0.025)


def test_what_is_no_media_file_has_no_first_frame(tmp_path):
    assert first_frame_time(text_file(tmp_path / "clip.mp4")) is None


def sound_of_unknown_codec(path: Path) -> Path:
    """Its name for the codec is one that nobody has heard of."""
    tone_wav(path, 1)
    whole = bytearray(path.read_bytes())
    whole[20:22] = b"\xee\xee"
    path.write_bytes(whole)
    return path


def sound_of_rate(path: Path, rate: int) -> Path:
    tone_wav(path, 1)
    whole = bytearray(path.read_bytes())
    whole[24:28] = struct.pack("<I", rate)
    path.write_bytes(whole)
    return path


def sound_without_packets(path: Path) -> Path:
    """A transport stream that announces AAC, and nothing of it comes."""
    write_sound(path, "aac", num_frames=50)
    whole = path.read_bytes()
    packets = [whole[start : start + 188] for start in range(0, len(whole), 188)]
    path.write_bytes(b"".join(packet for packet in packets if packet[1:3] not in (b"\x41\x01", b"\x01\x01")))
    return path


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (sound_of_unknown_codec, "sound.wav", "decode"),
        (sound_without_packets, "sound.ts", "."),
        (lambda path: sound_of_rate(path, 1), "sound.wav", "."),  # 4 hours of 1 s
    ],
)
def test_sound_that_cannot_be_used(tmp_path, make, name, words):
    path = make(tmp_path / name)
    with pytest.raises(UserError, match=words):
        load_audio(path)
    with pytest.raises(UserError, match=str(path)):
        write_with(tmp_path / "out.mp4", 1, audio_paths=[path])
    assert not any(str(tmp_path) in name for name in open_files())
    assert list(tmp_path.iterdir()) == [path]


def test_sound_that_changes_its_rate(tmp_path):
    path = tmp_path / "sound.mp2"
    halves = [write_sound(tmp_path / f"{rate}.mp2", "mp2", rate) for rate in (44100, 48000)]
    path.write_bytes(b"".join(half.read_bytes() for half in halves))
    assert len(load_audio(path)) / 16000 == pytest.approx(4, abs=0.2)
    copy = write_with(tmp_path / "out.mp4", 110, audio_paths=[path])
    assert len(load_audio(copy)) / 16000 == pytest.approx(4, abs=0.2)


def test_a_damaged_packet_of_copied_sound_is_left_out(tmp_path):
    path = write_sound(tmp_path / "sound.ts", "aac", num_frames=50)
    parts = path.read_bytes().split(b"\xff\xf1")  # as every packet begins
    path.write_bytes(b"\xff\xf1".join(parts[:9]) + b"\0\0" + b"\xff\xf1".join(parts[9:]))
    out = write_with(tmp_path / "out.mp4", 50, audio_paths=[path])
    assert len(list(read_frames(out))) == 50
    assert click_time(out) == pytest.approx(0.5, abs=0.025)


def test_sound_days_after_the_picture(tmp_path, monkeypatch):
    path = write_sound(tmp_path / "clip.mkv", "pcm_s16le", num_frames=50, audio_start=1.5)
    assert len(load_audio(path)) / 16000 == pytest.approx(3.5, abs=0.01)
    monkeypatch.setattr(limits, "delay_s", 1)
    with pytest.raises(UserError, match=f"{path}.*begins 2 s after"):
        load_audio(path)


def test_too_large_pictures(tmp_path):
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = limits.side + 16, 16, "yuvj420p"
        picture = np.zeros((16, limits.side + 16, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    for read in (probe, lambda path: next(read_frames(path))):
        with pytest.raises(UserError, match=f"at most 8192 pixels.*8208 x 16.*{path}"):
            read(path)


def test_limits_can_be_lifted(tmp_path, monkeypatch):
    for name in ("side", "gap_s", "delay_s", "length_s"):  # as they were after the test
        monkeypatch.setattr(limits, name, 1)
    path = write_numbered(tmp_path / "clip.mkv", 3, times=np.array([0, 1, 3]))
    with pytest.raises(UserError, match=r"at most 1 pixels on a side, .* --no-limits takes it"):
        probe(path)
    limits.lift()
    assert len(list(read_frames(path))) > 3 * 25


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_gaps_between_pictures(tmp_path, suffix):
    short = write_numbered(tmp_path / f"short.{suffix}", 3, times=np.array([0, 0.04, limits.gap_s]))
    # in mp4 the last frame is taken to be as long as the one before
    assert 25 * limits.gap_s <= len(list(read_frames(short))) <= 50 * limits.gap_s
    long = write_numbered(tmp_path / f"long.{suffix}", 4, times=np.array([0, 0.04, 0.08, 7200]))
    frames = read_frames(long)
    next(frames)
    with pytest.raises(
        TruncatedMediaError, match=f"at most 60 s between two pictures, found 7200 s after 0.08 s of {long}"
    ):
        list(frames)


def test_a_frame_for_days(tmp_path):
    path = write_numbered(tmp_path / "clip.avi", 1, codec="mpeg4")
    whole = bytearray(path.read_bytes())
    header = whole.index(b"vids") + 20  # frames last scale / rate seconds
    whole[header : header + 8] = struct.pack("<II", 1_000_000, 1)
    path.write_bytes(whole)
    assert probe(path).fps == 1
    assert len(list(read_frames(path))) <= 25 * limits.gap_s
    assert Fraction(probe(path).duration_s) >= 0
