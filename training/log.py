"""The log of a training run: log.jsonl, TensorBoard events, and Weights & Biases if it is asked for."""

import importlib
import json
import sys
import threading
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from matplotlib.figure import Figure

from utils.errors import ParameterError
from utils.files import output_errors, read_jsonl, write_atomically

# TensorBoard imports TensorFlow if it is installed, although writing events does not need it, and the LLVM
# libraries of TensorFlow and Triton cannot be loaded into one process. With a module of this name TensorBoard uses
# its own stub. Nothing else may import SummaryWriter before.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
from torch.utils.tensorboard import SummaryWriter  # noqa: E402


def _report_thread_error(args: threading.ExceptHookArgs, report=threading.excepthook) -> None:
    # an OSError of TensorBoard's writing thread, as on a full disk, is raised again by the next call of its writer
    from_tensorboard = type(args.thread).__module__.startswith("tensorboard.")
    if not (from_tensorboard and issubclass(args.exc_type, OSError)):
        report(args)


threading.excepthook = _report_thread_error


class Logger(Protocol):
    """Shows the values and images of a run."""

    def add_scalars(self, kind: str, step: int, values: dict[str, float]) -> None: ...

    def add_image(self, tag: str, step: int, image: torch.Tensor) -> None: ...

    def add_figure(self, tag: str, step: int, figure: Figure) -> None: ...

    def close(self) -> None: ...


class TensorBoardLogger:
    """Writes TensorBoard events into the run directory. All methods raise OutputError."""

    def __init__(self, run_dir: Path, step: int) -> None:
        self._run_dir = run_dir
        with output_errors(run_dir):
            self._writer = SummaryWriter(str(run_dir), purge_step=step + 1)

    def add_scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        with output_errors(self._run_dir):
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def add_image(self, tag: str, step: int, image: torch.Tensor) -> None:
        with output_errors(self._run_dir):
            self._writer.add_image(tag, image, step)

    def add_figure(self, tag: str, step: int, figure: Figure) -> None:
        with output_errors(self._run_dir):
            self._writer.add_figure(tag, figure, step)

    def close(self) -> None:
        with output_errors(self._run_dir):
            self._writer.close()


def import_wandb() -> Any:
    """The module wandb. Raises ParameterError if it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise ParameterError("wandb", "the package wandb is not installed; pip install wandb") from None


class WandbLogger:
    """Sends everything to a project of Weights & Biases; a resumed run continues there.

    Args:
        run_dir: its name is the name of the run; created if it does not exist.
        project: name of the project.
        config: configuration to show.

    Raises:
        ParameterError: the package is not installed, or the run cannot be started, as without an account.
        OutputError: `run_dir` cannot be written.
    """

    def __init__(self, run_dir: Path, project: str, config: dict[str, Any]) -> None:
        self._wandb = import_wandb()
        with output_errors(run_dir):
            run_dir.mkdir(parents=True, exist_ok=True)
        id_file = run_dir / "wandb_id"
        run_id = id_file.read_text() if id_file.exists() else uuid.uuid4().hex
        options = {"id": run_id, "resume": "allow", "dir": str(run_dir), "config": config}
        try:
            self._run = self._wandb.init(project=project, name=run_dir.name, **options)
        except Exception as error:  # its types differ between its versions
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ParameterError("wandb", f"cannot start a run: {reason}; `wandb offline` logs locally") from error
        write_atomically(id_file, lambda file: file.write(run_id.encode()))
        # steps after the last saved state are sent again when a killed run is resumed
        self._run.define_metric("*", step_metric="step")

    def add_scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **{f"{kind}/{name}": value for name, value in values.items()}})

    def add_image(self, tag: str, step: int, image: torch.Tensor) -> None:
        self._run.log({"step": step, tag: self._wandb.Image(image)})

    def add_figure(self, tag: str, step: int, figure: Figure) -> None:
        self._run.log({"step": step, tag: self._wandb.Image(figure)})

    def close(self) -> None:
        self._run.finish()


class RunLog:
    """Writes the values of a run to log.jsonl and passes them and images to loggers. All methods raise OutputError.

    Attributes:
        path: log.jsonl; one line per call of `add`, with the key "step".
    """

    def __init__(self, run_dir: Path, step: int, loggers: list[Logger]) -> None:
        """Open the log of a run that continues at `step`.

        Lines of later steps are removed: a killed run may have logged steps after its last saved state, and an
        incomplete line.
        """
        self.path, self._loggers = run_dir / "log.jsonl", loggers
        if self.path.exists():
            lines = [line for line in read_jsonl(self.path) if line["step"] <= step]
            kept = "".join(json.dumps(line) + "\n" for line in lines)
            write_atomically(self.path, lambda file: file.write(kept.encode()))

    def add(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Write `values` as one line of log.jsonl; loggers name them "kind/name"."""
        with output_errors(self.path), self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for logger in self._loggers:
            logger.add_scalars(kind, step, values)

    def add_image(self, tag: str, step: int, image: torch.Tensor) -> None:
        """Show a (3, H, W) image."""
        for logger in self._loggers:
            logger.add_image(tag, step, image)

    def add_figure(self, tag: str, step: int, figure: Figure) -> None:
        """Show a figure."""
        for logger in self._loggers:
            logger.add_figure(tag, step, figure)

    def close(self) -> None:
        """Write what is pending."""
        for logger in self._loggers:
            logger.close()
