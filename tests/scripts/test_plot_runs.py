"""scripts.plot_runs."""

import json
from pathlib import Path

import cv2
import pytest

from scripts import plot_runs
from tests.support.commands import run_command_line


def test_there_is_one_panel_per_value(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for run, scale in (("one", 1.0), ("two", 2.0)):
        (tmp_path / run).mkdir()
        lines = [{"step": step, "loss": scale / (step + 1), "psnr": 20 + step} for step in range(30)]
        (tmp_path / run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sizes = []
    for flags in ([], ["--only", "psnr"]):
        image = tmp_path / "curves.png"
        run_command_line(plot_runs.main, tmp_path / "one", tmp_path / "two", "--output", image, *flags)
        sizes.append(cv2.imread(str(image)).shape[1])
    assert sizes[0] == 2 * sizes[1]  # one panel per value
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_command_line(plot_runs.main, tmp_path / "one", tmp_path / "two", "--output", image, "--only", "fun")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: --only: expected some of loss, psnr, found fun\n"
