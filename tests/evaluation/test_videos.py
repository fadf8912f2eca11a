"""Scores of one generated video against the ground truth: other framings, halves, damaged files, leakage."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data_processing.av_sync import AVOffset
from data_processing.face.tracking import Landmarks, find_landmarks
from data_processing.media.video_reader import read_frames
from data_processing.media.video_writer import VideoWriter
from evaluation import videos
from evaluation.artifacts import ARTIFACTS
from tests.support.clips import video_with_late_last_frame
from utils.errors import MediaError, TruncatedMediaError


@pytest.fixture(scope="module")
def networks() -> videos.MetricNetworks:
    """Without LPIPS, which takes seconds for each frame."""
    networks = videos.MetricNetworks(torch.device("cpu"))
    networks.image_metrics = {name: networks.image_metrics[name] for name in ("psnr", "ssim")}
    return networks


@pytest.mark.slow
@pytest.mark.usefixtures("remembered_networks")
@pytest.mark.parametrize("size", [128, 256])
def test_talking_heads_in_another_framing(
    size: int, portrait_clip: Path, networks: videos.MetricNetworks, tmp_path: Path
) -> None:
    """A head cropped from the real video scores well by its own landmarks, not by those of the real video."""
    real = portrait_clip
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
@pytest.mark.usefixtures("remembered_networks")
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
        videos.compare_videos(*pair, None, 2)
    assert caught.value.path == bad


def opening_mouth(openings: np.ndarray) -> Landmarks:
    """Landmarks with these mouth openings, and eyes and chin at distance 1."""
    points = np.zeros((len(openings), 68, 2))
    points[:, 8, 1] = 1
    points[:, 66, 1] = openings
    return Landmarks(points, np.ones(len(openings), bool), [(0, len(openings))])


def test_leakage_is_the_part_of_the_movement_that_follows_the_source(
    portrait_clip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Regression of the dub's mouth opening on the source's. The dub `still` has no audio."""
    times = np.arange(100) * 2 * np.pi / 25
    dub, still = tmp_path / "dub.mp4", tmp_path / "still.mp4"
    dub.write_bytes(portrait_clip.read_bytes())
    found = {
        portrait_clip: opening_mouth(0.1 + 0.05 * np.sin(times)),
        dub: opening_mouth(0.1 + 0.3 * 0.05 * np.sin(times) + 0.4 * 0.05 * np.cos(times)),
        still: opening_mouth(np.full(100, 0.1)),
    }
    monkeypatch.setattr(videos, "find_landmarks", found.__getitem__)
    offsets = []

    def offset(video: Path, shots: list, waveform: np.ndarray) -> AVOffset:
        offsets.append((video, len(shots[0][1])))
        return AVOffset(0, {dub: 0.1, portrait_clip: 0.6}[video])

    monkeypatch.setattr(videos, "measure_offset", offset)
    monkeypatch.setattr(videos, "MIN_SYNC_FRAMES", 20)
    scores = videos.video_leakage(dub, portrait_clip)
    assert offsets == [(dub, 40), (portrait_clip, 40)]  # of the source's audio, 40 frames
    assert scores["opening_range"] == pytest.approx(0.5)
    assert scores["opening_correlation"] == pytest.approx(0.6)
    assert scores["leakage"] == pytest.approx(0.3)
    assert scores["confidence_with_source_audio"] == 0.1
    assert scores["confidence_of_source"] == 0.6
    monkeypatch.setattr(videos, "measure_offset", lambda *_: AVOffset(0, 0.0))
    scores = videos.video_leakage(still, portrait_clip)
    assert scores["leakage"] == 0
    assert scores["opening_correlation"] is scores["opening_in_silence"] is None
