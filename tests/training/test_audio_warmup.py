"""Warm-up of the audio encoder: what it learns, what it leaves, and which weights are kept."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import load_config
from data_processing.audio.framing import audio_windows
from data_processing.batches import TrainingBatches
from data_processing.dataset import load_clips
from data_processing.face.lips import lip_features
from models.checkpoint import load_model
from models.dinet import DINet
from tests.support.training import TINY, assert_same, write_recipe
from training import audio_warmup
from training.audio_warmup import fit_whitening, warm_up_audio
from training.dinet_trainer import Trainer, save_release, train_step

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path) -> Path:
    return write_recipe(tmp_path, TINY)


@pytest.fixture(scope="module")
def lip_driven(prepared_dataset, tmp_path_factory) -> Path:
    """A lip-driven generator after two steps."""
    folder = tmp_path_factory.mktemp("lips")
    config = load_config(write_recipe(folder, TINY), {"audio_features": "lips"})
    trainer = Trainer.create(config, torch.device("cpu"))
    batches = TrainingBatches(load_clips(prepared_dataset, "train", 32, "lips"), 2, 5, 2, 0)
    for step in range(2):
        train_step(trainer, batches[step])
    save_release(trainer, folder / "lips.safetensors", {})
    return folder / "lips.safetensors"


def audio_part(generator: DINet, features: list[np.ndarray]) -> torch.Tensor:
    """Output of AdaAT's first layer for audio features, without the contribution of the alignment code."""
    windows = np.concatenate([audio_windows(part, np.arange(len(part))) for part in features])
    with torch.no_grad():
        codes = generator.eval().audio_encoder(torch.from_numpy(windows))
    return (
        codes @ generator.deformation.common.weight.detach()[:, 128:].T + generator.deformation.common.bias.detach()
    )


@pytest.mark.parametrize(("encoder", "frozen"), [("paper", []), ("whitened", []), ("whitened", ["audio_encoder"])])
def test_audio_encoder_learns_the_codes_of_a_lip_driven_generator(
    recipe, prepared_dataset, lip_driven, caplog, encoder, frozen
):
    options = {"audio_encoder": encoder, "audio_warmup_steps": 3, "frozen": frozen}
    config = load_config(recipe, options | {"init_from": str(lip_driven)})
    clips = load_clips(prepared_dataset, "train", 32, "whisper")
    held_out = load_clips(prepared_dataset, "val", 32, "whisper")
    teacher = load_model(lip_driven).model
    generators = []
    for _ in range(2):
        trainer = Trainer.create(config, torch.device("cpu"))
        assert trainer.new_audio_encoder
        if encoder == "whitened":
            fit_whitening(trainer, clips)
        with caplog.at_level(logging.INFO):
            warm_up_audio(trainer, teacher, clips, held_out)
        assert trainer.step == 0
        trained = {parameter.requires_grad for parameter in trainer.generator.audio_encoder.parameters()}
        assert trained == {not frozen}
        generators.append(trainer.generator)
    assert "audio encoder of step 3: " in caplog.text
    one, two = generators
    assert_same(dict(one.state_dict()), dict(two.state_dict()))  # depends on the seed only
    before = teacher.state_dict()
    after = one.state_dict()
    kept = {name for name, old in before.items() if name in after and torch.equal(old, after[name])}
    changed = {name.split(".")[0] for name in (before | after).keys() - kept}
    assert changed == {"audio_encoder", "deformation"}
    assert torch.equal(one.deformation.common.weight[:, :128], teacher.deformation.common.weight[:, :128])
    # mean and variance of the speakers equal those of the teacher, however little the encoder has learned
    audio = audio_part(one, [clip.features for clip in clips])
    lips = audio_part(teacher, [lip_features(clip.landmarks) for clip in clips])
    torch.testing.assert_close(audio.mean(dim=0), lips.mean(dim=0), rtol=1e-3, atol=1e-4)
    speakers = np.array([clip.speaker for clip in clips for _ in clip.features])
    ratios = []
    for speaker in speakers:  # every frame counts, relative to the variance of its speaker
        frames = torch.from_numpy(speakers == speaker)
        ratios.append(audio[frames].var(dim=0).sum() / lips[frames].var(dim=0).sum())
    assert np.mean(ratios) == pytest.approx(1, rel=1e-3)


def test_weights_of_the_lowest_held_out_error_are_kept(recipe, prepared_dataset, lip_driven, monkeypatch, caplog):
    config = load_config(recipe, {"audio_warmup_steps": 12, "init_from": str(lip_driven)})
    clips = [load_clips(prepared_dataset, split, 32, "whisper") for split in ("train", "val")]
    monkeypatch.setattr(audio_warmup, "CHECK_EVERY", 4)
    # from the ninth step on the learning rate destroys what was learned
    monkeypatch.setattr(audio_warmup, "cosine_decay", lambda step, total: 1.0 if step < 8 else 1e4)
    trainer = Trainer.create(config, torch.device("cpu"))
    with caplog.at_level(logging.INFO):
        warm_up_audio(trainer, load_model(lip_driven).model, *clips)
    assert re.search(r"audio encoder of step [48]: ", caplog.text), caplog.text
    assert max(weight.abs().max() for weight in trainer.generator.audio_encoder.parameters()) < 2
