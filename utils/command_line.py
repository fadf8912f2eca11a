"""What every command shares: it runs with its arguments, prints user errors and warnings as one line with the flag
they concern, and exits with the right code."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from utils.errors import AudioError, LimitError, UserError

PACKAGES = ("dubbing", "training", "evaluation", "configs", "losses", "data_processing", "models", "utils")


def run_command(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    """Parse the command line and call `run` with the arguments.

    A `UserError` becomes one line on stderr and exit code 2, Ctrl-C exit code 130, a closed pipe (`… | head`) exit
    code 141. Log records of this project go to stderr as "note: …" and "warning: …".
    """
    args = parser.parse_args()
    handler = _setup_logging(parser, args)
    try:
        run(args)
    except UserError as error:
        hint = "; --no-limits disables this limit" if _has_limits(args) and isinstance(error, LimitError) else ""
        print(f"error: {_flag_prefix(parser, args, error)}{error}{hint}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted; {str(interrupt) or 'no partial output is left'}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain again at exit
        sys.exit(141)
    finally:
        logging.getLogger().removeHandler(handler)


def _has_limits(args: argparse.Namespace) -> bool:
    return getattr(args, "no_limits", None) is False


def _flag_prefix(
    parser: argparse.ArgumentParser, args: argparse.Namespace, about: UserError | logging.LogRecord
) -> str:
    """ "--video: " if `about` concerns the value of that flag, by parameter or by path; "" if it concerns none."""
    values = {name: value if isinstance(value, list) else [value] for name, value in vars(args).items()}
    name = parameter = getattr(about, "parameter", None)
    path = getattr(about, "path", None)
    if parameter not in values and path is not None:
        paths = {name: [value for value in given if isinstance(value, Path)] for name, given in values.items()}
        exact = [name for name, given in paths.items() if path in given]
        within = [name for name, given in paths.items() if any(folder in path.parents for folder in given)]
        names = exact or [name for name in within if Path() not in paths[name]]
        # one file may be both the source video and the driving audio
        name = "audio" if isinstance(about, AudioError) and "audio" in names else next(iter(names), None)
    action = next((action for action in _actions(parser) if action.dest == name), None)
    if action is None:
        return f"{parameter}: " if parameter else ""
    return f"{(action.option_strings or [action.metavar or action.dest])[0]}: "


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of its subparsers."""
    # pylint: disable-next=protected-access
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _actions(subparser)


def _setup_logging(parser: argparse.ArgumentParser, args: argparse.Namespace) -> logging.Handler:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kind = "warning" if record.levelno >= logging.WARNING else "note"
            tqdm.write(f"{kind}: {_flag_prefix(parser, args, record)}{record.getMessage()}", file=sys.stderr)

    handler = Handler()
    handler.addFilter(lambda record: record.name.split(".")[0] in PACKAGES)
    logging.getLogger().addHandler(handler)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    return handler
