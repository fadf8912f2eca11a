"""What the user can mend, told in one line; everything else stays a traceback."""

import errno
import os
import sys
from collections.abc import Callable
from functools import wraps


class UserError(Exception):
    """Bad input: names the flag or file, what was expected and what was found."""


class Damaged(UserError):
    """A file that can be read no further than so far: what was read of it is good."""


def reason_of(error: Exception) -> str:
    """What the system or ffmpeg says, without the file's name."""
    if getattr(error, "errno", None) == errno.ENOSPC:
        return "the disk is full"
    return getattr(error, "strerror", None) or str(error)


def command_line(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a `main()`: a `UserError` becomes one line on stderr and exit code 2, Ctrl-C exit code 130, a reader
    that went away (`… | head`) exit code 141."""

    @wraps(main)
    def wrapped() -> None:
        try:
            main()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as interrupt:
            what_is_left = str(interrupt) or "nothing half-written is left"
            print(f"interrupted; {what_is_left}", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing more is said at exit
            sys.exit(141)

    return wrapped
