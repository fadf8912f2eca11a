"""Scores of the videos of two folders: equal, degraded and unreadable videos, and what evaluate.py writes."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from distributed import LocalCluster

import evaluate
from data_processing.media.video_reader import read_frames
from data_processing.media.video_writer import VideoWriter
from evaluation import folders as scored_folders
from evaluation import videos
from evaluation.artifacts import ARTIFACTS
from evaluation.folders import compare_folders, find_pairs, score_leakage
from evaluation.reports import COLUMNS, LEAKAGE_COLUMNS, markdown_table
from evaluation.videos import VideoScores
from tests.support.commands import run_command_line
from tests.support.golden import golden_state
from utils.errors import FileError, MediaError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, portrait_clip: Path) -> tuple[Path, Path]:
    """Ground truth: four copies of the portrait. Generated: "same" is the same file; "worse" is half the size,
    blurred, 36 frames long and without audio; "broken" is not a video; "alone" is missing."""
    folder = tmp_path_factory.mktemp("videos")
    generated, ground_truth = folder / "generated", folder / "ground_truth"
    generated.mkdir()
    ground_truth.mkdir()
    for name in ("same", "worse", "broken", "alone"):
        (ground_truth / f"{name}.mp4").write_bytes(portrait_clip.read_bytes())
    (ground_truth / "MANIFEST.tsv").write_text("file\tperson\nsame.mp4\tAnn\nalone.mp4\tAnn\n")
    (generated / "same.mp4").write_bytes(portrait_clip.read_bytes())
    (generated / "broken.mp4").write_text("no video")
    frames = list(read_frames(portrait_clip))[:36]
    with VideoWriter(generated / "worse.mp4", 128, 128) as writer:
        for frame in frames:
            writer.write(cv2.GaussianBlur(cv2.resize(frame, (128, 128), interpolation=cv2.INTER_AREA), (0, 0), 2))
    return generated, ground_truth


class RowMeans:
    """In place of FID: the features of an image are the means of its rows."""

    def __init__(self, path: Path, device: torch.device) -> None:
        pass

    def features(self, images: torch.Tensor) -> np.ndarray:
        return images.mean(dim=(1, 3)).numpy()


@pytest.fixture(scope="module")
def output(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of evaluate.py. The official SyncNet has random weights; Inception has a stand-in."""
    folder = tmp_path_factory.mktemp("evaluation")
    torch.save(golden_state(None, "lse_state_dict.json"), folder / "syncnet_v2.model")
    flags = ("--generated", folders[0], "--ground-truth", folders[1], "--output", folder / "out")
    with pytest.MonkeyPatch.context() as patch:
        paths = {"syncnet_v2": folder / "syncnet_v2.model", "fid_inception": folder / "inception"}
        patch.setattr(videos, "is_cached", paths.__contains__)
        patch.setattr(videos, "cached_path", paths.__getitem__)
        patch.setattr(videos, "FID", RowMeans)
        patch.setattr(videos, "MIN_SYNC_FRAMES", 20)
        patch.setattr(videos, "MOUTH_SIZE", 128)  # LPIPS takes a quarter of the time
        run_command_line(evaluate.main, "--device", "cpu", "--frames-per-clip", "2", *flags)
    return folder / "out"


@pytest.mark.slow
def test_equal_videos_have_perfect_scores(output: Path) -> None:
    scores = json.loads((output / "evaluation.json").read_text())["videos"]["same"]
    assert (scores["frames"], scores["unpaired_frames"]) == (2, 0)
    for region in ("frame", "face", "mouth"):
        assert (scores[f"psnr_{region}"], scores[f"ssim_{region}"]) == (100, pytest.approx(1))
    assert scores["lpips_face"] == scores["lpips_mouth"] == scores["lmd"] == 0
    assert scores["csim"] == pytest.approx(1)
    assert scores["lse_d"] > 0
    assert scores["lse_c"] >= 0
    assert abs(scores["lse_offset"]) <= 15
    assert scores["sync_confidence"] >= 0
    assert [scores[name] for name in ("seam", "colour_shift", "jitter", "flicker", "sharpness")] == [0, 0, 0, 0, 1]
    assert (scores["opening_range"], scores["opening_correlation"]) == (pytest.approx(1), pytest.approx(1))
    assert scores["opening_in_silence"] == scores["opening_in_silence_source"]


@pytest.mark.slow
def test_a_smaller_blurred_video_loses_image_quality_not_landmarks(output: Path) -> None:
    report = json.loads((output / "evaluation.json").read_text())
    scores = report["videos"]["worse"]
    assert (scores["frames"], scores["unpaired_frames"]) == (2, 4)
    assert 15 < scores["psnr_face"] < 40
    assert scores["lpips_mouth"] > 0.1
    assert scores["lmd"] < 256 / 20  # same mouth shape and position
    assert 0.8 < scores["csim"] < 1
    assert scores["lse_d"] is scores["sync_confidence"] is scores["silent_frames"] is None  # it has no audio
    assert 0 < scores["sharpness"] < 0.5
    assert report["means"]["lse_d"]["videos"] == 1
    same = report["videos"]["same"]  # the mean is of absolute offsets
    assert report["means"]["sync_offset_ms"]["mean"] == pytest.approx(abs(same["sync_offset_ms"]))
    mean = report["means"]["ssim_face"]
    assert mean["mean"] == pytest.approx((scores["ssim_face"] + 1) / 2)
    half_width = 12.706 * (1 - scores["ssim_face"]) / 2  # Student's t for two speakers
    assert mean["interval"] == pytest.approx([mean["mean"] - half_width, mean["mean"] + half_width], abs=1e-4)
    assert {scores["speaker"] for scores in report["videos"].values()} == {"Ann", "worse"}


@pytest.mark.slow
def test_failed_and_unmatched_videos_are_named(output: Path, folders: tuple[Path, Path]) -> None:
    report = json.loads((output / "evaluation.json").read_text())
    assert report["failed"].keys() == {"broken"}
    assert report["failed"]["broken"].startswith(f"{folders[0] / 'broken.mp4'}: not a media file")
    assert report["unmatched"] == [str(folders[1] / "alone.mp4")]


loaded: list[torch.device] = []


def load_networks(device: torch.device) -> torch.device:
    loaded.append(device)
    return device


def test_a_cluster_gives_the_report_of_this_process(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The networks are loaded once on each worker."""

    def compare(generated: Path, ground_truth: Path, networks: object, **options: object) -> VideoScores:
        assert options == {"count": 2, "own_crops": True, "second_half": False}
        assert ground_truth.exists() and networks == torch.device("cpu")
        if generated.stem == "broken":
            raise MediaError(generated, "not a media file")
        score = float(len(generated.stem))
        strip, features = np.full((512, 256, 3), len(generated.stem), np.uint8), np.full((2, 2, 16), score)
        return VideoScores({"psnr_face": score}, 2, 0, strip, features)

    monkeypatch.setattr(scored_folders, "compare_videos", compare)
    monkeypatch.setattr(scored_folders, "MetricNetworks", load_networks)
    local, strips = compare_folders(*folders, 2, torch.device("cpu"), own_crops=True)
    loaded.clear()
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        report, found = compare_folders(*folders, 2, torch.device("cpu"), own_crops=True, scheduler=address)
    assert loaded == [torch.device("cpu")]
    assert report == local and report["failed"].keys() == {"broken"}
    assert list(report["videos"]) == ["same", "worse"]
    assert all(np.array_equal(found[name], strips[name]) for name in ("same", "worse"))


@pytest.mark.slow
def test_output_files(output: Path) -> None:
    report = json.loads((output / "evaluation.json").read_text())
    head, _, row, _, note, _, title, _, artifacts, _, _ = (output / "table.md").read_text().splitlines()
    assert note.startswith("SSIM: Gaussian window of 11 × 11 pixels")
    assert title == "Dubbing artifacts:"
    assert [cell.split(",")[0] for cell in artifacts.strip("| ").split(" | ")[1:3]] == ["seam", "colour shift"]
    assert [cell.split(",")[0].split(" (")[0] for cell in head.strip("| ").split(" | ")[1:6]] == [
        "SSIM",
        "PSNR",
        "LPIPS",
        "LSE-D ↓",
        "LSE-C ↑",
    ]
    assert row.startswith(f"| 2 | {report['means']['ssim_face']['mean']:.4f} [")
    del report["means"]["csim"]
    assert markdown_table(report, COLUMNS).splitlines()[2].count("missing") == 1
    assert report["means"]["fid"]["mean"] > 0
    with (output / "videos.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [line["video"] for line in rows] == ["same", "worse"]
    assert rows[0].keys() == {"video", "speaker", "frames", "unpaired_frames", *COLUMNS, *ARTIFACTS} - {"fid"}
    sheet = cv2.imread(str(output / "worst_and_best.png"))
    assert sheet.shape == (2 * (40 + 2 * 128), 2 * 128, 3)
    top, bottom = sheet[40:296], sheet[336:]  # the worst video first; ground truth above generated
    assert np.abs(top[:128].astype(int) - top[128:]).mean() > 2
    assert len(bottom) == 256 and (bottom[:128] == bottom[128:]).all()


def test_folders_without_a_common_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"absent: no such folder"):
        find_pairs(folders[0], tmp_path / "absent")
    with pytest.raises(MediaError, match=r"no videos in this folder") as caught:
        find_pairs(tmp_path, folders[1])
    assert caught.value.path == tmp_path
    (tmp_path / ".hidden.mp4").write_text("")
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / "other.mp4").write_text("")
    with pytest.raises(MediaError, match=r"no video has the name of a video in .* \(names here: other\)"):
        find_pairs(tmp_path, folders[1])
    (tmp_path / "other.mov").write_text("")
    with pytest.raises(MediaError, match=r"two videos are named other"):
        find_pairs(tmp_path, folders[1])


def test_the_leakage_of_folders_is_a_mean_over_videos(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leakage(dub: Path, source: Path) -> dict[str, float | None]:
        assert (dub.parent, source.parent) == folders
        if dub.stem == "broken":
            raise MediaError(dub, "not a media file")
        return dict.fromkeys(LEAKAGE_COLUMNS) | {"leakage": {"same": 0.1, "worse": 0.3}[dub.stem]}

    monkeypatch.setattr(scored_folders, "video_leakage", leakage)
    report = score_leakage(*folders)
    assert report["means"]["leakage"]["mean"] == pytest.approx(0.2)
    assert report["failed"].keys() == {"broken"}
    assert report["unmatched"] == [str(folders[1] / "alone.mp4")]
