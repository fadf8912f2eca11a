"""Dubbing needs nothing that Windows or macOS lack: it works without what only Linux or POSIX have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_processing.media.video_reader import probe
from tests.conftest import SECONDS

ROOT = Path(__file__).resolve().parents[1]
# Third-party packages have other code there; they are loaded before anything is taken away.
PRELUDE = """
import asyncio, importlib, multiprocessing.pool, os, pathlib, pkgutil, runpy, signal, subprocess, sys, tempfile
import av, cv2, dlib, filelock, joblib, matplotlib.pyplot, numpy, psutil, safetensors.torch, scipy.signal, torch
import torch.utils.data, torchvision, tqdm, yaml
for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None  # importing it raises ImportError
for name in (
    "chown chroot fork forkpty getgid getgroups getloadavg getpgid getuid geteuid killpg lockf mkfifo mknod nice "
    "pathconf pread preadv pwrite pwritev sched_getaffinity sched_setaffinity sendfile setsid setuid sync sysconf "
    "statvfs umount uname"
).split():
    if hasattr(os, name):
        delattr(os, name)
for name in "SIGALRM SIGHUP SIGKILL SIGPIPE SIGQUIT SIGUSR1 SIGUSR2 setitimer alarm pause".split():
    delattr(signal, name)
"""
IMPORT_ALL = """
for package in ("utils", "models", "data_processing", "losses", "configs", "evaluation", "training", "dubbing"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)
"""
LOAD = """
from configs.schema import load_config
load_config(pathlib.Path("configs/stages/frame_64.yaml"))  # has a multiplication sign
"""
DUB = "sys.argv[0] = 'inference.py'; runpy.run_path('inference.py', run_name='__main__')"

# text in files is ASCII unless the code says otherwise; on Windows it is that of the country
LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

pytestmark = pytest.mark.slow


def test_import_and_dub_without_posix(tmp_path, portrait_clip, speech, checkpoint):
    output = tmp_path / "dubbed.mp4"
    inputs = ["--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint, "--device", "cpu"]
    command = [sys.executable, "-c", PRELUDE + IMPORT_ALL + LOAD + DUB, *inputs, "--output", output, "--resume"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **LOCALE})
    assert result.returncode == 0, result.stderr
    assert probe(output).duration_s == pytest.approx(SECONDS, abs=0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["dubbed.mp4"]
