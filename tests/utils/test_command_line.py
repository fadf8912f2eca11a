"""Errors and warnings as lines with the flag they concern, and exit codes."""

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_processing.media.audio_io import load_audio
from tests.support.media import two_audio_tracks
from utils.command_line import run_command
from utils.errors import (
    AudioError,
    CheckpointError,
    DatasetError,
    GapError,
    LimitError,
    MediaError,
    OutputError,
    ParameterError,
    UserError,
)

ROOT = Path(__file__).resolve().parents[2]


def parse_even(text: str) -> int:
    if int(text) % 2:
        raise UserError(f"expected an even number, found {text}")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("videos", nargs="*", type=Path, metavar="INPUT")
    parser.add_argument("-v", "--video", type=Path)
    parser.add_argument("--audio", type=Path, nargs="+", default=[])
    parser.add_argument("--face", nargs="+", default=["largest"])
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--landmarks", choices=["dlib", "openface"], default="dlib")
    parser.add_argument("--crf", type=int, default=16)
    parser.add_argument("--size", type=parse_even, default=2)
    parser.add_argument("--no-limits", action="store_true")
    return parser


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command with flags whose `run` raises an exception or calls a function; the exit code and stderr."""

    def call(action, *flags, parser=None):
        def run(args: argparse.Namespace) -> None:
            if isinstance(action, BaseException):
                raise action
            action()

        monkeypatch.setattr(sys, "argv", ["command", *map(str, flags)])
        try:
            run_command(parser or make_parser(), run)
            code = 0
        except SystemExit as exit_:
            code = exit_.code
        return code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("error", "flags", "line"),
    [
        (MediaError("a.mp4", "no video stream"), ["--video", "a.mp4"], "--video: a.mp4: no video stream"),
        (AudioError("b.wav", "no audio track"), ["--audio", "a.wav", "b.wav"], "--audio: b.wav: no audio track"),
        (MediaError("b.mp4", "empty"), ["a.mp4", "b.mp4"], "INPUT: b.mp4: empty"),
        (MediaError("me.jpg", "no such file"), ["--face", "left", "me.jpg"], "--face: me.jpg: no such file"),
        # a file inside a folder that was given
        (DatasetError("set/a.npz", "truncated"), ["--data", "set"], "--data: set/a.npz: truncated"),
        (DatasetError("set/in/a.npz", "x"), ["--data", "set", "--video", "set/in"], "--video: set/in/a.npz: x"),
        (DatasetError("set/a.npz", "x"), ["--data", "set", "--video", "set/a.npz"], "--video: set/a.npz: x"),
        # the default folder "." contains too much to be at fault
        (CheckpointError("a.safetensors", "x"), [], "a.safetensors: x"),
        (CheckpointError("other.pt", "x"), ["--video", "a.mp4"], "other.pt: x"),
        # parameters
        (ParameterError("crf", "expected 0 to 51, found 60"), [], "--crf: expected 0 to 51, found 60"),
        (ParameterError("video", "too long"), [], "--video: too long"),
        (ParameterError("videos", "too many"), [], "INPUT: too many"),
        (ParameterError("depth", "expected 1, found 2"), [], "depth: expected 1, found 2"),
        (UserError("reason"), [], "reason"),
        # one file as source video and driving audio
        (AudioError("a.mp4", "truncated"), ["--video", "a.mp4", "--audio", "a.mp4"], "--audio: a.mp4: truncated"),
        (MediaError("a.mp4", "truncated"), ["--audio", "a.mp4", "--video", "a.mp4"], "--video: a.mp4: truncated"),
    ],
)  # fmt: skip
def test_user_error(call, error, flags, line):
    assert call(error, *flags) == (2, f"error: {line}\n")


def test_absolute_and_relative_paths(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, at_fault in [
        ("a.mp4", tmp_path / "a.mp4"),
        (tmp_path / "a.mp4", "a.mp4"),
        ("folder/../a.mp4", tmp_path / "a.mp4"),
        ("folder", tmp_path / "folder" / "a.mp4"),
        (tmp_path / "folder", "folder/a.mp4"),
    ]:
        assert call(MediaError(at_fault, "x"), "--video", given) == (2, f"error: --video: {at_fault}: x\n")


def test_limits_can_be_disabled(call):
    hint = "; --no-limits disables this limit"
    for error in (LimitError("a.mp4", "too large"), GapError("a.mp4", "too large")):
        assert call(error, "--video", "a.mp4") == (2, f"error: --video: a.mp4: too large{hint}\n")
        assert call(error, "--no-limits") == (2, "error: a.mp4: too large\n")
    assert call(OutputError("a.mp4", "the disk is full")) == (2, "error: a.mp4: the disk is full\n")
    assert (
        call(LimitError("a.mp4", "too large"), parser=argparse.ArgumentParser())[1] == "error: a.mp4: too large\n"
    )


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--size", "3"], "--size: expected an even number, found 3"),
        (["--size", "x"], "--size: invalid parse_even value: 'x'"),
        (["--crf", "x"], "--crf: invalid int value: 'x'"),
        (["--landmarks", "x"], "--landmarks: invalid choice: 'x' (choose from 'dlib', 'openface')"),
        (["--audio"], "--audio: expected at least one argument"),
        (["--video"], "--video: expected one argument"),
        (["-v"], "--video: expected one argument"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["--vide"], "unrecognized arguments: --vide"),  # no abbreviations
    ],
)
def test_errors_of_parsing(call, flags, line):
    def run():
        raise AssertionError("run must not be called")

    code, stderr = call(run, *flags)
    assert code == 2
    if sys.version_info < (3, 12) or "choice" not in line:  # later versions quote choices differently
        assert stderr == f"error: {line}\n"


def test_subparsers(call):
    def parser():
        parser = argparse.ArgumentParser()
        commands = parser.add_subparsers(required=True, metavar="COMMAND")
        commands.add_parser("make").add_argument("--size", type=parse_even)
        commands.add_parser("show").add_argument("--video", type=Path)
        return parser

    assert call(print, parser=parser()) == (2, "error: the following arguments are required: COMMAND\n")
    assert call(print, "make", "--size", "3", parser=parser()) == (
        2,
        "error: --size: expected an even number, found 3\n",
    )
    assert call(print, "show", "--video", parser=parser()) == (2, "error: --video: expected one argument\n")
    error = MediaError("a.mp4", "empty")
    assert call(error, "show", "--video", "a.mp4", parser=parser()) == (2, "error: --video: a.mp4: empty\n")


@pytest.mark.parametrize(
    ("message", "line"),
    [("", "no partial output is left"), ("segments are in a", "segments are in a")],
)
def test_interrupt(call, message, line):
    assert call(KeyboardInterrupt(message) if message else KeyboardInterrupt()) == (130, f"interrupted; {line}\n")


def test_other_exceptions_are_not_caught(call):
    with pytest.raises(ZeroDivisionError):
        call(ZeroDivisionError())
    handlers = logging.getLogger().handlers
    assert not any("command_line" in type(handler).__module__ for handler in handlers)


def test_notes_and_warnings(call):
    def run():
        logger = logging.getLogger("data_processing.media.audio_io")
        logger.debug("details")
        logger.info("%s: using audio track %d of %d", "a.mp4", 1, 2, extra={"path": Path("a.mp4")})
        logger.warning("too few", extra={"parameter": "face"})
        logger.warning("%s; using what precedes it", GapError("a.mp4", "a gap"), extra={"path": Path("a.mp4")})
        logging.getLogger("models").warning("100 %")
        logging.getLogger("matplotlib").warning("of another package")

    code, stderr = call(run, "--video", "a.mp4")
    assert code == 0
    assert stderr.splitlines() == [
        "note: --video: a.mp4: using audio track 1 of 2",
        "warning: --face: too few",
        "warning: --video: a.mp4: a gap; using what precedes it; --no-limits disables this limit",
        "warning: 100 %",
    ]


def test_notes_on_the_audio_track_of_a_video(call, tmp_path):
    """A video with two audio tracks, given as source video and as driving audio."""
    video = two_audio_tracks(tmp_path / "clip.mkv")
    _, stderr = call(lambda: load_audio(video), "--video", video, "--audio", video)
    assert stderr == f"note: --audio: {video}: using audio track 2 of 2\n"


def test_closed_pipe():
    code = (
        "import argparse\n"
        "from utils.command_line import run_command\n"
        "run_command(argparse.ArgumentParser(), lambda args: [print('x' * 1000) for _ in range(10000)])\n"
    )
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(write)
    os.close(read)
    assert process.communicate()[1] == b""
    assert process.returncode == 141
