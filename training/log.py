"""TODO."""

import json
import sys
from pathlib import Path
from types import ModuleType

from torch.utils.tensorboard import SummaryWriter

from utils.files import read_jsonl, write_atomically

# TensorBoard imports TensorFlow wherever it is installed, though writing events does not need it, and the two
# LLVMs of TensorFlow and Triton cannot live in one process. A module of this name makes it use its own stub.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))


class RunLog:
    """The numbers of a run, in log.jsonl and in TensorBoard; lines later than `step` are dropped, they come again.

    `writer` is TensorBoard's, for pictures.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        self.path = run_dir / "log.jsonl"
        if self.path.exists():  # a killed run may have logged steps after its last state, and half a line
            lines = [line for line in read_jsonl(self.path) if line["step"] <= step]
            kept = "".join(json.dumps(line) + "\n" for line in lines)
            write_atomically(self.path, lambda file: file.write(kept.encode()))
        self.writer = SummaryWriter(str(run_dir), purge_step=step + 1)

    def add(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Write `values`, in TensorBoard as "kind/name"."""
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, step)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
