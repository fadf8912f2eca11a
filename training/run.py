"""What both trainers share: flags, data, the learning rate, and the run directory with its log."""

import argparse
import math
import os
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from configs.schema import SyncNetConfig, TrainConfig, dump_config, load_config
from data_processing.dataset import Clip, load_clips
from data_processing.media.video_reader import FPS
from training import distributed
from utils.errors import UserError


def add_run_arguments(parser: argparse.ArgumentParser, base: str) -> None:
    """The flags of both trainers; `base` is the file that recipes go over."""
    add = parser.add_argument
    add(
        "--config",
        type=Path,
        required=True,
        nargs="+",
        help=f"recipe over {base}; of several each goes over those before",
    )
    add("--data", type=Path, required=True, help="prepared dataset (data_processing.prepare)")
    add("--run-dir", type=Path, help="where the run is written (default runs/<names of the recipes>)")
    add("--resume", action="store_true", help="continue the run in --run-dir")
    add("--init-from", help="start from the weights of this release checkpoint")
    add("--max-steps", type=int, help="instead of the recipe's")
    add("--max-minutes", type=_minutes, help="stop (resumably) after this time")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not minutes > 0:
        raise UserError(f"--max-minutes: expected a number above 0, found {text}")
    return minutes


def summarize_clips(clips: list[Clip]) -> str:
    """People, clips and minutes in words."""
    minutes = sum(len(clip.frames) for clip in clips) / FPS / 60
    return f"{len({clip.speaker for clip in clips})} people, {len(clips)} clips, {minutes:.1f} minutes"


def load_splits(data: Path, config: TrainConfig | SyncNetConfig) -> list[list[Clip]]:
    """The clips to train on, and those of held-out people."""
    local = distributed.local_world_size()
    return [load_clips(data, split, config.mouth_size, config.audio_features, local) for split in ("train", "val")]


def batch_shard(batch_size: int) -> slice:
    """This process's part of every batch.

    Raises:
        UserError: the batch cannot be shared out evenly.
    """
    if batch_size % distributed.world_size():
        raise UserError(
            f"batch_size: expected a multiple of the {distributed.world_size()} processes, found {batch_size}"
        )
    return slice(distributed.rank(), None, distributed.world_size())


def load_batches(batches: Dataset, step: int, device: torch.device) -> DataLoader:
    """The batches from `step` on; beside a GPU, which would wait for them, other processes make them."""
    workers = min(8, (os.cpu_count() or 1) // distributed.local_world_size()) if device.type == "cuda" else 0
    return DataLoader(
        batches, batch_size=None, sampler=range(step, len(batches)), num_workers=workers, pin_memory=workers > 0
    )


def progress(loader: DataLoader, config: TrainConfig | SyncNetConfig, step: int) -> tqdm:
    """The bar of a training, in the first process."""
    hidden = distributed.rank() > 0
    return tqdm(loader, total=config.max_steps, initial=step, unit="step", dynamic_ncols=True, disable=hidden)


def out_of_time(started: float, max_minutes: float | None, device: torch.device) -> bool:
    """Whether --max-minutes are over since `started` (time.monotonic), by the first process's clock."""
    if max_minutes is None:
        return False
    return distributed.broadcast_flag(time.monotonic() - started > 60 * max_minutes, device)


def check_finite(losses: dict[str, float], step: int, clip_ids: list[str]) -> None:
    """Raises UserError, naming the clips of the batch, if a loss is not finite."""
    if not all(map(math.isfinite, losses.values())):
        raise UserError(f"step {step}: a loss is not finite: {losses}; clips: {', '.join(clip_ids)}")


def prepare_run_dir(run_dir: Path, config: TrainConfig | SyncNetConfig, resume: bool) -> None:
    """Create the run directory, or check that an existing one may be continued.

    Raises:
        UserError: it holds a run and `resume` is off, or one of another configuration, or none to resume.
    """
    saved = run_dir / "config.yaml"
    if resume:
        if not (run_dir / "state.pt").exists():
            raise UserError(f"--resume: expected a run to continue, found no state.pt in {run_dir}")
        before = load_config(saved, kind=type(config))
        if before != config:
            changed = [f for f in vars(config) if getattr(before, f) != getattr(config, f)]
            raise UserError(
                f"--resume: {run_dir} was started with another {', '.join(changed)}; use init_from instead"
            )
        for half_written in run_dir.glob(".*.partial"):  # by a run that was killed
            half_written.unlink(missing_ok=True)
        return
    if (run_dir / "state.pt").exists():
        raise UserError(f"--run-dir: {run_dir} holds a run already; add --resume to continue it or choose another")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        saved.write_text(dump_config(config))
    except OSError as error:
        raise UserError(f"--run-dir: cannot write into {run_dir}: {error.strerror}") from None
