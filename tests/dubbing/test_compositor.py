"""Output frames: one or several speakers, from files and live."""

from pathlib import Path

import numpy as np
import pytest

from data_processing.face.crop import FaceCrop
from data_processing.face.selection import face_selector
from data_processing.face.tracking import find_landmarks
from data_processing.media.frame import RgbFrame
from data_processing.media.video_reader import read_frames
from dubbing.audio_stream import AudioStream
from dubbing.compositor import Compositor, FramePair
from dubbing.face_track import track_face
from dubbing.frame_sources import LiveFrameSource, VideoFileSource
from dubbing.pipeline import DubbingPipeline
from dubbing.speaker import Speaker
from tests.conftest import MOUTH
from tests.support.dubbing import lips_change, small_and_large_face
from tests.support.media import speech_like

pytestmark = pytest.mark.slow


def test_live_frames_are_dubbed_at_their_own_placements(pipeline: DubbingPipeline, portrait_clip: Path) -> None:
    """Each frame at its own mouth, although the whole clip is tracked before its first frame is generated."""
    frames = list(read_frames(portrait_clip))
    points = find_landmarks(portrait_clip).points
    session = pipeline.generator

    class Audio:
        def remaining_s(self, time_s: float, at_most_s: float) -> float:
            return at_most_s

        def windows(self, times_s: np.ndarray) -> np.ndarray:
            return np.zeros((len(times_s), 384, 5), np.float32)

    source = LiveFrameSource(frames, 25)
    speaker = Speaker(session, source, Audio(), track_face(source), look_ahead_s=2)
    pairs = [FramePair(*map(RgbFrame.rgb, pair)) for pair in Compositor(source, [speaker]).frames()]
    assert len(pairs) == 40
    for index, (frame, dubbed) in enumerate(pairs):
        assert np.array_equal(frame, frames[index])
        left, top, right, bottom = FaceCrop.from_landmarks(points[index], 50, MOUTH).mouth_bounds()
        assert left < 128 < right and top < 150 < bottom
        assert lips_change(dubbed, frame) > 15


def test_two_speakers(pipeline: DubbingPipeline, portrait_clip: Path, tmp_path: Path) -> None:
    """Each face is as in a dub of its own; the shorter audio ends earlier, also after the end of the video."""
    video = small_and_large_face(portrait_clip, tmp_path / "two.mp4")
    voices = {"left": speech_like(0.32, 1), "right": speech_like(0.6, 2)}

    def render(*faces: str) -> list[FramePair]:
        source = VideoFileSource(video, 25)
        speakers = [
            Speaker(
                pipeline.generator,
                source,
                AudioStream(iter([voices[face]]), "whisper"),
                track_face(source, select_face=face_selector(face)),
            )
            for face in faces
        ]
        pairs = Compositor(source, speakers).frames()
        return [FramePair(*(one.region(0, 0, one.width, one.height) for one in pair)) for pair in pairs]

    left, right, both = render("left"), render("right"), render("left", "right")
    assert np.abs(right[0].dubbed[:, 256:].astype(int) - right[0].source[:, 256:]).mean() > 1
    assert (len(left), len(right), len(both)) == (8, 15, 15)
    for index, (frame, dubbed) in enumerate(both):
        # batches of other sizes are rounded differently in several threads, and flow enlarges that in a few pixels
        assert np.abs(dubbed[:, 256:].astype(int) - right[index].dubbed[:, 256:]).mean() < 0.1
        if index < 3:  # then it fades out, as it does not alone
            assert np.abs(dubbed[:, :256].astype(int) - left[index].dubbed[:, :256]).mean() < 0.1
        assert np.array_equal(dubbed[:, :256], frame[:, :256]) == (index >= 8)
