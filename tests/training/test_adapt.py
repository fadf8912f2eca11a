"""Adaptation to a speaker: what is trained, what is kept, where the result goes, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from configs.schema import load_config
from data_processing.dataset import Clip
from data_processing.face.detectors import largest_face
from models.checkpoint import load_model, save_model
from models.dinet import DINet, DINetConfig
from models.wav2lip import Wav2Lip, Wav2LipConfig
from tests.conftest import MOUTH
from tests.support.commands import run_command_line
from tests.support.media import talking_portrait
from training import adapt as command
from training import adaptation, other_speech, video_clips
from training.adapt import adapted_generator
from training.adaptation import CONFIG, AdaptResult, adapt
from utils.errors import CheckpointError, MediaError, OutputError, ParameterError, WeightsError

TINY = replace(load_config(CONFIG), max_steps=3, batch_size=2, val_frames=2, validate_every=1, warmup_steps=1)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return talking_portrait(tmp_path_factory.mktemp("video") / "speaker.mp4", 60)


@pytest.fixture(scope="module")
def in_sync():
    """Takes the audio of all videos to be in sync: it is noise, in which SyncNet finds no speech."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_clips, "_audio_delay_ms", lambda *_: 0.0)
        yield


@pytest.fixture
def tracked(video, in_sync, clips_of_video, monkeypatch) -> None:
    """`read_clips` returns what it returned for `video` before."""
    monkeypatch.setattr(adaptation, "read_clips", lambda *_: clips_of_video)


@pytest.fixture(scope="module")
def clips_of_video(video, in_sync) -> video_clips.VideoClips:
    return video_clips.read_clips(video, MOUTH, "whisper", "dlib", largest_face)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


@pytest.mark.slow
def test_adaptation_lowers_the_error_on_held_out_frames(video, checkpoint, in_sync, tmp_path, monkeypatch):
    config = replace(TINY, max_steps=12, learning_rate=1e-4, batch_size=4, validate_every=6)
    monkeypatch.setattr(adaptation, "SYNC_KEPT", -10.0)  # an untrained generator does not follow speech
    monkeypatch.setattr(other_speech, "SYNC_FRAMES", 20)
    calls = []
    output = tmp_path / "adapted.safetensors"
    result = adapt([video], output, checkpoint=checkpoint, config=config, progress=lambda *call: calls.append(call))
    assert result.num_frames == 60
    assert result.steps == 12 and result.best_step in (6, 12)
    assert result.after["lpips"] < result.before["lpips"]
    assert result.after["psnr"] > result.before["psnr"] + 1
    assert calls[0][0] == "tracking the face" and calls[-2] == ("adapting", 12, 12)
    assert calls[-1][0] == "checking the sync"
    assert "12 steps on 2 s of video" in result.summary()
    before, after = tensors(checkpoint), tensors(output)
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"decoder", "deformation", "appearance_after"}
    statistics = [name for name in before if name.endswith(("running_mean", "running_var"))]
    assert statistics and all(torch.equal(before[name], after[name]) for name in statistics)


@pytest.fixture
def judged(checkpoint, tracked, tmp_path, monkeypatch):
    """Adapts with given scores: LPIPS of the base, after each step, and of each mixture; sync of the base, and of
    mixtures from the lowest LPIPS on."""
    monkeypatch.setattr(adaptation, "LPIPS", nn.Identity)

    def run(name: str, lpips: list[float], sync: list[float]) -> tuple[AdaptResult, Path]:
        config = replace(TINY, max_steps=len(lpips) - 5)
        lpips, sync = iter(lpips), iter(sync)
        monkeypatch.setattr(adaptation, "_score", lambda *_: {"lpips": next(lpips), "psnr": 20.0})
        monkeypatch.setattr(adaptation, "sync_confidence", lambda *_: next(sync))
        return adapt([Path("video")], tmp_path / name, checkpoint=checkpoint, config=config), tmp_path / name

    monkeypatch.setattr(adaptation, "check_readable", lambda path: None)
    monkeypatch.setattr(adaptation, "describe_origin", lambda *_: {})
    return run


@pytest.mark.slow
def test_the_best_weights_are_kept_and_runs_repeat(checkpoint, judged):
    lpips, sync = [0.5, 0.4, 0.6, 0.7, 0.4, 0.42, 0.44, 0.46], [0.2] * 2
    first, first_file = judged("first", lpips, sync)
    again, again_file = judged("again", lpips, sync)
    none, none_file = judged("none", [0.5, 0.6, 0.6, 0.6, 0.5, 0.5, 0.5, 0.5], sync)
    assert (first.steps, first.best_step, first.share) == (3, 1, 1)
    assert again == replace(first, path=again_file)
    assert first_file.read_bytes() == again_file.read_bytes()
    base, kept, best = map(tensors, (checkpoint, none_file, first_file))
    assert (none.best_step, none.share, none.after) == (0, 0, none.before)
    assert all(torch.equal(base[name], kept[name]) for name in base)
    # after one step of Adam, no weight differs by more than the learning rate
    name = "decoder.4.bias"
    assert 0 < (best[name] - base[name]).abs().max() <= 1.01 * TINY.learning_rate
    assert "found nothing" in none.summary()


@pytest.mark.slow
def test_the_mixture_follows_other_speech_as_well_as_the_base(checkpoint, judged):
    training, mixtures = [0.5, 0.4], [0.4, 0.42, 0.44, 0.46]
    _, whole_file = judged("whole", training + mixtures, [0.2, 0.2])
    half, half_file = judged("half", training + mixtures, [0.2, 0.1, 0.18, 0.192])
    none, none_file = judged("none", training + mixtures, [0.2, 0.1, 0.1, 0.1, 0.188])
    smoother, _ = judged("smoother", [*training, 0.4, 0.39, 0.44, 0.46], [0.2, 0.3])
    assert smoother.share == 0.75
    assert (half.share, half.best_step) == (0.5, 1)
    assert half.before == {"lpips": 0.5, "psnr": 20.0, "sync": 0.2}
    assert half.after == {"lpips": 0.44, "psnr": 20.0, "sync": 0.192}
    assert "50% of its change kept" in half.summary() and "0.200 -> 0.192" in half.summary()
    assert (none.share, none.best_step, none.after) == (0, 0, none.before)
    base, mixed, adapted, kept = map(tensors, (checkpoint, half_file, whole_file, none_file))
    assert all(torch.equal(base[name], kept[name]) for name in base)
    name = "decoder.4.bias"  # in the file as float16
    assert (adapted[name] - base[name]).abs().min() > 1e-4
    torch.testing.assert_close(mixed[name].float(), (base[name] + adapted[name]).float() / 2, rtol=0, atol=2e-5)
    assert load_model(half_file).info["adapted"]["share"] == 0.5


@pytest.mark.slow
def test_training_stops_at_the_time_limit(video, checkpoint, tracked, tmp_path, monkeypatch):
    monkeypatch.setattr(adaptation, "LPIPS", nn.Identity)
    monkeypatch.setattr(adaptation, "_score", lambda *_: {"lpips": 0.5, "psnr": 20.0})
    monkeypatch.setattr(adaptation, "sync_confidence", lambda *_: 0.2)
    monkeypatch.setattr(adaptation, "STEP_UNIT", 6)
    config = replace(TINY, max_steps=1000, validate_every=1000)
    result = adapt([video], tmp_path / "short", checkpoint=checkpoint, config=config, minutes=1e-3)
    assert result.steps == 6


def test_targets_and_held_out_frames_are_apart():
    clip = Clip("c", "s", np.zeros((100, 52, 40, 3), np.uint8), np.zeros((100, 1), np.float32), np.zeros(0))
    clip.frames[:] = np.arange(100, dtype=np.uint8)[:, None, None, None]
    windows = np.zeros((100, 1, 5), np.float32)
    windows[:] = np.arange(100)[:, None, None]
    shot = adaptation._Shot(clip, windows, np.arange(85), np.arange(85, 100))
    for step in range(5):
        batch = adaptation._training_batch([shot], replace(TINY, batch_size=8), step)
        targets = batch.audio_window[:, 0, 0].numpy()
        assert batch.target.shape[0] == 8 and batch.references.shape == (2, 15, 52, 40)
        assert targets.max() < 85
    held_out = adaptation._held_out_batch([shot], replace(TINY, val_frames=5))
    assert held_out.audio_window[:, 0, 0].tolist() == [86, 89, 92, 95, 98]
    assert (255 * held_out.target[:, 0, 0, 0]).round().tolist() == [86, 89, 92, 95, 98]
    assert (255 * held_out.references).max() < 84.5


def test_reference_frames_repeat_if_there_are_too_few():
    config = replace(TINY, num_references=20)
    references = adaptation._references(np.random.default_rng(0), np.arange(17), config)
    assert len(references) == 20 and set(references) <= set(range(17))
    references = adaptation._references(np.random.default_rng(0), np.arange(30), config)
    assert len(set(references)) == 20


def test_missing_weights_show_before_the_face_is_tracked(checkpoint, tmp_path, monkeypatch):
    video, output = tmp_path / "video.mp4", tmp_path / "out.safetensors"
    video.write_bytes(b"video")
    monkeypatch.setattr(adaptation, "read_clips", lambda *_: pytest.fail("the face is tracked"))

    def missing(name: str = "alex") -> None:
        raise WeightsError(f"{name}: missing", path=None)

    for function in ("weight_path", "LPIPS", "load_speech"):
        with monkeypatch.context() as patch, pytest.raises(WeightsError, match="missing"):
            patch.setattr(adaptation, function, missing)
            adapt([video], output, checkpoint=checkpoint)


@pytest.mark.slow
def test_wrong_generators_and_options_are_refused(video, checkpoint, tmp_path):
    output = tmp_path / "out.safetensors"
    wav2lip, lips = tmp_path / "wav2lip", tmp_path / "lips"
    save_model(wav2lip, Wav2Lip(Wav2LipConfig()), audio_features="mel", mouth_size=64, info={})
    save_model(lips, DINet(DINetConfig(29)), audio_features="lips", mouth_size=32, info={})
    with pytest.raises(CheckpointError, match="only a DINet"):
        adapt([video], output, checkpoint=wav2lip)
    with pytest.raises(CheckpointError, match="driven by lips"):
        adapt([video], output, checkpoint=lips)
    for minutes in (0, -1, float("nan"), "5"):
        with pytest.raises(ParameterError, match="minutes above 0"):
            adapt([video], output, checkpoint=checkpoint, minutes=minutes)
    with pytest.raises(OutputError, match="no such folder"):
        adapt([video], tmp_path / "missing" / "out", checkpoint=checkpoint)
    for taken in (video, checkpoint):
        with pytest.raises(OutputError, match="is also an input"):
            adapt([video], taken, checkpoint=checkpoint)
    with pytest.raises(MediaError, match=r"expected 2 s of a face or more.*found 1\.2 s"):
        adapt([talking_portrait(tmp_path / "short.mp4", 30)], output, checkpoint=checkpoint, config=TINY)
    assert not output.exists()


@pytest.fixture
def counted(monkeypatch, tmp_path) -> list[Path]:
    """The files that a stand-in for `adapt` wrote; the cache is in a temporary folder."""
    written: list[Path] = []
    model = DINet(DINetConfig(384))

    def write(videos: list[Path], output: Path, *, checkpoint: Path, origin: dict, **_: object) -> AdaptResult:
        assert origin == adaptation.describe_origin(videos, checkpoint)
        written.append(output)
        save_model(output, model, audio_features="whisper", mouth_size=32, info={"adapted": origin}, bits=8)
        scores = {"lpips": 1, "psnr": 1, "sync": 1}
        return AdaptResult(output, 60, 3, 1, 1.0, scores, scores)

    monkeypatch.setattr(command, "adapt", write)
    monkeypatch.setenv("DINET_CACHE", str(tmp_path / "cache"))
    return written


def test_the_cache_depends_on_contents_and_options(counted, tmp_path):
    video, base, photo = tmp_path / "a.mp4", tmp_path / "base", tmp_path / "photo.png"
    for path in (video, base, photo):
        path.write_bytes(path.name.encode())
    first = adapted_generator(video, checkpoint=base)
    assert first.parent == tmp_path / "cache" / "adapted" and first.exists()
    assert adapted_generator(video, checkpoint=base, minutes=5) == first  # the default
    copied = tmp_path / "a.mov"
    copied.write_bytes(video.read_bytes())
    assert adapted_generator(copied, checkpoint=base).name.split("-")[1] == first.name.split("-")[1]
    assert counted == [first]
    for options in ({"minutes": 3}, {"face": "left"}, {"face": str(photo)}, {"landmarks": "face_alignment"}):
        assert adapted_generator(video, checkpoint=base, **options) == counted[-1] != first
    photo.write_bytes(b"another face")
    adapted_generator(video, checkpoint=base, face=str(photo))
    base.write_bytes(b"another base")
    adapted_generator(video, checkpoint=base)
    video.write_bytes(b"another video")
    adapted_generator(video, checkpoint=base)
    assert len(counted) == len(set(counted)) == 8


def test_a_named_file_is_reused_or_refused(counted, tmp_path):
    video, base, file = tmp_path / "a.mp4", tmp_path / "base", tmp_path / "adapted.safetensors"
    video.write_bytes(b"video")
    base.write_bytes(b"base")
    for _ in range(2):
        assert adapted_generator(video, file, checkpoint=base) == file
    assert counted == [file]
    other = tmp_path / "other"
    other.write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"another checkpoint \(base\)"):
        adapted_generator(video, file, checkpoint=other)
    with pytest.raises(CheckpointError, match=r"another video \(a\.mp4\)"):
        adapted_generator(other, file, checkpoint=base)
    with pytest.raises(CheckpointError, match="not a valid checkpoint"):
        adapted_generator(video, other, checkpoint=base)
    save_model(other, DINet(DINetConfig(384)), audio_features="whisper", mouth_size=32, info={})
    with pytest.raises(CheckpointError, match="not adapted to a video"):
        adapted_generator(video, other, checkpoint=base)
    assert counted == [file]


@pytest.mark.slow
def test_the_command_writes_a_generator(video, checkpoint, tracked, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(adaptation, "load_config", lambda path: TINY)
    output = tmp_path / "adapted.safetensors"
    flags = (video, "--output", output, "--checkpoint", checkpoint, "--device", "cpu")
    run_command_line(command.main, *flags)
    assert f"{output}: " in capsys.readouterr().out
    notes = load_model(output).info["adapted"]
    assert notes["videos"][0]["name"] == "speaker.mp4"
    assert notes["checkpoint"]["name"] == checkpoint.name
    for extra, reason in (("--minutes=0", "--minutes: expected a number"), ("--device=x", "--device: expected")):
        with pytest.raises(SystemExit) as caught:
            run_command_line(command.main, *flags, extra)
        assert caught.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: {reason}")
