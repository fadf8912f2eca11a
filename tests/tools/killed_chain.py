"""Kill a chain of trainings and compare it with an unbroken one: python -m tests.tools.killed_chain FOLDER

Trains the stages of `scripts/train_all.sh … small`, shortened and at S = 32, on two made videos, in two processes
of torchrun on the CPU. In a second chain all processes are killed (SIGKILL) in the middle of a stage, and the same
command continues it. Weights and optimizers of both chains must be equal, bit by bit.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch

from models.checkpoint import load_training_state
from scripts import train_all
from scripts.train_all import SYNCNET_FILE, Stage
from tests.support.media import talking_portrait
from utils.bundled import BUNDLED_GENERATOR, BUNDLED_SYNCNET, ROOT
from utils.command_line import run_command
from utils.errors import UserError
from utils.files import read_jsonl

COMMON = "mouth_size: 32\nprecision: fp32\nmax_steps: 4\nsave_every: 2\nlog_every: 1\nvalidate_every: 4\n"
GENERATOR = COMMON + "batch_size: 3\nimage_every: 4\nval_frames: 1\n"
CONFIGS = {
    "syncnet.yaml": COMMON + "batch_size: 5\n",
    "frames.yaml": GENERATOR + "loss_weights: {pixel: 10, lips: 30, adversarial: 0}\n",
    "clips.yaml": GENERATOR
    + "clip_length: 5\nfreeze_bn: true\nloss_weights: {pixel: 10, lips: 30, adversarial: 0, sync: 3}\n"
    + "sync_target: real\n",
}
KILLED_STAGE, KILLED_STEP = "frames", 3  # after the save of step 2


def train(folder: Path) -> None:
    """Run the shortened chain in `folder`, without the evaluation and the dub at its end."""
    configs = folder / "configs"
    train_all.RECIPES["small"] = [
        Stage(str(configs / "syncnet.yaml"), BUNDLED_SYNCNET, result=SYNCNET_FILE),
        Stage(str(configs / "frames.yaml"), BUNDLED_GENERATOR),
        Stage(str(configs / "clips.yaml"), "frames", "syncnet"),
    ]
    run_python = train_all.run_python
    train_all.run_python = lambda *words: words[0] in ("evaluate.py", "inference.py") or run_python(*words)
    sys.argv = ["train_all", str(folder / "videos"), str(folder / "work"), "small"]
    train_all.main()


def start(folder: Path) -> subprocess.Popen:
    """`train` in a process of its own."""
    environment = os.environ | {"GPUS": "2", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.tools.killed_chain", folder, "--train"]
    return subprocess.Popen(command, cwd=ROOT, env=environment)


def kill_in_the_middle(process: subprocess.Popen, run_dir: Path) -> None:
    """Kill a process and those it started once step KILLED_STEP is logged."""
    while not any(line["step"] >= KILLED_STEP for line in read_jsonl(run_dir / "log.jsonl")):
        if process.poll() is not None:
            raise UserError(f"the chain ended with exit code {process.returncode} before it could be killed")
        time.sleep(0.02)
    for part in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        part.kill()
    process.wait()


def finish(process: subprocess.Popen) -> None:
    if process.wait():
        raise UserError(f"the chain ended with exit code {process.returncode}")


def differences(one: object, other: object, where: str) -> list[str]:
    """Where nested dicts and lists of tensors and numbers differ."""
    if isinstance(one, dict):
        return [line for key in one for line in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple):
        return [
            line
            for k, pair in enumerate(zip(one, other, strict=True))
            for line in differences(*pair, f"{where}.{k}")
        ]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [where]


def run(args: argparse.Namespace) -> None:
    if args.train:
        train(args.folder.absolute())
        return
    unbroken, killed = (args.folder.absolute() / name for name in ("unbroken", "killed"))
    for folder in (unbroken, killed):
        for name in ("configs", "videos"):
            (folder / name).mkdir(parents=True)
        for name, text in CONFIGS.items():
            (folder / "configs" / name).write_text(text)
        for name in ("ann.mp4", "bob.mp4"):
            talking_portrait(folder / "videos" / name, 30)
    finish(start(unbroken))
    kill_in_the_middle(start(killed), killed / "work" / KILLED_STAGE)
    step = load_training_state(killed / "work" / KILLED_STAGE / "state.pt")["step"]
    print(f"killed in {KILLED_STAGE} after step {KILLED_STEP} was logged; last saved state: step {step}")
    finish(start(killed))
    found = []
    for stage in ("syncnet", "frames", "clips"):
        one, other = (load_training_state(folder / "work" / stage / "state.pt") for folder in (unbroken, killed))
        found += differences(one | {"data": ""}, other | {"data": ""}, stage)
    if found:
        raise UserError(f"{len(found)} values differ: {', '.join(found[:5])}")
    print("weights and optimizers of all stages are equal, bit by bit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder for both chains")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    run_command(parser, run)


if __name__ == "__main__":
    main()
