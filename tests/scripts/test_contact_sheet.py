"""Contact sheets of videos: whole frames and mouth boxes."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from data_processing.media.video_reader import read_frames
from scripts import contact_sheet
from tests.support.commands import run_command_line


def test_rows_are_the_frames_of_each_video(portrait_clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "sheet.png"
    flags = ("--first", "3", "--step", "5", "--count", "2", "--height", "128", "--output", output)
    run_command_line(contact_sheet.main, portrait_clip, portrait_clip, *flags)
    sheet = cv2.cvtColor(cv2.imread(str(output)), cv2.COLOR_BGR2RGB)
    frames = [frame for index, frame in enumerate(read_frames(portrait_clip)) if index in (3, 8)]
    row = np.hstack([cv2.resize(frame, (128, 128), interpolation=cv2.INTER_AREA) for frame in frames])
    assert (sheet == np.vstack([row, row])).all()


def test_mouth_boxes(portrait_clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "sheet.png"
    flags = ("--mouth", "--count", "3", "--step", "2", "--height", "64", "--output", output)
    run_command_line(contact_sheet.main, portrait_clip, *flags)
    assert cv2.imread(str(output)).shape == (64, 3 * 64, 3)


def test_too_few_frames(portrait_clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        flags = ("--first", "40", "--step", "10", "--count", "9", "--output", tmp_path / "sheet.png")
        run_command_line(contact_sheet.main, portrait_clip, *flags)
    assert caught.value.code == 2
    assert "expected 9 frames from 40 in steps of 10, found" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
