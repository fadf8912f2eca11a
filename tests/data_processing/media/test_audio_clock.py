"""Audio with holes, restarts, damage and changing formats: what is read, against what was written.

Every second has a tone of 100 ms at its middle, with which the video is bright (`write_clapper`).
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_processing.media.audio_clock import timed_frames
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import read_frames
from tests.support.numbered_media import write_with
from utils.errors import AudioError
from utils.limits import DEFAULT_LIMITS

LEVEL = 0.5


def clapper(seconds: float, rate: int) -> np.ndarray:
    """(N,) float32: a 1 kHz tone from 0.5 to 0.6 s of every second."""
    times = np.arange(round(seconds * rate)) / rate
    return np.where((times % 1 >= 0.5) & (times % 1 < 0.6), LEVEL * np.sin(2000 * np.pi * times), 0).astype(
        np.float32
    )


def write_clapper(
    path: Path, codec: str, seconds: float = 4, rate: int = 48000, layout: str = "mono", video: bool = True
) -> Path:
    """`clapper` with a 25 fps video that is bright during the tones."""
    with av.open(str(path), "w") as container:
        images = container.add_stream("libx264", rate=25) if video else None
        audio = container.add_stream(codec, rate=rate, layout=layout)
        packets = []
        if images:
            images.width = images.height = 32
            images.pix_fmt = "yuv420p"
            for index in range(round(seconds * 25)):
                grey = 235 if 0.5 <= index / 25 % 1 < 0.6 else 20
                image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")
                image.pts, image.time_base = index, Fraction(1, 25)
                packets += images.encode(image)
            packets += images.encode(None)
        frame = av.AudioFrame.from_ndarray(clapper(seconds, rate)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(audio.format.name, layout, rate)
        packets += [packet for part in [*resampler.resample(frame), None] for packet in audio.encode(part)]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def remux(source: Path, path: Path, edit: Callable[[av.Packet, float], av.Packet | None]) -> Path:
    """Copy a file, with `edit(packet, time in seconds)` in place of each audio packet; None leaves it out."""
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        streams = {stream: output.add_stream_from_template(stream) for stream in container.streams}
        for packet in container.demux():
            stream = packet.stream
            if not packet.size:
                continue
            if stream.type == "audio":
                packet = edit(packet, float(packet.pts * packet.time_base))
            if packet:
                packet.stream = streams[stream]
                output.mux(packet)
    return path


def onsets(waveform: np.ndarray) -> list[float]:
    """Times of the tones in (N,) samples at 16 kHz."""
    loud = np.flatnonzero(np.abs(waveform) > LEVEL / 2) / 16000
    return loud[np.diff(loud, prepend=-1) > 0.2].tolist()


def flashes(path: Path) -> list[float]:
    """Times of the first bright frames."""
    bright = np.array([frame.mean() > 128 for frame in read_frames(path)])
    return (np.flatnonzero(np.diff(bright.astype(int), prepend=0) > 0) / 25).tolist()


def dubbed(source: Path, folder: Path, suffix: str = "mp4", num_frames: int = 100) -> np.ndarray:
    """The audio of a video that was written with the audio of `source`."""
    return load_audio(write_with(folder / f"out.{suffix}", num_frames, audio_paths=[source]))


@pytest.fixture(autouse=True)
def _log_notes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


# --- holes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "aac"), ("a.ts", "aac"), ("a.mkv", "libopus"), ("a.flv", "aac")]
)
def test_a_hole_is_silent(tmp_path: Path, name: str, codec: str, suffix: str) -> None:
    source = write_clapper(tmp_path / f"whole_{name}", codec)
    remux(source, tmp_path / name, lambda packet, time: None if 1 <= time < 2 else packet)
    late = load_audio(source)
    expected = [time for time in onsets(late) if not 1 < time < 2]
    for waveform in (load_audio(tmp_path / name), dubbed(tmp_path / name, tmp_path, suffix)):
        assert onsets(waveform) == pytest.approx(expected, abs=0.004)
        assert len(waveform) / 16000 == pytest.approx(4, abs=0.065)
        assert np.abs(waveform[17000:31000]).max() < 0.01


def test_a_hole_is_not_inexact_time_stamps(tmp_path: Path) -> None:
    """Time stamps with up to 10 ms of jitter leave the samples as they are."""
    source = write_clapper(tmp_path / "whole.mkv", "aac")
    jitter = np.random.default_rng(0)

    def shake(packet: av.Packet, time: float) -> av.Packet:
        packet.pts = packet.dts = packet.pts + (int(jitter.integers(-4, 5)) if time > 0 else 0)
        return packet

    remux(source, tmp_path / "a.mkv", shake)
    np.testing.assert_array_equal(load_audio(tmp_path / "a.mkv"), load_audio(source))


@pytest.mark.parametrize("rate", [0.9992, 1.0008])
def test_a_clock_that_runs_fast_or_slow_is_followed(tmp_path: Path, rate: float) -> None:
    source = write_clapper(tmp_path / "whole.mkv", "aac", seconds=40, video=False)

    def stretch(packet: av.Packet, time: float) -> av.Packet:
        packet.pts = packet.dts = round(packet.pts * rate)
        return packet

    waveform = load_audio(remux(source, tmp_path / "a.mkv", stretch))
    expected = [time * rate for time in onsets(load_audio(source))]
    assert np.abs(np.array(expected) - onsets(waveform)).max() < 0.015
    assert np.abs(np.diff(waveform)).max() < 0.3  # that of the tone is 0.19: nothing clicks


def test_a_hole_of_days_is_closed(tmp_path: Path) -> None:
    source = write_clapper(tmp_path / "whole.mkv", "aac")

    def jump(packet: av.Packet, time: float) -> av.Packet:
        packet.pts = packet.dts = packet.pts + (3 * 86_400_000 if time > 2 else 0)
        return packet

    path = remux(source, tmp_path / "a.mkv", jump)
    assert onsets(load_audio(path)) == pytest.approx(onsets(load_audio(source)), abs=0.002)
    short = replace(DEFAULT_LIMITS, max_duration_s=1.5)
    remux(source, path, lambda packet, time: None if 1 <= time < 2 else packet)
    assert len(load_audio(path, short)) / 16000 == pytest.approx(3, abs=0.065)


def test_a_damaged_time_stamp_is_no_hole(tmp_path: Path) -> None:
    source = write_clapper(tmp_path / "whole.ts", "aac", video=False)
    with av.open(str(source)) as container:
        packets = [
            packet for packet in container.demux(audio=0) if packet.pos and 1 < packet.pts * packet.time_base < 2
        ]
    data = bytearray(source.read_bytes())
    start = data.index(b"\x00\x00\x01\xc0", packets[0].pos)  # the header of a PES packet
    flags, pts = start + 7, start + 9
    assert data[flags] & 0x80
    data[pts + 1] ^= 0x08  # 2**25 of 90 kHz: 373 s later
    (tmp_path / "a.ts").write_bytes(data)
    assert onsets(load_audio(tmp_path / "a.ts")) == pytest.approx(onsets(load_audio(source)), abs=0.004)


# --- joined recordings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [[2, 4], [4, 2], [2.3, 2.3, 2.3, 2.3], [0.72] * 6])
def test_joined_videos_stay_in_sync(tmp_path: Path, parts: list[float]) -> None:
    path = tmp_path / "joined.ts"
    files = [write_clapper(tmp_path / f"{number}.ts", "aac", seconds) for number, seconds in enumerate(parts)]
    path.write_bytes(b"".join(file.read_bytes() for file in files))
    shown = flashes(path)
    assert len(shown) == sum(round(seconds - 0.01) for seconds in parts)
    for waveform in (load_audio(path), dubbed(path, tmp_path, num_frames=round(sum(parts) * 25))):
        # the tone starts half a frame before the first bright frame
        assert np.array(shown) - 0.02 == pytest.approx(onsets(waveform), abs=0.005)
        assert len(waveform) / 16000 == pytest.approx(sum(parts), abs=0.1)


@pytest.mark.parametrize(
    ("suffix", "codec", "rates"),
    [
        ("mp3", "libmp3lame", (44100, 22050)),
        ("aac", "aac", (44100, 22050)),
        ("flac", "flac", (44100, 22050)),
        ("ac3", "ac3", (48000, 44100)),
        ("ts", "aac", (44100, 48000)),
        ("ogg", "libopus", (48000, 48000)),
    ],
)
def test_joined_audio_goes_on(tmp_path: Path, suffix: str, codec: str, rates: tuple[int, int]) -> None:
    path = tmp_path / f"joined.{suffix}"
    files = [
        write_clapper(tmp_path / f"{number}.{suffix}", codec, 2, rate, video=False)
        for number, rate in enumerate(rates)
    ]
    path.write_bytes(b"".join(file.read_bytes() for file in files))
    for waveform in (load_audio(path), dubbed(path, tmp_path)):
        # encoders of raw streams delay by up to 1105 samples, and an MP3 starts with a frame of information
        assert onsets(waveform) == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.15)
        assert len(waveform) / 16000 == pytest.approx(4, abs=0.2)


# --- damage -------------------------------------------------------------------------------------------------------


def damage(packet: av.Packet, time: float) -> av.Packet:
    """Noise in place of packets between 1.1 and 1.3 s."""
    if not 1.1 <= time < 1.3:
        return packet
    noise = av.Packet(b"\xff\xff" + np.random.default_rng(0).bytes(max(8, packet.size)))
    noise.pts, noise.dts, noise.time_base, noise.duration = (
        packet.pts,
        packet.dts,
        packet.time_base,
        packet.duration,
    )
    return noise


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "aac"), ("a.mkv", "aac"), ("a.mkv", "ac3"), ("a.mkv", "libmp3lame"), ("a.flv", "aac")],
)
def test_damaged_packets_are_silent(
    tmp_path: Path, name: str, codec: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_clapper(tmp_path / f"whole_{name}", codec)
    path = remux(source, tmp_path / name, damage)
    for waveform in (load_audio(path), dubbed(path, tmp_path)):
        assert onsets(waveform)[-2:] == pytest.approx(onsets(load_audio(source))[-2:], abs=0.004)
        assert len(waveform) / 16000 == pytest.approx(4, abs=0.065)
    assert "packets of the audio track are damaged, the first at 1." in caplog.text
    caplog.clear()
    with av.open(str(tmp_path / "out.mp4")) as container:
        list(container.decode(audio=0))  # no damaged packet is in it


def test_damage_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = remux(write_clapper(tmp_path / "whole.mp4", "aac"), tmp_path / "a.mp4", damage)
    load_audio(path)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.path == path
    assert record.getMessage().startswith(f"{path}: 9 packets of the audio track are damaged, the first at 1.1")
    caplog.clear()
    dubbed(path, tmp_path)
    assert not [record for record in caplog.records if record.path == path]  # `read_audio` has said it


def test_audio_of_damaged_packets_only(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)

    def all_damaged(packet: av.Packet, time: float) -> av.Packet:
        return damage(packet, 1.2) if packet.size else noise

    path = remux(write_clapper(tmp_path / "whole.mkv", "ac3"), tmp_path / "a.mkv", all_damaged)
    with pytest.raises(AudioError, match=f"^{path}: the audio track cannot be decoded"):
        load_audio(path)
    with pytest.raises(AudioError, match=f"^{path}: the audio track cannot be decoded"):
        dubbed(path, tmp_path)


# --- samples ------------------------------------------------------------------------------------------------------


def write_wav(path: Path, samples: np.ndarray, codec: str = "pcm_f32le", layout: str = "mono") -> Path:
    """(N, C) samples at 16 kHz."""
    form = {"pcm_f32le": ("flt", np.float32), "pcm_f64le": ("dbl", np.float64)}[codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16000, layout=layout)
        data = np.ascontiguousarray(samples.reshape(1, -1), form[1])
        frame = av.AudioFrame.from_ndarray(data, format=form[0], layout=layout)
        frame.sample_rate = 16000
        for part in (frame, None):
            container.mux(stream.encode(part))
    return path


@pytest.mark.parametrize("codec", ["pcm_f32le", "pcm_f64le"])
def test_nan_and_inf_are_silent(tmp_path: Path, codec: str, caplog: pytest.LogCaptureFixture) -> None:
    samples = clapper(2, 16000)[:, None].copy()
    expected = samples[:, 0].copy()
    samples[100:120], samples[200], samples[8100] = np.nan, np.inf, -np.inf
    expected[8100] = 0
    path = write_wav(tmp_path / "a.wav", samples, codec)
    np.testing.assert_allclose(load_audio(path), expected, atol=1e-4)
    (record,) = caplog.records
    assert record.getMessage() == f"{path}: 22 samples of the audio track are NaN or Inf; they are silent"
    assert record.path == path
    waveform = dubbed(path, tmp_path, num_frames=50)
    assert onsets(waveform) == pytest.approx([0.5, 1.5], abs=0.004)


def test_samples_over_full_scale_are_clipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = 8 * clapper(1, 16000)[:, None]
    path = write_wav(tmp_path / "a.wav", samples)
    np.testing.assert_allclose(load_audio(path), np.clip(samples[:, 0], -1, 1), atol=1e-4)
    assert f"{np.sum(np.abs(samples) > 1)} samples of the audio track are over full scale" in caplog.text


@pytest.mark.parametrize(
    ("layout", "gains", "level"),
    [
        ("stereo", (1, -1), 1),
        ("stereo", (1, -0.9), 1),
        ("stereo", (-0.6, 1), 1),
        ("stereo", (1, 0), 0.5),
        ("stereo", (1, 0.5), 0.75),
        ("5.1", (1, -1, 0, 0, 0, 0), 1),
        ("5.1", (0, 0, 1, 1, 0, 0), 0.293),
        ("7.1", (0, 0, 0, 0, 0, 0, 1, -1), 1),
        ("7.1", (1, 1, 1, 1, 1, 1, 1, 1), 1),
    ],
)
def test_channels_that_cancel_are_not_mixed(
    tmp_path: Path, layout: str, gains: tuple[float, ...], level: float
) -> None:
    voice = clapper(2, 16000)
    waveform = load_audio(write_wav(tmp_path / "a.wav", voice[:, None] * np.array(gains), layout=layout))
    np.testing.assert_allclose(np.abs(waveform), level * np.abs(voice), atol=1e-3)


def test_cancellation_may_begin_and_end(tmp_path: Path) -> None:
    times = np.arange(3 * 16000) / 16000
    voice = 0.5 * np.sin(2 * np.pi * 220 * times)
    other = np.where((times > 1) & (times < 2), -voice, voice)
    waveform = load_audio(write_wav(tmp_path / "a.wav", np.stack([voice, other], axis=1), layout="stereo"))
    for start, stop in [(0, 0.98), (1.3, 1.98), (2.3, 3)]:
        part = slice(round(start * 16000), round(stop * 16000))
        np.testing.assert_allclose(waveform[part], voice[part], atol=1e-3)
    assert np.abs(np.diff(waveform)).max() < 0.06  # that of the tone is 0.043: nothing clicks


def test_frames_follow_each_other(tmp_path: Path) -> None:
    path = remux(
        write_clapper(tmp_path / "whole.mkv", "aac"),
        tmp_path / "a.mkv",
        lambda packet, time: None if 1 <= time < 3.5 else packet,
    )
    lengths = [frame.samples for frame in timed_frames(path)]
    assert sum(lengths) / 48000 == pytest.approx(4, abs=0.03)
    assert max(lengths) <= 48000
