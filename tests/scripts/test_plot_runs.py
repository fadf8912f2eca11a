"""scripts.plot_runs."""

import json
import subprocess
import sys
from pathlib import Path

import cv2


def test_there_is_one_panel_per_value(tmp_path: Path) -> None:
    for run, scale in (("one", 1.0), ("two", 2.0)):
        (tmp_path / run).mkdir()
        lines = [{"step": step, "loss": scale / (step + 1), "psnr": 20 + step} for step in range(30)]
        (tmp_path / run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sizes = []
    for flags in ([], ["--only", "psnr"]):
        image = tmp_path / "curves.png"
        command = [sys.executable, "-m", "scripts.plot_runs", tmp_path / "one", tmp_path / "two", "--output"]
        subprocess.run([*command, image, *flags], check=True, capture_output=True)
        sizes.append(cv2.imread(str(image)).shape[1])
    assert sizes[0] == 2 * sizes[1]  # one panel per value
    result = subprocess.run([*command, image, "--only", "fun"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "error: --only: expected some of loss, psnr, found fun\n"
