"""Dubbing: choice of references, what is redrawn and what is not, whole files by the command line, refusals."""

import os
import pickle
import subprocess
import sys
import threading
import wave
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import safetensors.torch
import torch

import inference
from data_processing.face.tracking import Landmarks
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import read_frames
from data_processing.media.video_writer import VideoWriter
from dubbing import pipeline
from dubbing.compositor import Compositor
from dubbing.frame_sources import VideoFileSource
from dubbing.generator import GeneratorSession
from dubbing.pipeline import parse_references
from dubbing.prefetch import prefetch
from dubbing.references import choose_references
from dubbing.segments import SegmentedWriter
from models.checkpoint import LoadedModel, load_model, save_model
from models.crop_layout import crop_size, mouth_box, mouth_margin_top
from models.dinet import DINet, DINetConfig
from models.wav2lip import Wav2Lip, Wav2LipConfig
from tests.conftest import MOUTH, SECONDS
from tests.support.media import no_face_video, silent_video_without_audio, speech_like_wav, text_file, truncated_mp4
from utils.device import choose_device, choose_precision
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def dub(*flags: object) -> None:
    """`inference.py` with these flags, in this process, on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["inference.py", "--device", "cpu", *map(str, flags)])
        inference.main()


def made_points(opening: float = 0, smile: float = 0, centre: tuple[float, float] = (128, 128)) -> np.ndarray:
    """Landmarks (68, 2) of a drawn face 120 pixels high; `opening` and `smile` move the lips by so many pixels."""
    points = np.zeros((68, 2), np.float32)
    jaw = np.linspace(-50, 50, 17)
    points[:17] = np.stack([jaw, 60 * np.sqrt(1 - (jaw / 50) ** 2)], axis=1)
    points[17:27] = np.stack([np.linspace(-40, 40, 10), np.full(10, -35)], axis=1)
    points[27:31, 1] = [-20, -12, -5, 5]
    points[31:36] = np.stack([np.linspace(-10, 10, 5), np.full(5, 15)], axis=1)
    points[36:48] = np.stack([np.linspace(-30, 30, 12), np.full(12, -20)], axis=1)
    points[48:68, 1] = 30
    points[[48, 54], 0] = [-20 - smile, 20 + smile]
    points[62, 1], points[66, 1] = 30 - opening / 2, 30 + opening / 2
    return points + np.array(centre, np.float32)


# --- references ---------------------------------------------------------------------------------------------

SHAPES = [(0, 0), (6, 0), (14, 0), (3, 12), (0, -8)]  # closed, half open, open, smiling, pursed


def clusters(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks of 100 frames, 20 of each mouth shape in random order and trembling, and their shapes (100,)."""
    rng = np.random.default_rng(seed)
    shapes = rng.permutation(np.repeat(np.arange(len(SHAPES)), 20))
    points = np.stack([made_points(*SHAPES[shape]) for shape in shapes])
    return points + rng.normal(0, 0.2, points.shape).astype(np.float32), shapes


def landmarks_of(points: np.ndarray, found: np.ndarray | None = None) -> Landmarks:
    found = np.ones(len(points), bool) if found is None else found
    return Landmarks(points, found, [(0, len(points))])


@pytest.mark.parametrize("seed", range(5))
def test_references_hit_every_mouth_shape(seed):
    points, shapes = clusters(seed)
    chosen = choose_references(landmarks_of(points), 0, 100, 5)
    assert sorted(shapes[chosen]) == [0, 1, 2, 3, 4]
    assert all(type(index) is int for index in chosen)


def test_references_are_the_same_every_time():
    points, _ = clusters(0)
    np.random.seed(1)
    first = choose_references(landmarks_of(points), 0, 100, 5)
    np.random.seed(2)
    assert choose_references(landmarks_of(points.copy()), 0, 100, 5) == first


def test_references_stay_in_their_shot_and_where_the_face_was_seen():
    points, shapes = clusters(0)
    found = shapes != 2
    chosen = choose_references(landmarks_of(points, found), 40, 100, 5)
    assert all(40 <= index < 100 and found[index] for index in chosen)
    assert len(set(chosen)) == 5
    assert set(shapes[chosen]) == {0, 1, 3, 4}


def test_slips_of_the_detector_are_no_references():
    points, _ = clusters(0)
    slips = [17, 60]
    points[slips] = made_points(opening=80, smile=60)
    chosen = choose_references(landmarks_of(points), 0, 100, 5)
    assert not set(slips) & set(chosen)
    assert len(set(chosen)) == 5


@pytest.mark.parametrize("num_frames", [1, 3, 5])
def test_short_shots_use_every_frame(num_frames):
    points = np.stack([made_points(opening=3 * index) for index in range(20)])
    chosen = choose_references(landmarks_of(points), 7, 7 + num_frames, 5)
    assert len(chosen) == 5
    assert set(chosen) == set(range(7, 7 + num_frames))


def test_given_references_are_checked():
    assert parse_references(None, 5) is None
    assert parse_references("29, 0,3,3,25", 5) == [29, 0, 3, 3, 25]
    refused = {
        "": "found ''",
        "1,2,x,4,5": "found '1,2,x,4,5'",
        "1.5,2,3,4,5": "found '1.5,2,3,4,5'",
        "1,2,3,4": "expected 5 frame numbers, found 4",
        "1,2,3,4,5,6": "expected 5 frame numbers, found 6",
    }
    for text, words in refused.items():
        with pytest.raises(UserError) as caught:
            parse_references(text, 5)
        assert str(caught.value).startswith("--references: ")
        assert words in str(caught.value)


# --- redrawing ----------------------------------------------------------------------------------------------


def made_crops(count: int, seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, *crop_size(MOUTH), 3), np.uint8))


def test_wav2lip_redraws_as_it_draws() -> None:
    torch.manual_seed(0)
    model = Wav2Lip(Wav2LipConfig()).eval()
    dubber = GeneratorSession(LoadedModel(model, "mel", MOUTH, {}), torch.device("cpu"), "fp32")
    crops, reference = made_crops(2, 0), made_crops(1, 1)
    windows = np.random.default_rng(2).random((2, 1280, 5), np.float32)
    found = dubber.redraw(crops, dubber.encode_references(reference), windows)
    images = [torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2) / 255 for x in (crops, reference)]
    with torch.no_grad():
        drawn = model(model.mask(images[0]), images[1], torch.from_numpy(windows))
    expected = (drawn.permute(0, 2, 3, 1) * 255).round().numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1


def plain_redraw(
    model: DINet, crops: list[np.ndarray], references: list[np.ndarray], audio: np.ndarray
) -> np.ndarray:
    """What `Dubber` should give, one frame at a time and without its shortcuts."""
    rows, columns = mouth_box(MOUTH)
    outputs = []
    for crop, window in zip(crops, audio, strict=True):
        masked = crop.astype(np.float32) / 255
        masked[rows, columns] = 0
        stacked = np.concatenate(references, axis=2).astype(np.float32) / 255  # channels RGBRGB…
        with torch.no_grad():
            images = (torch.from_numpy(image.transpose(2, 0, 1))[None].contiguous() for image in (masked, stacked))
            output = model(*images, torch.from_numpy(window)[None])
        outputs.append(output[0].permute(1, 2, 0).numpy() * 255)
    first = mouth_margin_top(MOUTH)  # above it the crop is given back
    return np.concatenate([np.stack(crops)[:, :first], np.stack(outputs)[:, first:]], axis=1)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.51), ("bf16", 2), ("fp16", 1)])
def test_dubber_gives_what_the_generator_gives(checkpoint, precision, tolerance):
    loaded = load_model(checkpoint)
    crops, references = made_crops(3, 0), made_crops(5, 1)
    audio = np.random.default_rng(2).normal(size=(3, 384, 5)).astype(np.float32)
    expected = plain_redraw(loaded.model, crops, references, audio)
    dubber = GeneratorSession(loaded, torch.device("cpu"), precision)
    drawn = dubber.redraw(crops, dubber.encode_references(references), audio)
    assert drawn.dtype == np.uint8
    assert np.abs(drawn - expected).max() < tolerance
    # each input shows by more than the tolerance
    other_crops, other_references, other_audio = made_crops(3, 3), made_crops(5, 4), audio[::-1].copy()
    for other in (
        (other_crops, references, audio),
        (crops, other_references, audio),
        (crops, references[::-1], audio),
        (crops, references, other_audio),
    ):
        assert np.abs(plain_redraw(loaded.model, *other) - expected).max() > 2 * tolerance


def test_dubber_cannot_see_the_mouth_it_redraws(checkpoint):
    dubber = GeneratorSession(load_model(checkpoint), torch.device("cpu"), "fp32")
    references = dubber.encode_references(made_crops(5, 1))
    audio = np.zeros((1, 384, 5), np.float32)
    (crop,) = made_crops(1, 0)
    other_mouth, other_cheek = crop.copy(), crop.copy()
    other_mouth[mouth_box(MOUTH)] = 255 - crop[mouth_box(MOUTH)]
    other_cheek[:4] = 255 - crop[:4]
    drawn, mouth, cheek = (dubber.redraw([image], references, audio) for image in (crop, other_mouth, other_cheek))
    assert np.array_equal(drawn, mouth)
    assert not np.array_equal(drawn, cheek)


def test_back_and_forth(portrait_clip):
    frames = list(read_frames(portrait_clip))
    played = list(islice(VideoFileSource(portrait_clip, 25).back_and_forth(40), 100))
    order = [*reversed(range(40)), *range(40), *reversed(range(20, 40))]
    assert [index for index, _ in played] == order
    assert all(np.array_equal(frame, frames[index]) for index, frame in played)


def test_ahead_gives_the_same_and_raises_the_same():
    assert list(prefetch(iter(range(100)), 3)) == list(range(100))

    def breaks() -> Iterator[int]:
        yield 1
        raise UserError("broken")

    found = prefetch(breaks(), 3)
    assert next(found) == 1
    with pytest.raises(UserError, match="broken"):
        next(found)


def test_ahead_has_the_next_one_end_soon():
    asked, enough = threading.Event(), threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        asked.set()
        enough.wait()

    found = prefetch(slow(), 3, enough.set)
    assert next(found) == 1
    asked.wait()
    found.close()  # would wait for ever


def test_ahead_stops_when_nobody_listens():
    made, closed = [], []

    def numbers() -> Iterator[int]:
        try:
            for number in range(10_000):
                made.append(number)
                yield number
        finally:
            closed.append(True)

    found = prefetch(numbers(), 3)
    assert [next(found), next(found)] == [0, 1]
    found.close()
    assert closed == [True]
    assert len(made) <= 7


def test_choose_device():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("nonsense", "meta", "cuda:99", ""):
        with pytest.raises(UserError, match=f"--device {name}"):
            choose_device(name)


def test_choose_precision():
    assert choose_precision("bf16", torch.device("cuda")) == "bf16"
    assert choose_precision("fp32", torch.device("cpu")) == "fp32"
    assert choose_precision("auto", torch.device("cuda")) == "fp16"
    assert choose_precision("auto", torch.device("cpu")) in ("bf16", "fp32")


# --- whole files --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dubbed(tmp_path_factory, portrait_clip, speech, checkpoint) -> Path:
    path = tmp_path_factory.mktemp("dubbed") / "dubbed.mp4"
    dub("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint, "--output", path)
    return path


def durations_s(path: Path) -> tuple[float, float]:
    """Of the picture and of the sound, by their packets."""
    ends = []
    with av.open(str(path)) as container:
        for stream in (container.streams.video[0], container.streams.audio[0]):
            container.seek(0)
            packets = [p for p in container.demux(stream) if p.pts is not None]
            ends.append(float(max(p.pts + p.duration for p in packets) * stream.time_base))
    return ends[0], ends[1]


def test_dubbed_file_is_as_long_as_the_sound(dubbed, speech):
    frames = list(read_frames(dubbed))
    assert len(frames) == 51
    assert frames[0].shape == (256, 256, 3)
    picture_s, sound_s = durations_s(dubbed)
    assert picture_s == pytest.approx(51 / 25, abs=1e-3)
    assert sound_s == pytest.approx(SECONDS, abs=1 / 25)


def test_dubbed_file_has_the_new_sound(dubbed, speech):
    given, heard = load_audio(speech), load_audio(dubbed)
    length = min(len(given), len(heard))
    assert np.corrcoef(given[:length], heard[:length])[0, 1] > 0.95


def test_dubbed_file_shows_the_source_with_another_mouth(dubbed, portrait_clip):
    source = list(read_frames(portrait_clip))
    order = [*range(40), *reversed(range(29, 40))]
    for index, frame in zip(order, read_frames(dubbed), strict=True):
        change = np.abs(frame.astype(int) - source[index]).mean(axis=2)
        assert change[:90].mean() < 2.5  # forehead and eyes
        assert change[140:160, 110:145].mean() > 15  # lips


def test_sound_shorter_than_the_video_ends_it(portrait_clip, checkpoint, tmp_path):
    speech = speech_like_wav(tmp_path / "short.wav", 0.5)
    output = tmp_path / "dubbed.mkv"
    dub("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint, "--output", output)
    assert len(list(read_frames(output))) == 13


def test_same_input_gives_the_same_file(dubbed, portrait_clip, speech, checkpoint, tmp_path):
    """In another process, as users run it; what it says on the way belongs on stderr and in one line on stdout."""
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


def test_given_references_are_used(dubbed, portrait_clip, speech, checkpoint, tmp_path, monkeypatch):
    encoded = []

    def encode_references(dubber: GeneratorSession, crops: list[np.ndarray]) -> object:
        encoded.append(crops)
        return original(dubber, crops)

    original = GeneratorSession.encode_references
    monkeypatch.setattr(GeneratorSession, "encode_references", encode_references)
    flags = ("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint)
    dub(*flags, "--output", tmp_path / "dubbed.mp4", "--references", "7,7,7,7,31")
    (crops,) = encoded
    assert len(crops) == 5
    assert all(np.array_equal(crops[0], crop) for crop in crops[1:4])
    assert not np.array_equal(crops[0], crops[4])
    assert (tmp_path / "dubbed.mp4").read_bytes() != dubbed.read_bytes()


def test_frames_without_a_face_are_left_alone(portrait_clip, checkpoint, tmp_path, capsys):
    landscape = list(read_frames(no_face_video(tmp_path / "landscape.mp4", 20)))
    video, output = tmp_path / "both.mp4", tmp_path / "dubbed.mp4"
    with VideoWriter(video, 256, 256) as writer:
        for frame in [*read_frames(portrait_clip, 0, 20), *landscape]:
            writer.write(frame)
    speech = speech_like_wav(tmp_path / "speech.wav", 1.8)  # 45 frames: the last five go backward
    dub("--video", video, "--audio", speech, "--checkpoint", checkpoint, "--output", output)
    assert "; 25 frames left unchanged" in capsys.readouterr().out
    source, found = list(read_frames(video)), list(read_frames(output))
    assert len(found) == 45
    for index in (*range(20, 40), *reversed(range(35, 40))):
        assert np.abs(found[index].astype(int) - source[index]).mean() < 1.5
    assert np.abs(found[10][140:160, 110:145].astype(int) - source[10][140:160, 110:145]).mean() > 15


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.fixture
def refuse(portrait_clip, speech, checkpoint, tmp_path, capfd) -> Callable[..., str]:
    """Runs a command line that must fail, checks how it fails, and gives the line it fails with."""

    def run(*flags: object, output: str = "dubbed.mp4") -> str:
        folder = tmp_path / "output"
        folder.mkdir(exist_ok=True)
        before = sorted(tmp_path.rglob("*"))
        given = ("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint)
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            dub(*given, "--output", folder / output, *flags)
        assert caught.value.code == 2
        assert sorted(tmp_path.rglob("*")) == before  # no output, nothing half-made
        said = capfd.readouterr().err
        (line,) = [line for line in said.splitlines() if line and "dubbing:" not in line]
        assert line.startswith("error: ")
        return line

    return run


def empty_file(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def nothing(path: Path) -> Path:
    return path


def sound(path: Path) -> Path:
    return speech_like_wav(path, 0.5)


@pytest.mark.parametrize("make", [text_file, empty_file, truncated_mp4, no_face_video, folder, nothing, sound])
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
    "make", [text_file, empty_file, truncated_mp4, silent_video_without_audio, folder, nothing, wav_without_samples]
)
def test_refused_sounds(make, refuse, tmp_path):
    path = tmp_path / "given.wav"
    make(path)
    line = refuse("--audio", path)
    assert line.startswith("error: --audio")
    assert str(path) in line


class Trap:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def pickle_of_code(path: Path) -> Path:
    path.write_bytes(pickle.dumps(Trap(path.with_name("sprung"))))
    return path


def torch_file_of_code(path: Path) -> Path:
    torch.save({"state_dict": Trap(path.with_name("sprung"))}, path)
    return path


def other_safetensors(path: Path) -> Path:
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    return path


def other_torch_file(path: Path) -> Path:
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)
    return path


OTHER_FILES = [pickle_of_code, torch_file_of_code, other_safetensors, other_torch_file]


@pytest.mark.parametrize("make", [text_file, empty_file, folder, nothing, *OTHER_FILES])
def test_refused_checkpoints(make, refuse, tmp_path):
    path = tmp_path / "given.safetensors"
    make(path)
    line = refuse("--checkpoint", path)
    assert str(path) in line
    assert not (tmp_path / "sprung").exists()


def test_damaged_checkpoint_is_refused(refuse, checkpoint, tmp_path):
    path = tmp_path / "half.safetensors"
    content = checkpoint.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert str(path) in refuse("--checkpoint", path)


def test_generator_driven_by_lips_is_refused(refuse, tmp_path):
    path = tmp_path / "lips.safetensors"
    save_model(path, DINet(DINetConfig()), audio_features="lips", mouth_size=MOUTH, info={})
    assert "is driven by lips, not by a sound" in refuse("--checkpoint", path)


@pytest.mark.parametrize("output", ["absent/dubbed.mp4", "dubbed.gif", "dubbed", "."])
def test_refused_outputs(output, refuse):
    assert refuse(output=output).startswith("error: --output: ")


@pytest.mark.parametrize(
    "flags",
    [
        ("--audio-features", "deepspeech"),
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


@pytest.mark.parametrize("given", ["--video", "--audio"])
def test_output_onto_an_input_is_refused(given, refuse, portrait_clip, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(portrait_clip.read_bytes())
    other_name = tmp_path / "link.mp4"
    other_name.symlink_to(path)
    for output in (path, tmp_path / "output" / ".." / "clip.mp4", other_name):
        line = refuse(given, path, "--output", output)
        assert line.startswith("error: --output: expected another file than the input")
    assert path.read_bytes() == portrait_clip.read_bytes()


def test_interrupted_dubbing_keeps_what_was_there(portrait_clip, speech, checkpoint, tmp_path, monkeypatch):
    drawn = Compositor.frames

    def interrupted(*args: object, **options: object) -> object:
        yield from islice(drawn(*args, **options), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.Compositor, "frames", interrupted)
    output = tmp_path / "dubbed.mp4"
    output.write_text("an earlier one")
    with pytest.raises(SystemExit) as caught:
        dub("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint, "--output", output)
    assert caught.value.code == 130
    assert output.read_text() == "an earlier one"
    assert list(tmp_path.iterdir()) == [output]


def test_stopped_dubbing_goes_on(portrait_clip, speech, checkpoint, tmp_path, monkeypatch, capfd):
    """51 frames in pieces of 16, stopped after 37: the same file as in one go, the first 32 not drawn again."""
    monkeypatch.setattr("dubbing.segments.SEGMENT_FRAMES", 16)
    whole, output = tmp_path / "whole.mp4", tmp_path / "dubbed.mp4"
    given = ("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint, "--resume", "--sharpen")
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
    folder = tmp_path / "dubbed.mp4.pieces"
    assert f"interrupted; what is done is kept in {folder}; the same command goes on" in capfd.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "0000.mp4", "0001.mp4", "job.json"]
    assert not output.exists()

    with pytest.raises(SystemExit):
        dub(*given, "--output", output, "--when-short", "keep")
    assert "--when-short was stop and is keep" in capfd.readouterr().err

    drawn, redraw = [], GeneratorSession.redraw
    monkeypatch.setattr(
        GeneratorSession,
        "redraw",
        lambda self, crops, *rest: drawn.append(len(crops)) or redraw(self, crops, *rest),
    )
    dub(*given, "--output", output)
    assert not folder.exists()
    for found, expected in zip(read_frames(output), read_frames(whole), strict=True):
        assert np.abs(found.astype(int) - expected).mean() < 0.5  # x264 need not make the same bytes
    assert sum(drawn) < 51 - 32 + 2 * 8 + 8  # the batch that holds frame 32, and one to see how sharp
