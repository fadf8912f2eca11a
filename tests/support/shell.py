"""Running the shell scripts of scripts/ with a stand-in for Python."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Logs its command line. A training writes a state, then its checkpoints; the one named by BREAKS is killed before.
STAND_IN = """#!/bin/bash
echo "$@" >> "$LOG"
run= scores=
while [[ $# -gt 0 ]]; do
    [[ $1 == --run-dir ]] && run=$2
    [[ $1 == --frames-per-clip ]] && scores=yes
    [[ $1 == --output && -n $scores ]] && mkdir -p "$2" && touch "$2/evaluation.json"
    shift
done
[[ -z $run ]] && exit 0
mkdir -p "$run"
touch "$run/state.pt"
[[ $BREAKS == "$(basename "$run")" ]] && kill -9 $$
touch "$run/generator.safetensors" "$run/best.safetensors" "$run/syncnet.safetensors"
"""


def run_script(script: str, home: Path, *flags: str, breaks: str = "") -> tuple[int, list[str]]:
    """Run a script in `home`, see `make_home`.

    Args:
        breaks: name of the training to kill.

    Returns:
        The exit status and the command lines passed to Python.
    """
    log = home / "log"
    log.unlink(missing_ok=True)
    command = ["bash", home / "scripts" / script, home / "given", home / "work", *flags]
    result = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", "LOG": log, "BREAKS": breaks}, capture_output=True
    )
    return result.returncode, log.read_text().splitlines() if log.exists() else []


def make_home(tmp_path: Path) -> Path:
    """A folder with copies of the shell scripts and the stand-in as .venv/bin/python."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for script in ("reproduce_tables.sh", "stage.sh"):
        shutil.copy(ROOT / "scripts" / script, tmp_path / "scripts")
    python = tmp_path / ".venv/bin/python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return tmp_path


def trained(commands: list[str]) -> list[str]:
    """Names of the trained stages, in order."""
    names = []
    for line in commands:
        words = line.split()
        if "--run-dir" in words:
            names.append(Path(words[words.index("--run-dir") + 1]).name)
    return names


def missing_files(commands: list[str]) -> list[str]:
    """Configurations, scripts, modules and checkpoints that the commands name but the repository does not have."""
    words = [word for line in commands for word in line.split()]
    prefixes = ("configs/", "checkpoints/", "scripts/", "train_", "evaluate", "inference")
    paths = [word for word in words if word.startswith(prefixes)]
    paths += [f"{word.replace('.', '/')}.py" for word in words if word.startswith(("scripts.", "data_processing."))]
    return [path for path in paths if not (ROOT / path).is_file()]
