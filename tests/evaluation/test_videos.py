"""Generated videos beside the real ones: what is the same scores as the same, what cannot be scored is named."""

import csv
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import evaluate
from data_processing.face.tracking import find_landmarks
from data_processing.media.video_reader import read_frames
from data_processing.media.video_writer import VideoWriter
from evaluation import videos
from evaluation.artifacts import ARTIFACTS
from evaluation.reports import COLUMNS, markdown_table
from evaluation.videos import compare_videos, find_pairs
from tests.support.golden import golden_state, made_inception
from tests.support.media import speech_like, write_video
from utils.bundled import BUNDLED_GENERATOR
from utils.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, portrait_clip: Path) -> tuple[Path, Path]:
    """Real: four copies of the portrait. Generated: the same file; one half its size, blurred, of 36 frames,
    without sound; no video at all."""
    folder = tmp_path_factory.mktemp("videos")
    generated, reference = folder / "generated", folder / "reference"
    generated.mkdir()
    reference.mkdir()
    for name in ("same", "worse", "broken", "alone"):
        (reference / f"{name}.mp4").write_bytes(portrait_clip.read_bytes())
    (generated / "same.mp4").write_bytes(portrait_clip.read_bytes())
    (generated / "broken.mp4").write_text("no video")
    frames = list(read_frames(portrait_clip))[:36]
    with VideoWriter(generated / "worse.mp4", 128, 128) as writer:
        for frame in frames:
            writer.write(cv2.GaussianBlur(cv2.resize(frame, (128, 128), interpolation=cv2.INTER_AREA), (0, 0), 2))
    return generated, reference


@pytest.fixture(scope="module")
def output(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What evaluate.py writes, with an official SyncNet of made weights."""
    folder = tmp_path_factory.mktemp("evaluation")
    torch.save(golden_state(None, "lse_state_dict.json"), folder / "syncnet_v2.model")
    flags = (
        "--generated",
        folders[0],
        "--reference",
        folders[1],
        "--frames-per-clip",
        3,
        "--output",
        folder / "out",
    )
    with pytest.MonkeyPatch.context() as patch:
        paths = {"syncnet_v2": folder / "syncnet_v2.model", "fid_inception": made_inception(folder / "inception")}
        patch.setattr(videos, "is_cached", paths.__contains__)
        patch.setattr(videos, "cached_path", paths.__getitem__)
        patch.setattr(videos, "MIN_SYNC_FRAMES", 20)
        patch.setattr(sys, "argv", ["evaluate.py", "--device", "cpu", "--frames-per-clip", "3", *map(str, flags)])
        evaluate.main()
    return folder / "out"


def test_the_same_video_scores_as_the_same(output: Path) -> None:
    scores = json.loads((output / "evaluation.json").read_text())["videos"]["same"]
    assert (scores["frames"], scores["unpaired_frames"]) == (3, 0)
    for region in ("frame", "face", "mouth"):
        assert (scores[f"psnr_{region}"], scores[f"ssim_{region}"]) == (100, pytest.approx(1))
    assert scores["lpips_face"] == scores["lpips_mouth"] == scores["lmd"] == 0
    assert scores["csim"] == pytest.approx(1)
    assert scores["lse_d"] > 0
    assert scores["lse_c"] >= 0
    assert abs(scores["lse_offset"]) <= 15
    assert scores["sync_confidence"] >= 0
    assert [scores[name] for name in ("seam", "colour_shift", "tremble", "flicker", "sharpness")] == [0, 0, 0, 0, 1]
    assert scores["opening_in_silence"] == scores["opening_in_silence_real"]


def test_a_smaller_blurred_video_is_worse_in_the_picture_not_in_the_face(output: Path) -> None:
    report = json.loads((output / "evaluation.json").read_text())
    scores = report["videos"]["worse"]
    assert (scores["frames"], scores["unpaired_frames"]) == (3, 4)
    assert 15 < scores["psnr_face"] < 40
    assert scores["lpips_mouth"] > 0.1
    assert scores["lmd"] < 256 / 20  # the same mouth in the same place
    assert 0.8 < scores["csim"] < 1
    assert scores["lse_d"] is scores["sync_confidence"] is scores["silent_frames"] is None  # it has no sound
    assert 0 < scores["sharpness"] < 0.5
    assert report["means"]["lse_d"]["videos"] == 1
    same = report["videos"]["same"]  # the mean of offsets is without sign
    assert report["means"]["sync_late_ms"]["mean"] == pytest.approx(abs(same["sync_late_ms"]))
    mean = report["means"]["ssim_face"]
    assert mean["mean"] == pytest.approx((scores["ssim_face"] + 1) / 2)
    assert mean["interval"] == [pytest.approx(scores["ssim_face"]), pytest.approx(1)]


def test_what_cannot_be_scored_is_named(output: Path, folders: tuple[Path, Path]) -> None:
    report = json.loads((output / "evaluation.json").read_text())
    assert report["failed"].keys() == {"broken"}
    assert "broken.mp4" in report["failed"]["broken"]
    assert report["unmatched"] == [str(folders[1] / "alone.mp4")]


def test_tables_and_sheet(output: Path) -> None:
    report = json.loads((output / "evaluation.json").read_text())
    head, _, row, _, title, _, looks, _, _ = (output / "table.md").read_text().splitlines()
    assert title == "What shows that they are dubs:"
    assert [cell.split(",")[0] for cell in looks.strip("| ").split(" | ")[1:3]] == ["seam", "colour shift"]
    assert [cell.split(",")[0].split(" (")[0] for cell in head.strip("| ").split(" | ")[1:6]] == [
        "SSIM",
        "PSNR",
        "LPIPS",
        "LSE-D ↓",
        "LSE-C ↑",
    ]
    assert row.startswith(f"| 2 | {report['means']['ssim_face']['mean']:.4f} [")
    del report["means"]["csim"]
    assert markdown_table(report).splitlines()[2].count("missing") == 1
    assert report["means"]["fid"]["mean"] > 0
    with (output / "videos.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [line["video"] for line in rows] == ["same", "worse"]
    assert rows[0].keys() == {"video", "frames", "unpaired_frames", *COLUMNS, *ARTIFACTS} - {"fid"}
    sheet = cv2.imread(str(output / "worst_and_best.png"))
    assert sheet.shape == (2 * (40 + 512), 3 * 256, 3)
    top, bottom = sheet[40:552], sheet[592:]  # the worst first; real mouths above the generated ones
    assert np.abs(top[:256].astype(int) - top[256:]).mean() > 2
    assert (bottom[:256] == bottom[256:]).all()


@pytest.mark.parametrize("size", [128, 256])
def test_talking_heads_of_another_framing(size: int, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """The head alone, cut out of the real video, is the same face; by the real video's landmarks it is not."""
    real = folders[1] / "same.mp4"
    points = find_landmarks(real).points
    middle, reach = points.mean(axis=(0, 1)), np.ptp(points, axis=1).max() * 0.95
    left, top = (middle - reach).round().astype(int)
    side = round(2 * reach)
    with VideoWriter(tmp_path / "head.mp4", size, size, crf=4) as writer:
        for frame in read_frames(real):
            padded = np.pad(frame, ((side, side), (side, side), (0, 0)), mode="edge")
            head = padded[top + side :, left + side :][:side, :side]
            writer.write(cv2.resize(head, (size, size), interpolation=cv2.INTER_AREA))
    judges = videos.MetricNetworks(torch.device("cpu"))
    own = videos.compare_videos(tmp_path / "head.mp4", real, judges, 3, own_crops=True).scores
    by_real = videos.compare_videos(tmp_path / "head.mp4", real, judges, 3).scores
    assert not {"psnr_frame", *ARTIFACTS} & own.keys()
    assert own["psnr_face"] > by_real["psnr_face"] + 5
    assert own["lmd"] < by_real["lmd"]
    assert own["csim"] > 0.9
    with VideoWriter(tmp_path / "wide.mp4", 320, 240) as writer:
        for frame in read_frames(real):
            writer.write(cv2.resize(frame, (320, 240)))
    with pytest.raises(UserError, match=r"expected frames in the form of the real ones, .* there is --own-crops"):
        videos.compare_videos(tmp_path / "wide.mp4", real, judges, 3)


def damaged_at_its_end(path: Path, clip: Path) -> Path:
    """A clip's first pictures, the last one an hour after the one before it."""
    frames = list(read_frames(clip))[:16]
    times = np.append(np.arange(15) / 25, 3600)
    return write_video(path, frames, times=times, sounds=[speech_like(0.6, 0)])


def run(*flags: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(videos, "MIN_SYNC_FRAMES", 20)
        patch.setattr(sys, "argv", ["evaluate.py", "--device", "cpu", "--frames-per-clip", "2", *map(str, flags)])
        evaluate.main()


def test_a_checkpoint_on_videos(portrait_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Each dubbed with its own sound and compared with itself, or with the next one's and judged alone."""
    real, checkpoint = tmp_path / "real", BUNDLED_GENERATOR
    real.mkdir()
    for name in ("ann", "bob"):
        (real / f"{name}.mp4").write_bytes(portrait_clip.read_bytes())
    (real / "broken.mp4").write_text("no video")
    damaged_at_its_end(real / "damaged.mkv", portrait_clip)  # dubbed as far as it can be read, but not compared
    run("--checkpoint", checkpoint, "--videos", real, "--output", tmp_path / "self")
    report = json.loads((tmp_path / "self" / "evaluation.json").read_text())
    assert report["videos"].keys() == {"ann", "bob"}
    assert report["failed"].keys() == {"broken", "damaged"}
    assert report["failed"]["broken"].startswith("--videos: expected a video, found something else")
    assert report["failed"]["damaged"].startswith("--videos: expected at most 60 s between two pictures")
    assert report["unmatched"] == []
    assert report["driven_by"] == "their own sound"
    assert (
        report["means"]["psnr_frame"]["mean"] > report["means"]["psnr_mouth"]["mean"] + 3
    )  # only mouths are drawn
    assert 15 < report["means"]["psnr_mouth"]["mean"] < 40
    assert report["means"]["sharpness"]["mean"] < 1 < report["means"]["colour_shift"]["mean"] + 1
    shown = capsys.readouterr().out
    assert "FID is missing" in shown
    assert "What shows that they are dubs:" in shown
    (real / "broken.mp4").unlink()
    (real / "damaged.mkv").unlink()
    run("--checkpoint", checkpoint, "--videos", real, "--cross", "--output", tmp_path / "cross")
    report = json.loads((tmp_path / "cross" / "evaluation.json").read_text())
    assert report["driven_by"] == "another's sound"
    assert report["means"].keys() == {"sync_confidence", "sync_late_ms"}
    with pytest.raises(SystemExit):
        run("--checkpoint", checkpoint, "--videos", tmp_path / "self" / "dubbed", "--output", tmp_path / "self")
    assert "--output: expected another folder" in capsys.readouterr().err
    (real / "bob.mp4").unlink()
    with pytest.raises(SystemExit):
        run("--checkpoint", checkpoint, "--videos", real, "--cross")
    assert "--cross: expected two videos or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected --checkpoint with --data, or --checkpoint with --videos, or --generated with --reference"),
        (["--generated", "a"], "; found --generated"),
        (["--checkpoint", "a", "--reference", "b"], "; found --checkpoint, --reference"),
        (["--checkpoint", "a", "--data", "b", "--cross"], "--cross: expected --videos with it"),
        (["--checkpoint", "a", "--videos", "b", "--sync"], "--sync: expected --data with it"),
        (["--checkpoint", "a", "--videos", "b", "--precision", "bf16"], "--precision: expected --data with it"),
        (["--checkpoint", "a", "--data", "b", "--own-crops"], "--own-crops: expected --generated with it"),
        (["--generated", "absent", "--reference", "absent"], "--generated: expected a folder of videos"),
    ],
)
def test_refusals(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags])
    with pytest.raises(SystemExit) as caught:
        evaluate.main()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("damaged", ["generated", "reference"])
def test_a_damaged_file_is_named_with_its_flag(damaged: str, portrait_clip: Path, tmp_path: Path) -> None:
    bad = damaged_at_its_end(tmp_path / "bad.mkv", portrait_clip)
    pair = (bad, portrait_clip) if damaged == "generated" else (portrait_clip, bad)
    with pytest.raises(UserError, match=f"^--{damaged}: expected at most 60 s between .* of {bad}"):
        compare_videos(*pair, None, 2)


def test_folders_without_a_common_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--generated: expected videos in .*, found none"):
        find_pairs(tmp_path, folders[1])
    (tmp_path / ".hidden.mp4").write_text("")
    (tmp_path / "other.mp4").write_text("")
    with pytest.raises(UserError, match=r"expected videos named as in .*, found other"):
        find_pairs(tmp_path, folders[1])
    (tmp_path / "other.mov").write_text("")
    with pytest.raises(UserError, match=r"expected one video of each name in .*, found two of other"):
        find_pairs(tmp_path, folders[1])
