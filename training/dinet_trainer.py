"""Training of the DINet generator: networks, optimizers, one training step, validation (paper, section 3.4)."""

import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.schema import TrainConfig
from data_processing.batches import Batch
from data_processing.dataset import feature_dim
from data_processing.face.lips import LIPS
from evaluation.clips import AUDIO_SHIFT, score_clips
from evaluation.metrics import ImageMetric
from losses.adversarial import discriminator_loss, generator_loss
from losses.perceptual import PerceptualLoss
from losses.sync import sync_loss
from models.checkpoint import SYNCNET, LoadedModel, load_model, save_model
from models.crop_layout import lips_box
from models.dinet import DINet, DINetConfig
from models.discriminator import Discriminator
from models.wav2lip import Wav2Lip, Wav2LipConfig
from training import distributed
from training.run import autocast, check_finite
from training.schedule import learning_rate
from utils.errors import ParameterError
from utils.weights import weight_path

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Generator and discriminators with their optimizers, the frozen loss networks, and the training progress.

    Attributes:
        discriminators: "adversarial" for single frames and "clip_adversarial" for clips, each only if its loss has
            a weight.
        discriminator_optimizer: None without discriminators.
        syncnet: None if the sync loss has no weight.
        new_audio_encoder: whether the audio encoder starts from random weights, not from `init_from`.
        parallel: the trained networks for the forward pass of a step: the same modules, or wrappers around them
            when several processes train.
        step: number of training steps taken.
        best: lowest LPIPS on held-out speakers so far.
    """

    generator: DINet | Wav2Lip
    discriminators: nn.ModuleDict
    generator_optimizer: torch.optim.Adam
    discriminator_optimizer: torch.optim.Adam | None
    perceptual: PerceptualLoss
    syncnet: LoadedModel | None
    config: TrainConfig
    device: torch.device
    new_audio_encoder: bool = True
    parallel: dict[str, nn.Module] = field(default_factory=dict)
    step: int = 0
    best: float = math.inf

    def __post_init__(self) -> None:
        if not self.parallel:
            self.parallel = {"generator": self.generator, **self.discriminators}

    def distribute(self) -> None:
        """Train jointly with the other processes of training/distributed.py from now on; compile the generator if
        the configuration asks for it."""
        if self.config.compile:
            self.generator.compile()
        self.parallel = {name: distributed.wrap(network) for name, network in self.parallel.items()}

    @classmethod
    def create(cls, config: TrainConfig, device: torch.device) -> "Trainer":
        """Networks and optimizers at step 0, initialised from the seed or from `init_from`.

        Raises:
            ParameterError: `init_from` or `syncnet` does not fit the configuration.
            CheckpointError: a checkpoint cannot be read.
        """
        torch.manual_seed(config.seed)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        generator = _new_generator(config)
        new_encoder = generator.audio_encoder
        if config.init_from:
            generator = _load_initial_generator(config, generator)
        elif config.audio_warmup_steps:
            raise ParameterError("audio_warmup_steps", "expected init_from with a lip-driven generator, found null")
        elif config.freeze_bn:
            raise ParameterError("freeze_bn", "expected init_from with trained batch norms, found null")
        generator.to(device, memory_format=layout)
        num_frames = {"adversarial": 1, "clip_adversarial": config.clip_length}
        discriminators = nn.ModuleDict(
            {name: Discriminator(3 * frames) for name, frames in num_frames.items() if config.loss_weights[name]}
        ).to(device, memory_format=layout)
        adam = {"lr": config.learning_rate, "betas": tuple(config.adam_betas)}
        return cls(
            generator,
            discriminators,
            torch.optim.Adam(_parameter_groups(generator, config.audio_learning_rate_factor), **adam),
            torch.optim.Adam(discriminators.parameters(), **adam) if discriminators else None,
            PerceptualLoss(weight_path("vgg19")).to(device, memory_format=layout),
            _load_frozen_syncnet(config, device) if config.loss_weights["sync"] else None,
            config,
            device,
            new_audio_encoder=generator.audio_encoder is new_encoder,
        )

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
        return parts


def _parameter_groups(generator: DINet | Wav2Lip, audio_factor: float) -> list[dict[str, Any]]:
    """Parameters for the optimizer; "factor" multiplies the learning rate of a group. See `TrainConfig`."""
    if audio_factor == 1:
        return [{"params": list(generator.parameters()), "factor": 1.0}]
    if audio_factor == 0:
        generator.audio_encoder.requires_grad_(False)
    audio = list(generator.audio_encoder.parameters())
    rest = [p for name, p in generator.named_parameters() if not name.startswith("audio_encoder.")]
    return [{"params": rest, "factor": 1.0}, {"params": audio, "factor": audio_factor}]


def _new_generator(config: TrainConfig) -> DINet | Wav2Lip:
    if config.generator != "dinet":
        return Wav2Lip(Wav2LipConfig(int(config.generator.removeprefix("wav2lip_"))))
    return DINet(
        DINetConfig(
            feature_dim(config.audio_features),
            config.num_references,
            deformation=config.deformation,
            inpainting=config.inpainting,
            audio_encoder=config.audio_encoder,
        )
    )


def _load_initial_generator(config: TrainConfig, generator: DINet | Wav2Lip) -> DINet | Wav2Lip:
    """The generator of `init_from`.

    If its audio features differ, it gets the new audio encoder of `generator`; otherwise it keeps its own, of
    whatever kind. A larger Wav2Lip takes over the stages that both have.
    """
    initial = load_model(Path(config.init_from))
    features = LIPS if config.audio_warmup_steps else config.audio_features
    to_lips = config.audio_features == LIPS
    adapted = initial.model.config
    if isinstance(adapted, DINetConfig) and isinstance(generator, DINet):
        new = generator.config
        adapted = replace(adapted, audio_dim=new.audio_dim, audio_encoder=new.audio_encoder)
    elif isinstance(generator, Wav2Lip) and adapted.face_size < generator.config.face_size:
        adapted = replace(adapted, face_size=generator.config.face_size)
    if adapted != generator.config or not (initial.audio_features == features or to_lips):
        raise ParameterError(
            "init_from",
            f"{config.init_from}: expected {generator.config} with {features} features, "
            f"found {initial.model.config} with {initial.audio_features}",
        )
    if isinstance(generator, Wav2Lip):
        generator.grow_from(initial.model)
        return generator
    if initial.audio_features != config.audio_features:
        initial.model.audio_encoder = generator.audio_encoder
        initial.model.config = generator.config
    return initial.model.train()


def _load_frozen_syncnet(config: TrainConfig, device: torch.device) -> LoadedModel:
    loaded = load_model(config.syncnet, device, kinds=SYNCNET)
    if loaded.audio_features != config.audio_features or loaded.mouth_size > config.mouth_size:
        raise ParameterError(
            "syncnet",
            f"{config.syncnet}: expected a SyncNet for mouths of at most {config.mouth_size} pixels and "
            f"{config.audio_features} features, found {loaded.mouth_size} and {loaded.audio_features}",
        )
    loaded.model.requires_grad_(False)
    return loaded


def train_step(trainer: Trainer, batch: Batch) -> dict[str, float]:
    """One step of the discriminators, if the adversarial losses are active, and one step of the generator.

    Returns:
        Unweighted losses by name, averaged over all processes.

    Raises:
        UserError: a loss is NaN or Inf; the message names the clips of the batch.
    """
    config, losses = trainer.config, {}
    rate = learning_rate(config, trainer.step)
    if config.freeze_bn:
        for module in trainer.generator.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    if config.audio_learning_rate_factor == 0:
        trainer.generator.audio_encoder.eval()
    target, references, audio_window, sync_audio = (x.to(trainer.device) for x in batch[:4])

    with autocast(config.precision, trainer.device):
        masked_source = trainer.generator.mask(target)
        output = trainer.parallel["generator"](masked_source, references, audio_window).float()

    # Input of each discriminator: single frames, or the frames of a clip stacked in the channels.
    views = {
        "adversarial": lambda images: images,
        "clip_adversarial": lambda images: images.unflatten(0, (-1, config.clip_length)).flatten(1, 2),
    }
    if trainer.adversarial:
        trainer.discriminators.requires_grad_(True)
        terms = []
        for name in trainer.discriminators:
            discriminator = trainer.parallel[name]
            with autocast(config.precision, trainer.device):
                real, fake = discriminator(views[name](target)), discriminator(views[name](output.detach()))
            terms.append(discriminator_loss(real, fake))
        losses["discriminator"] = sum(terms)
        _optimizer_step(trainer.discriminator_optimizer, losses["discriminator"], rate)

    with autocast(config.precision, trainer.device):
        if config.loss_weights["pixel"]:
            losses["pixel"] = (output - target).abs().mean()
        if config.loss_weights["lips"]:
            rows, columns = lips_box(config.mouth_size)
            losses["lips"] = (output - target)[..., rows, columns].abs().mean()
        if config.loss_weights["perceptual"]:
            losses["perceptual"] = trainer.perceptual(output, target)
        if trainer.adversarial:
            trainer.discriminators.requires_grad_(False)  # saves the computation of gradients that nothing uses
            for name, discriminator in trainer.discriminators.items():
                losses[name] = generator_loss(discriminator(views[name](output)))
        if trainer.syncnet:
            real = target if config.sync_target == "real" else None
            syncnet = trainer.syncnet
            losses["sync"] = sync_loss(syncnet.model, syncnet.mouth_size, output, sync_audio, real)
    total = sum(config.loss_weights[name] * losses[name] for name in losses if name in config.loss_weights)
    values = distributed.all_reduce_mean({name: loss.item() for name, loss in losses.items()}, trainer.device)
    check_finite(values, trainer.step, batch.clip_ids)
    _optimizer_step(trainer.generator_optimizer, total, rate)
    trainer.step += 1
    return values


def _optimizer_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def validate(trainer: Trainer, samples: list, metrics: dict[str, ImageMetric]) -> dict[str, float]:
    """Score the mouth box on held-out speakers, with matched audio and with audio shifted by half a second.

    Returns:
        "NAME_matched" and "NAME_shifted" for each metric, and "audio_gap_db", the difference of the two PSNR.
    """
    dtype = torch.bfloat16 if trainer.config.precision == "bf16" else None
    means = {}
    for name, shift in (("matched", 0), ("shifted", AUDIO_SHIFT)):
        options = {"audio_shift": shift, "device": trainer.device, "precision": dtype}
        scores = score_clips(trainer.generator, samples, metrics, **options)
        means |= {f"{metric}_{name}": value for metric, value in scores.means().items()}
    means["audio_gap_db"] = means["psnr_matched"] - means["psnr_shifted"]
    return means


@torch.no_grad()
def image_grid(trainer: Trainer, batch: Batch) -> torch.Tensor:
    """One row per sample: masked source, up to two references, output, target.

    Returns:
        (3, rows × H, columns × W) RGB in [0, 1], on the CPU.
    """
    trainer.generator.eval()
    masked_source = trainer.generator.mask(batch.target)
    with autocast(trainer.config.precision, trainer.device):
        inputs = (masked_source, batch.references, batch.audio_window)
        output = trainer.generator(*(x.to(trainer.device) for x in inputs)).float().cpu()
    trainer.generator.train()
    columns = [masked_source, *batch.references.split(3, dim=1)[:2], output, batch.target]
    rows = torch.cat(columns, dim=3)
    return torch.cat(list(rows), dim=1)


def save_release(trainer: Trainer, path: Path, info: dict[str, Any]) -> None:
    """Save the generator for inference.py, with notes on its training (`info`, JSON values)."""
    config = trainer.config
    save_model(
        path,
        trainer.generator,
        audio_features=config.audio_features,
        mouth_size=config.mouth_size,
        info={"steps": trainer.step, "batch_size": config.batch_size, "seed": config.seed, **info},
    )
