"""Train the DINet generator (paper, section 3.4), in the frame stage or the clip stage.

    python train_dinet.py --config configs/stages/frame_64.yaml --data data/mine --run-dir runs/frame_64

The run directory holds config.yaml (the resolved configuration), state.pt (for --resume), generator.safetensors
(the latest weights, for inference.py), best.safetensors (the weights with the lowest LPIPS on held-out speakers),
checkpoints/ (earlier weights), log.jsonl, TensorBoard events and report.html. For several GPUs, start the command
with torchrun: see training/distributed.py.
"""

import argparse
import time
from pathlib import Path

from tqdm import tqdm

from configs.schema import TrainConfig
from data_processing.batches import TrainingBatches, make_batch
from data_processing.dataset import Clip
from evaluation.clips import evenly_spaced, validation_samples
from evaluation.metrics import image_metrics
from models.checkpoint import load_model
from training import distributed
from training.audio_warmup import fit_whitening, warm_up_audio
from training.dinet_trainer import Trainer, image_grid, save_release, train_step, validate
from training.run import TrainingRun, process_samples, summarize_clips, training_parser
from training.schedule import learning_rate
from utils.command_line import run_command


def train(run: TrainingRun) -> None:
    """Train until `max_steps` or the time limit, from step 0 or from the state.pt of the run."""
    config = run.config
    trainer = Trainer.create(config, run.device)
    resumed = run.load_state(trainer)
    if resumed:
        print(f"resumed at step {trainer.step}")
    train_clips, val_clips = run.load_splits()
    print(f"train: {summarize_clips(train_clips)}; validation: {summarize_clips(val_clips)}")
    samples = validation_samples(val_clips, config.val_frames, config.num_references, config.seed)
    metrics = image_metrics(run.device)
    grid_batch = make_batch([samples[index] for index in evenly_spaced(len(samples), 6)])
    if run.is_main and not resumed:  # the other processes get its weights
        if trainer.new_audio_encoder and config.audio_encoder == "whitened":
            fit_whitening(trainer, train_clips)
        if config.audio_warmup_steps:
            warm_up_audio(trainer, load_model(config.init_from).model.to(run.device), train_clips, val_clips)
    distributed.wait_for_main()
    trainer.distribute()

    info = {"data": summarize_clips(train_clips), "held_out": {}}
    bar = run.start(trainer, make_batches(config, train_clips))
    for batch in bar:
        losses = train_step(trainer, batch)
        step = trainer.step
        last = run.step_ended(step)
        if run.is_due(step, config.log_every):
            bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
            run.log.add("train", step, {**losses, "learning_rate": learning_rate(config, step)})
            run.log.add("speed", step, run.batches.speed(config.batch_size))
        if run.is_due(step, config.image_every, last):
            tag = "held-out speakers: masked source, 2 references, output, target"
            run.log.add_image(tag, step, image_grid(trainer, grid_batch))
        if run.is_due(step, config.validate_every, last):
            held_out = validate(trainer, samples, metrics)
            run.log.add("val", step, held_out)
            tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in held_out.items()))
            info["held_out"] = {"step": step, **held_out}
            if held_out["lpips_matched"] < trainer.best:
                trainer.best = held_out["lpips_matched"]
                save_release(trainer, run.run_dir / "best.safetensors", info)
        if run.is_due(step, config.save_every, last):
            run.save_state(trainer)
            save_release(trainer, run.run_dir / "generator.safetensors", info)
        if run.is_due(step, config.checkpoint_every):
            run.save_numbered(step, lambda path: save_release(trainer, path, info))
        if last:
            break
    print(run.finish(trainer.step, "generator.safetensors", info["data"]))


def make_batches(config: TrainConfig, clips: list[Clip]) -> TrainingBatches:
    """The training batches of this process."""
    return TrainingBatches(
        clips,
        config.batch_size,
        config.num_references,
        config.max_steps,
        config.seed,
        speaker_sampling_exponent=config.speaker_sampling_exponent,
        clip_length=config.clip_length,
        references_per_frame=config.references_per_frame,
        augment=config.augment,
        crop_scale_jitter=config.crop_scale_jitter,
        shard=process_samples(config),
    )


def dry_run(run: TrainingRun) -> None:
    """Take three steps, validate on one frame, and print the losses and the time of the last one.

    No run directory is written; the dataset is packed as for training.
    """
    config = run.config
    trainer = Trainer.create(config, run.device)
    train_clips, val_clips = run.load_splits()
    batches = make_batches(config, train_clips)
    for step in range(3):
        start = time.monotonic()
        losses = train_step(trainer, batches[step])
        seconds = time.monotonic() - start
    validate(trainer, validation_samples(val_clips[:1], 1, config.num_references), image_metrics(run.device))
    print(f"losses: {losses}\n{seconds:.2f} s per step of {config.batch_size} samples; no run was written")


def run(args: argparse.Namespace) -> None:
    training_run = TrainingRun.from_args(args, TrainConfig)
    print(training_run.describe())
    if args.dry_run:
        dry_run(training_run)
    else:
        training_run.execute(train)


def main() -> None:
    parser = training_parser(__doc__, base="configs/base.yaml")
    parser.add_argument("--syncnet", type=Path, help="SyncNet of the sync loss, written by train_syncnet.py")
    parser.add_argument("--dry-run", action="store_true", help="take three steps and validate; write no run")
    run_command(parser, run)


if __name__ == "__main__":
    main()
