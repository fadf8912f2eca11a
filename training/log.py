"""The log of a training run: log.jsonl and TensorBoard events."""

import json
import sys
from pathlib import Path
from types import ModuleType

from utils.files import read_jsonl, write_atomically

# TensorBoard imports TensorFlow if it is installed, although writing events does not need it, and the LLVM
# libraries of TensorFlow and Triton cannot be loaded into one process. With a module of this name TensorBoard uses
# its own stub. Nothing else may import SummaryWriter before.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
from torch.utils.tensorboard import SummaryWriter  # noqa: E402


class RunLog:
    """Writes the values of a run to log.jsonl and to TensorBoard.

    Attributes:
        path: log.jsonl; one line per call of `add`, with the key "step".
        writer: TensorBoard's writer, also for images and figures.
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
        self.writer = SummaryWriter(str(run_dir), purge_step=step + 1)

    def add(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Write `values` as one line of log.jsonl, and as the TensorBoard scalars "kind/name"."""
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, step)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
