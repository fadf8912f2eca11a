"""Scores of generated videos against the ground truth: equal, degraded and unreadable videos, other framings."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import evaluate
from data_processing.av_sync import AVOffset
from data_processing.face.tracking import Landmarks, find_landmarks
from data_processing.media.video_reader import read_frames
from data_processing.media.video_writer import VideoWriter
from evaluation import videos
from evaluation.artifacts import ARTIFACTS
from evaluation.reports import COLUMNS, markdown_table
from evaluation.videos import compare_videos, find_pairs
from tests.support.clips import video_with_late_last_frame
from tests.support.commands import run_command_line
from tests.support.golden import golden_state, random_inception
from utils.errors import FileError, MediaError, TruncatedMediaError


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
    (generated / "same.mp4").write_bytes(portrait_clip.read_bytes())
    (generated / "broken.mp4").write_text("no video")
    frames = list(read_frames(portrait_clip))[:36]
    with VideoWriter(generated / "worse.mp4", 128, 128) as writer:
        for frame in frames:
            writer.write(cv2.GaussianBlur(cv2.resize(frame, (128, 128), interpolation=cv2.INTER_AREA), (0, 0), 2))
    return generated, ground_truth


@pytest.fixture(scope="module")
def output(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of evaluate.py. The official SyncNet and Inception have random weights."""
    folder = tmp_path_factory.mktemp("evaluation")
    torch.save(golden_state(None, "lse_state_dict.json"), folder / "syncnet_v2.model")
    flags = ("--generated", folders[0], "--ground-truth", folders[1], "--output", folder / "out")
    with pytest.MonkeyPatch.context() as patch:
        paths = {"syncnet_v2": folder / "syncnet_v2.model", "fid_inception": random_inception(folder / "inception")}
        patch.setattr(videos, "is_cached", paths.__contains__)
        patch.setattr(videos, "cached_path", paths.__getitem__)
        patch.setattr(videos, "MIN_SYNC_FRAMES", 20)
        run_command_line(evaluate.main, "--device", "cpu", "--frames-per-clip", "3", *flags)
    return folder / "out"


@pytest.fixture(scope="module")
def networks() -> videos.MetricNetworks:
    return videos.MetricNetworks(torch.device("cpu"))


@pytest.mark.slow
def test_equal_videos_have_perfect_scores(output: Path) -> None:
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
    assert [scores[name] for name in ("seam", "colour_shift", "jitter", "flicker", "sharpness")] == [0, 0, 0, 0, 1]
    assert (scores["opening_range"], scores["opening_correlation"]) == (pytest.approx(1), pytest.approx(1))
    assert scores["opening_in_silence"] == scores["opening_in_silence_source"]


@pytest.mark.slow
def test_a_smaller_blurred_video_loses_image_quality_not_landmarks(output: Path) -> None:
    report = json.loads((output / "evaluation.json").read_text())
    scores = report["videos"]["worse"]
    assert (scores["frames"], scores["unpaired_frames"]) == (3, 4)
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
    assert mean["interval"] == [pytest.approx(scores["ssim_face"]), pytest.approx(1)]


@pytest.mark.slow
def test_failed_and_unmatched_videos_are_named(output: Path, folders: tuple[Path, Path]) -> None:
    report = json.loads((output / "evaluation.json").read_text())
    assert report["failed"].keys() == {"broken"}
    assert report["failed"]["broken"].startswith(f"{folders[0] / 'broken.mp4'}: not a media file")
    assert report["unmatched"] == [str(folders[1] / "alone.mp4")]


@pytest.mark.slow
def test_output_files(output: Path) -> None:
    report = json.loads((output / "evaluation.json").read_text())
    head, _, row, _, title, _, artifacts, _, _ = (output / "table.md").read_text().splitlines()
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
    assert rows[0].keys() == {"video", "frames", "unpaired_frames", *COLUMNS, *ARTIFACTS} - {"fid"}
    sheet = cv2.imread(str(output / "worst_and_best.png"))
    assert sheet.shape == (2 * (40 + 512), 3 * 256, 3)
    top, bottom = sheet[40:552], sheet[592:]  # the worst video first; ground truth above generated
    assert np.abs(top[:256].astype(int) - top[256:]).mean() > 2
    assert (bottom[:256] == bottom[256:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("size", [128, 256])
def test_talking_heads_in_another_framing(
    size: int, folders: tuple[Path, Path], networks: videos.MetricNetworks, tmp_path: Path
) -> None:
    """A head cropped from the real video scores well by its own landmarks, not by those of the real video."""
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
    own = videos.compare_videos(tmp_path / "head.mp4", real, networks, 3, own_crops=True).scores
    by_ground_truth = videos.compare_videos(tmp_path / "head.mp4", real, networks, 3).scores
    assert not {"psnr_frame", *ARTIFACTS} & own.keys()
    assert own["psnr_face"] > by_ground_truth["psnr_face"] + 5
    assert own["lmd"] < by_ground_truth["lmd"]
    assert own["csim"] > 0.9
    with VideoWriter(tmp_path / "wide.mp4", 320, 240) as writer:
        for frame in read_frames(real):
            writer.write(cv2.resize(frame, (320, 240)))
    with pytest.raises(MediaError, match=r"wide\.mp4: expected the aspect ratio of the ground truth, .*own_crops"):
        videos.compare_videos(tmp_path / "wide.mp4", real, networks, 3)


@pytest.mark.slow
def test_second_half(portrait_clip: Path, networks: videos.MetricNetworks, tmp_path: Path) -> None:
    """A video that differs in its first half only, by noise, is as good as the ground truth in the second half."""
    frames = list(read_frames(portrait_clip))
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "dub.mp4", 256, 256, crf=0) as writer:
        for index, frame in enumerate(frames):
            noise = rng.normal(0, 20 * (index < len(frames) // 2), frame.shape)
            writer.write(np.clip(frame + noise, 0, 255).astype(np.uint8))
    whole, half = (
        videos.compare_videos(tmp_path / "dub.mp4", portrait_clip, networks, 4, second_half=second_half).scores
        for second_half in (False, True)
    )
    assert whole["psnr_mouth"] < 40 < half["psnr_mouth"]
    assert whole["flicker"] > 2
    assert half["flicker"] < 0.5


@pytest.mark.parametrize("damaged", ["generated", "ground truth"])
def test_the_error_of_a_damaged_file_names_it(damaged: str, portrait_clip: Path, tmp_path: Path) -> None:
    bad = video_with_late_last_frame(tmp_path / "bad.mkv", portrait_clip)
    pair = (bad, portrait_clip) if damaged == "generated" else (portrait_clip, bad)
    with pytest.raises(TruncatedMediaError, match=f"^{bad}: expected at most 60 s between two frames") as caught:
        compare_videos(*pair, None, 2)
    assert caught.value.path == bad


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


def opening_mouth(openings: np.ndarray) -> Landmarks:
    """Landmarks with these mouth openings, and eyes and chin at distance 1."""
    points = np.zeros((len(openings), 68, 2))
    points[:, 8, 1] = 1
    points[:, 66, 1] = openings
    return Landmarks(points, np.ones(len(openings), bool), [(0, len(openings))])


def test_leakage_is_the_part_of_the_movement_that_follows_the_source(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression of the dub's mouth opening on the source's. The audio of "worse" is missing in the dubs."""
    times = np.arange(100) * 2 * np.pi / 25
    source = opening_mouth(0.1 + 0.05 * np.sin(times))
    dub = opening_mouth(0.1 + 0.3 * 0.05 * np.sin(times) + 0.4 * 0.05 * np.cos(times))
    still = opening_mouth(np.full(100, 0.1))
    found = {"generated": {"same": dub, "worse": still}, "ground_truth": {"same": source, "worse": source}}
    monkeypatch.setattr(videos, "find_landmarks", lambda path: found[path.parent.name][path.stem])
    pairs = [(name, *(folder / f"{name}.mp4" for folder in folders)) for name in ("same", "worse")]
    monkeypatch.setattr(videos, "find_pairs", lambda *_: (pairs, []))
    offsets = []

    def offset(video: Path, shots: list, waveform: np.ndarray) -> AVOffset:
        offsets.append((video, len(shots[0][1])))
        return AVOffset(0, {"generated": 0.1, "ground_truth": 0.6}[video.parent.name])

    monkeypatch.setattr(videos, "measure_offset", offset)
    monkeypatch.setattr(videos, "MIN_SYNC_FRAMES", 20)
    scores = videos.score_leakage(*folders)["videos"]
    assert scores["same"]["opening_range"] == pytest.approx(0.5)
    assert scores["same"]["opening_correlation"] == pytest.approx(0.6)
    assert scores["same"]["leakage"] == pytest.approx(0.3)
    assert scores["same"]["confidence_with_source_audio"] == 0.1
    assert scores["same"]["confidence_of_source"] == 0.6
    assert offsets[0] == (folders[0] / "same.mp4", 40)  # of the source's audio, 40 frames
    assert scores["worse"]["leakage"] == 0
    assert scores["worse"]["opening_correlation"] is scores["worse"]["opening_in_silence"] is None
