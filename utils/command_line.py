"""What every command shares: it runs with its arguments, prints user errors and warnings as one line with the flag
they concern, and exits with the right code."""

import argparse
import errno
import functools
import io
import logging
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Never, TextIO

from tqdm import tqdm

from utils.errors import AudioError, LimitError, OutputError, UserError, error_reason

REPEATED_SIGNAL_S = 5  # a signal so soon after another one would interrupt the removal of partial files
PACKAGES = ("dubbing", "training", "evaluation", "configs", "losses", "data_processing", "models", "utils")


def run_command(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    """Parse the command line and call `run` with the arguments.

    A `UserError`, also of a `type=` function, an error of argparse, a package that is not installed and a full disk
    become one line on stderr and exit code 2; Ctrl-C exit code 130, SIGHUP 129, SIGTERM 143, a closed pipe
    (`… | head`) 141. Log records of this project go to stderr as "note: …" and "warning: …". What cannot be printed
    does not stop the command.
    """
    with _printing_anywhere():
        _shorten_errors(parser)
        args = parser.parse_args()
        handler = _setup_logging(parser, args)
        received: list[int] = []  # signals
        try:
            with _interrupted_by_signals(received):
                run(args)
                sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            # a signal may also end other processes, which then raises something else here
            if received or isinstance(error, KeyboardInterrupt):
                reason = str(error) if isinstance(error, KeyboardInterrupt) else ""
                print(f"interrupted; {reason or 'no partial output is left'}", file=sys.stderr)
                sys.exit(128 + (received[0] if received else signal.SIGINT))
            if isinstance(error, UserError):
                _fail(f"{_flag_prefix(parser, args, error)}{error}{_limit_hint(args, error)}")
            if isinstance(error, BrokenPipeError):
                sys.exit(141)
            if isinstance(error, ModuleNotFoundError) and error.name.split(".")[0] not in PACKAGES:
                install = f"{sys.executable} -m pip install --constraint requirements.lock -r requirements.txt"
                _fail(f"the package {error.name} is not installed; this installs all packages: {install}")
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                _fail(f"{error.filename or 'a file'}: cannot be written: {error_reason(error)}")
            raise
        finally:
            logging.getLogger().removeHandler(handler)


def print_result(text: str) -> None:
    """Print what a command was started for and what no file will hold.

    Raises:
        OutputError: standard output cannot be written.
    """
    print(text, flush=True)
    if error := getattr(sys.stdout, "error", None):
        raise OutputError("standard output", f"cannot be written: {error_reason(error)}")


class _Stream:
    """Standard output or standard error of a command that does not end if they cannot be written.

    Attributes:
        error: why something could not be written; None if everything could.
    """

    def __init__(self, stream: TextIO, ends_with_pipe: bool) -> None:
        self._stream = stream
        self._ends_with_pipe = ends_with_pipe
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as error:
            if self._ends_with_pipe and isinstance(error, BrokenPipeError):
                raise
            self.error = error

    def finish(self) -> None:
        """Flush. If something cannot be written, drop it: Python would try again at exit, and complain."""
        self._ends_with_pipe = False
        self.flush()
        if self.error:
            with suppress(OSError):  # no file descriptor
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _printing_anywhere() -> Iterator[None]:
    """In the body, printing succeeds whatever stdout and stderr are: closed, missing (services, pythonw), on a full
    disk, or of an encoding without some of the characters, which are then escaped.

    If something printed on stdout is lost, a warning says so at the end. A closed pipe under stdout raises.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed; native libraries would print into the next file that is opened
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    nowhere = Path(os.devnull).open("w", errors="backslashreplace")  # noqa: SIM115 (until the process ends)
    sys.stdout = output = _Stream(before[0] or nowhere, ends_with_pipe=True)
    sys.stderr = errors = _Stream(before[1] or nowhere, ends_with_pipe=False)
    try:
        yield
        output.finish()
        if output.error:
            message = f"warning: standard output: cannot be written: {error_reason(output.error)}; all else is done"
            print(message, file=sys.stderr)
    finally:
        output.finish()
        errors.finish()
        sys.stdout, sys.stderr = before


@contextmanager
def _interrupted_by_signals(received: list[int]) -> Iterator[None]:
    """In the body, SIGTERM (of kill, docker stop, a batch system) and SIGHUP (of a closed terminal) raise
    KeyboardInterrupt, as Ctrl-C does, and are appended to `received`. An ignored signal (nohup) stays ignored."""
    last_s = -math.inf

    def interrupt(number: int, _: object) -> None:
        nonlocal last_s
        received.append(number)
        repeated = time.monotonic() - last_s < REPEATED_SIGNAL_S
        last_s = time.monotonic()
        if not repeated:
            raise KeyboardInterrupt

    numbers = [signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]  # Windows has no SIGHUP
    numbers = {number for number in numbers if signal.getsignal(number) == signal.SIG_DFL}
    if threading.current_thread() is not threading.main_thread():
        numbers = set()
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in numbers:  # after the first signal the command ends by itself
            signal.signal(number, signal.SIG_IGN if received else signal.SIG_DFL)


def _fail(message: str) -> Never:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _shorten_errors(parser: argparse.ArgumentParser) -> None:
    """Make a parser and its subparsers print errors as one line, without the usage."""
    parser.allow_abbrev = False  # --reference, which no longer exists, would be taken for --references
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                _shorten_errors(subparser)
        elif action.type is not None and not isinstance(action.type, type):
            action.type = _with_argument_errors(action.type)

    def error(message: str) -> Never:
        # "argument -o/--output: REASON" -> "--output: REASON"
        _fail(re.sub(r"^argument (?:-\S*/)?(\S+?): ", r"\1: ", message))

    parser.error = error


def _with_argument_errors(convert: Callable[[str], object]) -> Callable[[str], object]:
    """A `type=` function whose user errors argparse reports together with the flag."""

    @functools.wraps(convert)
    def converted(text: str) -> object:
        try:
            return convert(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


def _limit_hint(args: argparse.Namespace, *causes: object) -> str:
    """How to disable the sanity limit that was exceeded, if one of `causes` is such an error."""
    applies = getattr(args, "no_limits", None) is False and any(isinstance(cause, LimitError) for cause in causes)
    return "; --no-limits disables this limit" if applies else ""


def _flag_prefix(
    parser: argparse.ArgumentParser, args: argparse.Namespace, about: UserError | logging.LogRecord
) -> str:
    """ "--video: " if `about` concerns the value of that flag, by parameter or by path; "" if it concerns none."""
    parameter = getattr(about, "parameter", None)
    name = parameter
    if parameter not in vars(args) and (path := getattr(about, "path", None)) is not None:
        about_audio = isinstance(about, AudioError) or getattr(about, "module", None) in ("audio_clock", "audio_io")
        name = _argument_with_path(args, path, prefer_audio=about_audio)
    action = next((action for action in _actions(parser) if action.dest == name), None)
    if action is None:
        return f"{parameter}: " if parameter else ""
    names = action.option_strings or [action.metavar if isinstance(action.metavar, str) else action.dest]
    return f"{next((name for name in names if name.startswith('--')), names[0])}: "


def _argument_with_path(args: argparse.Namespace, path: Path, prefer_audio: bool) -> str | None:
    """The name of the argument that is `path`, or else of the innermost folder that contains it."""
    path, here = _absolute(path), Path.cwd()
    exact, folders = [], []
    for name, given in vars(args).items():
        for value in given if isinstance(given, list | tuple) else [given]:
            if isinstance(value, Path | str) and _absolute(value) == path:
                exact.append(name)
            # the current folder, often a default, contains too much to be at fault
            elif isinstance(value, Path) and (folder := _absolute(value)) in path.parents and folder != here:
                folders.append((len(folder.parts), name))
    if prefer_audio and "audio" in exact:  # one file may be both the source video and the driving audio
        return "audio"
    return next(iter(exact), None) or max(folders, key=lambda folder: folder[0], default=(0, None))[1]


def _absolute(path: Path | str) -> Path:
    # resolve() would follow links out of the folder that was given
    return Path(os.path.abspath(path))  # noqa: PTH100


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of its subparsers."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _actions(subparser)


def _setup_logging(parser: argparse.ArgumentParser, args: argparse.Namespace) -> logging.Handler:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kind = "warning" if record.levelno >= logging.WARNING else "note"
            causes = record.args if isinstance(record.args, tuple) else ()
            message = f"{_flag_prefix(parser, args, record)}{record.getMessage()}{_limit_hint(args, *causes)}"
            tqdm.write(f"{kind}: {message}", file=sys.stderr)

    handler = Handler()
    handler.addFilter(lambda record: record.name.split(".")[0] in PACKAGES)
    logging.getLogger().addHandler(handler)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    return handler
