"""The command inference.py: whole files, errors, interruption and resuming."""

import json
import os
import pickle
import re
import subprocess
import sys
import wave
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import safetensors.torch
import torch

import inference
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import read_frames
from data_processing.media.video_writer import VideoWriter
from dubbing import generator, pipeline
from dubbing.compositor import Compositor
from dubbing.generator import GeneratorSession
from dubbing.segments import SegmentedWriter
from models.checkpoint import load_model, save_model
from models.dinet import DINet, DINetConfig
from tests.conftest import MOUTH, SECONDS
from tests.support.commands import run_command_line
from tests.support.media import (
    no_face_video,
    speech_like_wav,
    text_file,
    truncated_mp4,
    video_without_audio,
    write_video,
)
from tests.support.numbered_media import write_audio
from training import adapt
from training.adaptation import AdaptResult, describe_origin
from utils.limits import DEFAULT_LIMITS, Limits
from utils.weights import weight_path

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("remembered_networks")]

ROOT = Path(__file__).resolve().parents[1]


def dub(*flags: object) -> None:
    """`inference.py` with these flags, in this process, on the CPU."""
    run_command_line(inference.main, "--device", "cpu", *flags)


@pytest.fixture(scope="module")
def dubbed(tmp_path_factory, portrait_clip, speech, checkpoint) -> Path:
    path = tmp_path_factory.mktemp("dubbed") / "dubbed.mp4"
    dub("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint, "--output", path)
    return path


def durations_s(path: Path) -> tuple[float, float]:
    """Of the video stream and the audio track, by their packets."""
    ends = []
    with av.open(str(path)) as container:
        for stream in (container.streams.video[0], container.streams.audio[0]):
            container.seek(0)
            packets = [p for p in container.demux(stream) if p.pts is not None]
            ends.append(float(max(p.pts + p.duration for p in packets) * stream.time_base))
    return ends[0], ends[1]


def test_output_is_as_long_as_the_audio(dubbed, speech):
    frames = list(read_frames(dubbed))
    assert len(frames) == 51
    assert frames[0].shape == (256, 256, 3)
    video_s, audio_s = durations_s(dubbed)
    assert video_s == pytest.approx(51 / 25, abs=1e-3)
    assert audio_s == pytest.approx(SECONDS, abs=1 / 25)


def test_output_has_the_driving_audio(dubbed, speech):
    driving, found = load_audio(speech), load_audio(dubbed)
    length = min(len(driving), len(found))
    assert np.corrcoef(driving[:length], found[:length])[0, 1] > 0.95


def test_output_differs_from_the_source_in_the_mouth(dubbed, portrait_clip):
    source = list(read_frames(portrait_clip))
    order = [*range(40), *reversed(range(29, 40))]
    for index, frame in zip(order, read_frames(dubbed), strict=True):
        change = np.abs(frame.astype(int) - source[index]).mean(axis=2)
        assert change[:90].mean() < 2.5  # forehead and eyes
        assert change[140:160, 110:145].mean() > 15  # lips


def test_shorter_audio_ends_the_output(portrait_clip, checkpoint, tmp_path):
    speech = speech_like_wav(tmp_path / "short.wav", 0.5)
    output = tmp_path / "dubbed.mkv"
    dub("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint, "--output", output)
    assert len(list(read_frames(output))) == 13


def test_deterministic_file(dubbed, portrait_clip, speech, checkpoint, tmp_path):
    """In another process, as users run it: messages go to stderr, one summary line to stdout."""
    output = tmp_path / "again.mp4"
    flags = ("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint, "--output", output)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, str(ROOT / "inference.py"), "--device", "cpu", *map(str, flags)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{output}: 51 frames (2.0 s at 25 fps)")
    assert len(result.stdout.splitlines()) == 1
    assert output.read_bytes() == dubbed.read_bytes()


def test_side_by_side(dubbed, portrait_clip, speech, checkpoint, tmp_path):
    output = tmp_path / "both.mov"
    flags = ("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint, "--output", output)
    dub(*flags, "--side-by-side", "--crf", 10)
    source = list(read_frames(portrait_clip))
    count = 0
    for both, alone in zip(read_frames(output), read_frames(dubbed), strict=True):
        assert both.shape == (256, 512, 3)
        if count < 40:
            assert np.abs(both[:, :256].astype(int) - source[count]).mean() < 2
        assert np.abs(both[:, 256:].astype(int) - alone).mean() < 2
        count += 1
    assert count == 51


def test_references_flag_selects_the_frames(dubbed, portrait_clip, speech, checkpoint, tmp_path, monkeypatch):
    encoded = []

    def encode_references(session: GeneratorSession, crops: list[np.ndarray]) -> object:
        encoded.append(crops)
        return original(session, crops)

    original = GeneratorSession.encode_references
    monkeypatch.setattr(GeneratorSession, "encode_references", encode_references)
    flags = ("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint)
    dub(*flags, "--output", tmp_path / "dubbed.mp4", "--references", "7,7,7,7,31")
    crops, again = encoded  # for both looks at the first shot
    assert len(crops) == 5
    assert all(np.array_equal(*pair) for pair in zip(crops, again, strict=True))
    assert all(np.array_equal(crops[0], crop) for crop in crops[1:4])
    assert not np.array_equal(crops[0], crops[4])
    assert (tmp_path / "dubbed.mp4").read_bytes() != dubbed.read_bytes()


def test_frames_without_a_face_are_unchanged(portrait_clip, checkpoint, tmp_path, capsys):
    landscape = list(read_frames(no_face_video(tmp_path / "landscape.mp4", 20)))
    video, output = tmp_path / "both.mp4", tmp_path / "dubbed.mp4"
    with VideoWriter(video, 256, 256) as writer:
        for frame in [*read_frames(portrait_clip, 0, 20), *landscape]:
            writer.write(frame)
    speech = speech_like_wav(tmp_path / "speech.wav", 1.8)  # 45 frames: the last five are played backward
    dub("--video", video, "--audio", speech, "--checkpoint", checkpoint, "--output", output)
    assert "; 25 frames left unchanged" in capsys.readouterr().out
    source, found = list(read_frames(video)), list(read_frames(output))
    assert len(found) == 45
    for index in (*range(20, 40), *reversed(range(35, 40))):
        assert np.abs(found[index].astype(int) - source[index]).mean() < 1.5
    assert np.abs(found[10][140:160, 110:145].astype(int) - source[10][140:160, 110:145]).mean() > 15


@pytest.fixture
def refuse(portrait_clip, speech, checkpoint, tmp_path, capfd) -> Callable[..., str]:
    """Runs a command line that must fail, checks that it leaves no output, and returns its error line."""

    def run(*flags: object, output: str = "dubbed.mp4") -> str:
        folder = tmp_path / "output"
        folder.mkdir(exist_ok=True)
        before = sorted(tmp_path.rglob("*"))
        given = ("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint)
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            dub(*given, "--output", folder / output, *flags)
        assert caught.value.code == 2
        assert sorted(tmp_path.rglob("*")) == before  # no output, no partial file
        stderr = capfd.readouterr().err
        bars = ("dubbing:", "tracking the face:")
        (line,) = [line for line in stderr.splitlines() if line and not any(bar in line for bar in bars)]
        assert line.startswith("error: ")
        return line

    return run


def test_adapted_generator_is_made_once(portrait_clip, checkpoint, tmp_path, monkeypatch, capfd):
    """The dub is that of the adapted file; a second dub does not adapt again."""
    adapted_to: list[dict] = []

    def stand_in(videos: list[Path], path: Path, **options: object) -> AdaptResult:
        adapted_to.append(options)
        loaded = load_model(checkpoint)
        torch.nn.init.constant_(loaded.model.decoder[-1].weight, 0)  # a grey mouth
        info = {"adapted": describe_origin(videos, checkpoint)}
        before = {"lpips": 0.2, "psnr": 20.0, "sync": 0.3}
        save_model(path, loaded.model, audio_features="whisper", mouth_size=MOUTH, info=info)
        return AdaptResult(path, 40, 25, 25, 1.0, before, before | {"lpips": 0.1})

    monkeypatch.setattr(adapt, "adapt", stand_in)
    adapted, output = tmp_path / "adapted.safetensors", tmp_path / "dubbed.mp4"
    speech = speech_like_wav(tmp_path / "short.wav", 0.4)
    flags = ("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint, "--output", output)
    checkpoints = []
    original = generator.load_audio_driven_generator
    monkeypatch.setattr(
        generator,
        "load_audio_driven_generator",
        lambda path, device: checkpoints.append(path) or original(path, device),
    )
    dub(*flags, "--adapted", adapted, "--adapt", 3, "--face", "left")
    note = capfd.readouterr().err
    assert "25 steps on 2 s of video, the best at 25" in note
    assert "held-out frames: LPIPS 0.2000 -> 0.1000" in note
    (options,) = adapted_to
    assert (options["minutes"], options["face"], options["checkpoint"]) == (3, "left", checkpoint)
    dub(*flags, "--adapted", adapted)
    assert len(adapted_to) == 1
    assert checkpoints == [adapted, adapted]


def test_refused_adaptation(refuse, portrait_clip, speech, tmp_path):
    assert refuse("--adapt", "0").startswith("error: --adapt: expected a number of minutes above 0")
    assert refuse("--adapt", "soon").startswith("error: --adapt: ")
    for faces in (("left", "right"), ("left",)):  # also if their number does not match that of the audio files
        line = refuse("--adapt", "--audio", speech, speech, "--face", *faces)
        assert line == f"error: --adapt: expected one --face to adapt to and one --audio, found {len(faces)} and 2"
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), next(read_frames(portrait_clip))[..., ::-1])
    named = ("--adapted", tmp_path / "adapted.safetensors")
    assert "nothing to adapt to" in refuse("--video", photo, *named)
    assert "2 s of a face or more" in refuse(*named)  # than the 1.6 s of the clip
    assert "no face detected" in refuse("--video", no_face_video(tmp_path / "gradient.mp4"), *named)
    assert refuse("--adapted", photo).startswith("error: --adapted: ")  # no generator


def empty_file(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def missing(path: Path) -> Path:
    return path


def audio_only(path: Path) -> Path:
    return speech_like_wav(path, 0.5)


@pytest.mark.parametrize("make", [text_file, empty_file, truncated_mp4, no_face_video, folder, missing, audio_only])
def test_refused_videos(make, refuse, tmp_path):
    path = tmp_path / "given.mp4"
    make(path)
    line = refuse("--video", path)
    assert line.startswith("error: --video: ")
    assert str(path) in line


def wav_without_samples(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
    return path


@pytest.mark.parametrize(
    "make", [text_file, empty_file, truncated_mp4, video_without_audio, folder, missing, wav_without_samples]
)
def test_refused_audio(make, refuse, tmp_path):
    path = tmp_path / "given.wav"
    make(path)
    line = refuse("--audio", path)
    assert line.startswith("error: --audio: ")
    assert str(path) in line


class Trap:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def pickle_of_code(path: Path) -> Path:
    path.write_bytes(pickle.dumps(Trap(path.with_name("created"))))
    return path


def torch_file_of_code(path: Path) -> Path:
    torch.save({"state_dict": Trap(path.with_name("created"))}, path)
    return path


def other_safetensors(path: Path) -> Path:
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    return path


def other_torch_file(path: Path) -> Path:
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)
    return path


OTHER_FILES = [pickle_of_code, torch_file_of_code, other_safetensors, other_torch_file]


@pytest.mark.parametrize("make", [text_file, empty_file, folder, missing, *OTHER_FILES])
def test_refused_checkpoints(make, refuse, tmp_path):
    path = tmp_path / "given.safetensors"
    make(path)
    line = refuse("--checkpoint", path)
    assert str(path) in line
    assert not (tmp_path / "created").exists()


def test_damaged_checkpoint_is_refused(refuse, checkpoint, tmp_path):
    path = tmp_path / "half.safetensors"
    content = checkpoint.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert str(path) in refuse("--checkpoint", path)


def test_generator_driven_by_lips_is_refused(refuse, tmp_path):
    path = tmp_path / "lips.safetensors"
    save_model(path, DINet(DINetConfig()), audio_features="lips", mouth_size=MOUTH, info={})
    assert "is driven by lips features, not by audio" in refuse("--checkpoint", path)


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("flag", ["--video", "--audio", "--face", "--checkpoint", "--output"])
def test_pipes_are_refused(flag, refuse, tmp_path):
    line = refuse(flag, pipe(tmp_path / "pipe.mp4"))
    assert line.startswith(f"error: {flag}: ")
    assert "pipe.mp4: is a pipe" in line


@pytest.mark.parametrize("output", ["absent/dubbed.mp4", "dubbed.gif", "dubbed", "."])
def test_refused_outputs(output, refuse):
    assert refuse(output=output).startswith("error: --output: ")


@pytest.mark.parametrize(
    "flags",
    [
        ("--references", "1,2,3"),
        ("--references", "1,2,3,4,40"),
        ("--references=-1,2,3,4,5",),
        ("--device", "nonsense"),
        ("--device", "meta"),
        ("--crf", "99"),
        ("--crf", "-1"),
    ],
    ids=" ".join,
)
def test_refused_flags(flags, refuse):
    assert refuse(*flags).startswith(f"error: {flags[0].split('=')[0]}")


# --- limits -------------------------------------------------------------------------------------------------


@pytest.fixture
def delayed_audio(tmp_path) -> Path:
    """A video whose audio track starts one second after its first frame."""
    return write_audio(tmp_path / "delayed.mkv", "aac", num_frames=25, audio_start=1)


@pytest.fixture
def video_with_gap(portrait_clip, tmp_path) -> Path:
    """Ten frames at 25 fps and another one 1.2 s after them."""
    frames = list(read_frames(portrait_clip, 0, 11))
    return write_video(tmp_path / "gap.mkv", frames, times=np.array([*np.arange(10) / 25, 1.56]))


def test_limits_name_the_flag_that_disables_them(refuse, delayed_audio, monkeypatch):
    for limit, flags, message in (
        ({"max_side_px": 255}, (), "--video: .*expected frames of at most 255 pixels a side, found 256 x 256"),
        ({"max_duration_s": 2}, (), "--audio: .*expected at most .* h, found"),
        ({"max_delay_s": 0.5}, ("--audio", delayed_audio), "--audio: .*the audio track starts 1 s after the video"),
    ):
        monkeypatch.setattr(inference, "DEFAULT_LIMITS", replace(DEFAULT_LIMITS, **limit))
        assert re.fullmatch(f"error: {message}.*; --no-limits disables this limit", refuse(*flags))


def test_gap_limit_ends_the_video(video_with_gap, speech, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inference, "DEFAULT_LIMITS", replace(DEFAULT_LIMITS, max_gap_s=1))
    output = tmp_path / "dubbed.mp4"
    dub("--video", video_with_gap, "--audio", speech, "--checkpoint", checkpoint, "--output", output)
    assert "warning: --video: " in (stderr := capsys.readouterr().err)
    assert "expected at most 1 s between two frames" in stderr


def test_no_limits(video_with_gap, delayed_audio, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inference, "DEFAULT_LIMITS", Limits(255, 1, 0.5, 2))
    flags = ("--video", video_with_gap, "--audio", delayed_audio, "--checkpoint", checkpoint, "--no-limits")
    dub(*flags, "--output", tmp_path / "dubbed.mp4")
    printed = capsys.readouterr()
    assert "warning" not in printed.err
    assert printed.out.startswith(f"{tmp_path / 'dubbed.mp4'}: ")


# --- output -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["--video", "--audio"])
def test_output_onto_an_input_is_refused(given, refuse, portrait_clip, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(portrait_clip.read_bytes())
    other_name = tmp_path / "link.mp4"
    other_name.symlink_to(path)
    for output in (path, tmp_path / "output" / ".." / "clip.mp4", other_name):
        line = refuse(given, path, "--output", output)
        assert line.startswith("error: --output: ") and line.endswith("is also an input; choose another name")
    assert path.read_bytes() == portrait_clip.read_bytes()


def test_interrupted_dub_keeps_the_previous_output(portrait_clip, speech, checkpoint, tmp_path, monkeypatch):
    frames = Compositor.frames

    def interrupted(*args: object, **options: object) -> object:
        yield from islice(frames(*args, **options), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.Compositor, "frames", interrupted)
    output = tmp_path / "dubbed.mp4"
    output.write_text("previous")
    with pytest.raises(SystemExit) as caught:
        dub("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint, "--output", output)
    assert caught.value.code == 130
    assert output.read_text() == "previous"
    assert list(tmp_path.iterdir()) == [output]


def test_resumed_dub(portrait_clip, speech, checkpoint, tmp_path, monkeypatch, capfd):
    """51 frames in segments of 16, interrupted after 37: the first 32 are not generated again."""
    monkeypatch.setattr("dubbing.segments.SEGMENT_FRAMES", 16)
    whole, output = tmp_path / "whole.mp4", tmp_path / "dubbed.mp4"
    given = ("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint, "--resume")
    dub(*given, "--output", whole)

    stopping, writing = 37, SegmentedWriter.write

    def interrupted(self: SegmentedWriter, frame: np.ndarray) -> None:
        nonlocal stopping
        stopping -= 1
        if stopping < 0:
            raise KeyboardInterrupt
        writing(self, frame)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(SegmentedWriter, "write", interrupted)
        dub(*given, "--output", output)
    assert caught.value.code == 130
    folder = tmp_path / "dubbed.mp4.segments"
    assert f"interrupted; completed segments are in {folder}; the same command continues" in capfd.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "0000.mp4", "0001.mp4", "job.json"]
    assert not output.exists()

    with pytest.raises(SystemExit):
        dub(*given, "--output", output, "--when-short", "keep")
    assert "when_short was stop and is keep" in capfd.readouterr().err
    assert json.loads((folder / "job.json").read_text())["audio features"] == weight_path("whisper").name

    batch_sizes, generate = [], GeneratorSession.generate
    monkeypatch.setattr(
        GeneratorSession,
        "generate",
        lambda self, crops, *rest: batch_sizes.append(len(crops)) or generate(self, crops, *rest),
    )
    dub(*given, "--output", output)
    assert not folder.exists()
    for found, expected in zip(read_frames(output), read_frames(whole), strict=True):
        assert np.abs(found.astype(int) - expected).mean() < 0.5  # x264 is not deterministic for such small frames
    assert sum(batch_sizes) < 51 - 32 + 2 * 8 + 8  # and the batch with frame 32
