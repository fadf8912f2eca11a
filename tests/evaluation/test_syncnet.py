"""Evaluation of SyncNet on clips whose mouth brightness is the loudness of the audio, and diagnosis of training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import SyncNetConfig, load_config
from data_processing.av_sync import encode_windows, offset_and_confidence, shift_scores
from data_processing.batches import SyncBatches, to_float
from evaluation.syncnet import MAX_SHIFT, PLATEAU_STEPS, curve_figure, diagnose, evaluate_syncnet
from models.syncnet import SyncNet
from tests.support.training import speaking_clip
from training.syncnet_trainer import Trainer, train_step

STEPS = 100


@pytest.fixture(scope="module")
def syncnet() -> SyncNet:
    """SyncNet trained until it matches brightness to loudness, in evaluation mode."""
    overrides = {
        "mouth_size": 32,
        "audio_features": "phoneme",
        "contrast_weight": 0.0,
        "shape_warmup_steps": 0,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "warmup_steps": 10,
        "precision": "fp32",
    }
    config = load_config(Path("configs/stages/syncnet_32.yaml"), overrides, SyncNetConfig)
    trainer = Trainer.create(config, torch.device("cpu"))
    batches = SyncBatches([speaking_clip(k, 120) for k in range(4)], 12, STEPS, 0, num_negatives=2, negative_gap=8)
    trainer.syncnet.calibrate(to_float(batches[0].mouths), batches[0].audio[:, 0])
    for step in range(STEPS):
        train_step(trainer, batches[step])
    return trainer.syncnet.eval()


@pytest.mark.slow
def test_scores_of_held_out_clips(syncnet):
    evaluation = evaluate_syncnet(syncnet, [speaking_clip(k, 200) for k in (10, 11, 12, 13)], negative_gap=8)
    summary = evaluation.summary()
    # mismatched audio may be as loud by chance
    assert min(summary["accuracy"], summary["ranking_accuracy"]) > 0.62
    assert summary["curve_peak"] == 0 and summary["clips_in_sync"] == 1
    assert len(evaluation.curve) == 2 * MAX_SHIFT + 1
    assert evaluation.matched.mean() > evaluation.mismatched.mean() + 0.15
    curve, histogram = curve_figure(evaluation).axes
    np.testing.assert_array_equal(curve.lines[0].get_ydata(), evaluation.curve)
    assert [text.get_text() for text in histogram.get_legend().get_texts()] == ["matched audio", "mismatched audio"]


@pytest.mark.slow
@pytest.mark.parametrize("delay", [-4, 3])
def test_audio_delay_is_measured(syncnet, delay):
    clip = speaking_clip(20, 100, audio_delay=delay)
    middles, codes = encode_windows(syncnet, clip.frames[:, 16:48, 4:36])
    scores = shift_scores(syncnet, middles, codes, clip.features, 8)
    offset, confidence = offset_and_confidence(scores)
    assert offset == delay
    assert confidence > 0.2
    # there is no audio before the start of the clip
    assert np.isnan(scores[0, :8]).all() and not np.isnan(scores[0, 8:]).any()
    assert not np.isnan(scores[8]).any()


@pytest.mark.slow
def test_shift_scores_equal_the_network_output(syncnet):
    clip = speaking_clip(30, 40)
    mouths = clip.frames[:, 16:48, 4:36]
    middles, codes = encode_windows(syncnet, mouths, stride=5)
    assert middles.tolist() == [2, 7, 12, 17, 22, 27, 32, 37]
    scores = shift_scores(syncnet, middles, codes, clip.features, 3)
    images = torch.from_numpy(mouths[10:15]).permute(0, 3, 1, 2).reshape(1, 15, 32, 32) / 255
    audio = torch.from_numpy(clip.features[11:20].T[None])  # middle frame 15, three frames after 12
    assert scores[6, 2] == pytest.approx(syncnet(images, audio).mean().item(), abs=1e-5)


def test_offset_of_a_short_clip():
    scores = np.full((7, 2), np.nan, np.float32)
    scores[2:5] = [[0.1, 0.1], [0.2, 0.4], [0.1, np.nan]]  # audio exists for shifts of at most one frame
    assert offset_and_confidence(scores) == (0, pytest.approx(0.2))


def test_constant_score_has_chance_loss():
    syncnet = SyncNet()
    for part in syncnet.merge_encoder[-1].parameters():
        torch.nn.init.zeros_(part)
    torch.nn.init.constant_(syncnet.merge_encoder[-1].bias, 0.5)
    summary = evaluate_syncnet(syncnet, [speaking_clip(0, 40), speaking_clip(1, 40)], negative_gap=8).summary()
    assert summary["loss"] == pytest.approx(0.25)
    assert summary["accuracy"] == 0


def log_of(loss: float, accuracy: float) -> list[dict[str, float]]:
    return [{"loss": loss, "accuracy": accuracy}] * PLATEAU_STEPS


def test_diagnosis():
    held_out = {"curve_peak": 0, "accuracy": 0.8}
    assert diagnose(log_of(0.15, 0.8), held_out) is None
    assert "plateau: the mean loss of the last 1000 steps is 0.250" in diagnose(log_of(0.25, 0.5), held_out)
    assert "audio shift of +4 frames" in diagnose(log_of(0.15, 0.8), held_out | {"curve_peak": 4})
    assert "overfitting" in diagnose(log_of(0.05, 0.95), held_out | {"accuracy": 0.6})
