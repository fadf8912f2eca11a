"""Dubbing as a library: frame rates, lengths, fades, several faces, live frames."""

import os
import re
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from unittest.mock import Mock

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from data_processing.media.audio_io import load_audio
from data_processing.media.frame import planes_of
from data_processing.media.video_reader import probe, read_frames
from data_processing.media.video_writer import VideoWriter
from dubbing.pipeline import DubbingPipeline
from dubbing.settings import DubSettings
from tests.conftest import SECONDS
from tests.support.dubbing import lips_change, small_and_large_face
from tests.support.media import (
    fragmented,
    no_face_video,
    portraits,
    speech_like,
    speech_like_wav,
    tagged,
    talking_portrait,
    video_without_audio,
    write_video,
)
from tests.tools.delay_table import stream_with_delays
from utils.errors import LimitError, MediaError, NoFaceError, OutputError, ParameterError
from utils.limits import DEFAULT_LIMITS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(30), Fraction(50)])
def test_frame_rate_of_the_source_is_kept(fps, pipeline, speech, tmp_path) -> None:
    video, output = tmp_path / "video.mp4", tmp_path / "dubbed.mp4"
    talking_portrait(video, 30, fps, with_audio=False)
    result = pipeline.dub(video, speech, output)
    assert probe(output).fps == result.fps == fps
    assert result.num_frames == np.ceil(SECONDS * fps)
    source, found = list(read_frames(video, fps=fps)), list(read_frames(output, fps=fps))
    assert len(source) == 30
    for index in (0, 7, 29):
        assert np.abs(found[index][:90].astype(int) - source[index][:90]).mean() < 2.5  # the same frame
        assert lips_change(found[index], source[index]) > 15
    assert lips_change(found[30], source[29]) > 15  # played backward


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le"])
def test_samples_outside_the_mouth_are_those_of_the_source(pix_fmt, pipeline, tmp_path) -> None:
    """Exactly, after lossless encoding; the mouth is drawn."""
    speech, output = speech_like_wav(tmp_path / "short.wav", 0.4), tmp_path / "dubbed.mp4"
    source = tagged(
        tmp_path / "video.mp4",
        Colorspace.ITU601,
        ColorRange.JPEG,
        pix_fmt=pix_fmt,
        frames=portraits(np.arange(10) / 25),
    )
    assert pipeline.dub(source, speech, output, DubSettings(crf=0)).num_dubbed == 10
    assert probe(output).layout == probe(source).layout
    with av.open(str(source)) as given, av.open(str(output)) as dubbed:
        for image, other in zip(given.decode(video=0), dubbed.decode(video=0), strict=True):
            for plane, own in zip(planes_of(image), planes_of(other), strict=True):
                rows, columns = np.nonzero(plane != own)
                height, width = plane.shape
                assert 0.4 < rows.min() / height < rows.max() / height < 0.8  # of the portrait
                assert 0.3 < columns.min() / width < columns.max() / width < 0.7
                assert len(rows) > 0.01 * plane.size


def test_halves_of_a_side_by_side_differ_in_the_mouth_only(pipeline, tmp_path, caplog) -> None:
    speech, output = speech_like_wav(tmp_path / "short.wav", 0.4), tmp_path / "dubbed.mp4"
    source = tagged(
        tmp_path / "video.mp4",
        Colorspace.ITU709,
        ColorRange.MPEG,
        pix_fmt="yuv422p10le",
        frames=portraits(np.arange(10) / 25),
    )
    with caplog.at_level("INFO"):
        pipeline.dub(source, speech, output, DubSettings(crf=0, side_by_side=True))
    assert "the source is 4:2:2 with 10 bits; the output is 4:2:0 with 8 bits" in caplog.messages
    with av.open(str(output)) as dubbed:
        for image in dubbed.decode(video=0):
            luma = planes_of(image)[0]
            height, width = luma.shape[0], luma.shape[1] // 2
            rows, columns = np.nonzero(luma[:, :width] != luma[:, width:])
            assert 0.4 < rows.min() / height < rows.max() / height < 0.8
            assert 0.3 < columns.min() / width < columns.max() / width < 0.7


def test_rest_of_the_video_is_kept(pipeline, portrait_clip, tmp_path) -> None:
    speech = speech_like_wav(tmp_path / "short.wav", 0.6)
    result = pipeline.dub(portrait_clip, speech, tmp_path / "dubbed.mp4", DubSettings(when_short="keep"))
    assert (result.num_frames, result.num_dubbed) == (40, 15)
    source, found = list(read_frames(portrait_clip)), list(read_frames(tmp_path / "dubbed.mp4"))
    changes = [lips_change(a, b) for a, b in zip(found, source, strict=True)]
    assert min(changes[:10]) > 15
    assert changes[10] > changes[14] + 3  # fades out
    assert max(changes[15:]) < 6  # compression only
    assert len(load_audio(tmp_path / "dubbed.mp4")) < 0.8 * 16000


def test_lost_face_fades_out(pipeline, portrait_clip, tmp_path) -> None:
    frames = list(read_frames(portrait_clip))
    gray = np.full_like(frames[0], 128)
    video = tmp_path / "lost.mp4"
    with VideoWriter(video, 256, 256) as writer:
        for index in range(60):
            blend = np.clip((index - 30) / 10, 0, 1)  # no cut: the face dissolves
            writer.write(np.rint(frames[min(index, 39)] * (1 - blend) + gray * blend).astype(np.uint8))
    speech = speech_like_wav(tmp_path / "speech.wav", 2.4)
    result = pipeline.dub(video, speech, tmp_path / "dubbed.mp4")
    assert 30 <= result.num_dubbed < 50
    source, found = list(read_frames(video)), list(read_frames(tmp_path / "dubbed.mp4"))
    assert len(found) == len(source) == 60
    assert lips_change(found[10], source[10]) > 15
    last = result.num_dubbed - 1
    assert lips_change(found[last], source[last]) < 0.6 * lips_change(found[last - 5], source[last - 5])
    assert all(
        lips_change(a, b) < 3 for a, b in zip(found[result.num_dubbed :], source[result.num_dubbed :], strict=True)
    )


@pytest.mark.parametrize(("fps", "delay_s"), [(10, 0.76), (25, 0.64), (60, 0.68)])
def test_stream_returns_frames_as_they_arrive(fps, delay_s, pipeline, portrait_clip) -> None:
    frames = list(read_frames(portrait_clip)) * 2
    waveform = speech_like(80 / fps, 1).astype(np.float32)
    found, delays = stream_with_delays(lambda *inputs: pipeline.stream(*inputs, fps), frames, waveform, fps)
    assert max(delays) == pytest.approx(delay_s, abs=0.006)
    assert len(found) == len(frames) == 80
    for index in (0, 20, 79):
        assert lips_change(found[index], frames[index]) > 15
        assert np.array_equal(found[index][:60], frames[index][:60])


def test_no_face(pipeline, speech, tmp_path) -> None:
    video = no_face_video(tmp_path / "landscape.mp4", 20)
    with pytest.raises(NoFaceError, match=f"{video}: no face detected in 20 frames"):
        pipeline.dub(video, speech, tmp_path / "dubbed.mp4")
    assert not (tmp_path / "dubbed.mp4").exists()


@pytest.mark.parametrize(("suffix", "resume"), [(".mp4", False), (".mov", True), (".mkv", False)])
def test_soundtrack_and_metadata(suffix, resume, pipeline, portrait_clip, tmp_path) -> None:
    """What is heard is not what drives the lips; the file says that it is dubbed, and by what."""
    speech = speech_like_wav(tmp_path / "speech.wav", 0.6, seed=3)
    other = speech_like_wav(tmp_path / "other.wav", 1, seed=8)
    plain, output = tmp_path / "plain.mkv", tmp_path / f"dubbed{suffix}"
    pipeline.dub(portrait_clip, speech, plain, DubSettings(crf=0))
    pipeline.dub(portrait_clip, speech, output, DubSettings(crf=0, soundtrack=other, resume=resume))
    expected, found = load_audio(other)[:9600], load_audio(output)[:9600]
    assert np.corrcoef(expected, found)[0, 1] > 0.95
    for first, second in zip(read_frames(plain), read_frames(output), strict=True):
        assert np.array_equal(first, second)
    with av.open(str(output)) as container:
        metadata = {key.lower(): value for key, value in container.metadata.items()}
    assert metadata["comment"] == "Dubbed: the movement of the mouth is generated (DINet, untrained.safetensors)"
    if suffix != ".mov":
        assert metadata["description"].endswith("digitalsourcetype/compositeWithTrainedAlgorithmicMedia")


def test_length_is_limited(pipeline, portrait_clip, speech, tmp_path) -> None:
    settings = DubSettings(limits=replace(DEFAULT_LIMITS, max_duration_s=1.8))
    with pytest.raises(LimitError, match=r"expected at most 0\.0005 h, found 0\.0 h") as caught:
        pipeline.dub(portrait_clip, speech, tmp_path / "dubbed.mp4", settings)
    assert caught.value.path == speech


def test_progress(pipeline, speech, tmp_path) -> None:
    calls = []
    video = video_without_audio(tmp_path / "video.mp4", 20)
    pipeline.dub(
        video, speech, tmp_path / "dubbed.mp4", progress=lambda done, expected: calls.append((done, expected))
    )
    assert sorted({done for done, _ in calls} - {0}) == list(range(1, 52))
    assert all(abs(expected - 51) <= 1 for _, expected in calls)


@pytest.mark.parametrize(("face", "side"), [("left", 0), ("right", 1), ("100,150", 0), ("largest", 1)])
def test_one_of_small_and_large_face(face, side, pipeline, portrait_clip, tmp_path) -> None:
    video = small_and_large_face(portrait_clip, tmp_path / "two.mp4")
    speech = speech_like_wav(tmp_path / "speech.wav", 0.4)
    pipeline.dub(video, speech, tmp_path / "dubbed.mp4", DubSettings(faces=(face,)))
    source, found = next(read_frames(video)).astype(int), next(read_frames(tmp_path / "dubbed.mp4")).astype(int)
    changes = [np.abs(found[:, :256] - source[:, :256]).mean(), np.abs(found[:, 256:] - source[:, 256:]).mean()]
    assert changes[side] > 2 * changes[1 - side]


def test_one_face_for_each_audio(pipeline, portrait_clip, speech, tmp_path, caplog) -> None:
    output = tmp_path / "dubbed.mp4"
    both = DubSettings(faces=("left", "right"))
    with pytest.raises(ParameterError, match="expected one for each of 2 audio files, found 1") as caught:
        pipeline.dub(portrait_clip, [speech, speech], output, DubSettings(faces=("left",)))
    assert caught.value.parameter == "face"
    with pytest.raises(ParameterError, match="expected one face"):
        replace(both, references=(1, 2, 3, 4, 5))
    assert not output.exists()
    assert pipeline.dub(portrait_clip, [speech] * 2, output, both).num_dubbed == 51
    assert "right: no face of its own detected in 40 frames" in caplog.text
    assert "two audio files selected the same face in 51 frames" in caplog.text
    assert all(record.parameter == "face" for record in caplog.records if record.levelname == "WARNING")


def test_truncated_video_is_dubbed_up_to_the_damage(pipeline, portrait_clip, speech, tmp_path, caplog) -> None:
    """A clip that is shorter than the audio, with a frame one hour later at its end."""
    video = tmp_path / "damaged.mkv"
    frames = list(read_frames(portrait_clip))[:20]
    write_video(video, [*frames, frames[0]], times=np.array([*np.arange(20) / 25, 3600]))
    result = pipeline.dub(video, speech, tmp_path / "dubbed.mp4")
    assert (result.num_frames, result.num_dubbed) == (51, 51)
    record, duration = caplog.records
    assert "the container states 3600.0 s" in duration.getMessage()
    assert record.path == video
    assert "expected at most 60 s" in record.getMessage()
    assert "using what precedes it" in record.getMessage()


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mp4"])
def test_growing_video_is_dubbed_up_to_its_end_at_the_first_pass(suffix, pipeline, speech, tmp_path) -> None:
    """Another process appends to the file during both passes: the output has its frames, forward and backward."""
    frames = list(portraits(np.arange(75) / 25))
    for number, frame in enumerate(frames):  # the frame number in blocks of 16 pixels
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
    assert (dubbed.num_frames, dubbed.num_dubbed) == (51, 51)
    shown = [
        sum(int(frame[8, 16 * bit + 8].mean() > 127) << bit for bit in range(7))
        for frame in read_frames(tmp_path / "dubbed.mp4")
    ]
    last = max(shown)
    assert last >= 25
    assert shown == [*range(last + 1), *range(last, -1, -1)][:51]


def test_photo(pipeline, portrait_clip, tmp_path, caplog) -> None:
    """All frames are the photo with another mouth; strings are accepted for paths."""
    caplog.set_level("INFO")
    photo, output = next(read_frames(portrait_clip)), tmp_path / "dubbed.mp4"
    Image.fromarray(photo).save(tmp_path / "photo.webp", lossless=True)
    speech = speech_like_wav(tmp_path / "speech.wav", 0.4)
    result = pipeline.dub(str(tmp_path / "photo.webp"), [str(speech)], str(output), DubSettings(crf=4))
    assert (result.num_frames, result.num_dubbed, result.fps) == (10, 10, 25)
    assert "a still image: only the mouth moves, at 25 fps" in caplog.text
    frames = np.stack(list(read_frames(output))).astype(int)
    assert len(frames) == 10
    assert np.abs(frames[:, :90] - photo[:90]).mean(axis=(1, 2, 3)).max() < 2
    assert all(lips_change(frame, photo) > 15 for frame in frames)
    moved = np.abs(np.diff(frames, axis=0))
    assert moved[:, 140:160, 110:145].mean() > 4 * moved[:, :90].mean()


def test_slow_video_is_dubbed_at_25_fps(pipeline, tmp_path) -> None:
    video = talking_portrait(tmp_path / "slow.mp4", 2, 5, with_audio=False)
    speech = speech_like_wav(tmp_path / "speech.wav", 0.6)
    result = pipeline.dub(video, str(speech), tmp_path / "dubbed.mp4")
    assert (result.num_frames, result.num_dubbed, result.fps) == (15, 15, 25)


@pytest.fixture
def inputs(portrait_clip, speech, tmp_path) -> dict[str, Path]:
    """Copies of a video, an audio and a photo, all with the suffix of a video."""
    paths = {name: tmp_path / f"{name}.mp4" for name in ("video", "audio", "photo")}
    paths["video"].write_bytes(portrait_clip.read_bytes())
    paths["audio"].write_bytes(speech.read_bytes())
    Image.fromarray(next(read_frames(portrait_clip))).save(paths["photo"], "PNG")
    return paths


@pytest.mark.parametrize("name", ["video", "audio", "photo"])
@pytest.mark.parametrize("spelling", ["same", "indirect", "symbolic link", "hard link", "relative"])
def test_output_onto_an_input_is_refused(name, spelling, inputs, tmp_path, monkeypatch) -> None:
    path, output = inputs[name], tmp_path / "other.mp4"
    content = path.read_bytes()
    if spelling == "same":
        output = str(path)
    elif spelling == "indirect":
        (tmp_path / "folder").mkdir()
        output = str(tmp_path / "folder" / ".." / path.name)
    elif spelling == "symbolic link":
        output.symlink_to(path)
    elif spelling == "hard link":
        output.hardlink_to(path)
    else:
        monkeypatch.chdir(tmp_path)
        output = path.name
    before = sorted(tmp_path.rglob("*"))
    settings = DubSettings(faces=(inputs["photo"],))
    pipeline = DubbingPipeline(device="cpu")
    with pytest.raises(ParameterError, match="is also an input; choose another name") as caught:
        pipeline.dub(inputs["video"], inputs["audio"], output, settings)
    assert caught.value.parameter == "output"
    assert pipeline._loading is None  # a command would not end before it is loaded
    assert path.read_bytes() == content
    assert sorted(tmp_path.rglob("*")) == before


def test_arguments_are_checked_before_any_work(pipeline, inputs, speech, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("dubbing.pipeline.probe", Mock(side_effect=AssertionError))
    os.mkfifo(tmp_path / "pipe.mp4")
    video, output, missing = inputs["video"], tmp_path / "dubbed.mp4", tmp_path / "missing.wav"
    for arguments, error, reason in (
        ((video, [], output), ParameterError, "expected at least one file, found none"),
        ((video, [speech, speech], output), ParameterError, "expected one for each of 2 audio files, found 1"),
        ((video, str(missing), output), MediaError, f"{missing}: no such file"),
        ((video, tmp_path / "pipe.mp4", output), MediaError, "pipe.mp4: is a pipe"),
        ((tmp_path / "pipe.mp4", speech, output), MediaError, "pipe.mp4: is a pipe"),
        ((video, speech, str(tmp_path / "dubbed.webm")), OutputError, "the name must end in .mp4, .mov or .mkv"),
        ((video, speech, tmp_path / "absent" / "dubbed.mp4"), OutputError, "no such folder"),
        ((video, speech, tmp_path / "pipe.mp4"), OutputError, "pipe.mp4: is a pipe or a device"),
    ):
        with pytest.raises(error, match=re.escape(reason)):
            pipeline.dub(*arguments)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"precision": "fp8"}, "precision"),
        ({"precision": None}, "precision"),
        ({"landmarks": "mediapipe"}, "landmarks"),
        ({"device": "foo"}, "device"),
    ],
)
def test_options_are_checked_before_the_checkpoint_is_read(options, parameter, tmp_path) -> None:
    with pytest.raises(ParameterError) as caught:
        _ = DubbingPipeline(str(tmp_path / "missing.safetensors"), **options).generator
    assert caught.value.parameter == parameter
    assert "\n" not in str(caught.value)


def test_face_is_selected_before_the_audio_is_read(pipeline, portrait_clip, speech, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("dubbing.pipeline.read_audio", Mock(side_effect=AssertionError))
    with pytest.raises(ParameterError, match="expected largest, left, right") as caught:
        pipeline.dub(portrait_clip, speech, tmp_path / "dubbed.mp4", DubSettings(faces="middle"))
    assert caught.value.parameter == "face"


@pytest.mark.parametrize(("face", "side"), [("left", 0), ("100,150", 0), ("largest", 1)])
def test_stream_of_one_of_two_faces(face, side, pipeline, portrait_clip, tmp_path) -> None:
    source = list(read_frames(small_and_large_face(portrait_clip, tmp_path / "two.mp4"), 0, 5))
    audio = iter([speech_like(0.4).astype(np.float32)])
    found = next(pipeline.stream(iter(source), audio, look_ahead_s=0, face=face)).astype(int)
    changes = [
        np.abs(found[:, :256] - source[0][:, :256]).mean(),
        np.abs(found[:, 256:] - source[0][:, 256:]).mean(),
    ]
    assert changes[side] > 2 * changes[1 - side]


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"fps": 0}, "fps"),
        ({"fps": -25}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"fps": float("inf")}, "fps"),
        ({"fps": "25"}, "fps"),
        ({"look_ahead_s": -1}, "look_ahead_s"),
        ({"look_ahead_s": None}, "look_ahead_s"),
        ({"face": "middle"}, "face"),
    ],
    ids=str,
)
def test_stream_checks_its_options_at_once(options, parameter, pipeline) -> None:
    with pytest.raises(ParameterError) as caught:
        pipeline.stream([], [], **options)
    assert caught.value.parameter == parameter


@pytest.mark.parametrize(
    "block",
    [np.zeros(1600, np.int16), np.zeros((2, 1600), np.float32), np.float32(0), [0.0, 0.0], b"0000"],
    ids=lambda block: str(np.asarray(block).dtype),
)
def test_stream_checks_its_audio(block, pipeline, portrait_clip) -> None:
    frames = read_frames(portrait_clip, 0, 5)
    with pytest.raises(ParameterError, match=r"expected blocks \(n,\) of float samples") as caught:
        list(pipeline.stream(frames, [np.zeros(1600), block], look_ahead_s=0))
    assert caught.value.parameter == "audio"


def test_stream_takes_what_is_no_number_for_silence(pipeline, portrait_clip, caplog) -> None:
    block = np.zeros(1600, np.float32)
    frames = list(read_frames(portrait_clip, 0, 5))
    expected = list(pipeline.stream(frames, [block, block], look_ahead_s=0))
    block[100:200] = np.nan
    found = list(pipeline.stream(frames, [block, block], look_ahead_s=0))
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    (record,) = caplog.records
    assert record.getMessage() == "NaN or Inf in the audio; they are silent"


def test_stream_without_look_ahead(pipeline, portrait_clip) -> None:
    frames = list(read_frames(portrait_clip))[:5]
    found = list(pipeline.stream(iter(frames), iter([np.zeros(3200, np.float32)]), look_ahead_s=0))
    assert len(found) == 5
