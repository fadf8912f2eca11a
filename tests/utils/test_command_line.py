"""Errors and warnings as lines with the flag they concern, and exit codes."""

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tqdm import tqdm

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


# --- in a process of its own -------------------------------------------------------------------------

COMMAND = """
import argparse, logging, os, sys, time
from pathlib import Path
from tqdm import tqdm
from utils.command_line import print_result, run_command
from utils.errors import MediaError, UserError
from utils.files import PartialFile, write_atomically

def run(args):
    BODY

run_command(argparse.ArgumentParser(description="with an ellipsis: …"), run)
"""
# work that prints, warns, and shows a progress bar, then writes a file
WORK = r"""
    for _ in tqdm(range(3)):
        tqdm.write("step \u53e3 \udcff")
    logging.getLogger("dubbing").warning("a note on \u53e3 \udcff")
    write_atomically(Path(os.environ["OUTPUT"]), lambda file: file.write(b"done"))
    print("\u53e3 \udcff" * 5000)
"""
full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")


def command(body: str, *flags: str, shell: str = "", **options) -> subprocess.Popen:
    """Start a command with this body of `run`; `shell`: redirections."""
    words = [sys.executable, "-c", COMMAND.replace("BODY", body.strip()), *flags]
    if shell:
        words = ["sh", "-c", f'exec "$@" {shell}', "sh", *words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"} | options
    return subprocess.Popen(words, cwd=ROOT, **options)


def test_closed_pipe():
    read, write = os.pipe()
    process = command("[print('x' * 1000) for _ in range(10000)]", stdout=write)
    os.close(write)
    os.close(read)
    assert process.communicate()[1] == ""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("shell", "warning"),
    [
        (">&-", ""),
        ("2>&-", ""),
        ("<&- >&- 2>&-", ""),
        pytest.param(">/dev/full", "cannot be written: the disk is full; all else is done", marks=full_device),
        pytest.param("2>/dev/full", "", marks=full_device),
        pytest.param(">/dev/full 2>&1", "", marks=full_device),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_work_is_done_although_nothing_can_be_printed(tmp_path, shell, warning, unbuffered):
    environment = {**os.environ, "OUTPUT": str(tmp_path / "out"), "PYTHONUNBUFFERED": unbuffered}
    process = command(WORK, shell=shell, env=environment)
    errors = process.communicate()[1]
    assert process.returncode == 0
    assert (tmp_path / "out").read_bytes() == b"done"
    assert "Traceback" not in errors and "Exception" not in errors
    assert ("warning: standard output" in errors) == bool(warning) and warning in errors


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C"}, {"PYTHONIOENCODING": "utf-8"}],
    ids=str,
)
def test_characters_that_cannot_be_printed_are_escaped(tmp_path, environment):
    process = command(WORK, env={**os.environ, "OUTPUT": str(tmp_path / "out"), **environment})
    output, errors = process.communicate()
    assert process.returncode == 0
    assert "step" in output and r"\udcff" in output
    assert "warning: a note on" in errors and r"\udcff" in errors
    process = command("pass", "--help", env={**os.environ, **environment})
    assert "with an ellipsis" in process.communicate()[0] and process.returncode == 0


def test_error_without_stderr():
    process = command('raise MediaError("a.mp4", "empty")', shell="2>&-")
    assert process.communicate() == ("", "")
    assert process.returncode == 2


def test_streams_that_do_not_exist(monkeypatch):
    """As with pythonw."""
    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)

    def run(args):
        print(list(tqdm(range(3))), file=sys.stderr)
        tqdm.write("text")
        logging.getLogger("models").warning("text")

    run_command(make_parser(), run)
    assert sys.stdout is None and sys.stderr is None


def test_files_do_not_get_the_numbers_of_closed_streams():
    body = """
    file = open(os.devnull)
    os.write(int(os.environ["WRITE"]), str(file.fileno()).encode())
    """
    read, write = os.pipe()
    options = {"pass_fds": [write], "env": {**os.environ, "WRITE": str(write)}, "stdout": None, "stderr": None}
    process = command(body, shell="<&- >&- 2>&-", **options)
    os.close(write)
    process.wait()
    with os.fdopen(read) as file:
        assert int(file.read()) > 2


@full_device
def test_lost_result_is_an_error():
    process = command('print_result("the report")', shell=">/dev/full")
    assert process.communicate()[1] == "error: standard output: cannot be written: the disk is full\n"
    assert process.returncode == 2
    assert command('print_result("the report")').communicate() == ("the report\n", "")


@full_device
def test_full_disk_is_one_line(call):
    def run():
        with Path("/dev/full").open("w") as file:
            file.write("text")

    code, stderr = call(run)
    assert (code, stderr) == (2, "error: a file: cannot be written: the disk is full\n")


def test_missing_package_is_one_line(call):
    def run():
        import json.absent.part  # noqa: F401

    code, stderr = call(run)
    assert (code, stderr.count("\n")) == (2, 1)
    install = f"this installs all packages: {sys.executable} -m pip"
    assert stderr.startswith(f"error: the package json.absent is not installed; {install}")


# --- signals -----------------------------------------------------------------------------------------

SLOW = """
    partial = PartialFile(Path(os.environ["OUTPUT"]))
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        time.sleep(0.3)
        partial.discard()
"""


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        (["SIGTERM"], 143),
        (["SIGHUP"], 129),
        (["SIGINT"], 130),
        (["SIGTERM", "SIGTERM", "SIGHUP"], 143),  # the later ones during the removal of the partial file
        (["SIGHUP", "SIGTERM"], 129),
    ],
)
def test_signals_remove_partial_files(tmp_path, signals, code):
    process = command(SLOW, env={**os.environ, "OUTPUT": str(tmp_path / "out.mp4")})
    assert process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.iterdir())) == 1
    for name in signals:
        process.send_signal(getattr(signal, name))
        time.sleep(0.1)
    assert process.communicate(timeout=20)[1] == "interrupted; no partial output is left\n"
    assert process.returncode == code
    assert list(tmp_path.iterdir()) == []


def test_ignored_signal_stays_ignored():
    """As with nohup."""
    body = 'print("ready", flush=True); sys.stdin.readline(); print("done")'
    options = {"stdin": subprocess.PIPE, "preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    process = command(body, **options)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate("go on\n") == ("done\n", "")
    assert process.returncode == 0


def test_handlers_are_those_of_the_caller_afterwards(call):
    def run():
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL

    assert call(run) == (0, "")
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_error_that_follows_a_signal(call):
    """As when the other processes of a training were ended by it too."""

    def run():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        finally:
            raise RuntimeError("connection closed by peer")

    assert call(run) == (143, "interrupted; no partial output is left\n")
