"""Writing files atomically, and reading JSON lines."""

import errno
import json
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import OutputError, error_reason

try:
    import fcntl
except ImportError:  # Windows, which does not delete files that are open
    fcntl = None

STEM_BYTES = 100  # of a temporary name; file systems allow 143 (eCryptfs) or 255 bytes for the whole name
MAX_SEARCHES = 100  # of a folder for leftovers, by one process; `prepare` writes many files, and cleans up itself
LEFTOVER = re.compile(r"\..*\.\d+\.partial(\.\w+)?")  # every temporary name
logger = logging.getLogger(__name__)
_num_searches: Counter[Path] = Counter()


def cut_name(name: str, num_bytes: int) -> str:
    """The beginning of a file name, at most `num_bytes` bytes of UTF-8."""
    return name.encode(errors="surrogateescape")[:num_bytes].decode(errors="ignore")


def short_name(name: str, num_bytes: int) -> str:
    """A file name, or its beginning and a hash of it if it has more than `num_bytes` bytes."""
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) <= num_bytes:
        return name
    return f"{cut_name(name, num_bytes - 9)}-{zlib.crc32(encoded):08x}"


def follow_link(path: Path) -> Path:
    """The file to write: the target of `path` if that is a symbolic link, else `path`.

    Raises:
        OSError: the link points to itself.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, "the symbolic link points to itself")
    return target


def partial_path(path: Path) -> Path:
    """A temporary path beside `path`, of this process, with the same suffix."""
    start, end = _around_pid(path)
    return path.with_name(f"{start}{os.getpid()}{end}")


def _around_pid(path: Path) -> tuple[str, str]:
    """What precedes and what follows the number of the process in a temporary name."""
    suffix = path.suffix if len(path.suffix) <= 16 else ""
    return f".{short_name(path.name.removesuffix(suffix), STEM_BYTES)}.", f".partial{suffix}"


class PartialFile:
    """A temporary file beside a target, with the same suffix, which replaces the target when it is complete.

    If the target is a symbolic link, the file that it points to is replaced. Temporary files of the same target
    that killed processes left are removed; those of running processes are recognised by a lock.

    Args:
        target: may exist.

    Attributes:
        path: the temporary file, empty at first.

    Raises:
        OSError: the file cannot be created.
    """

    def __init__(self, target: Path) -> None:
        self.target = follow_link(target)
        named = self.target.with_suffix(target.suffix)  # FFmpeg chooses the container by the suffix
        self.path = partial_path(named)
        _num_searches[self.target.parent] += 1
        if _num_searches[self.target.parent] <= MAX_SEARCHES:
            remove_leftovers(self.target.parent, re.compile(r"\d+".join(map(re.escape, _around_pid(named)))))
        self._file = self.path.open("ab")
        try:
            if fcntl:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a thread, or a process of that number on another machine
            self._file.close()
            raise OSError(errno.EBUSY, "it is being written already") from None
        except OSError:  # this file system has no locks
            pass

    def move_into_place(self) -> None:
        """Replace the target, after the content has reached the disk. Raises OSError."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())  # complete even after a power failure
        self._file.close()  # Windows does not rename files that are open
        self.path.replace(self.target)

    def discard(self) -> None:
        """Remove the temporary file if it still exists."""
        self._file.close()
        with suppress(OSError):  # it may be missing, or its folder
            self.path.unlink()


def remove_leftovers(folder: Path, pattern: re.Pattern = LEFTOVER) -> None:
    """Remove the temporary files, with names that match `pattern`, that killed processes left in a folder."""
    with suppress(OSError):
        for path in folder.iterdir():
            if not pattern.fullmatch(path.name) or not path.is_file() or path.is_symlink():
                continue
            with suppress(OSError):
                if fcntl:
                    with path.open("rb+") as file:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if a process writes the file
                path.unlink()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path for the body to write a file to.

    The file is moved to `path` when the body ends, and removed if the body raises: `path` always holds a complete
    file, old or new.

    Raises:
        OutputError: the file cannot be written.
    """
    with output_errors(path):
        partial = PartialFile(path)
        try:
            yield partial.path
            partial.move_into_place()
        finally:
            partial.discard()


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Converts OSError in the body to OutputError of `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(path, f"cannot be written: {error_reason(error)}") from error


class _WatchedFile:
    """A file that remembers why writing failed: NumPy, zipfile and torch.save may raise something else."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write` with a temporary file and move that to `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_path(path) as partial, partial.open("wb") as file:
        watched = _WatchedFile(file)
        try:
            write(watched)
        except Exception:
            if watched.error:
                raise watched.error from None
            raise


def read_jsonl(path: Path) -> list[dict]:
    """The lines of a .jsonl file, empty if it is missing. Lines cut off by a crash are dropped with a warning."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            logger.warning("%s: dropped an incomplete line", path, extra={"path": path})
    return lines
