"""log.jsonl and TensorBoard events of a run."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.training import tensorboard_events
from training.log import RunLog
from utils.files import read_jsonl

ROOT = Path(__file__).resolve().parents[2]


def test_values_go_to_both_logs(tmp_path):
    log = RunLog(tmp_path, 0)
    log.add("train", 1, {"loss": 0.5})
    log.add("val", 1, {"psnr": 20.0})
    log.writer.close()
    assert read_jsonl(tmp_path / "log.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 1, "psnr": 20.0}]
    events = tensorboard_events(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.5)]
    assert [(event.step, event.value) for event in events.Scalars("val/psnr")] == [(1, 20.0)]


def test_continued_log_drops_later_and_incomplete_lines(tmp_path):
    """A killed run may have logged after its last saved state. Keys of earlier versions stay."""
    lines = '{"step": 2, "val_ranked_right": 0.5}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo'
    (tmp_path / "log.jsonl").write_text(lines)
    log = RunLog(tmp_path, 2)
    log.add("train", 3, {"loss": 2.0})
    log.writer.close()
    assert read_jsonl(tmp_path / "log.jsonl") == [{"step": 2, "val_ranked_right": 0.5}, {"step": 3, "loss": 2.0}]


@pytest.mark.slow
def test_tensorflow_is_not_imported():
    """TensorBoard imports it if it is installed, and it cannot share a process with Triton."""
    code = "import sys, train_dinet; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
