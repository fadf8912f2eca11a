"""Audio tracks with known times and content, in videos of VideoWriter."""

from pathlib import Path

import av
import numpy as np
import pytest

from data_processing.media import audio_track
from data_processing.media.audio_io import load_audio
from data_processing.media.audio_track import check_audio_tracks
from data_processing.media.video_reader import read_frames
from data_processing.media.video_writer import VideoWriter
from tests.support.media import text_file, tone_wav
from tests.support.numbered_media import (
    SIZE,
    click_time,
    numbers,
    open_files,
    write_audio,
    write_numbered,
    write_with,
)
from utils.errors import AudioError


def test_aac_packets_are_copied(tmp_path):
    source = write_audio(tmp_path / "source.mp4", "aac", num_frames=50)

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size and packet.pts >= 0]

    original, copied = packets(source), packets(write_with(tmp_path / "out.mp4", 50, audio_paths=[source]))
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
def test_audio_keeps_its_time_and_ends_with_the_video(tmp_path, suffix, name, codec, options, expected):
    source = write_audio(tmp_path / name, codec, **options)
    path = write_with(tmp_path / f"out.{suffix}", 40, audio_paths=[source])  # 1.6 of the 2 s
    assert click_time(path) == pytest.approx(expected, abs=0.025)
    assert len(load_audio(path)) / 16000 == pytest.approx(1.6, abs=0.065)  # a packet is up to 64 ms
    assert numbers(read_frames(path)) == list(range(40))
    assert not list(tmp_path.glob(".*"))


def test_audio_shorter_than_video(tmp_path):
    path = write_with(tmp_path / "out.mp4", 60, audio_paths=[tone_wav(tmp_path / "tone.wav", 1.0)])
    assert len(list(read_frames(path))) == 60
    assert len(load_audio(path)) / 16000 == pytest.approx(1.0, abs=0.065)


def test_damaged_audio_is_used(tmp_path):
    source = write_audio(tmp_path / "audio.wav", "adpcm_ima_wav")  # its blocks have headers that can be damaged
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2] + np.random.default_rng(0).bytes(len(data) // 2))
    with pytest.raises(av.error.InvalidDataError), av.open(str(source)) as container:
        list(container.decode(audio=0))
    path = write_with(tmp_path / "out.mp4", 40, audio_paths=[source])
    assert len(list(read_frames(path))) == 40
    assert click_time(path) == pytest.approx(0.5, abs=0.025)


def unusable_audio(kind: str, folder: Path) -> Path:
    path = folder / "audio.mp4"
    if kind == "text":
        text_file(path)
    elif kind == "no audio track":
        write_numbered(path, 3)
    return path


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
    """Amplitude of a sine in (N,) samples at 16 kHz; N is a multiple of its period."""
    return 2 * abs(np.mean(waveform * np.exp(-2j * np.pi * hertz * np.arange(len(waveform)) / 16000)))


def test_tracks_are_summed(tmp_path):
    sines = [(440, 0.3, 1.0, 16000), (1000, 0.2, 2.5, 44100), (1500, 0.1, 2.0, 48000)]
    tracks = [write_sine(tmp_path / f"{sine[0]}.wav", *sine) for sine in sines]
    path = write_with(tmp_path / "out.mp4", 75, audio_paths=tracks)  # 3 s
    with av.open(str(path)) as container:
        (track,) = container.streams.audio
        assert (track.codec_context.name, track.rate, track.channels) == ("aac", 48000, 2)
        left, right = np.concatenate([frame.to_ndarray() for frame in container.decode(track)], axis=1)
    assert np.abs(left - right).max() < 0.01
    waveform = load_audio(path)
    assert len(waveform) / 16000 == pytest.approx(2.5, abs=0.025)
    for start, audible in [(0.2, (440, 1000, 1500)), (1.2, (1000, 1500)), (2.1, (1000,))]:
        part = waveform[round(start * 16000) :][:4800]
        for hertz, amplitude, *_ in sines:
            expected = amplitude if hertz in audible else 0
            assert amplitude_of(part, hertz) == pytest.approx(expected, abs=0.005), (start, hertz)


def test_the_sum_is_clipped_to_full_scale(tmp_path):
    tracks = [write_sine(tmp_path / f"{name}.wav", 250, 0.8, 1.0) for name in "ab"]
    waveform = load_audio(write_with(tmp_path / "out.mkv", 25, audio_paths=tracks))[3200:12800]
    clipped = np.clip(1.6 * np.sin(2 * np.pi * 250 * np.arange(16000) / 16000), -1, 1)
    first, third = ([amplitude_of(samples, hertz) for samples in (waveform, clipped)] for hertz in (250, 750))
    assert first[0] == pytest.approx(first[1], rel=0.1)  # the AAC encoder turns down what is so near full scale
    assert third[0] / first[0] == pytest.approx(third[1] / first[1], rel=0.03)


def test_each_track_keeps_its_time_in_the_mix(tmp_path):
    late = write_audio(tmp_path / "late.mkv", "pcm_s16le", num_frames=50, audio_start=0.3)
    early = write_audio(tmp_path / "early.ts", "aac", num_frames=50, video_start=0.2)
    path = write_with(
        tmp_path / "out.mp4", 40, audio_paths=[late, early, write_audio(tmp_path / "own.mp3", "libmp3lame")]
    )
    loud = np.flatnonzero(np.abs(load_audio(path)) > 0.2) / 16000
    onsets = loud[np.diff(loud, prepend=-1) > 0.1]
    assert onsets == pytest.approx([0.3, 0.5, 0.8], abs=0.025)


def test_long_tracks_are_mixed_while_frames_are_written(tmp_path, monkeypatch):
    tracks = [write_sine(tmp_path / f"{hertz}.wav", hertz, 0.3, 60) for hertz in (440, 1000)]
    read, plain = [], audio_track.resampled
    monkeypatch.setattr(
        audio_track, "resampled", lambda *args: (read.append(part.samples) or part for part in plain(*args))
    )
    write_with(tmp_path / "out.mp4", 5, audio_paths=tracks)
    assert 0 < sum(read) < 2 * 48000


@pytest.mark.parametrize("kind", ["text", "missing", "no audio track"])
def test_one_of_several_tracks_is_unusable(tmp_path, kind):
    good, bad = tone_wav(tmp_path / "good.wav", 1.0), unusable_audio(kind, tmp_path)
    for check in (
        lambda: VideoWriter(tmp_path / "out.mp4", *SIZE, audio_paths=[good, bad]),
        lambda: check_audio_tracks([bad]),
    ):
        with pytest.raises(AudioError, match=str(bad)) as error:
            check()
        assert str(good) not in str(error.value)
    assert set(tmp_path.iterdir()) <= {good, bad}
    assert not any(str(tmp_path) in name for name in open_files())


@pytest.mark.parametrize("kind", ["text", "missing", "no audio track"])
def test_unusable_audio(tmp_path, kind):
    path = unusable_audio(kind, tmp_path)
    with pytest.raises(AudioError, match=str(path)):
        VideoWriter(tmp_path / "out.mp4", *SIZE, audio_paths=[path])
    assert [other for other in tmp_path.iterdir() if other != path] == []
