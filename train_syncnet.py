"""Train SyncNet, the network of the sync loss, on matched and mismatched audio–video pairs (paper, section 3.4).

    python train_syncnet.py --config configs/stages/syncnet_64.yaml --data data/mine --run-dir runs/syncnet_64

The run directory holds config.yaml (the resolved configuration), state.pt (for --resume), syncnet.safetensors (the
weights with the highest accuracy on held-out speakers, for train_dinet.py), checkpoints/ (earlier weights),
log.jsonl, TensorBoard events and report.html.
"""

import argparse
from collections import deque

import numpy as np
from tqdm import tqdm

from configs.schema import SyncNetConfig
from data_processing.batches import SyncBatches, to_float
from evaluation.syncnet import PLATEAU_STEPS, curve_figure, diagnose, evaluate_syncnet
from training import distributed
from training.run import TrainingRun, process_samples, summarize_clips, training_parser
from training.schedule import learning_rate
from training.syncnet_trainer import Trainer, save_release, train_step, warm_up_shapes
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
    batches = SyncBatches(
        train_clips,
        config.batch_size,
        config.max_steps,
        config.seed,
        config.num_negatives,
        config.negative_gap,
        config.speaker_sampling_exponent,
    )
    if run.is_main and not resumed and not config.init_from:  # the other processes get its weights
        first = batches[0]  # the whole batch
        trainer.syncnet.calibrate(to_float(first.mouths.to(run.device)), first.audio[:, 0].to(run.device))
        if config.shape_warmup_steps:
            warm_up_shapes(trainer, train_clips)
    distributed.wait_for_main()
    trainer.distribute()
    batches.shard = process_samples(config)

    info = {"data": summarize_clips(train_clips), "held_out": {}}
    recent: deque[dict[str, float]] = deque(maxlen=PLATEAU_STEPS)
    bar = run.start(trainer, batches)
    for batch in bar:
        values = train_step(trainer, batch)
        recent.append(values)
        step = trainer.step
        last = run.step_ended(step)
        if run.is_due(step, config.log_every):
            latest = list(recent)[-config.log_every :]
            means = {name: float(np.mean([line[name] for line in latest])) for name in values}
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
            run.log.add("train", step, {**means, "learning_rate": learning_rate(config, step)})
            run.log.add("speed", step, run.batches.speed(config.batch_size))
        if run.is_due(step, config.validate_every, last):
            evaluation = evaluate_syncnet(trainer.syncnet, val_clips, config.negative_gap)
            held_out = evaluation.summary()
            run.log.add("val", step, {f"val_{name}": value for name, value in held_out.items()})
            run.log.add_figure("held-out speakers", step, curve_figure(evaluation))
            tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in held_out.items()))
            if len(recent) == PLATEAU_STEPS and (advice := diagnose(list(recent), held_out)):
                tqdm.write(advice)
            info["held_out"] = held_out
            if held_out["accuracy"] > trainer.best:
                trainer.best = held_out["accuracy"]
                save_release(trainer, run.run_dir / "syncnet.safetensors", info)
        if run.is_due(step, config.save_every, last):
            run.save_state(trainer)
        if run.is_due(step, config.checkpoint_every):
            run.save_numbered(step, lambda path: save_release(trainer, path, info))
        if last:
            break
    print(f"best accuracy on held-out speakers: {trainer.best:.3f}")
    print(run.finish(trainer.step, "syncnet.safetensors", info["data"]))


def run(args: argparse.Namespace) -> None:
    training_run = TrainingRun.from_args(args, SyncNetConfig)
    print(training_run.describe())
    training_run.execute(train)


def main() -> None:
    run_command(training_parser(__doc__, base="configs/base_syncnet.yaml"), run)


if __name__ == "__main__":
    main()
