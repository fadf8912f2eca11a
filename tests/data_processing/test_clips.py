"""clips: what a clip contains, compared with its source video; which shots are rejected."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_processing import clips
from data_processing.audio.features import extract_features
from data_processing.av_sync import AVOffset
from data_processing.clips import Settings, prepare_video, rejection_reason
from data_processing.face.crop import FaceCrop
from data_processing.face.radius import frame_radii
from data_processing.face.tracking import Landmarks, find_landmarks
from data_processing.media.audio_io import SAMPLE_RATE, load_audio, save_wav
from data_processing.media.video_reader import read_frames
from data_processing.media.video_writer import VideoWriter
from data_processing.sources import Source
from tests.support.golden import DATA
from utils.errors import MediaError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("remembered_networks")]

SETTINGS = Settings(mouth_size=64, landmarks="dlib", audio_features="whisper")


def prepare_one(path: Path, output: Path, audio_delay_ms: float = 0, settings: Settings = SETTINGS) -> dict:
    """Prepare a video with one usable shot and return its manifest line."""
    (output / "clips").mkdir(parents=True, exist_ok=True)
    lines, reasons = prepare_video(Source(path, "Bob", audio_delay_ms), output, settings)
    assert len(lines) == 1, reasons
    return lines[0]


def with_audio(path: Path, portrait: Path, waveform: np.ndarray) -> Path:
    """The frames of the portrait with another audio track."""
    wav = path.with_suffix(".wav")
    save_wav(wav, waveform)
    with VideoWriter(path, 256, 256, audio_paths=[wav]) as writer:
        for frame in read_frames(portrait):
            writer.write(frame)
    wav.unlink()
    return path


def burst(start_s: float, duration_s: float) -> np.ndarray:
    """(N,) silence with 50 ms of a 1 kHz tone."""
    times = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    tone = 0.5 * np.sin(2 * np.pi * 1000 * times)
    return np.where((times >= start_s) & (times < start_s + 0.05), tone, 0)


def onset_s(waveform: np.ndarray) -> float:
    return float(np.flatnonzero(np.abs(waveform) > 0.2)[0] / SAMPLE_RATE)


def test_names_with_dots(tmp_path, portrait_clip):
    """The part after a dot is not replaced as a suffix: each take has its own files."""
    ids = set()
    for name in ("talk.v1.mp4", "talk.v2.mp4"):
        shutil.copy(portrait_clip, tmp_path / name)
        ids.add(prepare_one(tmp_path / name, tmp_path / "out")["id"])
    assert len(ids) == 2
    assert {path.name for path in (tmp_path / "out" / "clips").iterdir()} == {
        f"{clip_id}{suffix}" for clip_id in ids for suffix in (".mp4", ".npz")
    }


@pytest.mark.parametrize("audio_delay_ms", [200, -200])
def test_known_audio_delay_is_removed(tmp_path, portrait_clip, audio_delay_ms):
    path = with_audio(tmp_path / "clip.mp4", portrait_clip, burst(0.8, 1.6))
    line = prepare_one(path, tmp_path / "out", audio_delay_ms)
    assert line["audio_late_ms"] == audio_delay_ms
    # audio that lags by 200 ms is moved forward, and the last 200 ms of the video have no audio
    assert line["num_frames"] == (35 if audio_delay_ms > 0 else 40)
    clip = tmp_path / "out" / "clips" / f"{line['id']}.mp4"
    assert onset_s(load_audio(clip)) == pytest.approx(0.8 - audio_delay_ms / 1000, abs=0.005)

    original = load_audio(path)
    shifted = original[3200:] if audio_delay_ms > 0 else np.concatenate([np.zeros(3200, np.float32), original])
    with np.load(clip.with_suffix(".npz")) as arrays:
        expected = extract_features(shifted, "whisper", 40)[: line["num_frames"]]
        assert np.array_equal(arrays["features"], expected)
        assert len(arrays["landmarks"]) == len(list(read_frames(clip))) == line["num_frames"]


@pytest.mark.parametrize("audio_delay_ms", [120.0, -80.0])
def test_measured_offset_is_removed(tmp_path, portrait_clip, monkeypatch, audio_delay_ms):
    path = with_audio(tmp_path / "clip.mp4", portrait_clip, burst(0.8, 1.6))
    original = load_audio(path)
    calls = []

    def measure(video, shots, waveform):
        calls.append((video, [(start, len(points)) for start, points in shots], onset_s(waveform)))
        return AVOffset(audio_delay_ms, 0.25)

    monkeypatch.setattr(clips, "measure_offset", measure)
    monkeypatch.setattr(clips, "MIN_SYNC_FRAMES", 39)
    settings = replace(SETTINGS, min_sync_confidence=0.2)
    line = prepare_one(path, tmp_path / "out", 40, settings)
    # the known delay is removed before the offset is measured; the manifest holds the sum of both
    assert calls == [(path, [(0, 39)], pytest.approx(onset_s(original) - 0.04, abs=1e-3))]
    assert (line["audio_late_ms"], line["sync_confidence"]) == (40 + audio_delay_ms, 0.25)
    clip = tmp_path / "out" / "clips" / f"{line['id']}.mp4"
    assert onset_s(load_audio(clip)) == pytest.approx(0.8 - 0.04 - audio_delay_ms / 1000, abs=0.005)


def test_mismatched_audio_is_rejected(tmp_path, portrait_clip, monkeypatch):
    monkeypatch.setattr(clips, "measure_offset", lambda *args: AVOffset(0.0, 0.19))
    monkeypatch.setattr(clips, "MIN_SYNC_FRAMES", 40)
    settings = replace(SETTINGS, min_sync_confidence=0.2)
    with pytest.raises(MediaError, match=r"no A/V sync within ±15 frames \(confidence below 0\.2\)"):
        prepare_one(portrait_clip, tmp_path / "out", settings=settings)
    assert list((tmp_path / "out" / "clips").iterdir()) == []


def test_offset_of_a_short_video_is_not_measured(tmp_path, portrait_clip, monkeypatch):
    monkeypatch.setattr(clips, "measure_offset", None)
    settings = replace(SETTINGS, min_sync_confidence=0.2)
    line = prepare_one(portrait_clip, tmp_path / "out", settings=settings)
    assert (line["audio_late_ms"], line["sync_confidence"]) == (0, None)


@pytest.mark.parametrize(("duration_s", "expected"), [(1.59, 39), (1.3, 32), (2.5, 40)])
def test_frames_after_the_end_of_the_audio_are_dropped(tmp_path, portrait_clip, duration_s, expected, monkeypatch):
    path = tmp_path / "clip.mp4"
    shutil.copy(portrait_clip, path)
    waveform = burst(0.5, duration_s).astype(np.float32)  # the exact length, which AAC would round up
    monkeypatch.setattr(clips, "load_audio", lambda path: waveform)
    assert prepare_one(path, tmp_path / "out")["num_frames"] == expected


def test_audio_starts_with_the_shot(tmp_path, portrait_clip, monkeypatch):
    """A shot that begins at frame 12 has the audio and the features from 0.48 s on."""
    path = with_audio(tmp_path / "clip.mp4", portrait_clip, burst(0.88, 1.6))
    landmarks = find_landmarks(path)
    monkeypatch.setattr(
        clips,
        "find_landmarks",
        lambda *args: Landmarks(landmarks.points, landmarks.found, [(0, 12), (12, 40)]),
    )
    line = prepare_one(path, tmp_path / "out")
    assert (line["start_frame"], line["num_frames"]) == (12, 28)
    clip = tmp_path / "out" / "clips" / f"{line['id']}.mp4"
    assert onset_s(load_audio(clip)) == pytest.approx(0.4, abs=0.005)
    with np.load(clip.with_suffix(".npz")) as arrays:
        assert np.array_equal(arrays["landmarks"], landmarks.points[12:])
        radii = arrays["radii"]
        assert np.array_equal(arrays["features"], extract_features(load_audio(path), "whisper", 40)[12:])
    crop = FaceCrop.from_landmarks(landmarks.points[12], radii[0], 64)
    expected = crop.extract(list(read_frames(path))[12])
    assert np.abs(next(read_frames(clip)).astype(int) - expected).mean() < 2


# --- rejected shots -----------------------------------------------------------------------------------------


def shot(num_frames: int = 30, radius_px: float = 50, growth: float = 1.0, found: float = 1.0) -> Landmarks:
    """Landmarks of one shot with the given crop radius, growth of the face and fraction of frames with a face."""
    points = np.zeros((num_frames, 68, 2), np.float32)
    points[:, 54, 0] = 2 * radius_px / 1.05 * np.linspace(1, growth, num_frames)
    return Landmarks(points, np.arange(num_frames) < found * num_frames, [(0, num_frames)])


@pytest.mark.parametrize(
    ("landmarks", "expected"),
    [
        (shot(), None),
        (shot(20), None),
        (shot(19), "shot shorter than 20 frames"),
        (shot(found=0.85), None),
        (shot(found=0.75), "face detected in less than 80%"),
        (shot(radius_px=25), None),
        (shot(radius_px=23), "face radius below 24 px"),
        (shot(growth=1.45), None),
        (shot(growth=1.7), "face size changes by more than a factor of 1.5"),
    ],
)
def test_rejection_reason(landmarks, expected):
    reason = rejection_reason(landmarks, 0, len(landmarks.points))
    assert reason is None if expected is None else reason.startswith(expected)


def test_one_badly_detected_frame_does_not_reject_a_shot() -> None:
    landmarks = shot(num_frames=100)
    landmarks.points[40, 54, 0] *= 2
    assert rejection_reason(landmarks, 0, 100) is None


def test_zooms_that_the_authors_reject_are_accepted():
    """The face grows 2.2 times in them, but so does the crop."""
    golden = np.load(DATA / "crop_radius.npz")
    points = np.repeat(golden["landmarks"], 3, axis=1).astype(np.float32)  # 27 frames
    radii = np.array([frame_radii(shot) for shot in points])
    growing = radii.max(axis=1) > 2 * radii.min(axis=1)
    assert growing.sum() == 8 and not golden["ok"][growing].any()
    for shot in points:
        reason = rejection_reason(Landmarks(shot, np.ones(27, bool), [(0, 27)]), 0, 27)
        assert reason is None or "changes" not in reason
