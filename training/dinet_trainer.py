"""TODO."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from configs.schema import TrainConfig
from data_processing.audio.framing import audio_windows
from data_processing.batches import Batch
from data_processing.dataset import Clip, feature_dim
from data_processing.face.lips import LIPS, lip_features
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
from training.run import check_finite
from training.schedule import learning_rate
from utils.errors import UserError
from utils.weights import weight_path


@dataclass
class Trainer:
    """The adversarial pair with its optimizers, the frozen judges, and the number of steps taken.

    discriminators: "adversarial", of frames, and "clip_adversarial", of clips, where their losses have a weight.
    syncnet: where the sync loss has a weight.
    parallel: the trained networks as a step calls them, the same or (of many processes) wrapped around them.
    best: the lowest LPIPS on held-out people so far.
    """

    generator: DINet | Wav2Lip
    discriminators: nn.ModuleDict
    generator_optimizer: torch.optim.Adam
    discriminator_optimizer: torch.optim.Adam | None
    perceptual: PerceptualLoss
    syncnet: LoadedModel | None
    config: TrainConfig
    device: torch.device
    parallel: dict[str, nn.Module] = field(default_factory=dict)
    step: int = 0
    best: float = math.inf

    def __post_init__(self) -> None:
        if not self.parallel:
            self.parallel = {"generator": self.generator, **self.discriminators}

    def share(self) -> None:
        """Let the processes of processes.py train together from now on."""
        if self.config.compile:
            self.generator.compile()
        self.parallel = {name: distributed.wrap(network) for name, network in self.parallel.items()}

    @classmethod
    def create(cls, config: TrainConfig, device: torch.device) -> "Trainer":
        """Networks and optimizers at step 0, from the seed or from `init_from`."""
        torch.manual_seed(config.seed)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        generator = _new_generator(config)
        if config.init_from:
            generator = _load_initial_generator(config, generator)
        elif config.audio_warmup_steps:
            raise UserError("audio_warmup_steps: expected init_from with a generator driven by lips, found null")
        elif config.freeze_bn:
            raise UserError("freeze_bn: expected init_from with the generator that has learned them, found null")
        generator.to(device, memory_format=layout)
        frames_of = {"adversarial": 1, "clip_adversarial": config.clip_length}
        discriminators = nn.ModuleDict(
            {name: Discriminator(3 * frames) for name, frames in frames_of.items() if config.loss_weights[name]}
        ).to(device, memory_format=layout)
        adam = {"lr": config.learning_rate, "betas": tuple(config.adam_betas)}
        return cls(
            generator,
            discriminators,
            torch.optim.Adam(generator.parameters(), **adam),
            torch.optim.Adam(discriminators.parameters(), **adam) if discriminators else None,
            PerceptualLoss(weight_path("vgg19")).to(device, memory_format=layout),
            _frozen_syncnet(config, device) if config.loss_weights["sync"] else None,
            config,
            device,
        )

    @property
    def adversarial(self) -> bool:
        """Whether the discriminators take part at this step."""
        return len(self.discriminators) > 0 and self.step >= self.config.adversarial_start

    def autocast(self):
        """bf16 autocast where the configuration asks for it."""
        return (
            torch.autocast(self.device.type, torch.bfloat16) if self.config.precision == "bf16" else nullcontext()
        )

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs; batches and learning rate follow from the step."""
        return {
            "step": self.step,
            "best": self.best,
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
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


def _new_generator(config: TrainConfig) -> DINet | Wav2Lip:
    if config.generator != "dinet":
        return Wav2Lip(Wav2LipConfig(int(config.generator.removeprefix("wav2lip_"))))
    return DINet(
        DINetConfig(
            feature_dim(config.audio_features),
            config.num_references,
            deformation=config.deformation,
            inpainting=config.inpainting,
        )
    )


def _load_initial_generator(config: TrainConfig, generator: DINet | Wav2Lip) -> DINet | Wav2Lip:
    """The generator of `init_from`; with another kind of features it keeps the audio encoder of `generator`, and a
    larger Wav2Lip takes the stages that both have."""
    start = load_model(Path(config.init_from))
    features = LIPS if config.audio_warmup_steps else config.audio_features
    changed_to_lips = config.audio_features == LIPS
    found = start.model.config
    if isinstance(found, DINetConfig):
        found = replace(found, audio_dim=generator.config.audio_dim)
    elif isinstance(generator, Wav2Lip) and found.face_size < generator.config.face_size:
        found = replace(found, face_size=generator.config.face_size)
    if found != generator.config or not (start.audio_features == features or changed_to_lips):
        raise UserError(
            f"init_from {config.init_from}: expected {generator.config} with {features} features, "
            f"found {start.model.config} with {start.audio_features}"
        )
    if isinstance(generator, Wav2Lip):
        generator.grow_from(start.model)
        return generator
    if start.audio_features != config.audio_features:
        start.model.audio_encoder = generator.audio_encoder
        start.model.config = generator.config
    return start.model.train()


def _frozen_syncnet(config: TrainConfig, device: torch.device) -> LoadedModel:
    loaded = load_model(config.syncnet, device, kinds=SYNCNET)
    if loaded.audio_features != config.audio_features or loaded.mouth_size > config.mouth_size:
        raise UserError(
            f"syncnet {config.syncnet}: expected one for mouths of at most {config.mouth_size} pixels and "
            f"{config.audio_features} features, found {loaded.mouth_size} and {loaded.audio_features}"
        )
    loaded.model.requires_grad_(False)
    return loaded


def warm_up_audio(trainer: Trainer, teacher: DINet, clips: list[Clip]) -> None:
    """Teach the audio encoder to give the codes that the lips' own movements gave in a generator driven by these.

    What the sound leaves open is guessed at its mean, so that the lips would move too little: the codes are
    stretched about their mean until they vary as much as the lips' do. The generator has drawn all of them before.
    """
    config, generator = trainer.config, trainer.generator
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    sounds = np.concatenate([audio_windows(clip.features, np.arange(len(clip.features))) for clip in clips])
    movements = [lip_features(clip.landmarks) for clip in clips]
    movements = np.concatenate([audio_windows(rows, np.arange(len(rows))) for rows in movements])
    # What AdaAT makes of the code of a sound, as in the teacher.
    hears = generator.deformation.common.weight[:, 128:]
    wanted = _encode(teacher.audio_encoder, movements) @ hears.detach().T
    scale = wanted.var(dim=0).mean()
    optimizer = torch.optim.AdamW(generator.audio_encoder.parameters(), weight_decay=1.0)
    bar = tqdm(range(config.audio_warmup_steps), unit="step", desc="audio encoder")
    for step in bar:
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / config.audio_warmup_steps))
        drawn = rng.integers(len(sounds), size=256)
        found = generator.audio_encoder(torch.from_numpy(sounds[drawn]).to(trainer.device)) @ hears.detach().T
        loss = (found - wanted[torch.from_numpy(drawn)]).square().mean() / scale
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        bar.set_postfix(unexplained=f"{loss.item():.3f}")
    found = _encode(generator.audio_encoder, sounds) @ hears.detach().T
    gain = (scale / found.var(dim=0).mean()).sqrt()
    with torch.no_grad():
        generator.deformation.common.bias += wanted.mean(dim=0) - gain * found.mean(dim=0)
        hears *= gain
    print(f"what the sound explains of the lips was stretched {gain:.2f} times")


@torch.no_grad()
def _encode(encoder: nn.Module, rows: np.ndarray) -> torch.Tensor:
    """(N, D, 5) -> (N, 128), in evaluation mode."""
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    codes = torch.cat([encoder(torch.from_numpy(part).to(device)) for part in np.array_split(rows, 64)])
    encoder.train(was_training)
    return codes


def train_step(trainer: Trainer, batch: Batch) -> dict[str, float]:
    """One step of the discriminators (where they take part) and one of the generator.

    Returns:
        Unweighted losses by their names.

    Raises:
        UserError: a loss is not finite; the clips of the batch are named.
    """
    config, losses = trainer.config, {}
    rate = learning_rate(config, trainer.step)
    if config.freeze_bn:
        for module in trainer.generator.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    target, references, audio_window, sync_audio = (x.to(trainer.device) for x in batch[:4])

    with trainer.autocast():
        masked_source = trainer.generator.mask(target)
        output = trainer.parallel["generator"](masked_source, references, audio_window).float()

    # What either discriminator looks at: frames, or a clip's frames in the channels.
    views = {
        "adversarial": lambda images: images,
        "clip_adversarial": lambda images: images.unflatten(0, (-1, config.clip_length)).flatten(1, 2),
    }
    if trainer.adversarial:
        trainer.discriminators.requires_grad_(True)
        terms = []
        for name in trainer.discriminators:
            discriminator = trainer.parallel[name]
            with trainer.autocast():
                real, fake = discriminator(views[name](target)), discriminator(views[name](output.detach()))
            terms.append(discriminator_loss(real, fake))
        losses["discriminator"] = sum(terms)
        _descend(trainer.discriminator_optimizer, losses["discriminator"], rate)

    with trainer.autocast():
        if config.loss_weights["pixel"]:
            losses["pixel"] = (output - target).abs().mean()
        if config.loss_weights["lips"]:
            rows, columns = lips_box(config.mouth_size)
            losses["lips"] = (output - target)[..., rows, columns].abs().mean()
        if config.loss_weights["perceptual"]:
            losses["perceptual"] = trainer.perceptual(output, target)
        if trainer.adversarial:
            trainer.discriminators.requires_grad_(False)  # their gradients here would be thrown away
            for name, discriminator in trainer.discriminators.items():
                losses[name] = generator_loss(discriminator(views[name](output)))
        if trainer.syncnet:
            real = target if config.sync_target == "real" else None
            judge = trainer.syncnet
            losses["sync"] = sync_loss(judge.model, judge.mouth_size, output, sync_audio, real)
    total = sum(config.loss_weights[name] * losses[name] for name in losses if name in config.loss_weights)
    values = distributed.all_reduce_mean({name: loss.item() for name, loss in losses.items()}, trainer.device)
    check_finite(values, trainer.step, batch.clip_ids)
    _descend(trainer.generator_optimizer, total, rate)
    trainer.step += 1
    return values


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def validate(trainer: Trainer, samples: list, judges: dict[str, ImageMetric]) -> dict[str, float]:
    """PSNR, SSIM and LPIPS of the mouth box on held-out people, and the same with the sound half a second off."""
    dtype = torch.bfloat16 if trainer.config.precision == "bf16" else None
    means = {}
    for name, shift in (("matched", 0), ("shifted", AUDIO_SHIFT)):
        options = {"audio_shift": shift, "device": trainer.device, "precision": dtype}
        scores = score_clips(trainer.generator, samples, judges, **options)
        means |= {f"{metric}_{name}": value for metric, value in scores.means().items()}
    means["audio_gap_db"] = means["psnr_matched"] - means["psnr_shifted"]
    return means


@torch.no_grad()
def image_grid(trainer: Trainer, batch: Batch) -> torch.Tensor:
    """One row a sample: masked source, two references, output, target; (3, rows × H, 5W) in [0, 1]."""
    trainer.generator.eval()
    masked_source = trainer.generator.mask(batch.target)
    with trainer.autocast():
        inputs = (masked_source, batch.references, batch.audio_window)
        output = trainer.generator(*(x.to(trainer.device) for x in inputs)).float().cpu()
    trainer.generator.train()
    columns = [masked_source, *batch.references.split(3, dim=1)[:2], output, batch.target]
    rows = torch.cat(columns, dim=3)
    return torch.cat(list(rows), dim=1)


def save_release(trainer: Trainer, path: Path, info: dict[str, Any]) -> None:
    """Save the generator for inference.py, with what has to be known of its training."""
    config = trainer.config
    save_model(
        path,
        trainer.generator,
        audio_features=config.audio_features,
        mouth_size=config.mouth_size,
        info={"steps": trainer.step, "batch_size": config.batch_size, "seed": config.seed, **info},
    )
