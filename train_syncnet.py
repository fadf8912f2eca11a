"""Train SyncNet, the judge of the sync loss, on mouths with their own and with wrong sound (paper, section 3.4).

    python train_syncnet.py --config configs/stages/syncnet_64.yaml --data data/mine --run-dir runs/syncnet_64

The run directory holds config.yaml (as resolved), state.pt (to continue from, with --resume), syncnet.safetensors
(the weights that judged held-out people best, for train_dinet.py), log.jsonl and TensorBoard events.
"""

import argparse
import time
from collections import deque
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from configs.schema import SyncNetConfig, dump_config, load_config
from data_processing.batches import SyncBatches
from evaluation.syncnet import PLATEAU_STEPS, curve_figure, diagnose, evaluate_syncnet
from models.checkpoint import load_training_state, save_training_state
from training import distributed
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
from training.syncnet_trainer import Trainer, save_release, train_step, warm_up_shapes
from utils.command_line import run_command
from utils.device import choose_device


def train(
    config: SyncNetConfig, data: Path, run_dir: Path, device: torch.device, max_minutes: float | None
) -> None:
    """Train until `max_steps` or the time is over; continue where state.pt in `run_dir` stands, if it is there."""
    started = time.monotonic()
    shard = batch_shard(config.batch_size)
    trainer = Trainer.create(config, device)
    resumed = (run_dir / "state.pt").exists()
    if resumed:
        trainer.load_state(load_training_state(run_dir / "state.pt"))
        print(f"resumed at step {trainer.step}")
    with distributed.main_process_first():
        clips, val_clips = load_splits(data, config)
    print(f"train: {summarize_clips(clips)}; validation: {summarize_clips(val_clips)}")
    batches = SyncBatches(
        clips,
        config.batch_size,
        config.max_steps,
        config.seed,
        config.num_negatives,
        config.negative_gap,
        config.speaker_sampling_exponent,
    )
    if not resumed and not config.init_from:
        first = batches[0]  # all of it, so that the processes start alike
        trainer.syncnet.calibrate(first.mouths.to(device), first.audio[:, 0].to(device))
    if not resumed and config.shape_warmup_steps and not config.init_from:  # which has learned them already
        warm_up_shapes(trainer, clips)
    trainer.share()
    batches.shard = shard
    writes = distributed.rank() == 0
    if writes and trainer.step == 0:  # a run killed before its first save can be resumed too
        save_training_state(run_dir / "state.pt", trainer.state())
    log = RunLog(run_dir, trainer.step) if writes else None
    recent: deque[dict[str, float]] = deque(maxlen=PLATEAU_STEPS)
    bar = progress(load_batches(batches, trainer.step, device), config, trainer.step)
    for batch in bar:
        values = train_step(trainer, batch)
        recent.append(values)
        step = trainer.step
        last = step == config.max_steps or out_of_time(started, max_minutes, device)
        if not writes:
            if last:
                break
            continue
        if step % config.log_every == 0:
            latest = list(recent)[-config.log_every :]
            means = {name: float(np.mean([line[name] for line in latest])) for name in values}
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
            log.add("train", step, {**means, "learning_rate": learning_rate(config, step)})
        if step % config.validate_every == 0 or last:
            judgement = evaluate_syncnet(trainer.syncnet, val_clips, config.negative_gap)
            held_out = judgement.numbers()
            log.add("val", step, {f"val_{name}": value for name, value in held_out.items()})
            log.writer.add_figure("held-out people", curve_figure(judgement), step)
            tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in held_out.items()))
            if len(recent) == PLATEAU_STEPS and (words := diagnose(list(recent), held_out)):
                tqdm.write(words)
            if held_out["accuracy"] > trainer.best:
                trainer.best = held_out["accuracy"]
                save_release(
                    trainer, run_dir / "syncnet.safetensors", {"data": summarize_clips(clips), "held_out": held_out}
                )
        if step % config.save_every == 0 or last:
            save_training_state(run_dir / "state.pt", trainer.state())
        if last:
            break
    if not writes:
        return
    log.writer.close()
    print(f"best held-out accuracy {trainer.best:.3f}: {run_dir / 'syncnet.safetensors'}")
    if trainer.step < config.max_steps:
        print(f"time is over at step {trainer.step}; continue with the same command and --resume")


def run(args: argparse.Namespace) -> None:
    overrides = {"init_from": args.init_from, "max_steps": args.max_steps}
    config = load_config(args.config, overrides, SyncNetConfig)
    device = distributed.init(choose_device(args.device))
    run_dir = args.run_dir or Path("runs") / "-".join(path.stem for path in args.config)
    print(f"# {' '.join(map(str, args.config))} on {device}\n{dump_config(config)}")
    with distributed.main_process_first():
        if distributed.rank() == 0:
            prepare_run_dir(run_dir, config, args.resume)
    train(config, args.data, run_dir, device, args.max_minutes)
    distributed.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser, base="configs/base_syncnet.yaml")
    run_command(parser, run)


if __name__ == "__main__":
    main()
