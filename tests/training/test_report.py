"""The report of a run."""

import base64
import json
import re

import cv2
import numpy as np
import pytest

from training.report import read_log, series, value_names, write_report
from utils.errors import FileError

LINES = [
    {"step": 1, "loss": 2.0},
    {"step": 2, "loss": 0.5},
    {"step": 2, "psnr": 21.25},
    {"step": 3, "loss": 1.0},
]


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0  # <b>\n")
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path


def test_values_of_a_log(run_dir):
    lines = read_log(run_dir)
    assert value_names(lines) == ["loss", "psnr"]
    assert series(lines, "loss") == ([1, 2, 3], [2.0, 0.5, 1.0])


def test_report_is_one_page_with_values_curves_and_configuration(run_dir):
    page = write_report(run_dir, "3 steps & 2 speakers").read_text()
    assert "3 steps &amp; 2 speakers" in page and "seed: 0  # &lt;b&gt;" in page
    rows = {row[0]: row[1:] for row in (line.split("<td>") for line in re.findall("<tr><td>(.*)</tr>", page))}
    assert rows == {
        "loss": ["2", "1", "0.5", "2", "2", "1"],  # first, last, lowest at step, highest at step
        "psnr": ["21.25", "21.25", "21.25", "2", "21.25", "2"],
    }
    (data,) = re.findall('src="data:image/png;base64,([^"]*)"', page)
    image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[1] > image.shape[0] > 100  # two panels
    assert not re.search('(src|href)="(?!data:)', page)  # complete in one file


def test_run_without_a_log_has_no_report(tmp_path):
    with pytest.raises(FileError, match=r"no log\.jsonl"):
        write_report(tmp_path, "")
