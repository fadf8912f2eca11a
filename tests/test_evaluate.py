"""The command evaluate.py: scores of a checkpoint on clips and on videos, and its errors."""

import json
import time
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import LocalCluster

import evaluate
from data_processing.media.video_writer import VideoWriter
from data_processing.workers import in_workers
from dubbing.settings import DubSettings
from evaluation import videos
from evaluation.reports import LEAKAGE_COLUMNS
from models.checkpoint import save_model
from models.crop_layout import crop_size
from models.dinet import DINet, DINetConfig
from tests.support.clips import MOUTH_SIZE, synthetic_clip, video_with_late_last_frame
from tests.support.commands import run_command_line
from tests.support.media import talking_portrait
from utils.bundled import BUNDLED_GENERATOR


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model = DINet(DINetConfig(audio_dim=29, num_references=1))
    save_model(path, model, audio_features="whisper", mouth_size=MOUTH_SIZE, info={})
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("prepared")
    (data / "clips").mkdir()
    height, width = crop_size(MOUTH_SIZE)
    lines = []
    for number, speaker in enumerate(("ann", "bob")):
        clip = synthetic_clip(f"clip{number}", speaker, 7, seed=number)
        with VideoWriter(data / "clips" / f"{clip.id}.mp4", width, height) as writer:
            for frame in clip.frames:
                writer.write(frame)
        np.savez(data / "clips" / f"{clip.id}.npz", features=clip.features, landmarks=clip.landmarks)
        line = {
            "id": clip.id,
            "person": speaker,
            "split": "val",
            "num_frames": 7,
            "audio_features": "whisper",
        }
        lines.append(json.dumps(line) + "\n")
    (data / "manifest.jsonl").write_text("".join(lines))
    return data


def run(*flags: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(videos, "MIN_SYNC_FRAMES", 20)
        patch.setattr(videos, "MOUTH_SIZE", 64)  # LPIPS takes a sixteenth of the time
        run_command_line(evaluate.main, *flags, "--device", "cpu")


@pytest.mark.slow
def test_clips_of_a_dataset(
    small_checkpoint: Path,
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    output = tmp_path / "new" / "scores"
    arguments = ("--checkpoint", small_checkpoint, "--data", prepared, "--frames-per-clip", 2, "--output", output)
    run(*arguments)
    printed = capsys.readouterr().out
    assert [path.name for path in output.iterdir()] == ["evaluation.json"]
    report = json.loads((output / "evaluation.json").read_text())
    assert (report["num_frames"], report["num_clips"], report["num_speakers"]) == (4, 2, 2)
    assert report["checkpoint"]["sha256"][:12] in printed
    assert "ann" in printed and "bob" in printed
    assert report["matched"].keys() == {"psnr", "ssim", "lpips", "lpips_vgg"}
    for name in report["matched"]:
        matched, shifted = report["matched"][name], report["shifted"][name]
        assert matched["interval"][0] <= matched["mean"] <= matched["interval"][1]
        assert report["difference"][name]["mean"] == pytest.approx(matched["mean"] - shifted["mean"])
        by_speaker = [speaker["matched"][name] for speaker in report["speakers"].values()]
        assert matched["mean"] == pytest.approx(np.mean(by_speaker))  # both have the same number of frames
    assert f"{report['matched']['psnr']['mean']:.2f} [" in printed
    run("--checkpoint", small_checkpoint, "--data", prepared, "--frames-per-clip", "all", "--output", output)
    assert json.loads((output / "evaluation.json").read_text())["num_frames"] == 14


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--frames-per-clip": 0}, "--frames-per-clip: expected at least 1, or all, found 0"),
        (
            {"--size": MOUTH_SIZE // 2},
            f"--size: expected a multiple of 32, at least the checkpoint's {MOUTH_SIZE}, found 16",
        ),
        ({"--size": 80}, "--size: expected a multiple of 32"),
        ({"--checkpoint": "missing.safetensors"}, "--checkpoint: missing.safetensors: no such file"),
        ({"--data": "nowhere"}, "--data: nowhere: not a prepared dataset"),
        ({"--split": "train"}, "train split"),
        ({"--output": "FILE/scores"}, "--output: FILE/scores: cannot create the folder"),
    ],
)
def test_errors_on_clips(
    changed: dict[str, object],
    message: str,
    small_checkpoint: Path,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    options = {"--checkpoint": small_checkpoint, "--data": prepared} | changed
    with pytest.raises(SystemExit) as caught:
        run(*(part for option in options.items() for part in option))
    assert caught.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.slow
@pytest.mark.usefixtures("remembered_networks")
def test_a_checkpoint_on_videos(
    portrait_clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Videos are dubbed with their own audio and compared with themselves, or dubbed with the audio of the next."""
    real = tmp_path / "real"
    real.mkdir()
    talking_portrait(real / "ann.mp4", num_frames=26)
    (real / "bob.mp4").write_bytes((real / "ann.mp4").read_bytes())
    (real / "broken.mp4").write_text("no video")
    video_with_late_last_frame(
        real / "damaged.mkv", portrait_clip
    )  # the part that can be read is dubbed, but not compared
    flags = ("--checkpoint", BUNDLED_GENERATOR, "--videos", real, "--frames-per-clip", 1)
    run(*flags, "--output", tmp_path / "self")
    report = json.loads((tmp_path / "self" / "evaluation.json").read_text())
    assert report["videos"].keys() == {"ann", "bob"}
    assert report["failed"].keys() == {"broken", "damaged"}
    assert report["failed"]["broken"].startswith(f"{real / 'broken.mp4'}: not a media file")
    assert report["failed"]["damaged"].startswith(
        f"{real / 'damaged.mkv'}: expected at most 60 s between two frames"
    )
    assert report["unmatched"] == []
    assert report["driven_by"] == "matched audio"
    assert report["texture"]
    means = {name: column["mean"] for name, column in report["means"].items()}
    assert means["psnr_frame"] > means["psnr_mouth"] + 3  # only mouths are generated
    assert 15 < means["psnr_mouth"] < 40
    assert means["sharpness"] < 1 < means["colour_shift"] + 1
    printed = capsys.readouterr().out
    assert "FID is missing" in printed
    assert "Dubbing artifacts:" in printed
    assert "2 videos of 2 speakers scored at 25 fps, up to 1 frames each; 2 failed, 0 unmatched" in printed
    assert f"failed: broken: {real / 'broken.mp4'}: not a media file" in printed
    (real / "broken.mp4").unlink()
    (real / "damaged.mkv").unlink()
    run("--checkpoint", checkpoint, "--videos", real, "--cross", "--output", tmp_path / "cross")
    report = json.loads((tmp_path / "cross" / "evaluation.json").read_text())
    assert report["driven_by"] == "mismatched audio"
    assert report["means"].keys() == {"sync_confidence", "sync_offset_ms"}
    (real / "bob.mp4").unlink()
    run(*flags, "--silent", "--no-texture", "--output", tmp_path / "silent")
    report = json.loads((tmp_path / "silent" / "evaluation.json").read_text())
    assert not report["texture"]
    assert report["driven_by"] == "silence"
    assert report["videos"]["ann"].keys() == {"speaker", *LEAKAGE_COLUMNS}
    scores = report["videos"]["ann"]
    assert abs(scores["leakage"]) <= scores["opening_range"] < 0.8  # the mouth moves less than it speaks
    assert "leakage, 0: none" in (tmp_path / "silent" / "table.md").read_text()
    flags = ("--checkpoint", BUNDLED_GENERATOR, "--videos")
    with pytest.raises(SystemExit):
        run(*flags, tmp_path / "self" / "dubbed", "--output", tmp_path / "self")
    assert f"--output: {tmp_path / 'self'}: the dubs would replace the videos" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(*flags, real, "--cross")
    assert "--cross: expected two videos or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [],
            "expected --checkpoint with --data, or --checkpoint with --videos, or --generated with --ground-truth",
        ),
        (["--generated", "a"], "; found --generated"),
        (["--checkpoint", "a", "--ground-truth", "b"], "; found --checkpoint, --ground-truth"),
        (["--checkpoint", "a", "--data", "b", "--cross"], "--cross: needs --videos"),
        (["--checkpoint", "a", "--videos", "b", "--sync"], "--sync: needs --data"),
        (["--checkpoint", "a", "--videos", "b", "--precision", "bf16"], "--precision: needs --data"),
        (["--checkpoint", "a", "--data", "b", "--own-crops"], "--own-crops: needs --generated"),
        (["--generated", "a", "--ground-truth", "b", "--silent"], "--silent: needs --videos"),
        (["--generated", "a", "--ground-truth", "b", "--no-texture"], "--no-texture: needs --videos"),
        (["--generated", "a", "--ground-truth", "b", "--no-keep-covers"], "--no-keep-covers: needs --videos"),
        (["--checkpoint", "a", "--videos", "b", "--silent", "--cross"], "--silent: expected without --cross"),
        (
            ["--checkpoint", "a", "--videos", "b", "--scheduler", "tcp://c:1"],
            "--scheduler: needs --output: a folder",
        ),
        (["--checkpoint", "a", "--data", "b", "--jobs", "0"], "--jobs: expected 1 or more, found 0"),
        (["--generated", "absent", "--ground-truth", "b"], "--generated: absent: no such folder"),
        (["--generated", "a", "--reference", "b"], "error: unrecognized arguments: --reference b"),
    ],
)
def test_invalid_combinations_of_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


class EndlessPipeline:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def dub(self, video: Path, audio: Path, output: Path, settings: DubSettings, progress) -> None:
        (self.folder / "begun").touch()
        try:
            while True:
                progress(1, 2)
        except CancelledError:
            (self.folder / "ended").touch()
            raise


def dub_second(folder: Path, number: int) -> None:
    if number:
        options = {"settings": DubSettings(), "with_own_audio": False, "progress": evaluate._end_if_cancelled}
        evaluate._dub(EndlessPipeline(folder), Path("a.mp4"), Path("a.wav"), Path("b.mp4"), **options)


def test_dub_of_an_interrupted_command_ends_on_the_cluster(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        work = partial(dub_second, tmp_path)
        results = in_workers(work, [0, 1], 1, cluster.scheduler_address, unit="video", description="dubbing")
        next(results)
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        assert not (tmp_path / "ended").exists()
        results.close()
    assert (tmp_path / "ended").exists()
