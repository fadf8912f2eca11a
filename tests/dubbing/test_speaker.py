"""One face within one shot: scale, light and colours change, and the mouth follows."""

from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from data_processing.face.radius import face_scales
from dubbing.audio_stream import AudioStream
from dubbing.compositor import Compositor
from dubbing.face_track import track_face
from dubbing.frame_sources import LiveFrameSource
from dubbing.pipeline import DubbingPipeline
from dubbing.speaker import Speaker
from tests.support.dubbing import LIPS, lips_change
from tests.support.media import portraits, speech_like

pytestmark = pytest.mark.slow
NUM_FRAMES = 40
MOUTH_BOX = slice(128, 176), slice(104, 152)  # of the synthetic portrait


def zoomed(frame: np.ndarray, factor: float) -> np.ndarray:
    """The portrait with the face enlarged about its centre."""
    matrix = np.array([[factor, 0, 128 * (1 - factor)], [0, factor, 120 * (1 - factor)]])
    return cv2.warpAffine(frame, matrix, (256, 256), borderMode=cv2.BORDER_REPLICATE)


def scaled(frame: np.ndarray, gain: float, offset: float = 0) -> np.ndarray:
    return np.clip(np.rint(frame * gain + offset), 0, 255).astype(np.uint8)


def frames_of(change: Callable[[np.ndarray, int], np.ndarray]) -> list[np.ndarray]:
    times = np.arange(NUM_FRAMES) / 25
    frames = portraits(times, (256, 256), speech_like(NUM_FRAMES / 25))
    return [change(frame, index) for index, frame in enumerate(frames)]


def dub(pipeline: DubbingPipeline, frames: list[np.ndarray]) -> tuple[list[np.ndarray], Compositor]:
    """The frames dubbed, tracked as a whole."""
    source = LiveFrameSource(frames, Fraction(25))
    audio = AudioStream(iter([speech_like(NUM_FRAMES / 25, 1)]), "whisper")
    compositor = Compositor(
        source, [Speaker(pipeline.generator, source, audio, track_face(source), look_ahead_s=4)]
    )
    return [pair.dubbed.rgb() for pair in compositor.frames()], compositor


@pytest.mark.parametrize(("first", "last"), [(1.0, 1.6), (1.4, 0.9)])
def test_crop_follows_a_zoom(pipeline: DubbingPipeline, first: float, last: float) -> None:
    factors = np.geomspace(first, last, NUM_FRAMES)
    source = LiveFrameSource(frames_of(lambda frame, index: zoomed(frame, factors[index])), 25)
    audio = AudioStream(iter([speech_like(NUM_FRAMES / 25)]), "whisper")
    speaker = Speaker(pipeline.generator, source, audio, track_face(source), look_ahead_s=4)
    placements = list(speaker.placements())
    assert {one.shot for one in placements} == {0}
    radii = np.array([one.radius_px for one in placements])
    assert np.abs(np.log(radii / factors) - np.log(radii / factors).mean()).max() < 0.06
    assert (np.diff(radii) * np.sign(last - first)).min() >= 0
    for _, reference in speaker.references[0]:  # at its own scale
        ratio = reference.radius_px / face_scales(reference.points[None])[0]
        assert ratio == pytest.approx(radii[0] / face_scales(placements[0].points[None])[0], rel=0.06)


def test_frames_are_chosen_before_a_time(pipeline: DubbingPipeline) -> None:
    """For evaluation: references and texture of the first 0.8 s."""
    source = LiveFrameSource(frames_of(lambda frame, index: frame), 25)
    audio = AudioStream(iter([speech_like(NUM_FRAMES / 25)]), "whisper")
    speaker = Speaker(pipeline.generator, source, audio, track_face(source), look_ahead_s=4, chosen_before_s=0.8)
    assert len(list(speaker.placements())) == NUM_FRAMES
    assert len(speaker.references[0]) == 5
    assert len(speaker.candidates[0]) > 10
    assert max(index for index, _ in speaker.references[0] + speaker.candidates[0]) < 20


class StripeGenerator:
    """Draws vertical stripes after the first selection of a shot, and horizontal ones after the second."""

    model = SimpleNamespace(config=SimpleNamespace(num_references=5))
    mouth_size = 64

    def __init__(self) -> None:
        self.axes = iter([1, 0])

    def encode_references(self, crops: list[np.ndarray]) -> int:
        return next(self.axes)

    def generate(self, crops: list[np.ndarray], references: int, windows: np.ndarray) -> np.ndarray:
        stripes = np.indices(crops[0].shape[:2])[references] // 4 % 2
        return np.stack(len(crops) * [np.uint8(100 + 60 * np.dstack(3 * [stripes]))])


def test_mouths_of_two_selections_are_crossfaded() -> None:
    portrait = next(portraits(np.zeros(1), (256, 256), speech_like(1)))
    source = LiveFrameSource(NUM_FRAMES * [portrait], Fraction(25))
    audio = SimpleNamespace(
        remaining_s=lambda time_s, at_most_s: at_most_s, windows=lambda times_s: np.zeros((len(times_s), 384, 5))
    )
    speaker = Speaker(StripeGenerator(), source, audio, track_face(source), 4, first_selection_s=0.4, texture=False)
    lips = np.array([pair.dubbed.rgb()[LIPS] for pair in Compositor(source, [speaker]).frames()], float)
    for selection, first, last in ((0, 0, 10 + 24), (1, 10, NUM_FRAMES)):  # and a second after them
        indices = {index for index, _ in speaker.references[selection] + speaker.candidates[selection]}
        assert first <= min(indices) and max(indices) < last
    change = lips[-1] - lips[0]
    assert np.abs(change).mean() > 20
    shares = ((lips - lips[0]) * change).sum(axis=(1, 2, 3)) / np.square(change).sum()
    np.testing.assert_allclose(shares, np.clip((np.arange(NUM_FRAMES) - 9) / 13, 0, 1), atol=0.03)


def test_references_of_a_live_shot_are_selected_again() -> None:
    """The second selection comes 1.6 s after the first and goes back to the beginning."""
    portrait = next(portraits(np.zeros(1), (256, 256), speech_like(1)))
    source = LiveFrameSource(70 * [portrait], 25, num_kept=40)
    audio = SimpleNamespace(
        remaining_s=lambda time_s, at_most_s: at_most_s, windows=lambda times_s: np.zeros((len(times_s), 384, 5))
    )
    tracked = track_face(source, live=True)
    speaker = Speaker(StripeGenerator(), source, audio, tracked, 0.32, texture=False, live=True)
    lips = np.array([pair.dubbed.rgb()[LIPS] for pair in Compositor(source, [speaker], 2).frames()], float)
    indices = [{index for index, _ in selection} for selection in speaker.candidates]
    assert len(indices) == 2 and max(indices[0]) < 10
    assert min(indices[1]) < 10 and 40 <= max(indices[1]) < 50
    change = lips[-1] - lips[0]
    shares = ((lips - lips[0]) * change).sum(axis=(1, 2, 3)) / np.square(change).sum()
    np.testing.assert_allclose(shares, np.clip((np.arange(70) - 39) / 13, 0, 1), atol=0.03)


LIGHTS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "black to black": lambda frame, index: scaled(frame, min(1, (index + 1) / 15, (40 - index) / 15)),
    "fade from white": lambda frame, index: scaled(frame, k := min(1, (index + 1) / 20), 255 * (1 - k)),
    "lamp and flash": lambda frame, index: scaled(frame, 1.5 if index == 30 else 0.4 if index < 15 else 1),
}


@pytest.fixture(scope="module")
def steady(pipeline: DubbingPipeline) -> list[np.ndarray]:
    """The dub in constant light."""
    return dub(pipeline, frames_of(lambda frame, index: frame))[0]


@pytest.mark.parametrize("name", LIGHTS)
def test_mouth_has_the_light_of_its_frame(pipeline: DubbingPipeline, steady: list[np.ndarray], name: str) -> None:
    """The dub is that of the same video in constant light with the light changed."""
    frames = frames_of(LIGHTS[name])
    dubbed, compositor = dub(pipeline, frames)
    lit = [LIGHTS[name](frame, index) for index, frame in enumerate(steady)]
    for index in range(2, NUM_FRAMES - 2):
        found, expected = dubbed[index][MOUTH_BOX].astype(float), lit[index][MOUTH_BOX].astype(float)
        contrast = frames[index][60:180, 70:190].std() / 60
        assert abs(found.mean() - expected.mean()) < 4 + 16 * contrast, index
        if contrast > 0.3:
            assert lips_change(dubbed[index], frames[index]) > 15 * contrast
    assert compositor.num_dubbed >= 34


def test_invisible_face_is_left_unchanged_and_counted(pipeline: DubbingPipeline) -> None:
    frames = frames_of(lambda frame, index: scaled(frame, 0.01 if 20 <= index < 25 else 1))
    dubbed, compositor = dub(pipeline, frames)
    unchanged = [np.array_equal(*pair) for pair in zip(frames, dubbed, strict=True)]
    assert np.flatnonzero(unchanged).tolist() == [20, 21, 22, 23, 24]
    assert compositor.num_dubbed == NUM_FRAMES - 5


def test_grey_video_stays_grey(pipeline: DubbingPipeline) -> None:
    frames = frames_of(
        lambda frame, index: np.repeat(frame.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    )
    dubbed, _ = dub(pipeline, frames)
    for frame, source in zip(dubbed, frames, strict=True):
        assert lips_change(frame, source) > 10
        assert np.ptp(frame, axis=2).max() == 0


def test_tinted_video_keeps_its_tint(pipeline: DubbingPipeline) -> None:
    tint = np.array([0.25, 0.6, 1.0])
    frames = frames_of(lambda frame, index: np.rint(frame.mean(axis=2, keepdims=True) * tint).astype(np.uint8))
    dubbed, _ = dub(pipeline, frames)
    for frame in dubbed[::7]:
        lips = frame[LIPS].astype(float)
        assert np.percentile(np.abs(lips[..., 0] - 0.25 * lips[..., 2]), 99) < 6
        assert np.percentile(np.abs(lips[..., 1] - 0.6 * lips[..., 2]), 99) < 6
