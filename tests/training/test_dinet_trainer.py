"""Training of the generator: one step against plain autograd, initial weights, frozen batch norms."""

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.schema import load_config
from data_processing.batches import Batch, TrainingBatches, to_float
from data_processing.dataset import load_clips
from models.checkpoint import save_model
from models.dinet import PARTS, DINet, DINetConfig
from models.syncnet import SyncNet
from models.wav2lip import Wav2Lip, Wav2LipConfig
from tests.support.training import ADVERSARIAL_BF16, TINY, SmallGenerator, assert_same, write_recipe
from training.dinet_trainer import Trainer, train_step
from training.schedule import learning_rate
from utils.errors import ParameterError, UserError

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path) -> Path:
    return write_recipe(tmp_path, TINY)


@pytest.fixture
def adversarial_trainer(recipe) -> Trainer:
    """A trainer of the clip stage with all losses. Its generator is small: DINet takes a minute in float64."""
    torch.manual_seed(0)
    syncnet = SyncNet(384)
    torch.nn.init.normal_(syncnet.merge_encoder[-1].weight, std=0.05)
    syncnet_path = recipe.with_name("syncnet.safetensors")
    save_model(syncnet_path, syncnet, audio_features="whisper", mouth_size=64, info={}, bits=32)
    recipe.write_text(
        ADVERSARIAL_BF16
        + f"precision: fp32\nclip_length: 5\nsyncnet: {syncnet_path}\n"
        + "loss_weights: {pixel: 3, lips: 5, perceptual: 10, "
        + "adversarial: 2, clip_adversarial: 4, sync: 6}"
    )
    trainer = Trainer.create(load_config(recipe), torch.device("cpu"))
    trainer.generator = SmallGenerator(audio_dim=384, num_references=5)
    trainer.generator_optimizer = torch.optim.Adam(trainer.generator.parameters())
    return trainer


@pytest.fixture
def batch(prepared_dataset) -> Batch:
    batch = TrainingBatches(load_clips(prepared_dataset, "train", 64, "whisper"), 2, 5, 1, 0, clip_length=5)[0]
    return batch._replace(target=to_float(batch.target), references=to_float(batch.references))


def stack_clips(images: torch.Tensor) -> torch.Tensor:
    """Two clips of five frames, stacked in the channels."""
    return torch.cat([images[:5].reshape(1, 15, 104, 80), images[5:].reshape(1, 15, 104, 80)])


def test_clip_step_against_plain_autograd(adversarial_trainer, batch):
    trainer = adversarial_trainer
    trainer.step = 1  # adversarial_start
    # In float32 the gradient of a bias before a batch norm is rounding noise, which differs between machines.
    trainer.generator.double()
    trainer.generator.mask = lambda images: DINet.mask(images).double()
    batch = batch._replace(references=batch.references.double(), audio_window=batch.audio_window.double())
    generator, discriminators = deepcopy(trainer.generator), deepcopy(trainer.discriminators)
    losses = train_step(trainer, batch)

    references = batch.references.repeat_interleave(5, dim=0)
    output = generator(generator.mask(batch.target), references, batch.audio_window)
    frames, five = discriminators["adversarial"], discriminators["clip_adversarial"]
    pairs = [
        (frames(batch.target), frames(output.detach())),
        (five(stack_clips(batch.target)), five(stack_clips(output.detach()))),
    ]
    loss = sum(((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2 for real, fake in pairs)
    assert losses["discriminator"] == pytest.approx(loss.item(), rel=1e-4)
    gradients = torch.autograd.grad(loss, list(discriminators.parameters()))
    rows = zip(trainer.discriminators.named_parameters(), discriminators.parameters(), gradients, strict=True)
    for (name, new), old, gradient in rows:
        # gradients of the discriminator loss only, although the generator loss passed through these networks
        torch.testing.assert_close(new.grad, gradient, rtol=1e-3, atol=1e-6, msg=name)
        # the first Adam step in closed form
        rate = learning_rate(trainer.config, 1)
        torch.testing.assert_close(new.detach(), old.detach() - rate * new.grad / (new.grad.abs() + 1e-8))

    s = trainer.config.mouth_size
    error = (output - batch.target)[:, :, s * 13 // 16 : s * 21 // 16, s * 5 // 16 : s * 15 // 16]
    # the generator loss uses the updated discriminators
    frames, five = trainer.discriminators["adversarial"], trainer.discriminators["clip_adversarial"]
    mouths = stack_clips(output)[:, :, s // 2 : s * 3 // 2, s // 8 : s * 9 // 8]
    expected = {
        "pixel": (3, (output - batch.target).abs().mean()),
        "lips": (5, error.abs().mean()),
        "perceptual": (10, trainer.perceptual(output, batch.target)),
        "adversarial": (2, ((frames(output) - 1) ** 2).mean()),
        "clip_adversarial": (4, ((five(stack_clips(output)) - 1) ** 2).mean()),
        "sync": (6, ((trainer.syncnet.model(mouths, batch.sync_audio) - 1) ** 2).mean()),
    }
    assert set(losses) == {*expected, "discriminator"}
    for name, (_, value) in expected.items():
        assert losses[name] == pytest.approx(value.item(), rel=1e-4), name
    total = sum(weight * value for weight, value in expected.values())
    gradients = torch.autograd.grad(total, list(generator.parameters()))
    for (name, new), gradient in zip(trainer.generator.named_parameters(), gradients, strict=True):
        scale = gradient.abs().max().item()
        torch.testing.assert_close(new.grad, gradient, rtol=1e-3, atol=1e-4 * scale + 1e-9, msg=name)


@pytest.mark.parametrize(
    ("lines", "references", "audio_dim"),
    [
        ("generator: wav2lip_96\nnum_references: 1\naudio_features: mel\n", 1, 1280),
        ("deformation: flow\n", 5, 384),
        ("inpainting: false\n", 5, 384),
    ],
)
def test_other_generators_take_steps(recipe, lines, references, audio_dim):
    recipe.write_text(TINY + "mouth_size: 64\n" + lines)
    trainer = Trainer.create(load_config(recipe), torch.device("cpu"))
    before = {name: weight.clone() for name, weight in trainer.generator.named_parameters()}
    audio = torch.rand(2, audio_dim, 9)
    batch = Batch(
        torch.rand(2, 3, 104, 80), torch.rand(2, 3 * references, 104, 80), audio[..., :5], audio, ["a", "b"]
    )
    for _ in range(2):  # the last layer of the flow starts at 0, so the layers before it get no gradient at first
        losses = train_step(trainer, batch)
    assert losses.keys() == {"pixel", "perceptual"}
    assert not any(torch.equal(weight, before[name]) for name, weight in trainer.generator.named_parameters())


def test_larger_wav2lip_starts_from_the_stages_of_a_smaller_one(recipe):
    lines = TINY + "num_references: 1\naudio_features: mel\n"
    recipe.write_text(lines + "generator: wav2lip_96\n")
    small = Trainer.create(load_config(recipe), torch.device("cpu")).generator
    path = recipe.with_name("small.safetensors")
    save_model(path, small, audio_features="mel", mouth_size=32, info={}, bits=32)
    recipe.write_text(lines + f"generator: wav2lip_384\ninit_from: {path}\n")
    large = Trainer.create(load_config(recipe), torch.device("cpu")).generator
    inner = torch.rand(1, 16, 96, 96)  # input of the stages that both have
    for own, copied in zip(large.face_encoder_blocks[3:], small.face_encoder_blocks[1:], strict=True):
        assert torch.equal(own.eval()(inner), copied.eval()(inner))
        inner = copied(inner)
    for own, copied in zip(large.face_decoder_blocks, small.face_decoder_blocks, strict=False):
        assert str(own.state_dict()) == str(copied.state_dict())
    save_model(path, large, audio_features="mel", mouth_size=32, info={}, bits=32)
    recipe.write_text(lines + f"generator: wav2lip_192\ninit_from: {path}\n")
    with pytest.raises(UserError, match=r"expected face_size 192"):
        Trainer.create(load_config(recipe), torch.device("cpu"))
    bgr = Wav2Lip(Wav2LipConfig(bgr=True))  # as the authors' weights; training uses RGB
    save_model(path, bgr, audio_features="mel", mouth_size=32, info={}, bits=32)
    with pytest.raises(UserError, match="expected bgr False, found bgr True"):
        Trainer.create(load_config(recipe), torch.device("cpu"))


def test_frozen_batch_norms_keep_their_statistics(recipe):
    recipe.write_text(TINY + "mouth_size: 64\n")
    start = Trainer.create(load_config(recipe), torch.device("cpu"))
    for buffer in start.generator.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    path = recipe.with_name("start.safetensors")
    recipe.write_text(TINY + "freeze_bn: true\n")
    with pytest.raises(ParameterError, match="expected init_from") as caught:
        Trainer.create(load_config(recipe), torch.device("cpu"))
    assert caught.value.parameter == "freeze_bn"
    save_model(path, start.generator, audio_features="whisper", mouth_size=64, info={}, bits=32)
    recipe.write_text(TINY + f"mouth_size: 64\nfreeze_bn: true\ninit_from: {path}\n")
    trainer = Trainer.create(load_config(recipe), torch.device("cpu"))
    audio = torch.rand(2, 384, 9)
    batch = Batch(torch.rand(2, 3, 104, 80), torch.rand(2, 15, 104, 80), audio[..., :5], audio, ["a", "b"])
    with torch.no_grad():
        masked_source = trainer.generator.mask(batch.target)
        output = trainer.generator.eval()(masked_source, batch.references, batch.audio_window)
    trainer.generator.train()
    losses = train_step(trainer, batch)
    pixel = (output - batch.target).abs().mean().item()  # as at inference
    assert losses["pixel"] == pytest.approx(pixel, rel=1e-4)
    for name, buffer in trainer.generator.named_buffers():
        assert torch.equal(buffer, start.generator.get_buffer(name)), name


def test_discriminators_are_not_trained_before_adversarial_start(adversarial_trainer, batch):
    trainer = adversarial_trainer
    before = deepcopy(trainer.discriminators.state_dict())
    losses = train_step(trainer, batch)
    assert set(losses) == {"pixel", "lips", "perceptual", "sync"}
    assert trainer.step == 1
    assert_same(dict(trainer.discriminators.state_dict()), dict(before))


def test_sync_loss_of_real_mouths_is_zero_with_sync_target_real(adversarial_trainer, batch):
    trainer = adversarial_trainer
    trainer.config = replace(trainer.config, sync_target="real")
    trainer.generator.forward = lambda *_: batch.target.clone().requires_grad_()  # a perfect generator
    assert train_step(trainer, batch)["sync"] == 0


@pytest.mark.parametrize(("mouth_size", "features"), [(128, "whisper"), (64, "deepspeech")])
def test_syncnet_of_another_configuration_is_refused(recipe, tmp_path, mouth_size, features):
    save_model(tmp_path / "syncnet", SyncNet(), audio_features=features, mouth_size=mouth_size, info={})
    recipe.write_text(
        ADVERSARIAL_BF16
        + f"clip_length: 5\nsyncnet: {tmp_path / 'syncnet'}\nloss_weights: {{sync: 1.0, adversarial: 0}}"
    )
    message = "expected a SyncNet for mouths of at most 64 pixels and whisper features, found"
    with pytest.raises(ParameterError, match=message) as caught:
        Trainer.create(load_config(recipe), torch.device("cpu"))
    assert caught.value.parameter == "syncnet"


def test_step_with_a_nan_loss_leaves_the_generator_unchanged(adversarial_trainer, batch):
    trainer = adversarial_trainer
    before = deepcopy([*trainer.generator.parameters()])
    target = batch.target.clone()
    target[1, 0, 0, 0] = math.nan
    with pytest.raises(UserError, match=f"clips: {batch.clip_ids[0]}, {batch.clip_ids[1]}"):
        train_step(trainer, batch._replace(target=target))
    assert_same([*trainer.generator.parameters()], before)
    assert trainer.step == 0


def test_init_from_sets_the_weights(recipe, tmp_path):
    torch.manual_seed(123)
    start = DINet(DINetConfig())
    saved = tmp_path / "start.safetensors"
    save_model(saved, start, audio_features="whisper", mouth_size=64, info={}, bits=32)
    config = replace(load_config(recipe), init_from=str(saved))
    trainer = Trainer.create(config, torch.device("cpu"))
    assert_same(dict(trainer.generator.state_dict()), dict(start.state_dict()))
    assert trainer.generator.training
    assert trainer.step == 0
    updated = trainer.generator_optimizer.param_groups[0]["params"]
    assert {id(parameter) for parameter in updated} == {id(p) for p in trainer.generator.parameters()}

    own = Trainer.create(replace(config, init_from=None), torch.device("cpu")).generator
    assert not torch.equal(own.decoder[-1].weight, start.decoder[-1].weight)


@pytest.mark.parametrize(("references", "features"), [(3, "whisper"), (5, "deepspeech")])
def test_init_from_a_generator_of_another_configuration_is_refused(recipe, tmp_path, references, features):
    saved = tmp_path / "start.safetensors"
    model = DINet(DINetConfig(num_references=references))
    save_model(saved, model, audio_features=features, mouth_size=64, info={})
    with pytest.raises(ParameterError, match=r"start\.safetensors: expected ") as caught:
        Trainer.create(replace(load_config(recipe), init_from=str(saved)), torch.device("cpu"))
    assert caught.value.parameter == "init_from"


def test_dropout_depends_on_seed_and_step_only(recipe):
    recipe.write_text(TINY + "audio_encoder: whitened\n")
    audio = torch.rand(2, 384, 9)
    batch = Batch(torch.rand(2, 3, 52, 40), torch.rand(2, 15, 52, 40), audio[..., :5], audio, ["a", "b"])
    losses = []
    for interrupted in (False, True):
        trainer = Trainer.create(load_config(recipe), torch.device("cpu"))
        train_step(trainer, batch)
        if interrupted:
            torch.rand(100)  # a resumed run has another history of random numbers
        losses.append(train_step(trainer, batch))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("frozen", [[], ["audio_encoder"], ["source_encoder", "appearance_after", "decoder"]])
def test_frozen_parts_keep_weights_and_statistics(recipe, tmp_path, frozen):
    path = tmp_path / "start.safetensors"
    torch.manual_seed(0)
    start = DINet(DINetConfig(384, audio_encoder="whitened"))
    save_model(path, start, audio_features="whisper", mouth_size=64, info={}, bits=32)
    trainer = Trainer.create(load_config(recipe, {"init_from": str(path), "frozen": frozen}), torch.device("cpu"))
    assert trainer.generator.config.audio_encoder == "whitened"  # that of `init_from`
    assert not trainer.new_audio_encoder
    audio = torch.rand(2, 384, 9)
    batch = Batch(torch.rand(2, 3, 52, 40), torch.rand(2, 15, 52, 40), audio[..., :5], audio, ["a", "b"])
    train_step(trainer, batch)
    for part in PARTS:
        before = getattr(start, part).state_dict()
        after = getattr(trainer.generator, part).state_dict()
        trained = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
        assert bool(trained) == (part not in frozen), part
    assert trainer.generator.audio_encoder.training == ("audio_encoder" not in frozen)  # no dropout if frozen


def test_frozen_parts_must_have_weights_to_keep(recipe, tmp_path):
    with pytest.raises(ParameterError, match="expected init_from") as caught:
        Trainer.create(load_config(recipe, {"frozen": ["decoder"]}), torch.device("cpu"))
    assert caught.value.parameter == "frozen"
    path = tmp_path / "start.safetensors"
    save_model(path, DINet(DINetConfig(384)), audio_features="whisper", mouth_size=64, info={}, bits=32)
    config = load_config(recipe, {"init_from": str(path), "audio_features": "lips", "frozen": ["audio_encoder"]})
    with pytest.raises(ParameterError, match="new audio encoder") as caught:
        Trainer.create(config, torch.device("cpu"))
    assert caught.value.parameter == "frozen"
