"""Scores of a generator on clips: sampled frames, shifted audio, sizes, A/V sync."""

import cv2
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from data_processing.batches import REFERENCE_GAP
from evaluation.clips import (
    Scores,
    clip_sync,
    mouth_boxes,
    score_clips,
    shift_report,
    sync_report,
    validation_samples,
)
from evaluation.metrics import ImageMetric, image_metrics
from models.checkpoint import LoadedModel
from models.crop_layout import crop_size
from models.dinet import DINet, DINetConfig
from models.syncnet import SyncNet
from tests.support.clips import MOUTH_SIZE, noise, synthetic_clip

MOUTH_BOX = slice(16, 48), slice(4, 36)  # of face crops at MOUTH_SIZE
Metrics = dict[str, ImageMetric]


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return image_metrics(torch.device("cpu"))


def test_mouth_boxes_are_the_masked_region_of_the_source() -> None:
    images = noise(2, 3, *crop_size(64))
    boxes = mouth_boxes(images)
    assert torch.equal(boxes, images[:, :, 32:96, 8:72])


def test_validation_samples_are_evenly_spaced_and_reproducible() -> None:
    clips = [synthetic_clip("a", "p", 40), synthetic_clip("b", "p", 3), synthetic_clip("c", "q", 40)]
    samples = validation_samples(clips, 4, 5)
    assert [(clip.id, index) for clip, index, *_ in samples] == [
        *(("a", index) for index in (5, 15, 25, 35)),
        *(("b", index) for index in (0, 1, 2)),
        *(("c", index) for index in (5, 15, 25, 35)),
    ]
    for clip, index, references, *change in samples:
        assert len(references) == 5
        assert change == [1.0, 0.0, False]
        if clip.id != "b":
            assert np.abs(references - index).min() >= REFERENCE_GAP
    again, other = validation_samples(clips, 4, 5), validation_samples(clips, 4, 5, seed=1)
    references = [np.stack([sample[2] for sample in found]) for found in (samples, again, other)]
    np.testing.assert_array_equal(references[0], references[1])
    assert (references[0] != references[2]).any()
    assert (references[0][:4] != references[0][7:]).any()  # the reference frames differ between clips


class PaintAudio(nn.Module):
    """Fills each face crop with the central value of its audio window and records that value."""

    mask = staticmethod(DINet.mask)

    def __init__(self) -> None:
        super().__init__()
        self.centres: list[float] = []
        self.was_training = False

    def forward(self, source: torch.Tensor, references: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        self.was_training |= self.training
        self.centres += (audio[:, 0, 2] * 255).tolist()
        return audio[:, 0, 2].view(-1, 1, 1, 1).expand_as(source)


@pytest.mark.parametrize(("shift", "expected"), [(0, [5, 15, 25]), (12, [17, 27, 7]), (-12, [23, 3, 13])])
def test_audio_shift_shifts_only_the_audio(
    shift: int, expected: list[int], metrics: dict[str, ImageMetric]
) -> None:
    clip = synthetic_clip("a", "p", 30)
    generator = PaintAudio().train()
    scores = score_clips(generator, validation_samples([clip], 3, 2), metrics, audio_shift=shift, batch_size=2)
    np.testing.assert_allclose(generator.centres, expected, atol=1e-4)
    boxes = clip.frames[[5, 15, 25], *MOUTH_BOX] / 255
    painted = np.array(expected).reshape(-1, 1, 1, 1) / 255
    mean_square = ((boxes - painted) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(scores.values["psnr"], -10 * np.log10(mean_square), rtol=1e-6)
    assert {name: found.shape for name, found in scores.values.items()} == dict.fromkeys(metrics, (3,))
    assert generator.training
    assert not generator.was_training


def test_a_generator_of_another_size_is_compared_at_the_size_of_the_samples(
    metrics: dict[str, ImageMetric],
) -> None:
    class FirstReference(nn.Module):
        mask = staticmethod(DINet.mask)

        def forward(self, source: torch.Tensor, references: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
            assert source.shape[-2:] == (26, 20)
            assert not source[:, :, 8:24, 2:18].any()
            return references[:, :3]

    clip = synthetic_clip("a", "p", 20)
    [sample] = validation_samples([clip], 1, 2)
    scores = score_clips(FirstReference(), [sample], metrics, mouth_size=16)
    small = cv2.resize(clip.frames[sample[2][0]].astype(np.float32), (20, 26), interpolation=cv2.INTER_AREA)
    enlarged = (
        cv2.resize(small[8:24, 2:18], (MOUTH_SIZE, MOUTH_SIZE), interpolation=cv2.INTER_CUBIC).clip(0, 255).round()
    )
    target = clip.frames[sample[1], *MOUTH_BOX]
    expected = peak_signal_noise_ratio(target, enlarged.clip(0, 255).round(), data_range=255)
    np.testing.assert_allclose(scores.values["psnr"], [expected], rtol=1e-4)


def test_all_frames_of_a_clip() -> None:
    clips = [synthetic_clip("a", "p", 20), synthetic_clip("b", "q", 25)]
    samples = validation_samples(clips, None, 1)
    assert [sample[1] for sample in samples] == [*range(20), *range(25)]


def test_scores_have_speakers_clips_and_means(metrics: Metrics) -> None:
    clips = [synthetic_clip("a", "p", 20), synthetic_clip("b", "q", 20, seed=1)]
    scores = score_clips(PaintAudio(), validation_samples(clips, 2, 1), metrics)
    assert scores.speakers == ["p", "p", "q", "q"]
    assert scores.means() == {name: pytest.approx(scores.values[name].mean()) for name in metrics}
    assert isinstance(scores, Scores)


def test_report_compares_matched_with_shifted_audio(metrics: Metrics) -> None:
    samples = validation_samples([synthetic_clip("a", "p", 30)], 3, 2)
    scores = [score_clips(PaintAudio(), samples, metrics, audio_shift=shift) for shift in (0, 12, -12)]
    report = shift_report(*scores)
    assert (report["num_frames"], report["num_speakers"]) == (3, 1)
    for name in metrics:
        matched, later, earlier = (found.means()[name] for found in scores)
        assert report["matched"][name] == {"mean": pytest.approx(matched), "interval": None}
        assert report["shifted"][name]["mean"] == pytest.approx((later + earlier) / 2)
        assert report["speakers"]["p"]["shifted"][name] == pytest.approx((later + earlier) / 2)
        difference = report["difference"][name]["mean"]
        assert difference == pytest.approx(matched - (later + earlier) / 2, abs=1e-6)
        assert difference != 0


@pytest.mark.slow
def test_sync_check_of_a_perfect_generator_equals_that_of_real_mouths() -> None:
    torch.manual_seed(0)
    clip = synthetic_clip("a", "p", 50)

    class Copy(PaintAudio):
        config = DINetConfig(num_references=2)

        def forward(self, masked_source, references, audio_window):
            start = round(audio_window[0, 0, 2].item() * 50)
            return torch.from_numpy(clip.frames[start : start + 15]).permute(0, 3, 1, 2) / 255

    clip.features[:, 0] = np.arange(50) / 50
    syncnet = LoadedModel(SyncNet(29).eval(), "whisper", 64, {})
    loaded = LoadedModel(Copy(), "phoneme", MOUTH_SIZE, {})
    sync_features = np.random.default_rng(0).random((50, 29), np.float32)
    result = clip_sync(loaded, syncnet, clip, sync_features, 0, torch.device("cpu"))
    assert result["generated"] == pytest.approx(result["real"])
    other = clip_sync(loaded, syncnet, clip, clip.features, 0, torch.device("cpu"))
    assert other["real"] != result["real"]  # SyncNet gets its own features


def test_large_mouths_are_averaged_for_a_small_syncnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in its training; single pixels would alias."""
    clip = synthetic_clip("a", "p", 50)
    clip.frames[:, 16::4, 4::4] = 255  # one pixel of each block that becomes one
    seen = []

    def encode_windows(syncnet: nn.Module, mouths: np.ndarray) -> None:
        seen.append(mouths)
        raise StopIteration

    monkeypatch.setattr("evaluation.clips.encode_windows", encode_windows)
    model = PaintAudio()
    model.config = DINetConfig(num_references=2)
    loaded = LoadedModel(model, "phoneme", MOUTH_SIZE, {})
    syncnet = LoadedModel(None, "whisper", MOUTH_SIZE // 4, {})
    with pytest.raises(StopIteration):
        clip_sync(loaded, syncnet, clip, clip.features, 0, torch.device("cpu"))
    boxes = clip.frames[: len(seen[0]), MOUTH_BOX[0], MOUTH_BOX[1]].astype(float)
    blocks = boxes.reshape(-1, MOUTH_SIZE // 4, 4, MOUTH_SIZE // 4, 4, 3).mean(axis=(2, 4))
    assert np.abs(seen[0] - blocks).max() <= 0.5


def test_sync_report_has_means_over_clips() -> None:
    results = [{"real": (1.0, 0.5, True), "generated": (0.5, 0.25, False)}, {"real": (0.0, 0.5, True)}]
    results[1]["generated"] = (0.0, 0.25, True)
    assert sync_report(results) == {
        "num_clips": 2,
        "real": {"score": 0.5, "confidence": 0.5, "within_one_frame": 1},
        "generated": {"score": 0.25, "confidence": 0.25, "within_one_frame": 0.5},
    }
