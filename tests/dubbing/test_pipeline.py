"""The library: frame rates, ends, fades, and frames that come one by one."""

import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from data_processing.audio.features import extract_features
from data_processing.audio.framing import audio_windows
from data_processing.face.crop import FaceCrop
from data_processing.face.detectors import track_landmarks
from data_processing.face.selection import face_selector
from data_processing.face.tracking import find_landmarks
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import probe, read_frames
from data_processing.media.video_writer import VideoWriter
from dubbing.audio_stream import AudioStream
from dubbing.compositor import Compositor, FramePair
from dubbing.frame_sources import LiveFrameSource, VideoFileSource
from dubbing.pipeline import DubbingPipeline
from dubbing.sharpening import MAX_SHARPENING, sharpening_amount, unsharp_mask
from dubbing.speaker import Speaker
from models.crop_layout import lips_box
from tests.conftest import MOUTH, SECONDS
from tests.support.media import (
    fragmented,
    no_face_video,
    portraits,
    silent_video_without_audio,
    speech_like,
    speech_like_wav,
    talking_portrait,
    write_video,
)
from utils.errors import UserError
from utils.limits import limits

LIPS = slice(140, 160), slice(110, 145)  # of the made portrait


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> DubbingPipeline:
    return DubbingPipeline(checkpoint, device="cpu", precision="fp32")


def change(found: np.ndarray, source: np.ndarray) -> float:
    """Mean difference of the lips, in grey levels."""
    return float(np.abs(found[LIPS].astype(int) - source[LIPS]).mean())


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(30), Fraction(50)])
def test_the_videos_own_frame_rate_is_kept(fps, pipeline, speech, tmp_path) -> None:
    video, output = tmp_path / "video.mp4", tmp_path / "dubbed.mp4"
    talking_portrait(video, 30, fps, with_audio=False)
    done = pipeline.dub(video, speech, output)
    assert probe(output).fps == done.fps == fps
    assert done.frames == np.ceil(SECONDS * fps)
    source, found = list(read_frames(video, fps=fps)), list(read_frames(output, fps=fps))
    assert len(source) == 30
    for index in (0, 7, 29):
        assert np.abs(found[index][:90].astype(int) - source[index][:90]).mean() < 2.5  # the very frame
        assert change(found[index], source[index]) > 15
    assert change(found[30], source[29]) > 15  # and backward again


def test_rest_of_the_video_is_kept(pipeline, portrait_clip, tmp_path) -> None:
    speech = speech_like_wav(tmp_path / "short.wav", 0.6)
    done = pipeline.dub(portrait_clip, speech, tmp_path / "dubbed.mp4", when_short="keep")
    assert (done.frames, done.redrawn) == (40, 15)
    source, found = list(read_frames(portrait_clip)), list(read_frames(tmp_path / "dubbed.mp4"))
    changes = [change(a, b) for a, b in zip(found, source, strict=True)]
    assert min(changes[:10]) > 15
    assert changes[10] > changes[14] + 3  # fading
    assert max(changes[15:]) < 6  # the codec
    assert len(load_audio(tmp_path / "dubbed.mp4")) < 0.8 * 16000


def test_face_that_is_lost_fades(pipeline, portrait_clip, tmp_path) -> None:
    frames = list(read_frames(portrait_clip))
    gray = np.full_like(frames[0], 128)
    video = tmp_path / "lost.mp4"
    with VideoWriter(video, 256, 256) as writer:
        for index in range(60):
            blend = np.clip((index - 30) / 10, 0, 1)  # no cut: the face goes slowly
            writer.write(np.rint(frames[min(index, 39)] * (1 - blend) + gray * blend).astype(np.uint8))
    speech = speech_like_wav(tmp_path / "speech.wav", 2.4)
    done = pipeline.dub(video, speech, tmp_path / "dubbed.mp4")
    assert 30 <= done.redrawn < 50
    source, found = list(read_frames(video)), list(read_frames(tmp_path / "dubbed.mp4"))
    assert len(found) == len(source) == 60
    assert change(found[10], source[10]) > 15
    last = done.redrawn - 1
    assert change(found[last], source[last]) < 0.6 * change(found[last - 5], source[last - 5])
    assert all(change(a, b) < 3 for a, b in zip(found[done.redrawn :], source[done.redrawn :], strict=True))


def test_stream_gives_frames_as_they_come(pipeline, portrait_clip) -> None:
    frames, waveform = list(read_frames(portrait_clip)) * 3, speech_like(4.8, 1).astype(np.float32)
    taken = []

    def camera() -> Iterator[np.ndarray]:
        for index, frame in enumerate(frames):
            taken.append(index)
            yield frame

    def microphone() -> Iterator[np.ndarray]:
        yield from np.split(waveform, 48)

    found = []
    for dubbed in pipeline.stream(camera(), microphone(), look_ahead_s=0.8):
        found.append(dubbed)
        assert len(taken) - len(found) < 0.8 * 25 + 25 + 8
    assert len(found) == len(frames) == 120
    for index in (0, 20, 119):
        assert change(found[index], frames[index]) > 15
        assert np.array_equal(found[index][:60], frames[index][:60])


def test_live_frames_are_redrawn_in_their_places(pipeline, portrait_clip) -> None:
    """Each frame around its own mouth, from a clip that is seen whole before its first frame is drawn."""
    frames = list(read_frames(portrait_clip))
    points = find_landmarks(portrait_clip).points
    dubber = pipeline.dubber

    class Sentence:
        def left(self, time_s: float, most_s: float) -> float:
            return most_s

        def windows(self, times_s: np.ndarray) -> np.ndarray:
            return np.zeros((len(times_s), 384, 5), np.float32)

    footage = LiveFrameSource(frames, 25)
    speaker = Speaker(dubber, footage, Sentence(), look_ahead_s=2)
    drawn = list(Compositor(footage, [speaker]).frames())
    assert len(drawn) == 40
    for index, (source, dubbed) in enumerate(drawn):
        assert np.array_equal(source, frames[index])
        left, top, right, bottom = FaceCrop.from_landmarks(points[index], 50, MOUTH).mouth_bounds()
        assert left < 128 < right and top < 150 < bottom
        assert change(dubbed, source) > 15


def test_no_face_is_told(pipeline, speech, tmp_path) -> None:
    video = no_face_video(tmp_path / "landscape.mp4", 20)
    with pytest.raises(UserError, match=f"--video: no face found in any of the 20 frames of {video}"):
        pipeline.dub(video, speech, tmp_path / "dubbed.mp4")
    assert not (tmp_path / "dubbed.mp4").exists()


def test_length_is_limited(pipeline, portrait_clip, speech, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(limits, "length_s", 1.8)
    with pytest.raises(UserError, match=r"--audio, --video: expected at most 0\.0005 h, found 0\.0 h"):
        pipeline.dub(portrait_clip, speech, tmp_path / "dubbed.mp4")


def test_progress_is_told(pipeline, speech, tmp_path) -> None:
    told = []
    video = silent_video_without_audio(tmp_path / "video.mp4", 20)
    pipeline.dub(
        video, speech, tmp_path / "dubbed.mp4", progress=lambda done, expected: told.append((done, expected))
    )
    assert [done for done, _ in told] == list(range(1, 52))
    assert all(abs(expected - 51) <= 1 for _, expected in told)


def two_faces(portrait: Path, path: Path) -> Path:
    """Ten frames with the same face twice, the right one larger."""
    with VideoWriter(path, 576, 320) as writer:
        for frame in read_frames(portrait, 0, 10):
            both = np.zeros((320, 576, 3), np.uint8)
            both[:256, :256] = frame
            both[:, 256:] = cv2.resize(frame, (320, 320))
            writer.write(both)
    return path


@pytest.mark.parametrize(("face", "side"), [("left", 0), ("right", 1), ("100,150", 0), ("largest", 1)])
def test_of_two_faces_one_is_dubbed(face, side, pipeline, portrait_clip, tmp_path) -> None:
    video = two_faces(portrait_clip, tmp_path / "two.mp4")
    speech = speech_like_wav(tmp_path / "speech.wav", 0.4)
    pipeline.dub(video, speech, tmp_path / "dubbed.mp4", face=face)
    source, found = next(read_frames(video)).astype(int), next(read_frames(tmp_path / "dubbed.mp4")).astype(int)
    changes = [np.abs(found[:, :256] - source[:, :256]).mean(), np.abs(found[:, 256:] - source[:, 256:]).mean()]
    assert changes[side] > 2 * changes[1 - side]


def test_two_faces_speak_at_once(pipeline, portrait_clip, tmp_path) -> None:
    """Each as it would alone, the one with the shorter sound as long as that lasts, beyond the video's end too."""
    video = two_faces(portrait_clip, tmp_path / "two.mp4")
    voices = {"left": speech_like(0.32, 1), "right": speech_like(0.6, 2)}

    def drawn(*faces: str) -> list[FramePair]:
        footage = VideoFileSource(video, 25)
        speakers = [
            Speaker(
                pipeline.dubber, footage, AudioStream(iter([voices[face]]), "whisper"), choose=face_selector(face)
            )
            for face in faces
        ]
        return list(Compositor(footage, speakers).frames())

    left, right, both = drawn("left"), drawn("right"), drawn("left", "right")
    assert (len(left), len(right), len(both)) == (8, 15, 15)
    for index, (source, dubbed) in enumerate(both):
        assert np.array_equal(dubbed[:, 256:], right[index].dubbed[:, 256:])
        if index < 3:  # then it fades, which it need not alone
            assert np.array_equal(dubbed[:, :256], left[index].dubbed[:, :256])
        assert np.array_equal(dubbed[:, :256], source[:, :256]) == (index >= 8)


def test_sounds_and_faces_come_in_pairs(pipeline, portrait_clip, speech, tmp_path, capsys) -> None:
    output = tmp_path / "dubbed.mp4"
    with pytest.raises(UserError, match="--face: expected one for each of 2 sounds, found 1"):
        pipeline.dub(portrait_clip, [speech, speech], output, face="left")
    with pytest.raises(UserError, match="--references: expected one face"):
        pipeline.dub(portrait_clip, [speech] * 2, output, face=["left", "right"], references="1,2,3,4,5")
    assert not output.exists()
    assert pipeline.dub(portrait_clip, [speech] * 2, output, face=["left", "right"]).redrawn == 51
    said = capsys.readouterr().err
    assert "warning: --face right: no face of its own found in any of the 40 frames" in said
    assert "warning: --face: 51 times two sounds had the same face" in said


def test_a_face_is_found_by_its_picture(tmp_path, monkeypatch) -> None:
    """Told apart by their colour, in place of the network."""
    face = skimage.data.astronaut()[:256, 96:352]
    red, blue = (np.clip(face + np.array(tint), 0, 255).astype(np.uint8) for tint in ([60, 0, 0], [0, 0, 60]))
    cv2.imwrite(str(tmp_path / "red.png"), red[..., ::-1])

    class ByColour:
        def vector(self, frame: np.ndarray, points: np.ndarray) -> np.ndarray:
            x, y = points[33].astype(int)
            return frame[y - 20 : y + 20, x - 20 : x + 20].mean(axis=(0, 1)) / 50

    monkeypatch.setattr("data_processing.face.selection.IdentityEncoder", ByColour)
    choose = face_selector(str(tmp_path / "red.png"))
    for pictures, expected in (((blue, red), 1), ((red, blue), 0), ((blue, blue), None)):
        points, _ = next(track_landmarks(iter([np.hstack(pictures)]), "dlib", choose=choose))
        if expected is None:
            assert np.isnan(points).all()
        else:
            assert 256 * expected < points[33, 0] < 256 * (expected + 1)
    (tmp_path / "words.png").write_text("no picture")
    for wrong in ("middle", tmp_path / "words.png", tmp_path / "missing.png", "3,"):
        with pytest.raises(UserError, match="--face: expected"):
            face_selector(str(wrong))
    cv2.imwrite(str(tmp_path / "gray.png"), np.full((200, 200, 3), 128, np.uint8))
    with pytest.raises(UserError, match="--face: no face found"):
        face_selector(str(tmp_path / "gray.png"))


def test_sharpening_brings_the_references_detail() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 52, 40, 3), np.uint8)
    references = [cv2.GaussianBlur(crop, (0, 0), 1.5) for crop in noise]
    drawn = np.stack([cv2.GaussianBlur(crop, (0, 0), 0.5) for crop in references])
    amount = sharpening_amount(drawn, references)
    assert 0 < amount < MAX_SHARPENING

    def detail(crops: np.ndarray) -> float:
        return float(np.mean([cv2.Laplacian(crop[lips_box(32)], cv2.CV_32F).var() for crop in crops]))

    assert detail(unsharp_mask(drawn, amount)) == pytest.approx(detail(np.stack(references)), rel=0.2)
    assert sharpening_amount(np.stack(references), references) == 0
    assert sharpening_amount(np.full_like(drawn, 128), references) == MAX_SHARPENING
    assert np.array_equal(unsharp_mask(drawn, 0), drawn)


def test_damaged_video_is_played_as_far_as_it_goes(pipeline, portrait_clip, speech, tmp_path, capsys) -> None:
    """A clip shorter than the sound, with a frame of an hour later at its end."""
    video = tmp_path / "damaged.mkv"
    frames = list(read_frames(portrait_clip))[:20]
    write_video(video, [*frames, frames[0]], times=np.array([*np.arange(20) / 25, 3600]))
    done = pipeline.dub(video, speech, tmp_path / "dubbed.mp4")
    assert (done.frames, done.redrawn) == (51, 51)
    said = capsys.readouterr().err
    assert said.startswith("warning: --video: expected at most 60 s")
    assert "using what came before" in said


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mp4"])
def test_video_that_still_grows_is_dubbed_as_far_as_it_could_be_read(suffix, pipeline, speech, tmp_path) -> None:
    """Another program writes on while it is read twice: what is shown are its frames, forward and backward."""
    frames = list(portraits(np.arange(75) / 25))
    for number, frame in enumerate(frames):  # in bits of 16 pixels
        for bit in range(7):
            frame[:16, 16 * bit : 16 * bit + 16] = 255 * (number >> bit & 1)
    content = fragmented(tmp_path / f"whole{suffix}", frames).read_bytes()
    video, written = tmp_path / f"growing{suffix}", len(content) // 2
    video.write_bytes(content[:written])
    done = threading.Event()

    def record() -> None:
        with video.open("ab", buffering=0) as file:
            for start in range(written, len(content), 1000):
                if done.wait(0.02):
                    return
                file.write(content[start : start + 1000])

    recorder = threading.Thread(target=record)
    recorder.start()
    try:
        dubbed = pipeline.dub(video, speech, tmp_path / "dubbed.mp4")
    finally:
        done.set()
        recorder.join()
    assert (dubbed.frames, dubbed.redrawn) == (51, 51)
    shown = [
        sum(int(frame[8, 16 * bit + 8].mean() > 127) << bit for bit in range(7))
        for frame in read_frames(tmp_path / "dubbed.mp4")
    ]
    last = max(shown)
    assert last >= 25
    assert shown == [*range(last + 1), *range(last, -1, -1)][:51]


def test_long_silence_of_the_face_costs_nothing() -> None:
    """Where nobody asked for a sound's audio_windows for long its blocks are left out, and what follows is the same."""
    waveform = speech_like(120, 2).astype(np.float32)
    features = extract_features(waveform, "mel")
    sound = AudioStream((waveform[start : start + 8000] for start in range(0, len(waveform), 8000)), "mel", 2, 1)
    heard = []
    sound._hear, hear = lambda: (heard.append(1), hear()), sound._hear
    sound.windows(np.array([0.0]))
    for time_s in np.arange(0, 110, 0.04):
        sound.left(time_s, 0.2)
        assert len(sound._waveform) + sum(map(len, sound._new)) < 40 * 16000
    times = np.arange(110 * 25, 111 * 25)
    np.testing.assert_allclose(sound.windows(times / 25), audio_windows(features, times), atol=1e-3)
    assert len(heard) < 15  # of 55 blocks


def test_stream_that_looks_nowhere_ahead(pipeline, portrait_clip) -> None:
    frames = list(read_frames(portrait_clip))[:5]
    found = list(pipeline.stream(iter(frames), iter([np.zeros(3200, np.float32)]), look_ahead_s=0))
    assert len(found) == 5
