"""Means, tables and summaries of reports."""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation import reports
from evaluation.reports import (
    COLUMNS,
    LEAKAGE_COLUMNS,
    OWN_CROPS_COLUMNS,
    SYNC_COLUMNS,
    checkpoint_identity,
    clip_summary,
    create_folder,
    means_over,
    video_summary,
    video_tables,
    with_interval,
    write_report,
    write_video_tables,
)
from utils.errors import OutputError


def video_report() -> dict:
    videos = {
        "one": {"speaker": "Ann", "lse_offset": -2.0, "psnr_face": 30.0, "psnr_frame": 40.0, "jitter": 0.5},
        "two": {"speaker": "two", "lse_offset": 1.0, "psnr_face": 32.0, "psnr_frame": None, "jitter": None},
    }
    return {
        "videos": videos,
        "means": means_over(videos),
        "frames_per_video": 3,
        "failed": {"bad": "folder/bad.mp4: no video stream"},
        "unmatched": ["folder/alone.mp4"],
    }


def test_means_are_over_the_videos_with_a_value() -> None:
    means = video_report()["means"]
    assert means["psnr_face"] == {"mean": 31.0, "interval": pytest.approx((18.294, 43.706), abs=1e-3), "videos": 2}
    assert means["psnr_frame"] == {"mean": 40.0, "interval": None, "videos": 1}
    assert means["lse_offset"]["mean"] == 1.5  # of absolute values
    assert "fid" not in means


def test_tables_have_the_columns_of_the_mode() -> None:
    report = video_report()
    both = video_tables(report, COLUMNS, artifacts=True)
    assert "| 31.00 [18.29, 43.71] |" in both
    assert both.count("SSIM: Gaussian window of 11 × 11 pixels, σ = 1.5") == 1
    assert "PSNR, full frame ↑" in both
    assert "\nDubbing artifacts:\n" in both
    own_crops = video_tables(report, OWN_CROPS_COLUMNS, artifacts=False)
    assert "PSNR, face crop ↑" in own_crops
    assert "full frame" not in own_crops and "artifacts" not in own_crops
    head, _, row = video_tables(report, SYNC_COLUMNS, artifacts=False).splitlines()
    assert head.count("|") == row.count("|") == 7  # number of videos and five columns
    assert row == "| 2 | missing | missing | 1.5 [-4.9, 7.9] | missing | missing |"


def test_the_summary_names_failed_and_unmatched_videos_and_missing_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "is_cached", lambda name: False)
    lines = video_summary(video_report(), COLUMNS).splitlines()
    assert lines[:4] == [
        "2 videos of 2 speakers scored at 25 fps, up to 3 frames each; 1 failed, 1 unmatched",
        "95 % intervals over speakers",
        "failed: bad: folder/bad.mp4: no video stream",
        "unmatched: folder/alone.mp4",
    ]
    assert [line.split(":")[0] for line in lines[4:]] == ["LSE-D and LSE-C are missing", "FID is missing"]
    sync_report = {name: part for name, part in video_report().items() if name != "frames_per_video"}
    sync_only = video_summary(sync_report, SYNC_COLUMNS).splitlines()
    assert sync_only[0] == "2 videos of 2 speakers scored at 25 fps; 1 failed, 1 unmatched"
    assert len(sync_only) == 5
    assert len(video_summary(sync_report, LEAKAGE_COLUMNS).splitlines()) == 4
    monkeypatch.setattr(reports, "is_cached", lambda name: True)
    report = video_report()
    report["videos"]["one"]["lse_d"] = 8.0
    lines = video_summary(report, COLUMNS).splitlines()
    assert len(lines) == 5
    assert lines[4].endswith("or every shot is): two")  # "one" has a value
    report["videos"]["two"]["lse_d"] = 9.0
    assert len(video_summary(report, COLUMNS).splitlines()) == 4


def test_the_summary_says_whose_videos_they_are_and_how_many_frames() -> None:
    report = video_report() | {"frames_per_video": None}
    report["videos"]["two"]["speaker"] = "Ann"
    lines = video_summary(report, LEAKAGE_COLUMNS).splitlines()
    assert lines[0] == "2 videos of 1 speakers scored at 25 fps, every frame; 1 failed, 1 unmatched"
    assert lines[1] == "95 % intervals over speakers: none for one"
    assert means_over(report["videos"])["psnr_face"]["interval"] is None
    for name, scores in report["videos"].items():
        scores["speaker"] = name
    assert "each video counts as a speaker of its own" in video_summary(report, LEAKAGE_COLUMNS).splitlines()[2]


def test_the_summary_of_clips_has_the_sync_scores_and_the_speakers() -> None:
    scores = {name: {"mean": 0.5, "interval": [0.25, 0.75]} for name in ("psnr", "ssim", "lpips", "lpips_vgg")}
    means = dict.fromkeys(scores, 0.5)
    report = {
        "checkpoint": {"path": "model", "sha256": "0123456789abcdef"},
        **{"data": "data", "split": "val", "mouth_size": 32, "compared_at": 64},
        **{"num_frames": 4, "num_clips": 2, "num_speakers": 1, "audio_shift_frames": 12},
        **dict.fromkeys(("matched", "shifted", "difference"), scores),
        "speakers": {"ann": {"frames": 4, "matched": means, "shifted": means}},
    }
    text = clip_summary(report)
    assert "4 frames of 2 clips of 1 speakers; mouth box 64 × 64" in text
    assert "matched audio           0.50 [0.25, 0.75]         0.5000 [0.2500, 0.7500]" in text
    assert "audio ± 0.48 s" in text
    assert "95 % intervals over speakers\nSSIM: Gaussian window of 11 × 11 pixels, σ = 1.5" in text
    assert "SyncNet" not in text
    sync = {"score": 0.5, "confidence": 0.25, "within_one_frame": 1.0}
    text = clip_summary(report | {"sync": {"num_clips": 1, "real": sync, "generated": sync}})
    assert "generated               score 0.500   confidence 0.250   100% in sync to one frame" in text


def test_with_interval() -> None:
    assert with_interval(0.5, (0.25, 0.75), 2) == "0.50 [0.25, 0.75]"
    assert with_interval(0.5, None, 1) == "0.5"


def test_a_checkpoint_is_identified_by_its_checksum(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    expected = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert checkpoint_identity(tmp_path / "empty") == {"path": str(tmp_path / "empty"), "sha256": expected}


def test_reports_with_names_that_are_not_utf_8(tmp_path: Path) -> None:
    report = {"videos": {"\udcff": {"lpips_mouth": 0.5}}}
    strips = {"\udcff": np.zeros((512, 1536, 3), np.uint8)}
    write_report(tmp_path, report)
    write_video_tables(tmp_path, report, "| \udcff |", strips)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == report
    assert (tmp_path / "table.md").read_text() == r"| \udcff |"
    assert (tmp_path / "videos.csv").read_text().split() == ["video,lpips_mouth", r"\udcff,0.5"]
    assert (tmp_path / "worst_and_best.png").exists()


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot create the folder"):
        create_folder(tmp_path / "file" / "scores")
    create_folder(tmp_path / "new" / "scores")
    assert (tmp_path / "new" / "scores").is_dir()
