"""What the user can mend, told in one line; everything else stays a traceback."""

import sys
from collections.abc import Callable
from functools import wraps


class UserError(Exception):
    """Bad input: names the flag or file, what was expected and what was found."""


def command_line(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a `main()`: a `UserError` becomes one line on stderr and exit code 2, Ctrl-C exit code 130."""

    @wraps(main)
    def wrapped() -> None:
        try:
            main()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped
