"""Writing files atomically, and reading JSON lines."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import OutputError, error_reason

logger = logging.getLogger(__name__)


def partial_path(path: Path) -> Path:
    """A temporary path beside `path`, of this process, with the same suffix."""
    return path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")


def move_into_place(partial: Path, path: Path) -> None:
    """Move a complete temporary file to `path`, after its content has reached the disk. Raises OSError."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())  # complete even after a power failure
    partial.replace(path)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path for the body to write a file to.

    The file is moved to `path` when the body ends, and removed if the body raises: `path` always holds a complete
    file, old or new.

    Raises:
        OutputError: the file cannot be written.
    """
    partial = partial_path(path)
    try:
        yield partial
        move_into_place(partial, path)
    except OSError as error:
        raise OutputError(path, f"cannot be written: {error_reason(error)}") from error
    finally:
        with suppress(OSError):  # it may be missing, or its folder
            partial.unlink()


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write` with a temporary file and move that to `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_path(path) as partial, partial.open("wb") as file:
        write(file)


def read_jsonl(path: Path) -> list[dict]:
    """The lines of a .jsonl file, empty if it is missing. Lines cut off by a crash are dropped with a warning."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            logger.warning("%s: dropped an incomplete line", path, extra={"path": path})
    return lines
