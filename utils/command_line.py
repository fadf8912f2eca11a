"""What every command shares: it runs with its arguments, prints user errors and warnings as one line with the flag
they concern, and exits with the right code."""

import argparse
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Never

from tqdm import tqdm

from utils.errors import AudioError, LimitError, UserError

PACKAGES = ("dubbing", "training", "evaluation", "configs", "losses", "data_processing", "models", "utils")


def run_command(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    """Parse the command line and call `run` with the arguments.

    A `UserError`, also of a `type=` function, and an error of argparse become one line on stderr and exit code 2,
    Ctrl-C exit code 130, a closed pipe (`… | head`) exit code 141. Log records of this project go to stderr as
    "note: …" and "warning: …".
    """
    _shorten_errors(parser)
    args = parser.parse_args()
    handler = _setup_logging(parser, args)
    try:
        run(args)
    except UserError as error:
        _fail(f"{_flag_prefix(parser, args, error)}{error}{_limit_hint(args, error)}")
    except KeyboardInterrupt as interrupt:
        print(f"interrupted; {str(interrupt) or 'no partial output is left'}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain again at exit
        sys.exit(141)
    finally:
        logging.getLogger().removeHandler(handler)


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
        about_audio = isinstance(about, AudioError) or getattr(about, "module", None) == "audio_io"
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
