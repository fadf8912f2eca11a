"""What the two training commands share: flags, run directory, data loading, progress bar, log, time limit."""

import argparse
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from configs.schema import SyncNetConfig, TrainConfig, dump_config, load_config
from data_processing.dataset import Clip, load_clips
from data_processing.media.video_reader import FPS
from models.checkpoint import load_training_state, save_training_state
from training import distributed
from training.log import RunLog
from utils.device import choose_device
from utils.errors import OutputError, ParameterError, UserError, error_reason
from utils.files import remove_leftovers, write_atomically

# what may change when a run is resumed; of these, only max_steps changes the weights: by the learning rate
CHANGEABLE = ("max_steps", "log_every", "validate_every", "image_every", "save_every")


class Trainer(Protocol):
    """What a run needs of `dinet_trainer.Trainer` and `syncnet_trainer.Trainer`."""

    step: int

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


@dataclass
class TrainingRun:
    """One run of a training command.

    Attributes:
        config: the resolved configuration.
        data: a prepared dataset.
        run_dir: where everything is written.
        resume: continue from state.pt in `run_dir`.
        max_minutes: time limit; None for none.
        log: set by `start`, in the main process only.
    """

    config: TrainConfig | SyncNetConfig
    data: Path
    run_dir: Path
    device: torch.device
    resume: bool = False
    max_minutes: float | None = None
    _started: float = field(default_factory=time.monotonic, init=False)
    log: RunLog | None = field(default=None, init=False)

    @classmethod
    def from_args(cls, args: argparse.Namespace, kind: type[TrainConfig] | type[SyncNetConfig]) -> "TrainingRun":
        """Load the configuration and join the process group of torchrun.

        A flag with the name of a configuration key overrides that key.

        Raises:
            UserError: a flag or the configuration is not valid.
        """
        if args.max_minutes is not None and not args.max_minutes > 0:
            raise ParameterError("max_minutes", f"expected a number above 0, found {args.max_minutes:g}")
        flags = {key.name: getattr(args, key.name, None) for key in fields(kind)}
        overrides = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
        config = load_config(args.config, overrides, kind)
        device = distributed.init(choose_device(args.device))
        run_dir = args.run_dir or Path("runs") / "-".join(path.stem for path in args.config)
        return cls(config, args.data, run_dir, device, args.resume, args.max_minutes)

    def describe(self) -> str:
        """Run directory, device and configuration, as YAML."""
        return f"# {self.run_dir} on {self.device}\n{dump_config(self.config)}"

    def execute(self, train: Callable[["TrainingRun"], None]) -> None:
        """Prepare the run directory and call `train` with this run.

        Raises:
            UserError: see `prepare_run_dir`; or raised by `train`.
        """
        with distributed.main_process_first():
            if self.is_main:
                prepare_run_dir(self.run_dir, self.config, self.resume)
        try:
            train(self)
        except KeyboardInterrupt:
            saved = (self.run_dir / "state.pt").exists()
            message = "--resume continues from the last saved state" if saved else "nothing was saved"
            raise KeyboardInterrupt(f"{self.run_dir}: {message}") from None
        distributed.shutdown()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return distributed.rank() == 0

    def load_splits(self) -> list[list[Clip]]:
        """The training clips, and the validation clips of held-out speakers."""
        with distributed.main_process_first():
            return load_splits(self.data, self.config)

    def load_state(self, trainer: Trainer) -> bool:
        """Continue from state.pt if it exists; return whether it does."""
        state = self.run_dir / "state.pt"
        if not state.exists():
            return False
        trainer.load_state(load_training_state(state))
        return True

    def save_state(self, trainer: Trainer) -> None:
        """Save what `load_state` needs."""
        save_training_state(self.run_dir / "state.pt", trainer.state())

    def start(self, trainer: Trainer, batches: Dataset) -> tqdm:
        """Open the log and return a progress bar over the remaining batches."""
        if self.is_main:
            if trainer.step == 0:  # so that a run killed before its first save can be resumed
                self.save_state(trainer)
            self.log = RunLog(self.run_dir, trainer.step)
        return tqdm(
            load_batches(batches, trainer.step, self.device),
            total=self.config.max_steps,
            initial=trainer.step,
            unit="step",
            dynamic_ncols=True,
            disable=not self.is_main,
        )

    def is_last(self, step: int) -> bool:
        """Whether training ends after this step: at `max_steps` or at the main process's time limit."""
        if step == self.config.max_steps:
            return True
        if self.max_minutes is None:
            return False
        return distributed.broadcast_flag(time.monotonic() - self._started > 60 * self.max_minutes, self.device)

    def is_due(self, step: int, interval: int, last: bool = False) -> bool:
        """True in the main process every `interval` steps, and at the last step if `last`."""
        return self.is_main and (last or step % interval == 0)

    def finish(self, step: int, checkpoint: str) -> str:
        """Close the log; return a message with the path of the trained network and how to continue."""
        if self.is_main:
            self.log.close()
        if step >= self.config.max_steps:
            return f"finished at step {step}: {self.run_dir / checkpoint}"
        return (
            f"time limit reached at step {step}: {self.run_dir / checkpoint}\n"
            "continue with the same command and --resume"
        )


def training_parser(description: str, base: str) -> argparse.ArgumentParser:
    """A parser with the flags of both training commands; `base` is the configuration that --config overrides."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--config",
        type=Path,
        required=True,
        nargs="+",
        help=f"configuration over {base}; each file overrides those before it",
    )
    add("--data", type=Path, required=True, help="prepared dataset (data_processing.prepare)")
    add("--run-dir", type=Path, help="output directory (default runs/<names of the configurations>)")
    add("--resume", action="store_true", help="continue the run in --run-dir")
    add("--init-from", type=Path, help="start from the weights of this checkpoint (.safetensors)")
    add("--max-steps", type=int, help="overrides max_steps of the configuration")
    add("--max-minutes", type=float, help="stop after this time; --resume continues the run")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")
    return parser


def summarize_clips(clips: list[Clip]) -> str:
    """Numbers of speakers, clips and minutes as text."""
    minutes = sum(len(clip.frames) for clip in clips) / FPS / 60
    return f"{len({clip.speaker for clip in clips})} speakers, {len(clips)} clips, {minutes:.1f} minutes"


def load_splits(data: Path, config: TrainConfig | SyncNetConfig) -> list[list[Clip]]:
    """The training clips, and the validation clips of held-out speakers."""
    local = distributed.local_world_size()
    return [load_clips(data, split, config.mouth_size, config.audio_features, local) for split in ("train", "val")]


def batch_shard(batch_size: int) -> slice:
    """The samples of every batch that this process trains on.

    Raises:
        ParameterError: `batch_size` is not a multiple of the number of processes.
    """
    processes = distributed.world_size()
    if batch_size % processes:
        raise ParameterError("batch_size", f"expected a multiple of the {processes} processes, found {batch_size}")
    return slice(distributed.rank(), None, processes)


def load_batches(batches: Dataset, step: int, device: torch.device) -> DataLoader:
    """Load the batches from `step` on; for a GPU, in worker processes, so that it need not wait."""
    workers = min(8, (os.cpu_count() or 1) // distributed.local_world_size()) if device.type == "cuda" else 0
    return DataLoader(
        batches, batch_size=None, sampler=range(step, len(batches)), num_workers=workers, pin_memory=workers > 0
    )


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """bfloat16 autocast if `precision` is "bf16"; nothing if it is "fp32"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def check_finite(losses: dict[str, float], step: int, clip_ids: list[str]) -> None:
    """Raise UserError, with the clips of the batch, if a loss is NaN or Inf."""
    if not all(map(math.isfinite, losses.values())):
        raise UserError(f"step {step}: a loss is NaN or Inf: {losses}; clips: {', '.join(clip_ids)}")


def prepare_run_dir(run_dir: Path, config: TrainConfig | SyncNetConfig, resume: bool) -> None:
    """Create the run directory, or check that the run in it can be resumed with `config`, and store `config` in it.

    Raises:
        OutputError: the directory holds a run and `resume` is false, or cannot be written.
        ParameterError: `resume` is true, but there is no run, or its configuration differs in more than CHANGEABLE.
    """
    saved = run_dir / "config.yaml"
    if resume:
        if not (run_dir / "state.pt").exists():
            raise ParameterError("resume", f"{run_dir} holds no run to continue (no state.pt)")
        before = load_config(saved, kind=type(config))
        changed = [name for name in vars(config) if getattr(before, name) != getattr(config, name)]
        if fixed := [name for name in changed if name not in CHANGEABLE]:
            raise ParameterError(
                "resume",
                f"the configuration of {run_dir} differs in {', '.join(fixed)}; start a new run with init_from",
            )
    elif (run_dir / "state.pt").exists():
        raise OutputError(run_dir, "holds a run already; resume it or choose another directory")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(run_dir, f"cannot be created: {error_reason(error)}") from None
    remove_leftovers(run_dir)
    write_atomically(saved, lambda file: file.write(dump_config(config).encode()))
