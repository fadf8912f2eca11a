"""SyncNet's training on made clips whose mouths show what their sound says, so that a judge can be right."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train_syncnet
from configs.schema import SyncNetConfig, load_config
from data_processing.av_sync import encode_windows, offset_and_confidence, shift_scores
from data_processing.batches import SyncBatch, SyncBatches
from data_processing.dataset import Clip
from evaluation.syncnet import MAX_SHIFT, PLATEAU_STEPS, diagnose, evaluate_syncnet
from models.checkpoint import SYNCNET, load_model, load_training_state
from models.syncnet import SyncNet
from training.syncnet_trainer import Trainer, train_step
from utils.errors import UserError
from utils.files import read_jsonl

TINY = """
mouth_size: 32
batch_size: 4
max_steps: 4
warmup_steps: 2
precision: fp32
shape_warmup_steps: 2
log_every: 1
validate_every: 3
save_every: 2
"""


def speaking_clip(number: int, num_frames: int, sound_late: int = 0) -> Clip:
    """S = 32: the brightness of the mouth is the loudness of the sound, which comes `sound_late` frames late."""
    rng = np.random.default_rng(number)
    loudness = np.convolve(rng.normal(size=num_frames + 40), np.ones(3) / 3, "same")
    seen, heard = loudness[20:][:num_frames], loudness[20 - sound_late :][:num_frames]
    frames = np.full((num_frames, 52, 40, 3), 128.0) + 50 * seen[:, None, None, None]
    features = np.repeat(heard[:, None], 29, axis=1) + 0.05 * rng.normal(size=(num_frames, 29))
    return Clip(
        f"clip{number}",
        f"person{number}",
        frames.clip(0, 255).astype(np.uint8),
        features.astype(np.float32),
        rng.normal(size=(num_frames, 68, 2)).astype(np.float32),
    )


def calibrate(trainer: Trainer, batch: SyncBatch) -> None:
    trainer.syncnet.calibrate(batch.mouths, batch.audio[:, 0])


@pytest.fixture(scope="module")
def judge_of_brightness() -> Trainer:
    """Trained until it knows that bright mouths are loud."""
    config = SyncNetConfig(
        seed=0, mouth_size=32, audio_features="phoneme", speaker_sampling_exponent=1.0, num_negatives=2, negative_gap=8,
        contrast_weight=0.0, shape_warmup_steps=0,
        batch_size=16, max_steps=150, learning_rate=1e-3, warmup_steps=10, weight_decay=0.01, precision="fp32",
        channels_last=True, init_from=None, log_every=1, validate_every=1, save_every=1,
    )  # fmt: skip
    trainer = Trainer.create(config, torch.device("cpu"))
    batches = SyncBatches([speaking_clip(k, 120) for k in range(4)], 16, 150, 0, num_negatives=2, negative_gap=8)
    calibrate(trainer, batches[0])
    for step in range(150):
        train_step(trainer, batches[step])
    return trainer


def test_learns_and_judges_others(judge_of_brightness):
    judgement = evaluate_syncnet(
        judge_of_brightness.syncnet, [speaking_clip(k, 200) for k in (10, 11, 12, 13)], negative_gap=8
    )
    numbers = judgement.numbers()
    assert min(numbers["accuracy"], numbers["ranked_right"]) > 0.62  # a wrong moment may be as loud by chance
    assert numbers["curve_peak"] == 0 and numbers["clips_in_sync"] == 1
    assert len(judgement.curve) == 2 * MAX_SHIFT + 1
    assert judgement.right.mean() > judgement.wrong.mean() + 0.15


@pytest.mark.parametrize("late", [-4, 3])
def test_finds_how_late_the_sound_is(judge_of_brightness, late):
    syncnet = judge_of_brightness.syncnet.eval()
    clip = speaking_clip(20, 100, sound_late=late)
    moments, codes = encode_windows(syncnet, clip.frames[:, 16:48, 4:36])
    scores = shift_scores(syncnet, moments, codes, clip.features, 8)
    offset, confidence = offset_and_confidence(scores)
    assert offset == late
    assert confidence > 0.2
    # at the start of the clip there is no sound from before it
    assert np.isnan(scores[0, :8]).all() and not np.isnan(scores[0, 8:]).any()
    assert not np.isnan(scores[8]).any()


def test_shift_scores_are_those_of_the_network(judge_of_brightness):
    syncnet = judge_of_brightness.syncnet.eval()
    clip = speaking_clip(30, 40)
    mouths = clip.frames[:, 16:48, 4:36]
    moments, codes = encode_windows(syncnet, mouths, stride=5)
    assert moments.tolist() == [2, 7, 12, 17, 22, 27, 32, 37]
    scores = shift_scores(syncnet, moments, codes, clip.features, 3)
    images = torch.from_numpy(mouths[10:15]).permute(0, 3, 1, 2).reshape(1, 15, 32, 32) / 255
    audio = torch.from_numpy(clip.features[11:20].T[None])  # the middle, 15, is three frames after 12
    assert scores[6, 2] == pytest.approx(syncnet(images, audio).mean().item(), abs=1e-5)


def test_offset_of_a_short_clip():
    scores = np.full((7, 2), np.nan, np.float32)
    scores[2:5] = [[0.1, 0.1], [0.2, 0.4], [0.1, np.nan]]  # no sound is further than one frame away
    assert offset_and_confidence(scores) == (0, pytest.approx(0.2))


def test_step_against_plain_autograd():
    settings = {"mouth_size": 32, "precision": "fp32", "audio_features": "phoneme", "num_negatives": 3}
    config = load_config(Path("configs/stages/syncnet_64.yaml"), settings, SyncNetConfig)
    trainer = Trainer.create(config, torch.device("cpu"))
    batch = SyncBatches([speaking_clip(0, 60), speaking_clip(1, 60)], 4, 1, 0, num_negatives=3, negative_gap=8)[0]
    calibrate(trainer, batch)
    torch.nn.init.normal_(trainer.syncnet.merge_encoder[-1].weight, std=0.05)
    right, *wrong = (trainer.syncnet(batch.mouths, batch.audio[:, k]) for k in range(4))
    loss = ((right - 1) ** 2).mean() / 2 + sum((scores**2).mean() for scores in wrong) / 6
    face = trainer.syncnet.face_encoder(batch.mouths).mean(dim=(2, 3))
    face = face / face.norm(dim=1, keepdim=True)
    heard = [trainer.syncnet.audio_encoder(batch.audio[:, k])[..., 0] for k in range(4)]
    likeness = torch.stack([(face * code / code.norm(dim=1, keepdim=True)).sum(dim=1) for code in heard], dim=1)
    contrast = -(20 * likeness).log_softmax(dim=1)[:, 0].mean()
    gradients = torch.autograd.grad(loss + 0.3 * contrast, list(trainer.syncnet.parameters()))
    values = train_step(trainer, batch)
    assert values["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert values["contrast"] == pytest.approx(contrast.item(), rel=1e-5)
    counted = sum((scores.mean(dim=(1, 2, 3)) < 0.5).sum() for scores in wrong).item() / 12
    expected = ((right.mean(dim=(1, 2, 3)) > 0.5).sum().item() / 4 + counted) / 2
    assert values["accuracy"] == pytest.approx(expected)
    for (name, parameter), gradient in zip(trainer.syncnet.named_parameters(), gradients, strict=True):
        scale = gradient.abs().max().item()
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-2, atol=1e-3 * scale + 1e-6, msg=name)


def test_not_a_number_names_the_clips():
    settings = {"mouth_size": 32, "audio_features": "phoneme"}
    config = load_config(Path("configs/stages/syncnet_64.yaml"), settings, SyncNetConfig)
    trainer = Trainer.create(config, torch.device("cpu"))
    batch = SyncBatches([speaking_clip(5, 60)], 2, 1, 0, num_negatives=2, negative_gap=8)[0]
    batch.audio[0] = torch.nan
    with pytest.raises(UserError, match=r"step 0: a loss is not finite.*clips: clip5, clip5"):
        train_step(trainer, batch)


# --- diagnosis ----------------------------------------------------------------------------------------------


def log_of(loss: float, accuracy: float) -> list[dict[str, float]]:
    return [{"loss": loss, "accuracy": accuracy}] * PLATEAU_STEPS


def test_diagnosis():
    held_out = {"curve_peak": 0, "accuracy": 0.8}
    assert diagnose(log_of(0.15, 0.8), held_out) is None
    assert "plateau: the loss has stood at 0.250" in diagnose(log_of(0.25, 0.5), held_out)
    assert "+4 frames off" in diagnose(log_of(0.15, 0.8), held_out | {"curve_peak": 4})
    assert "by heart" in diagnose(log_of(0.05, 0.95), held_out | {"accuracy": 0.6})


# --- the command --------------------------------------------------------------------------------------------


def train(*flags: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_syncnet.py", "--device", "cpu", *map(str, flags)])
        train_syncnet.main()


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def test_interrupted_run_equals_an_unbroken_one(recipe, prepared_dataset, tmp_path, monkeypatch):
    whole, broken = ("--config", recipe, "--data", prepared_dataset, "--run-dir"), tmp_path / "broken"
    train(*whole, tmp_path / "whole")

    def step(trainer, batch):
        if trainer.step == 3:
            raise KeyboardInterrupt
        return train_step(trainer, batch)

    monkeypatch.setattr(train_syncnet, "train_step", step)
    with pytest.raises(SystemExit):
        train(*whole, broken)
    monkeypatch.undo()
    train(*whole, broken, "--resume")

    ours, theirs = (load_training_state(folder / "state.pt") for folder in (tmp_path / "whole", broken))
    assert ours["step"] == theirs["step"] == 4
    for name, tensor in ours["syncnet"].items():
        assert torch.equal(tensor, theirs["syncnet"][name]), name
    log = [line for line in read_jsonl(broken / "log.jsonl") if "loss" in line]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    loaded = load_model(broken / "syncnet.safetensors", kinds=SYNCNET)
    assert loaded.mouth_size == 32 and loaded.info["held_out"]["accuracy"] == theirs["best"]


def test_starts_from_another(recipe, prepared_dataset, tmp_path):
    train("--config", recipe, "--data", prepared_dataset, "--run-dir", tmp_path / "first")
    weights = tmp_path / "first" / "syncnet.safetensors"
    config = load_config(recipe, {"init_from": str(weights)}, SyncNetConfig)
    start = Trainer.create(config, torch.device("cpu")).syncnet.state_dict()
    for name, tensor in load_model(weights, kinds=SYNCNET).model.state_dict().items():
        assert torch.equal(start[name], tensor), name
    with pytest.raises(UserError, match="expected deepspeech features, found whisper"):
        Trainer.create(replace(config, audio_features="deepspeech"), torch.device("cpu"))


def test_untrained_judge_is_undecided():
    judgement = evaluate_syncnet(zero_judge(), [speaking_clip(0, 40), speaking_clip(1, 40)], negative_gap=8)
    assert judgement.numbers()["loss"] == pytest.approx(0.25)
    assert judgement.numbers()["accuracy"] == 0


def zero_judge() -> SyncNet:
    syncnet = SyncNet()
    for part in syncnet.merge_encoder[-1].parameters():
        torch.nn.init.zeros_(part)
    torch.nn.init.constant_(syncnet.merge_encoder[-1].bias, 0.5)
    return syncnet
