"""Training of SyncNet: one step against plain autograd, initial weights, user errors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.schema import SyncNetConfig, load_config
from data_processing.batches import SyncBatch, SyncBatches, to_float
from models.checkpoint import SYNCNET, load_model
from tests.support.training import TINY_SYNCNET, speaking_clip
from training.syncnet_trainer import Trainer, save_release, train_step
from utils.errors import ParameterError, UserError


def calibrate(trainer: Trainer, batch: SyncBatch) -> None:
    trainer.syncnet.calibrate(to_float(batch.mouths), batch.audio[:, 0])


def test_step_against_plain_autograd():
    settings = {"mouth_size": 32, "precision": "fp32", "audio_features": "phoneme", "num_negatives": 3}
    config = load_config(Path("configs/stages/syncnet_64.yaml"), settings, SyncNetConfig)
    trainer = Trainer.create(config, torch.device("cpu"))
    batch = SyncBatches([speaking_clip(0, 60), speaking_clip(1, 60)], 4, 1, 0, num_negatives=3, negative_gap=8)[0]
    calibrate(trainer, batch)
    torch.nn.init.normal_(trainer.syncnet.merge_encoder[-1].weight, std=0.05)
    mouths = to_float(batch.mouths)
    matched, *mismatched = (trainer.syncnet(mouths, batch.audio[:, k]) for k in range(4))
    loss = ((matched - 1) ** 2).mean() / 2 + sum((scores**2).mean() for scores in mismatched) / 6
    face = trainer.syncnet.face_encoder(mouths).mean(dim=(2, 3))
    face = face / face.norm(dim=1, keepdim=True)
    codes = [trainer.syncnet.audio_encoder(batch.audio[:, k])[..., 0] for k in range(4)]
    similarity = torch.stack([(face * code / code.norm(dim=1, keepdim=True)).sum(dim=1) for code in codes], dim=1)
    contrast = -(20 * similarity).log_softmax(dim=1)[:, 0].mean()
    gradients = torch.autograd.grad(loss + 0.3 * contrast, list(trainer.syncnet.parameters()))
    values = train_step(trainer, batch)
    assert values["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert values["contrast"] == pytest.approx(contrast.item(), rel=1e-5)
    correct = sum((scores.mean(dim=(1, 2, 3)) < 0.5).sum() for scores in mismatched).item() / 12
    expected = ((matched.mean(dim=(1, 2, 3)) > 0.5).sum().item() / 4 + correct) / 2
    assert values["accuracy"] == pytest.approx(expected)
    for (name, parameter), gradient in zip(trainer.syncnet.named_parameters(), gradients, strict=True):
        scale = gradient.abs().max().item()
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-2, atol=1e-3 * scale + 1e-6, msg=name)


def test_nan_loss_names_the_clips():
    settings = {"mouth_size": 32, "audio_features": "phoneme"}
    config = load_config(Path("configs/stages/syncnet_64.yaml"), settings, SyncNetConfig)
    trainer = Trainer.create(config, torch.device("cpu"))
    batch = SyncBatches([speaking_clip(5, 60)], 2, 1, 0, num_negatives=2, negative_gap=8)[0]
    batch.audio[0] = torch.nan
    with pytest.raises(UserError, match=r"step 0: a loss is NaN or Inf.*clips: clip5, clip5"):
        train_step(trainer, batch)


def test_starts_from_another_syncnet(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY_SYNCNET)
    config = load_config(tmp_path / "tiny.yaml", kind=SyncNetConfig)
    weights = tmp_path / "syncnet.safetensors"
    save_release(Trainer.create(config, torch.device("cpu")), weights, {})
    config = replace(config, init_from=str(weights), seed=1)
    start = Trainer.create(config, torch.device("cpu")).syncnet.state_dict()
    for name, tensor in load_model(weights, kinds=SYNCNET).model.state_dict().items():
        assert torch.equal(start[name], tensor), name
    with pytest.raises(ParameterError, match="expected deepspeech features, found whisper") as caught:
        Trainer.create(replace(config, audio_features="deepspeech"), torch.device("cpu"))
    assert caught.value.parameter == "init_from"
