"""Audio files with known waveforms, written with PyAV, read back and compared to the formula."""

import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_processing.media.audio_io import SAMPLE_RATE, load_audio, save_wav
from data_processing.media.video_writer import VideoWriter
from tests.support.media import write_video
from utils.errors import AudioError, MediaError


def sine(rate: int, seconds: float, hz: float = 440.0, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)


def write_media(
    path: Path,
    channels: np.ndarray | None,
    rate: int = 44100,
    codec: str = "pcm_s16le",
    audio_start: float = 0.0,
    video_start: float | None = None,
) -> None:
    """`channels` (C, N) float is the audio track; with `video_start`, 2 s of grey 25 fps video are added."""
    with av.open(str(path), "w") as container:
        streams = []
        if video_start is not None:
            video = container.add_stream("mpeg4", rate=25)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            frames = []
            for i in range(50):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), format="rgb24")
                frame.pts, frame.time_base = round(video_start * 25) + i, Fraction(1, 25)
                frames.append(frame)
            streams.append((video, frames))
        if channels is not None:
            audio = container.add_stream(codec, rate=rate)
            audio.layout = "stereo" if len(channels) == 2 else "mono"
            frames = []
            for i in range(0, channels.shape[1], 1024):
                part = channels[:, i : i + 1024]
                if audio.format.name == "fltp":
                    data = part.astype(np.float32)
                else:
                    data = np.round(part.T.reshape(1, -1) * 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(data), format=audio.format.name, layout=audio.layout.name
                )
                frame.sample_rate, frame.pts = rate, round(audio_start * rate) + i
                frame.time_base = Fraction(1, rate)
                frames.append(frame)
            streams.append((audio, frames))
        for stream, frames in streams:
            for frame in [*frames, None]:
                container.mux(stream.encode(frame))


def fit_sine(waveform: np.ndarray, hz: float) -> tuple[float, float]:
    """Least-squares amplitude, and delay in samples against a sine that starts at sample 0."""
    n = np.arange(len(waveform))[2000:-2000]
    basis = np.stack([np.sin(2 * np.pi * hz * n / SAMPLE_RATE), np.cos(2 * np.pi * hz * n / SAMPLE_RATE)], axis=1)
    (s, c), *_ = np.linalg.lstsq(basis, waveform[2000:-2000], rcond=None)
    return float(np.hypot(s, c)), float(-np.arctan2(c, s) * SAMPLE_RATE / (2 * np.pi * hz))


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("a.wav", "pcm_s16le", 44100), ("a.flac", "flac", 48000), ("a.m4a", "aac", 44100), ("a.mp4", "aac", 48000)],
)
def test_sine_keeps_amplitude_and_time(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    wave = sine(rate, 2.0)
    write_media(tmp_path / name, np.stack([wave, wave]), rate, codec)
    waveform = load_audio(tmp_path / name)
    assert waveform.dtype == np.float32 and waveform.ndim == 1
    assert 32000 <= len(waveform) <= 32000 + 1024  # lossy codecs may fill their last block
    amplitude, delay = fit_sine(waveform[:32000], 440.0)
    assert amplitude == pytest.approx(0.5, abs=0.005)
    assert delay == pytest.approx(0.0, abs=0.05)


def test_resampling_keeps_the_waveform(tmp_path: Path) -> None:
    write_media(tmp_path / "a.wav", sine(44100, 1.0)[None], 44100)
    expected = sine(SAMPLE_RATE, 1.0)
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav")[200:-200], expected[200:-200], atol=1e-3)
    assert len(load_audio(tmp_path / "a.wav")) == SAMPLE_RATE


def test_frequencies_above_nyquist_are_removed(tmp_path: Path) -> None:
    write_media(tmp_path / "a.wav", sine(44100, 1.0, hz=11000)[None], 44100)
    assert np.abs(load_audio(tmp_path / "a.wav")[1000:-1000]).max() < 0.005


def test_mono_is_the_mean_of_the_channels(tmp_path: Path) -> None:
    left, right = sine(SAMPLE_RATE, 1.0, 440, 0.9), sine(SAMPLE_RATE, 1.0, 1000, 0.3)
    write_media(tmp_path / "a.wav", np.stack([left, right]), SAMPLE_RATE)
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), (left + right) / 2, atol=1e-4)


@pytest.mark.parametrize("codec_and_name", [("pcm_s16le", "a.mov"), ("pcm_s16le", "a.mkv"), ("aac", "a.mp4")])
@pytest.mark.parametrize(("audio_start", "video_start"), [(0.0, 0.0), (0.48, 0.0), (0.0, 0.4), (0.6, 0.2)])
def test_time_zero_is_the_first_video_frame(
    tmp_path: Path, codec_and_name: tuple[str, str], audio_start: float, video_start: float
) -> None:
    codec, name = codec_and_name
    burst_at = 0.9  # seconds after the start of the track
    track = sine(48000, 2.0, hz=1000)
    track[: round(burst_at * 48000)] = 0
    write_media(tmp_path / name, track[None], 48000, codec, audio_start, video_start)

    waveform = load_audio(tmp_path / name)
    onset = np.flatnonzero(np.abs(waveform) > 0.1)[0] / SAMPLE_RATE
    tolerance = 0.004 if codec == "aac" else 0.0015  # an encoder's pre-echo; Matroska's time unit is 1 ms
    assert onset == pytest.approx(burst_at + audio_start - video_start, abs=tolerance)
    expected_length = (2.0 + audio_start - video_start) * SAMPLE_RATE
    assert len(waveform) == pytest.approx(expected_length, abs=1100 if codec == "aac" else 20)


def test_audio_without_video_starts_at_its_first_sample(tmp_path: Path) -> None:
    write_media(tmp_path / "a.mka", sine(48000, 1.0)[None], 48000, audio_start=3.0)
    assert len(load_audio(tmp_path / "a.mka")) == SAMPLE_RATE


def test_cover_art_is_not_video(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=44100)
        audio.layout = "mono"
        cover = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        image.pts, image.time_base = 0, Fraction(1, 25)
        for packet in [*cover.encode(image), *cover.encode(None)]:
            container.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.full((1, 44100), 0.25, np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 44100, 0, Fraction(1, 44100)
        for packet in [*audio.encode(frame), *audio.encode(None)]:
            container.mux(packet)
    assert len(load_audio(path)) == pytest.approx(SAMPLE_RATE, abs=1100)


def test_the_part_after_a_decoding_error_keeps_its_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.m4a"
    write_media(path, sine(44100, 4.0)[None], 44100, "aac")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)

    waveform = load_audio(path)
    assert len(waveform) / SAMPLE_RATE == pytest.approx(4.0, abs=0.05)
    quiet = np.flatnonzero(np.abs(waveform) < 1e-4) / SAMPLE_RATE
    assert 1.5 < np.median(quiet) < 2.5
    for part in (slice(0, 24000), slice(40000, 64000)):
        assert fit_sine(waveform[part], 440.0) == pytest.approx(
            (0.5, 0.0), abs=0.05
        )  # 24000 and 40000 are whole periods
    (record,) = caplog.records
    warning = record.getMessage()
    assert record.levelname == "WARNING" and record.path == path
    assert (
        "\n" not in warning
        and warning.startswith(f"{path}: ")
        and "packets of the audio track are damaged" in warning
    )


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("text, not audio\n" * 50)
    write_media(tmp_path / "silent.mp4", None, video_start=0.0)
    save_wav(tmp_path / "header.wav", np.zeros(0))
    write_media(tmp_path / "early.mkv", sine(48000, 0.5)[None], 48000, audio_start=0.0, video_start=2.0)
    for name, kind, reason in [
        ("missing.wav", MediaError, "no such file"),
        (".", MediaError, "is a folder, not a file"),
        ("empty.wav", MediaError, "the file is empty"),
        ("text.wav", AudioError, "not a media file"),
        ("silent.mp4", AudioError, "no audio track"),
        ("header.wav", AudioError, "the audio track has no samples"),
        ("early.mkv", AudioError, "the audio track ends before the first video frame"),
    ]:
        path = tmp_path / name
        with pytest.raises(MediaError) as error:
            load_audio(path)
        message = str(error.value)
        assert type(error.value) is kind and error.value.path == path
        assert message.startswith(f"{path}: {reason}") and "\n" not in message


def test_save_wav_is_exact_and_clips(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    samples = np.arange(-32768, 32768, 7, dtype=np.int16)
    save_wav(path, samples.astype(np.float32) / 32768)
    np.testing.assert_array_equal(load_audio(path) * 32768, samples)
    save_wav(path, np.array([-2.0, 0.0, 2.0], np.float32))
    np.testing.assert_array_equal(load_audio(path) * 32768, [-32768, 0, 32767])
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]


@pytest.fixture(autouse=True)
def _log_notes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def blank_frames(num_frames: int) -> list[np.ndarray]:
    return [np.zeros((64, 64, 3), np.uint8)] * num_frames


def pitch(waveform: np.ndarray) -> float:
    """The strongest frequency in Hz of (N,) samples."""
    return float(np.argmax(np.abs(np.fft.rfft(waveform))) * SAMPLE_RATE / len(waveform))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_the_default_track_is_used(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    times = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tones = [0.5 * np.sin(2 * np.pi * hertz * times) for hertz in (440, 880, 1000)]
    path = write_video(tmp_path / f"clip.{suffix}", blank_frames(25), waveforms=tones)
    assert pitch(load_audio(path)) == pytest.approx(1000, abs=5)
    (record,) = caplog.records
    assert record.levelname == "INFO" and record.path == path
    assert record.getMessage() == f"{path}: using audio track 3 of 3"
    caplog.clear()
    with VideoWriter(tmp_path / "out.mp4", 64, 64, audio_paths=[path]) as writer:
        for frame in blank_frames(20):
            writer.write(frame)
    assert pitch(load_audio(tmp_path / "out.mp4")) == pytest.approx(1000, abs=5)
    assert not caplog.records


def test_the_first_track_is_used_without_a_default(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tones = [0.5 * np.sin(2 * np.pi * hertz * times) for hertz in (440, 1000)]
    path = write_video(tmp_path / "clip.ts", blank_frames(25), waveforms=tones)  # which has no default flags
    assert pitch(load_audio(path)) == pytest.approx(440, abs=5)
    assert "using audio track 1 of 2" in caplog.text


def test_less_than_one_sample_at_16_khz(tmp_path: Path) -> None:
    path = tmp_path / "short.wav"
    write_media(path, np.zeros((1, 1)), rate=192000)
    with pytest.raises(AudioError, match="the audio track has no samples"):
        load_audio(path)
