"""Training in two processes started by torchrun, on the CPU: the losses equal those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.checkpoint import load_training_state, save_model
from models.syncnet import SyncNet
from utils.files import read_jsonl

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ALL_LOSSES = """
mouth_size: 64
clip_length: 5
batch_size: 2
max_steps: 2
precision: fp32
num_references: 2
loss_weights: {pixel: 1.0, lips: 1.0, perceptual: 10.0, adversarial: 1.0, clip_adversarial: 1.0, sync: 0.1}
log_every: 1
validate_every: 2
val_frames: 1
"""
SYNCNET = """
mouth_size: 32
batch_size: 4
max_steps: 3
precision: fp32
shape_warmup_steps: 2
log_every: 1
validate_every: 3
"""


def run(processes: int, script: str, *flags: object) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, script, "--device", "cpu", *map(str, flags)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def log_lines(run_dir: Path, key: str) -> list[dict[str, float]]:
    """The lines of log.jsonl that have a value for `key`."""
    return [line for line in read_jsonl(run_dir / "log.jsonl") if key in line]


def assert_same_losses(one: Path, two: Path, key: str, steps: int) -> None:
    one_lines, two_lines = log_lines(one, key), log_lines(two, key)
    assert [line["step"] for line in two_lines] == [line["step"] for line in one_lines] == list(range(1, steps + 1))
    for one_line, two_line in zip(one_lines, two_lines, strict=True):
        assert two_line == pytest.approx(one_line, rel=1e-3)


def test_generator_with_all_losses(prepared_dataset, tmp_path):
    torch.manual_seed(0)
    syncnet = tmp_path / "syncnet.safetensors"
    save_model(syncnet, SyncNet(384), audio_features="whisper", mouth_size=64, info={})
    (tmp_path / "all.yaml").write_text(ALL_LOSSES + f"syncnet: {syncnet}\n")
    flags = ("train_dinet.py", "--config", tmp_path / "all.yaml", "--data", prepared_dataset, "--run-dir")
    for processes in (1, 2):
        done = run(processes, *flags, tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("finished at step 2") == 1  # only process 0 prints
    assert_same_losses(tmp_path / "1", tmp_path / "2", "perceptual", steps=2)
    one, two = (load_training_state(tmp_path / name / "state.pt")["generator"] for name in ("1", "2"))
    for name in one:
        if "running" in name:  # statistics of the whole batch
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)


def test_syncnet(prepared_dataset, tmp_path):
    (tmp_path / "tiny.yaml").write_text(SYNCNET)
    flags = ("train_syncnet.py", "--config", tmp_path / "tiny.yaml", "--data", prepared_dataset, "--run-dir")
    for processes in (1, 2):
        done = run(processes, *flags, tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
    assert_same_losses(tmp_path / "1", tmp_path / "2", "contrast", steps=3)


def test_batch_size_must_be_a_multiple_of_the_processes(prepared_dataset, tmp_path):
    (tmp_path / "odd.yaml").write_text(SYNCNET.replace("batch_size: 4", "batch_size: 3"))
    flags = ("--config", tmp_path / "odd.yaml", "--data", prepared_dataset, "--run-dir", tmp_path / "run")
    done = run(2, "train_syncnet.py", *flags)
    assert done.returncode != 0
    assert "batch_size: expected a multiple of the 2 processes, found 3" in done.stderr
