"""What the two training commands share: flags, run directory, data, progress bar, log, time limit."""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from configs.schema import SyncNetConfig, TrainConfig, dump_config, load_config
from data_processing.dataset import Clip, fingerprint, load_clips, thin
from data_processing.media.video_reader import FPS
from models.checkpoint import load_training_state, save_training_state
from training import distributed
from training.loading import DeviceBatches, load_batches
from training.log import Logger, RunLog, TensorBoardLogger, WandbLogger, import_wandb
from training.report import write_report
from utils.device import choose_device
from utils.errors import DatasetError, OutputError, ParameterError, error_reason
from utils.files import output_errors, remove_leftovers, write_atomically

# what may change when a run is resumed; of these, only max_steps changes the weights: by the learning rate
CHANGEABLE = (
    *("max_steps", "log_every", "validate_every", "image_every", "save_every"),
    *("checkpoint_every", "keep_checkpoints"),
)


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
        wandb: project of Weights & Biases that receives the log, too; None for none.
        log: set by `start`, in the main process only.
        batches: set by `start`.
    """

    config: TrainConfig | SyncNetConfig
    data: Path
    run_dir: Path
    device: torch.device
    resume: bool = False
    max_minutes: float | None = None
    wandb: str | None = None
    _started: float = field(default_factory=time.monotonic, init=False)
    log: RunLog | None = field(default=None, init=False)
    batches: DeviceBatches | None = field(default=None, init=False)

    @classmethod
    def from_args(cls, args: argparse.Namespace, kind: type[TrainConfig] | type[SyncNetConfig]) -> "TrainingRun":
        """Load the configuration and join the process group of torchrun.

        A flag with the name of a configuration key overrides that key.

        Raises:
            UserError: a flag or the configuration is not valid.
        """
        if args.max_minutes is not None and not args.max_minutes > 0:
            raise ParameterError("max_minutes", f"expected a number above 0, found {args.max_minutes:g}")
        if args.wandb:
            import_wandb()
        flags = {key.name: getattr(args, key.name, None) for key in fields(kind)}
        overrides = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
        config = load_config(args.config, overrides, kind)
        device = choose_device(args.device)
        torch.backends.cudnn.benchmark = device.type == "cuda"  # all batches of a run have the same shapes
        device = distributed.init(device, max_processes(config))
        run_dir = args.run_dir or Path("runs") / "-".join(path.stem for path in args.config)
        return cls(config, args.data, run_dir, device, args.resume, args.max_minutes, args.wandb)

    def describe(self) -> str:
        """Run directory, device and configuration, as YAML."""
        return f"# {self.run_dir} on {self.device}\n{dump_config(self.config)}"

    def execute(self, train: Callable[["TrainingRun"], None]) -> None:
        """Check the run directory and call `train` with this run. Nothing is written before `start`.

        Raises:
            UserError: see `check_run_dir`; or raised by `train`.
        """
        with distributed.main_process_first():
            if self.is_main:
                check_run_dir(self.run_dir, self.config, self.resume)
        try:
            train(self)
        except KeyboardInterrupt:
            saved = (self.run_dir / "state.pt").exists()
            message = "--resume continues from the last saved state" if saved else "nothing was saved"
            raise KeyboardInterrupt(f"{self.run_dir}: {message}") from None
        distributed.wait_for_main()
        distributed.shutdown()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return distributed.rank() == 0

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the clips of the dataset."""
        return fingerprint(self.data)

    def load_splits(self) -> list[Sequence[Clip]]:
        """The training clips, and the validation clips of held-out speakers."""
        with distributed.main_process_first():
            return load_splits(self.data, self.config)

    def load_state(self, trainer: Trainer) -> bool:
        """Continue from state.pt if it exists; return whether it does.

        Raises:
            DatasetError: the run was started on other data.
            OutputError: the processes do not have the same run directory.
        """
        path = self.run_dir / "state.pt"
        found = path.exists()
        if distributed.broadcast_flag(found) != found:
            reason = "is not the folder of process 0; with several machines it must be on a shared file system"
            raise OutputError(self.run_dir, reason)
        if not found:
            return False
        state = load_training_state(path)
        if state.get("data", self.fingerprint) != self.fingerprint:
            raise DatasetError(
                self.data, f"is not the dataset, or not the clips of it, that {self.run_dir} trains on"
            )
        trainer.load_state(state)
        return True

    def save_state(self, trainer: Trainer) -> None:
        """Save what `load_state` needs."""
        save_training_state(self.run_dir / "state.pt", trainer.state() | {"data": self.fingerprint})

    def start(self, trainer: Trainer, batches: Dataset) -> tqdm:
        """Write the configuration, open the log, and return a progress bar over the remaining batches."""
        if self.is_main:
            loggers: list[Logger] = []
            if self.wandb:  # first, because it may fail, and the run could then only be resumed
                loggers.append(WandbLogger(self.run_dir, self.wandb, asdict(self.config)))
            create_run_dir(self.run_dir, self.config)
            if trainer.step == 0:  # so that a run killed before its first save can be resumed
                self.save_state(trainer)
            loggers.append(TensorBoardLogger(self.run_dir, trainer.step))
            self.log = RunLog(self.run_dir, trainer.step, loggers)
        self.batches = DeviceBatches(load_batches(batches, trainer.step, self.device), self.device)
        return tqdm(
            self._wait_for_validation(trainer),
            total=self.config.max_steps,
            initial=trainer.step,
            unit="step",
            dynamic_ncols=True,
            disable=not self.is_main,
        )

    def _wait_for_validation(self, trainer: Trainer) -> Iterator[Any]:
        for batch in self.batches:
            yield batch
            if trainer.step % self.config.validate_every == 0:
                distributed.wait_for_main()  # in the next step, it would be waited for only STEP_TIMEOUT

    def step_ended(self, step: int) -> bool:
        """Count a finished step; return whether it is the last: at `max_steps` or the main process's time limit."""
        self.batches.step_ended()
        if step == self.config.max_steps:
            return True
        if self.max_minutes is None:
            return False
        return distributed.broadcast_flag(time.monotonic() - self._started > 60 * self.max_minutes)

    def is_due(self, step: int, interval: int, last: bool = False) -> bool:
        """True in the main process every `interval` steps, and at the last step if `last`."""
        return self.is_main and (last or step % interval == 0)

    def save_numbered(self, step: int, save: Callable[[Path], None]) -> None:
        """Save a checkpoint with the number of its step, and remove the oldest beyond `keep_checkpoints`."""
        folder = self.run_dir / "checkpoints"
        with output_errors(folder):
            folder.mkdir(exist_ok=True)
        save(folder / f"step_{step:08}.safetensors")
        for path in sorted(folder.glob("step_*.safetensors"))[: -self.config.keep_checkpoints]:
            path.unlink()

    def finish(self, step: int, checkpoint: str, data: str) -> str:
        """Close the log and write the report.

        Args:
            step: the last step.
            checkpoint: file name of the trained network.
            data: description of the data for the report.

        Returns:
            A message with the path of the trained network and how to continue.
        """
        if self.is_main:
            self.log.close()
            write_report(self.run_dir, f"{step} steps of {self.config.batch_size} samples; {data}")
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
    add("--wandb", metavar="PROJECT", help="log to this project of Weights & Biases, too")
    return parser


def summarize_clips(clips: Sequence[Clip]) -> str:
    """Numbers of speakers, clips and minutes as text."""
    minutes = sum(len(clip.frames) for clip in clips) / FPS / 60
    return f"{len({clip.speaker for clip in clips})} speakers, {len(clips)} clips, {minutes:.1f} minutes"


def load_splits(data: Path, config: TrainConfig | SyncNetConfig) -> list[Sequence[Clip]]:
    """The training clips, and the validation clips of held-out speakers: some of them if there are very many."""
    train, val = (
        load_clips(data, split, config.mouth_size, config.audio_features, store_frames=split == "train")
        for split in ("train", "val")
    )
    return [train, thin(val)]


def max_processes(config: TrainConfig | SyncNetConfig) -> int:
    """Number of processes that can share a step: each takes a sample or more in every forward pass."""
    return config.batch_size // config.grad_accum_steps


def process_samples(config: TrainConfig | SyncNetConfig) -> list[int]:
    """Numbers of the samples of every batch that this process trains on, in the order of its forward passes."""
    return [number for part in distributed.shares(config.batch_size, config.grad_accum_steps) for number in part]


def check_run_dir(run_dir: Path, config: TrainConfig | SyncNetConfig, resume: bool) -> None:
    """Check that a run can be written to `run_dir`, or that the run in it can be resumed with `config`.

    Raises:
        OutputError: the directory holds a run and `resume` is false, or it cannot be created.
        ParameterError: `resume` is true, but there is no run, or its configuration differs in more than CHANGEABLE.
    """
    if resume:
        if not (run_dir / "state.pt").exists():
            raise ParameterError("resume", f"{run_dir} holds no run to continue (no state.pt)")
        before = load_config(run_dir / "config.yaml", kind=type(config))
        changed = [name for name in vars(config) if getattr(before, name) != getattr(config, name)]
        if fixed := [name for name in changed if name not in CHANGEABLE]:
            raise ParameterError(
                "resume",
                f"the configuration of {run_dir} differs in {', '.join(fixed)}; start a new run with init_from",
            )
    elif (run_dir / "state.pt").exists():
        raise OutputError(run_dir, "holds a run already; resume it or choose another directory")
    existing = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise OutputError(run_dir, f"cannot be created: {existing} is not a directory")


def create_run_dir(run_dir: Path, config: TrainConfig | SyncNetConfig) -> None:
    """Create the run directory if it does not exist, and store the configuration in it.

    Temporary files of a killed run are removed.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(run_dir, f"cannot be created: {error_reason(error)}") from None
    remove_leftovers(run_dir)
    write_atomically(run_dir / "config.yaml", lambda file: file.write(dump_config(config).encode()))
