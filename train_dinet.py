"""Train the DINet generator (paper, section 3.4), on single frames or on clips of five: the recipe says.

    python train_dinet.py --config configs/stages/frame_64.yaml --data data/mine --run-dir runs/frame_64

The run directory holds config.yaml (as resolved), state.pt (to continue from, with --resume), generator.safetensors
(the newest weights, for inference.py), best.safetensors (those of the lowest LPIPS on held-out people), log.jsonl
and TensorBoard events. On several GPUs the same, started by torchrun: see processes.py.
"""

import argparse
import time
from pathlib import Path

import torch
from tqdm import tqdm

from configs.schema import TrainConfig, dump_config, load_config
from data_processing.batches import TrainingBatches, make_batch
from data_processing.dataset import Clip
from evaluation.clips import validation_samples
from evaluation.metrics import image_metrics
from models.checkpoint import load_model, load_training_state, save_training_state
from training import distributed
from training.dinet_trainer import Trainer, image_grid, save_release, train_step, validate, warm_up_audio
from training.log import RunLog
from training.run import (
    add_run_arguments,
    batch_shard,
    load_batches,
    load_splits,
    out_of_time,
    prepare_run_dir,
    progress,
    summarize_clips,
)
from training.schedule import learning_rate
from utils.command_line import run_command
from utils.device import choose_device


def train(config: TrainConfig, data: Path, run_dir: Path, device: torch.device, max_minutes: float | None) -> None:
    """Train until `max_steps` or the time is over; continue where state.pt in `run_dir` stands, if it is there."""
    started = time.monotonic()
    trainer = Trainer.create(config, device)
    resumed = (run_dir / "state.pt").exists()
    if resumed:
        trainer.load_state(load_training_state(run_dir / "state.pt"))
        print(f"resumed at step {trainer.step}")
    with distributed.main_process_first():
        train_clips, val_clips = load_splits(data, config)
    samples = validation_samples(val_clips, config.val_frames, config.num_references, config.seed)
    judges = image_metrics(device)
    pictured = make_batch(_spread(samples, 6))
    print(f"train: {summarize_clips(train_clips)}; validation: {summarize_clips(val_clips)}, {len(samples)} frames")

    if config.audio_warmup_steps and not resumed:
        warm_up_audio(trainer, load_model(config.init_from).model.to(device), train_clips)
    trainer.share()
    writes = distributed.rank() == 0
    if writes and trainer.step == 0:  # a run killed before its first save can be resumed too
        save_training_state(run_dir / "state.pt", trainer.state())
    log = RunLog(run_dir, trainer.step) if writes else None
    bar = progress(load_batches(_batches(config, train_clips), trainer.step, device), config, trainer.step)
    held_out: dict[str, float] = {}
    for batch in bar:
        losses = train_step(trainer, batch)
        step = trainer.step
        last = step == config.max_steps or out_of_time(started, max_minutes, device)
        if not writes:
            if last:
                break
            continue
        if step % config.log_every == 0:
            bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
            log.add("train", step, {**losses, "learning_rate": learning_rate(config, step)})
        if step % config.image_every == 0 or last:
            log.writer.add_image(
                "held out: masked source, 2 references, output, target", image_grid(trainer, pictured), step
            )
        if step % config.validate_every == 0 or last:
            metrics = validate(trainer, samples, judges)
            held_out = {"step": step, **metrics}
            log.add("val", step, metrics)
            tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
            if metrics["lpips_matched"] < trainer.best:
                trainer.best = metrics["lpips_matched"]
                save_release(
                    trainer,
                    run_dir / "best.safetensors",
                    {"data": summarize_clips(train_clips), "held_out": held_out},
                )
        if step % config.save_every == 0 or last:
            save_training_state(run_dir / "state.pt", trainer.state())
            save_release(
                trainer,
                run_dir / "generator.safetensors",
                {"data": summarize_clips(train_clips), "held_out": held_out},
            )
        if last:
            break
    if not writes:
        return
    log.writer.close()
    done = trainer.step >= config.max_steps
    print(f"{'finished' if done else 'time is over'} at step {trainer.step}: {run_dir / 'generator.safetensors'}")
    if not done:
        print("continue with the same command and --resume")


def _batches(config: TrainConfig, clips: list[Clip]) -> TrainingBatches:
    return TrainingBatches(
        clips,
        config.batch_size,
        config.num_references,
        config.max_steps,
        config.seed,
        config.speaker_sampling_exponent,
        config.clip_length,
        batch_shard(config.batch_size),
    )


def _spread(items: list, count: int) -> list:
    return [items[i * len(items) // count] for i in range(min(count, len(items)))]


def dry_run(config: TrainConfig, data: Path, device: torch.device) -> None:
    """Three steps and a validation, writing nothing: says whether the run would work, and how fast."""
    trainer = Trainer.create(config, device)
    clips, val_clips = load_splits(data, config)
    batches = _batches(config, clips)
    for step in range(3):
        began = time.monotonic()
        losses = train_step(trainer, batches[step])
        seconds = time.monotonic() - began
    validate(trainer, validation_samples(val_clips[:1], 1, config.num_references), image_metrics(device))
    print(f"losses: {losses}\n{seconds:.2f} s a step of {config.batch_size} samples; nothing was written")


def run(args: argparse.Namespace) -> None:
    overrides = {"init_from": args.init_from, "syncnet": args.syncnet, "max_steps": args.max_steps}
    config = load_config(args.config, overrides)
    device = distributed.init(choose_device(args.device))
    run_dir = args.run_dir or Path("runs") / "-".join(path.stem for path in args.config)
    print(f"# {' '.join(map(str, args.config))} on {device}\n{dump_config(config)}")
    if args.dry_run:
        dry_run(config, args.data, device)
        return
    with distributed.main_process_first():
        if distributed.rank() == 0:
            prepare_run_dir(run_dir, config, args.resume)
    train(config, args.data, run_dir, device, args.max_minutes)
    distributed.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser, base="configs/base.yaml")
    parser.add_argument("--syncnet", help="checkpoint of train_syncnet.py, instead of the recipe's")
    parser.add_argument("--dry-run", action="store_true", help="check everything, take three steps, write nothing")
    run_command(parser, run)


if __name__ == "__main__":
    main()
