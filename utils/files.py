"""Writing a file whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from data_processing.errors import UserError


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Have `write` fill a file beside `path` and move it there, so that `path` is whole always: old or new.

    Raises UserError if that cannot be done.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
