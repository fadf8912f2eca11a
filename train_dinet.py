"""Train the DINet generator on single frames (paper, section 3.4).

    python train_dinet.py --config configs/frame_64.yaml --data data/mine --run-dir runs/frame_64

The run directory holds config.yaml (as resolved), state.pt (to continue from, with --resume), generator.safetensors
(the newest weights, for inference.py), log.jsonl and TensorBoard events.
"""

import argparse
import json
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from configs.schema import TrainConfig, dump_config, load_config
from data_processing.audio_features import FEATURE_DIMS, windows
from data_processing.dataset import Batch, Clip, TrainingBatches, load_clips, make_batch
from data_processing.errors import UserError, command_line
from data_processing.geometry import lips_box
from data_processing.landmarks import mouth_shape
from data_processing.prepare import read_jsonl
from data_processing.video import FPS
from data_processing.weights import weight_path
from evaluate import AUDIO_SHIFT, LPIPS, score, validation_samples
from losses.adversarial import discriminator_loss, generator_loss
from losses.perceptual import PerceptualLoss
from models.checkpoint import load_model, load_training_state, save_model, save_training_state
from models.device import choose_device
from models.dinet import DINet, DINetConfig
from models.discriminator import Discriminator

# TensorBoard imports TensorFlow wherever it is installed, though writing events does not need it, and the two
# LLVMs of TensorFlow and Triton cannot live in one process. A module of this name makes it use its own stub.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
from torch.utils.tensorboard import SummaryWriter  # noqa: E402


@dataclass
class Trainer:
    """The adversarial pair with its optimizers, and the number of steps taken."""

    generator: DINet
    discriminator: Discriminator
    generator_optimizer: torch.optim.Adam
    discriminator_optimizer: torch.optim.Adam
    perceptual: PerceptualLoss
    config: TrainConfig
    device: torch.device
    step: int = 0

    @classmethod
    def create(cls, config: TrainConfig, device: torch.device) -> "Trainer":
        """Networks and optimizers at step 0, from the seed or from `init_from`."""
        torch.manual_seed(config.seed)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        generator = DINet(DINetConfig(FEATURE_DIMS[config.audio_features], config.num_references))
        if config.init_from:
            start = load_model(Path(config.init_from))
            if start.model.config != generator.config or start.audio_features != config.audio_features:
                raise UserError(
                    f"init_from {config.init_from}: expected {generator.config} with {config.audio_features} "
                    f"features, found {start.model.config} with {start.audio_features}"
                )
            generator = start.model.train()
        generator.to(device, memory_format=layout)
        discriminator = Discriminator(3).to(device, memory_format=layout)
        adam = {"lr": config.learning_rate, "betas": tuple(config.adam_betas)}
        return cls(
            generator,
            discriminator,
            torch.optim.Adam(generator.parameters(), **adam),
            torch.optim.Adam(discriminator.parameters(), **adam),
            PerceptualLoss(weight_path("vgg19")).to(device, memory_format=layout),
            config,
            device,
        )

    @property
    def adversarial(self) -> bool:
        """Whether the discriminator takes part at this step."""
        return self.config.loss_weights["adversarial"] > 0 and self.step >= self.config.adversarial_start

    def autocast(self):
        """bf16 autocast where the configuration asks for it."""
        return (
            torch.autocast(self.device.type, torch.bfloat16) if self.config.precision == "bf16" else nullcontext()
        )

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs; batches and learning rate follow from the step."""
        return {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        for name in ("generator", "discriminator", "generator_optimizer", "discriminator_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine from `learning_rate` to 0 at `max_steps`."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.max_steps)))


def warm_up_audio(trainer: Trainer, clips: list[Clip]) -> None:
    """Teach the audio encoder alone to tell the mouth's shape, through a linear head that is thrown away.

    In the generator's first hours the picture hardly depends on the sound, so next to nothing of the losses
    reaches the audio encoder; one that already speaks of lips is listened to much sooner.
    """
    config = trainer.config
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    audio = np.concatenate([windows(clip.features, np.arange(len(clip.features))) for clip in clips])
    shapes = np.concatenate([mouth_shape(clip.landmarks) for clip in clips])
    shapes /= shapes.std()
    head = nn.Linear(128, shapes.shape[1]).to(trainer.device)
    optimizer = torch.optim.AdamW([*trainer.generator.audio_encoder.parameters(), *head.parameters()])
    bar = tqdm(range(config.audio_warmup_steps), unit="step", desc="audio encoder")
    for step in bar:
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / config.audio_warmup_steps))
        drawn = rng.integers(len(audio), size=256)
        inputs, wanted = (torch.from_numpy(x[drawn]).to(trainer.device) for x in (audio, shapes))
        loss = (head(trainer.generator.audio_encoder(inputs)) - wanted).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        bar.set_postfix(unexplained=f"{loss.item():.3f}")


def train_step(trainer: Trainer, batch: Batch) -> dict[str, float]:
    """One step of the discriminator (where it takes part) and one of the generator.

    Returns:
        Unweighted losses by their names.

    Raises:
        UserError: a loss is not finite; the clips of the batch are named.
    """
    config, losses = trainer.config, {}
    for optimizer in (trainer.generator_optimizer, trainer.discriminator_optimizer):
        optimizer.param_groups[0]["lr"] = learning_rate(config, trainer.step)
    masked_source, references, audio_window, target = (x.to(trainer.device) for x in batch[:4])

    with trainer.autocast():
        output = trainer.generator(masked_source, references, audio_window).float()

    if trainer.adversarial:
        trainer.discriminator.requires_grad_(True)
        with trainer.autocast():
            real, fake = trainer.discriminator(target), trainer.discriminator(output.detach())
        losses["discriminator"] = discriminator_loss(real, fake)
        trainer.discriminator_optimizer.zero_grad(set_to_none=True)
        losses["discriminator"].backward()
        trainer.discriminator_optimizer.step()

    with trainer.autocast():
        if config.loss_weights["pixel"]:
            losses["pixel"] = (output - target).abs().mean()
        if config.loss_weights["lips"]:
            rows, columns = lips_box(config.mouth_size)
            losses["lips"] = (output - target)[..., rows, columns].abs().mean()
        if config.loss_weights["perceptual"]:
            losses["perceptual"] = trainer.perceptual(output, target)
        if trainer.adversarial:
            trainer.discriminator.requires_grad_(False)  # its gradients here would be thrown away
            losses["adversarial"] = generator_loss(trainer.discriminator(output))
    total = sum(config.loss_weights[name] * losses[name] for name in losses if name in config.loss_weights)
    values = {name: loss.item() for name, loss in losses.items()}
    if not all(map(math.isfinite, values.values())):
        raise UserError(f"step {trainer.step}: a loss is not finite: {values}; clips: {', '.join(batch.clip_ids)}")
    trainer.generator_optimizer.zero_grad(set_to_none=True)
    total.backward()
    trainer.generator_optimizer.step()
    trainer.step += 1
    return values


def validate(trainer: Trainer, samples: list, lpips: LPIPS) -> dict[str, float]:
    """PSNR, SSIM and LPIPS of the mouth box on held-out people, and the same with the sound half a second off."""
    dtype = torch.bfloat16 if trainer.config.precision == "bf16" else None
    means = {}
    for name, shift in (("matched", 0), ("shifted", AUDIO_SHIFT)):
        scores = score(trainer.generator, samples, lpips, audio_shift=shift, device=trainer.device, precision=dtype)
        means |= {f"{metric}_{name}": value for metric, value in scores.means().items()}
    means["audio_gap_db"] = means["psnr_matched"] - means["psnr_shifted"]
    return means


@torch.no_grad()
def image_grid(trainer: Trainer, batch: Batch) -> torch.Tensor:
    """One row a sample: masked source, two references, output, target; (3, rows × H, 5W) in [0, 1]."""
    trainer.generator.eval()
    with trainer.autocast():
        output = trainer.generator(*(x.to(trainer.device) for x in batch[:3])).float().cpu()
    trainer.generator.train()
    columns = [batch.masked_source, *batch.references.split(3, dim=1)[:2], output, batch.target]
    rows = torch.cat(columns, dim=3)
    return torch.cat(list(rows), dim=1)


def release(trainer: Trainer, path: Path, info: dict[str, Any]) -> None:
    """Save the generator for inference.py, with what has to be known of its training."""
    config = trainer.config
    save_model(
        path,
        trainer.generator,
        audio_features=config.audio_features,
        mouth_size=config.mouth_size,
        info={"steps": trainer.step, "batch_size": config.batch_size, "seed": config.seed, **info},
    )


def train(config: TrainConfig, data: Path, run_dir: Path, device: torch.device, max_minutes: float | None) -> None:
    """Train until `max_steps` or the time is over; continue where state.pt in `run_dir` stands, if it is there."""
    started = time.monotonic()
    trainer = Trainer.create(config, device)
    resumed = (run_dir / "state.pt").exists()
    if resumed:
        trainer.load_state(load_training_state(run_dir / "state.pt"))
        print(f"resumed at step {trainer.step}")
    train_clips = load_clips(data, "train", config.mouth_size, config.audio_features)
    val_clips = load_clips(data, "val", config.mouth_size, config.audio_features)
    samples = validation_samples(val_clips, config.val_frames, config.num_references, config.seed)
    lpips = LPIPS().to(device)
    pictured = make_batch(_spread(samples, 6))
    print(f"train: {describe(train_clips)}; validation: {describe(val_clips)}, {len(samples)} frames")

    if config.audio_warmup_steps and not resumed:
        warm_up_audio(trainer, train_clips)
    batches = TrainingBatches(
        train_clips, config.batch_size, config.num_references, config.max_steps, config.seed, config.person_power
    )
    loader = DataLoader(batches, batch_size=None, sampler=range(trainer.step, config.max_steps))
    if trainer.step == 0:  # a run killed before its first save can be resumed too
        save_training_state(run_dir / "state.pt", trainer.state())
    _drop_later_lines(run_dir / "log.jsonl", trainer.step)
    writer = SummaryWriter(str(run_dir), purge_step=trainer.step + 1)
    bar = tqdm(loader, total=config.max_steps, initial=trainer.step, unit="step", dynamic_ncols=True)
    held_out: dict[str, float] = {}
    for batch in bar:
        losses = train_step(trainer, batch)
        step = trainer.step
        out_of_time = max_minutes is not None and time.monotonic() - started > 60 * max_minutes
        last = step == config.max_steps or out_of_time
        if step % config.log_every == 0:
            bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
            for name, value in {**losses, "learning_rate": learning_rate(config, step)}.items():
                writer.add_scalar(f"train/{name}", value, step)
            _append(run_dir / "log.jsonl", {"step": step, **losses})
        if step % config.image_every == 0 or last:
            writer.add_image(
                "held out: masked source, 2 references, output, target", image_grid(trainer, pictured), step
            )
        if step % config.validate_every == 0 or last:
            metrics = validate(trainer, samples, lpips)
            held_out = {"step": step, **metrics}
            for name, value in metrics.items():
                writer.add_scalar(f"val/{name}", value, step)
            _append(run_dir / "log.jsonl", held_out)
            tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        if step % config.save_every == 0 or last:
            save_training_state(run_dir / "state.pt", trainer.state())
            release(
                trainer, run_dir / "generator.safetensors", {"data": describe(train_clips), "held_out": held_out}
            )
        if last:
            break
    writer.close()
    done = trainer.step >= config.max_steps
    print(f"{'finished' if done else 'time is over'} at step {trainer.step}: {run_dir / 'generator.safetensors'}")
    if not done:
        print("continue with the same command and --resume")


def describe(clips: list[Clip]) -> str:
    """People, clips and minutes in words."""
    minutes = sum(len(clip.frames) for clip in clips) / FPS / 60
    return f"{len({clip.person for clip in clips})} people, {len(clips)} clips, {minutes:.1f} minutes"


def _spread(items: list, count: int) -> list:
    return [items[i * len(items) // count] for i in range(min(count, len(items)))]


def _drop_later_lines(path: Path, step: int) -> None:
    """A killed run may have logged steps after its last state, and half a line: they come again."""
    if path.exists():
        lines = [line for line in read_jsonl(path) if line["step"] <= step]
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        partial.replace(path)


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def prepare_run_dir(run_dir: Path, config: TrainConfig, resume: bool) -> None:
    """Create the run directory, or check that an existing one may be continued.

    Raises:
        UserError: it holds a run and `resume` is off, or one of another configuration, or none to resume.
    """
    saved = run_dir / "config.yaml"
    if resume:
        if not (run_dir / "state.pt").exists():
            raise UserError(f"--resume: expected a run to continue, found no state.pt in {run_dir}")
        before = load_config(saved)
        if before != config:
            changed = [f for f in vars(config) if getattr(before, f) != getattr(config, f)]
            raise UserError(
                f"--resume: {run_dir} was started with another {', '.join(changed)}; use init_from instead"
            )
        return
    if (run_dir / "state.pt").exists():
        raise UserError(f"--run-dir: {run_dir} holds a run already; add --resume to continue it or choose another")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        saved.write_text(dump_config(config))
    except OSError as error:
        raise UserError(f"--run-dir: cannot write into {run_dir}: {error.strerror}") from None


def dry_run(config: TrainConfig, data: Path, device: torch.device) -> None:
    """Three steps and a validation, writing nothing: says whether the run would work, and how fast."""
    trainer = Trainer.create(config, device)
    clips = load_clips(data, "train", config.mouth_size, config.audio_features)
    val_clips = load_clips(data, "val", config.mouth_size, config.audio_features)
    batches = TrainingBatches(clips, config.batch_size, config.num_references, 3, config.seed)
    for step in range(3):
        began = time.monotonic()
        losses = train_step(trainer, batches[step])
        seconds = time.monotonic() - began
    validate(trainer, validation_samples(val_clips[:1], 1, config.num_references), LPIPS().to(device))
    print(f"losses: {losses}\n{seconds:.2f} s a step of {config.batch_size} samples; nothing was written")


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="recipe, read over configs/base.yaml")
    parser.add_argument("--data", type=Path, required=True, help="prepared dataset (data_processing.prepare)")
    parser.add_argument("--run-dir", type=Path, help="where the run is written (default runs/<name of the recipe>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --run-dir")
    parser.add_argument("--init-from", help="start from the weights of this release checkpoint")
    parser.add_argument("--max-steps", type=int, help="instead of the recipe's")
    parser.add_argument("--max-minutes", type=float, help="stop (resumably) after this time")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")
    parser.add_argument("--dry-run", action="store_true", help="check everything, take three steps, write nothing")
    args = parser.parse_args()
    if args.max_minutes is not None and not args.max_minutes > 0:
        raise UserError(f"--max-minutes: expected a number above 0, found {args.max_minutes}")
    config = load_config(args.config, {"init_from": args.init_from, "max_steps": args.max_steps})
    device = choose_device(args.device)
    run_dir = args.run_dir or Path("runs") / args.config.stem
    print(f"# {args.config} on {device}\n{dump_config(config)}")
    if args.dry_run:
        dry_run(config, args.data, device)
        return
    prepare_run_dir(run_dir, config, args.resume)
    train(config, args.data, run_dir, device, args.max_minutes)


if __name__ == "__main__":
    main()
