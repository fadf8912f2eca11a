"""Training of the DINet generator: networks, optimizers, one training step, validation (paper, section 3.4)."""

import math
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from configs.schema import TrainConfig
from data_processing.batches import Batch
from evaluation.clips import AUDIO_SHIFT, score_clips
from evaluation.metrics import ImageMetric
from losses.adversarial import discriminator_loss, generator_loss
from losses.perceptual import PerceptualLoss
from losses.sync import sync_loss
from models.checkpoint import LoadedModel, save_model
from models.crop_layout import lips_box
from models.dinet import DINet
from models.discriminator import Discriminator
from models.wav2lip import Wav2Lip
from training import distributed
from training.networks import load_frozen_syncnet, load_initial_generator, new_generator
from training.schedule import learning_rate
from training.steps import autocast, check_finite, micro_batches, optimizer_step, without_traces
from utils.errors import ParameterError
from utils.weights import weight_path


@dataclass
class Trainer:
    """Generator and discriminators with their optimizers, the frozen loss networks, and the training progress.

    Attributes:
        discriminators: "adversarial" for single frames and "clip_adversarial" for clips, each only if its loss has
            a weight.
        discriminator_optimizer: None without discriminators.
        syncnet: None if the sync loss has no weight.
        ema: moving average of the generator, or None.
        new_audio_encoder: whether the audio encoder starts from random weights, not from `init_from`.
        step: number of training steps taken.
        best: lowest LPIPS on held-out speakers so far.
    """

    generator: DINet | Wav2Lip
    discriminators: nn.ModuleDict
    generator_optimizer: torch.optim.Adam
    discriminator_optimizer: torch.optim.Adam | None
    perceptual: PerceptualLoss | None
    syncnet: LoadedModel | None
    config: TrainConfig
    device: torch.device
    ema: AveragedModel | None = None
    new_audio_encoder: bool = True
    step: int = 0
    best: float = math.inf

    def distribute(self) -> None:
        """Train jointly with the other processes of training/distributed.py from now on; compile the generator if
        the configuration asks for it."""
        for network in (self.generator, *self.discriminators.values()):
            distributed.synchronize(network)
        if self.config.compile:
            self.generator.compile()

    @classmethod
    def create(cls, config: TrainConfig, device: torch.device) -> "Trainer":
        """Networks and optimizers at step 0, initialised from the seed or from `init_from`.

        Raises:
            ParameterError: `init_from` or `syncnet` does not fit the configuration.
            CheckpointError: a checkpoint cannot be read.
        """
        torch.manual_seed(config.seed)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        generator = new_generator(config)
        new_encoder = generator.audio_encoder
        if config.init_from:
            generator = load_initial_generator(config, generator)
        elif config.audio_warmup_steps:
            raise ParameterError("audio_warmup_steps", "expected init_from with a lip-driven generator, found null")
        elif config.freeze_bn:
            raise ParameterError("freeze_bn", "expected init_from with trained batch norms, found null")
        elif config.frozen:
            raise ParameterError("frozen", "expected init_from with trained weights, found null")
        new_audio_encoder = generator.audio_encoder is new_encoder
        if new_audio_encoder and "audio_encoder" in config.frozen and not config.audio_warmup_steps:
            raise ParameterError("frozen", "the new audio encoder would keep its random weights; remove it")
        for name in config.frozen:
            getattr(generator, name).requires_grad_(False)
        generator.to(device, memory_format=layout)
        num_frames = {"adversarial": 1, "clip_adversarial": config.clip_length}
        discriminators = nn.ModuleDict(
            {name: Discriminator(3 * frames) for name, frames in num_frames.items() if config.loss_weights[name]}
        ).to(device, memory_format=layout)
        fused = device.type == "cuda" or None  # one kernel for all parameters
        adam = {"lr": config.learning_rate, "betas": tuple(config.adam_betas), "fused": fused}
        perceptual = None
        if config.loss_weights["perceptual"]:
            perceptual = PerceptualLoss(weight_path("vgg19")).to(device, memory_format=layout)
        return cls(
            generator,
            discriminators,
            torch.optim.Adam([p for p in generator.parameters() if p.requires_grad], **adam),
            torch.optim.Adam(discriminators.parameters(), **adam) if discriminators else None,
            perceptual,
            load_frozen_syncnet(config, device) if config.loss_weights["sync"] else None,
            config,
            device,
            ema=_new_average(generator, config.ema) if config.ema else None,
            new_audio_encoder=new_audio_encoder,
        )

    @property
    def released(self) -> DINet | Wav2Lip:
        """The generator that is validated and saved for inference."""
        return self.ema.module if self.ema else self.generator

    @property
    def adversarial(self) -> bool:
        """Whether the adversarial losses are active at this step."""
        return len(self.discriminators) > 0 and self.step >= self.config.adversarial_start

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs; batches and learning rate follow from the step."""
        return {
            "step": self.step,
            "best": self.best,
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step, self.best = state["step"], state["best"]

    def _parts(self) -> dict[str, Any]:
        parts = {"generator": self.generator, "generator_optimizer": self.generator_optimizer}
        if self.discriminators:
            parts |= {
                "discriminators": self.discriminators,
                "discriminator_optimizer": self.discriminator_optimizer,
            }
        if self.ema:
            parts["ema"] = self.ema
        return parts


def _new_average(generator: DINet | Wav2Lip, decay: float) -> AveragedModel:
    return AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def train_step(trainer: Trainer, batch: Batch) -> dict[str, float]:
    """One step of the discriminators, if the adversarial losses are active, and one step of the generator.

    `grad_accum_steps` forward passes share the samples of the step. The discriminators are updated before the
    generator, so with several passes the outputs are generated twice: memory holds the graph of one pass only.

    Returns:
        Unweighted losses by name, averaged over the samples of all passes and processes.

    Raises:
        UserError: a loss is NaN or Inf; the message names the clips of the batch.
    """
    config, generator = trainer.config, trainer.generator
    rate = learning_rate(config, trainer.step)
    _set_modes(generator, config)
    torch.manual_seed(hash((config.seed, trainer.step, distributed.rank())))  # of dropout, the same when resumed
    parts = micro_batches(batch, config.grad_accum_steps, trainer.device)
    losses: defaultdict[str, torch.Tensor | float] = defaultdict(float)
    output = None
    if trainer.adversarial:
        trainer.discriminators.requires_grad_(True)
        trainer.discriminator_optimizer.zero_grad()
        for part, share in parts:
            with nullcontext() if len(parts) == 1 else without_traces(generator):
                output = _generate(trainer, part)
            loss = _discriminator_loss(trainer, part.target, output.detach())
            losses["discriminator"] += share * loss.detach()
            (share * loss).backward()
        optimizer_step(trainer.discriminator_optimizer, rate)
        trainer.discriminators.requires_grad_(False)  # saves the computation of gradients that nothing uses

    trainer.generator_optimizer.zero_grad()
    for part, share in parts:
        if output is None or len(parts) > 1:
            output = _generate(trainer, part)
        terms = _generator_losses(trainer, part, output)
        for name, loss in terms.items():
            losses[name] += share * loss.detach()
        (share * sum(config.loss_weights[name] * loss for name, loss in terms.items())).backward()
    values = distributed.sum_values(losses)
    check_finite(values, trainer.step, batch.clip_ids)
    optimizer_step(trainer.generator_optimizer, rate)
    if trainer.ema:
        trainer.ema.update_parameters(generator)
    trainer.step += 1
    return values


def _set_modes(generator: DINet | Wav2Lip, config: TrainConfig) -> None:
    """Put the frozen parts of the generator into evaluation mode."""
    if config.freeze_bn:
        for module in generator.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    for name in config.frozen:
        getattr(generator, name).eval()


def _generate(trainer: Trainer, batch: Batch) -> torch.Tensor:
    """Face crops (B·T, 3, H, W) in [0, 1] for the targets of a batch."""
    with autocast(trainer.config.precision, trainer.device):
        masked_source = trainer.generator.mask(batch.target)
        return trainer.generator(masked_source, batch.references, batch.audio_window).float()


def _view(name: str, images: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """The input of a discriminator: single frames, or the frames of each clip stacked in the channels."""
    if name == "adversarial":
        return images
    return images.unflatten(0, (-1, config.clip_length)).flatten(1, 2)


def _discriminator_loss(trainer: Trainer, target: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Sum of the losses of the discriminators on real and generated (B·T, 3, H, W)."""
    terms = []
    for name, discriminator in trainer.discriminators.items():
        with autocast(trainer.config.precision, trainer.device):
            real, fake = (discriminator(_view(name, images, trainer.config)) for images in (target, output))
        terms.append(discriminator_loss(real, fake))
    return sum(terms)


def _generator_losses(trainer: Trainer, batch: Batch, output: torch.Tensor) -> dict[str, torch.Tensor]:
    """The unweighted losses of the generator that are active, for its output (B·T, 3, H, W)."""
    config, target, losses = trainer.config, batch.target, {}
    with autocast(config.precision, trainer.device):
        if config.loss_weights["pixel"]:
            losses["pixel"] = (output - target).abs().mean()
        if config.loss_weights["lips"]:
            rows, columns = lips_box(config.mouth_size)
            losses["lips"] = (output - target)[..., rows, columns].abs().mean()
        if trainer.perceptual:
            losses["perceptual"] = trainer.perceptual(output, target)
        if trainer.adversarial:
            for name, discriminator in trainer.discriminators.items():
                losses[name] = generator_loss(discriminator(_view(name, output, config)))
        if trainer.syncnet:
            real = target if config.sync_target == "real" else None
            syncnet = trainer.syncnet
            losses["sync"] = sync_loss(syncnet.model, syncnet.mouth_size, output, batch.sync_audio, real)
    return losses


def validate(trainer: Trainer, samples: list, metrics: dict[str, ImageMetric]) -> dict[str, float]:
    """Score the mouth box on held-out speakers, with matched audio and with audio shifted by half a second.

    Returns:
        "NAME_matched" and "NAME_shifted" for each metric, and "audio_gap_db", the difference of the two PSNR.
    """
    dtype = torch.bfloat16 if trainer.config.precision == "bf16" else None
    means = {}
    for name, shift in (("matched", 0), ("shifted", AUDIO_SHIFT)):
        options = {"audio_shift": shift, "device": trainer.device, "precision": dtype}
        scores = score_clips(trainer.released, samples, metrics, **options)
        means |= {f"{metric}_{name}": value for metric, value in scores.means().items()}
    means["audio_gap_db"] = means["psnr_matched"] - means["psnr_shifted"]
    return means


@torch.no_grad()
def image_grid(trainer: Trainer, batch: Batch) -> torch.Tensor:
    """One row per sample: masked source, up to two references, output, target.

    Returns:
        (3, rows × H, columns × W) RGB in [0, 1], on the CPU.
    """
    generator = trainer.released
    was_training = generator.training
    generator.eval()
    masked_source = generator.mask(batch.target)
    with autocast(trainer.config.precision, trainer.device):
        inputs = (masked_source, batch.references, batch.audio_window)
        output = generator(*(x.to(trainer.device) for x in inputs)).float().cpu()
    generator.train(was_training)
    columns = [masked_source, *batch.references.split(3, dim=1)[:2], output, batch.target]
    rows = torch.cat(columns, dim=3)
    return torch.cat(list(rows), dim=1)


def save_release(trainer: Trainer, path: Path, info: dict[str, Any]) -> None:
    """Save the generator for inference.py, with notes on its training (`info`, JSON values)."""
    config = trainer.config
    save_model(
        path,
        trainer.released,
        audio_features=config.audio_features,
        mouth_size=config.mouth_size,
        info={"steps": trainer.step, "batch_size": config.batch_size, "seed": config.seed, **info},
    )
