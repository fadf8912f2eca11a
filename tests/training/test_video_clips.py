"""Clips of a video in memory, against the video and its audio track read as a whole."""

from pathlib import Path

import numpy as np
import pytest

from data_processing.audio.features import extract_features
from data_processing.face.crop import FaceCrop
from data_processing.face.detectors import largest_face
from data_processing.face.radius import crop_radii
from data_processing.face.tracking import find_landmarks
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import read_frames
from tests.support.media import (
    no_face_video,
    talking_portrait,
    video_without_audio,
    write_video,
)
from training import video_clips
from training.video_clips import VideoClips, part_ranges, read_clips
from utils.errors import MediaError, NoFaceError

pytestmark = pytest.mark.slow

FRAMES = 64
DELAY_MS = 200.0  # five frames


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return talking_portrait(tmp_path_factory.mktemp("clips") / "portrait.mp4", FRAMES)


def read(video: Path, features: str = "mel") -> VideoClips:
    return read_clips(video, 32, features, "dlib", largest_face)


def test_crops_follow_the_face(video):
    calls = []
    options = ("mel", "dlib", largest_face)
    (clip,) = read_clips(video, 32, *options, progress=lambda *call: calls.append(call)).clips
    assert [done for _, done, _ in calls] == list(range(1, FRAMES + 1))
    landmarks = find_landmarks(video)
    radii = crop_radii(landmarks.points)
    assert clip.frames.shape == (FRAMES, 52, 40, 3)
    for index in (0, 30, FRAMES - 1):
        frame = next(read_frames(video, index))
        crop = FaceCrop.from_landmarks(landmarks.points[index], radii[index], 32)
        assert np.array_equal(clip.frames[index], crop.extract(frame))


def test_features_are_those_of_the_audio_without_its_delay(video, monkeypatch):
    monkeypatch.setattr(video_clips, "_audio_delay_ms", lambda *_: DELAY_MS)
    found = read(video)
    expected = extract_features(load_audio(video), "mel")
    assert found.no_audio_reason is None
    assert found.audio_delay_ms == DELAY_MS
    shown = found.clips[0].features[:50]
    np.testing.assert_allclose(shown, expected[5:55], atol=1e-5)
    assert not np.allclose(shown, expected[:50], atol=0.1)


def test_a_long_video_is_read_in_parts(video, monkeypatch):
    monkeypatch.setattr(video_clips, "PART_FRAMES", 24)
    monkeypatch.setattr(video_clips, "MAX_PARTS", 2)
    monkeypatch.setattr(video_clips, "MIN_SYNC_FRAMES", 48)
    monkeypatch.setattr(video_clips, "_audio_delay_ms", lambda *_: 0.0)
    found = read(video)
    assert [len(clip.frames) for clip in found.clips] == [24, 24]
    features = extract_features(load_audio(video), "mel")
    for clip, start in zip(found.clips, (0, FRAMES - 24), strict=True):
        np.testing.assert_allclose(clip.features[2:20], features[start + 2 : start + 20], atol=1e-5)
        landmarks = find_landmarks(video).points[start + 11]
        assert np.abs(clip.landmarks[11] - landmarks).max() < 3  # tracked from another frame on


def test_parts_are_spread_evenly():
    assert part_ranges(1000) == [(0, 1500)]
    ranges = part_ranges(90_000)
    assert ranges == [(0, 375), (29875, 30250), (59750, 60125), (89625, 90000)]


def test_audio_that_does_not_fit_is_not_used(video, tmp_path):
    noise = read(video)  # bursts of noise, which are no speech
    silent = read(video_without_audio(tmp_path / "silent.mp4", FRAMES))
    assert noise.no_audio_reason == "no speech in sync with the lips was found"
    assert silent.no_audio_reason == "no audio track"
    assert noise.audio_delay_ms is None and silent.audio_delay_ms is None


def test_videos_without_a_usable_face_are_refused(tmp_path):
    with pytest.raises(NoFaceError, match="no face detected in 10 frames"):
        read(no_face_video(tmp_path / "gradient.mp4"))
    with pytest.raises(MediaError, match="nothing to adapt to"):
        read(talking_portrait(tmp_path / "photo.mp4", 1))
    with pytest.raises(MediaError, match=r"no usable shot .*shorter than 20 frames"):
        read(talking_portrait(tmp_path / "short.mp4", 12))


def test_a_truncated_video_is_used_as_far_as_it_goes(video, tmp_path, caplog):
    """Reading stops at a gap of an hour before the last frame."""
    frames = list(read_frames(video))[:41]
    times = np.append(np.arange(40) / 25, 3600)
    found = read(write_video(tmp_path / "late.mkv", frames, times=times, waveforms=[load_audio(video)[: 40 * 640]]))
    assert sum(len(clip.frames) for clip in found.clips) >= 35
    assert "using what precedes it" in caplog.text
