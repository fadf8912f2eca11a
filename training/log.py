"""The log of a training run: log.jsonl and TensorBoard events."""

import json
import sys
import threading
from pathlib import Path
from types import ModuleType

import torch
from matplotlib.figure import Figure

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


class RunLog:
    """Writes the values of a run to log.jsonl and to TensorBoard. All methods raise OutputError.

    Attributes:
        path: log.jsonl; one line per call of `add`, with the key "step".
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        """Open the log of a run that continues at `step`.

        Lines and events of later steps are removed: a killed run may have logged steps after its last saved state,
        and an incomplete line.
        """
        self.path = run_dir / "log.jsonl"
        if self.path.exists():
            lines = [line for line in read_jsonl(self.path) if line["step"] <= step]
            kept = "".join(json.dumps(line) + "\n" for line in lines)
            write_atomically(self.path, lambda file: file.write(kept.encode()))
        with output_errors(run_dir):
            self._writer = SummaryWriter(str(run_dir), purge_step=step + 1)

    def add(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Write `values` as one line of log.jsonl, and as the TensorBoard scalars "kind/name"."""
        with output_errors(self.path), self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        with output_errors(self.path.parent):
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def add_image(self, tag: str, step: int, image: torch.Tensor) -> None:
        """Write a (3, H, W) image as a TensorBoard image."""
        with output_errors(self.path.parent):
            self._writer.add_image(tag, image, step)

    def add_figure(self, tag: str, step: int, figure: Figure) -> None:
        """Write a figure as a TensorBoard image."""
        with output_errors(self.path.parent):
            self._writer.add_figure(tag, figure, step)

    def close(self) -> None:
        """Write what is pending."""
        with output_errors(self.path.parent):
            self._writer.close()
