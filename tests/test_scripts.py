"""The thin commands: the chain of stages with a stand-in for Python, a smaller checkpoint, the picture of runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from models.checkpoint import load_model, save_model
from models.dinet import DINet, DINetConfig
from scripts.visualize import moved_grid

ROOT = Path(__file__).parent.parent

# Notes what it is asked for; a training leaves a state and what it should give.
# The one that BREAKS names is killed before it is done.
STAND_IN = """#!/bin/bash
echo "$@" >> "$LOG"
run=
while [[ $# -gt 0 ]]; do [[ $1 == --run-dir ]] && run=$2; shift; done
[[ -z $run ]] && exit 0
mkdir -p "$run"
touch "$run/state.pt"
[[ $BREAKS == "$(basename "$run")" ]] && kill -9 $$
touch "$run/generator.safetensors" "$run/best.safetensors" "$run/syncnet.safetensors"
"""


def train_all(home: Path, *flags: str, breaks: str = "") -> tuple[int, list[str]]:
    """The exit status of train_all.sh and the commands it ran."""
    log = home / "log"
    log.unlink(missing_ok=True)
    command = ["bash", home / "scripts/train_all.sh", home / "videos", home / "work", *flags]
    result = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", "LOG": log, "BREAKS": breaks}, capture_output=True
    )
    return result.returncode, log.read_text().splitlines() if log.exists() else []


def make_home(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/train_all.sh", tmp_path / "scripts")
    python = tmp_path / ".venv/bin/python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return tmp_path


def trained(commands: list[str]) -> list[str]:
    """Names of the stages trained, in order."""
    found = []
    for line in commands:
        words = line.split()
        if "--run-dir" in words:
            found.append(Path(words[words.index("--run-dir") + 1]).name)
    return found


def test_train_all_goes_from_coarse_to_fine(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    code, commands = train_all(home)
    assert code == 0
    assert trained(commands) == [
        *(f"syncnet_{size}" for size in (64, 128, 256)),
        *(f"frame_{size}" for size in (64, 128, 256)),
        "clip_256",
    ]
    clip = next(line for line in commands if "--run-dir" in line and "clip_256" in line)
    assert f"--init-from {home}/work/frame_256/generator.safetensors" in clip
    assert f"--syncnet {home}/work/syncnet_256/syncnet.safetensors" in clip
    assert not any("--resume" in line for line in commands)
    assert (home / "work/dinet_256.safetensors").exists()
    for line in commands:  # every recipe and script it names is there
        for word in line.split():
            if word.startswith(("configs/", "train_", "evaluate", "inference", "checkpoints/")):
                assert (ROOT / word).is_file(), word


def test_train_all_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    whole = trained(train_all(home, "small")[1])
    shutil.rmtree(home / "work")
    code, commands = train_all(home, "small", breaks=whole[1])
    assert code != 0
    assert trained(commands) == whole[:2]
    code, commands = train_all(home, "small")
    assert code == 0
    assert trained(commands) == whole[1:]
    assert [line.endswith("--resume") for line in commands if "--run-dir" in line] == [
        True,
        *[False] * (len(whole) - 2),
    ]
    for line in commands:
        for word in line.split():
            if word.startswith(("configs/", "checkpoints/")):
                assert (ROOT / word).is_file(), word


def test_train_all_says_how_it_is_used(tmp_path: Path) -> None:
    assert train_all(make_home(tmp_path), "tiny") == (2, [])


def test_compact_checkpoint_halves_a_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DINet(DINetConfig(audio_dim=8, num_references=1))
    save_model(tmp_path / "in", model, audio_features="phoneme", mouth_size=64, info={"steps": 3})
    subprocess.run(
        [sys.executable, ROOT / "scripts/compact_checkpoint.py", tmp_path / "in", tmp_path / "out"], check=True
    )
    assert (tmp_path / "out").stat().st_size < 0.52 * (tmp_path / "in").stat().st_size
    small = load_model(tmp_path / "out")
    assert small.info == {"steps": 3}
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1:  # to half a step of 127 a channel
            step = tensor.abs().amax(dim=tuple(range(1, tensor.ndim)), keepdim=True) / 127
            assert ((small.model.state_dict()[name] - tensor).abs() <= 0.51 * step + 1e-3 * tensor.abs()).all(), (
                name
            )


def test_plot_runs_draws_every_number(tmp_path: Path) -> None:
    for run, bend in (("one", 1.0), ("two", 2.0)):
        (tmp_path / run).mkdir()
        lines = [{"step": step, "loss": bend / (step + 1), "psnr": 20 + step} for step in range(30)]
        (tmp_path / run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sizes = []
    for flags in ([], ["--only", "psnr"]):
        picture = tmp_path / "curves.png"
        command = [sys.executable, ROOT / "scripts/plot_runs.py", tmp_path / "one", tmp_path / "two", "--output"]
        subprocess.run([*command, picture, *flags], check=True, capture_output=True)
        sizes.append(cv2.imread(str(picture)).shape[1])
    assert sizes[0] == 2 * sizes[1]  # a panel for each number
    refused = subprocess.run([*command, picture, "--only", "fun"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr == "error: --only: expected some of loss, psnr, found fun\n"


def test_visualize_draws_a_frame(tmp_path: Path, portrait_clip: Path) -> None:
    torch.manual_seed(0)
    model = DINet(DINetConfig(audio_dim=29, num_references=2))
    save_model(tmp_path / "model", model, audio_features="phoneme", mouth_size=32, info={})
    command = [sys.executable, ROOT / "scripts/visualize.py", "--video", portrait_clip, "--checkpoint"]
    picture = tmp_path / "figure.png"
    subprocess.run([*command, tmp_path / "model", "--frame", "5", "--output", picture], check=True)
    assert cv2.imread(str(picture)).std() > 10
    refused = subprocess.run([*command, tmp_path / "model", "--frame", "99"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "error: --frame: expected one of 0 to 39 with a face, found 99" in refused.stderr


def test_moved_grids_are_where_adaat_reads() -> None:
    translation = np.array([0.3, -0.1])
    grid = F.affine_grid(
        torch.tensor([[[0.5 * np.cos(1), -0.5 * np.sin(1), 0.3], [0.5 * np.sin(1), 0.5 * np.cos(1), -0.1]]]),
        [1, 1, 9, 50],
        align_corners=True,
    )[0]
    lines = moved_grid(0.5, 1.0, translation)
    assert len(lines) == 18
    for row, line in zip(grid.numpy(), lines[::2], strict=True):
        np.testing.assert_allclose(line.T, row, atol=1e-6)
