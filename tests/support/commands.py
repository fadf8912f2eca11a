"""Running a command in the process of the tests."""

import sys
from collections.abc import Callable

import pytest


def run_command_line(main: Callable[[], None], *flags: object) -> None:
    """Call the `main` of a command with these flags."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, flags)])
        main()
