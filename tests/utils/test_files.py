"""Atomic writes and JSON lines."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.errors import OutputError, UserError
from utils.files import (
    PartialFile,
    atomic_path,
    partial_path,
    read_jsonl,
    remove_leftovers,
    short_name,
    write_atomically,
)

ROOT = Path(__file__).resolve().parents[2]


def test_partial_path():
    partial = partial_path(Path("folder/clip.mp4"))
    assert partial.parent == Path("folder") and partial.suffix == ".mp4" and partial.name.startswith(".clip.")
    assert str(os.getpid()) in partial.name


@pytest.mark.parametrize(
    "name",
    [
        "x" * 251 + ".mp4",
        "ü" * 125 + "y.mp4",
        "口" * 83 + "yz.mp4",
        "a." + "s" * 253,
        "." + "x" * 254,
        "\udcff" * 251 + ".mp4",
    ],
    ids=["ASCII", "two bytes", "three bytes", "long suffix", "hidden", "not UTF-8"],
)
def test_longest_names_can_be_written(tmp_path, name):
    path = tmp_path / name
    assert len(os.fsencode(name)) == 255
    write_atomically(path, lambda file: file.write(b"content"))
    assert path.read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [path]


def test_long_names_with_the_same_beginning_have_different_temporary_names():
    first, second = (partial_path(Path("x" * 200 + end)) for end in ("1.mp4", "2.mp4"))
    assert first != second and len(first.name) < 143
    assert short_name("x" * 100, 100) == "x" * 100
    assert short_name("ü" * 100, 100) != short_name("ü" * 101, 100)


def test_file_that_is_written_already(tmp_path):
    partial = PartialFile(tmp_path / "file")
    with pytest.raises(OutputError, match="file: cannot be written: it is being written already"):
        write_atomically(tmp_path / "file", lambda file: file.write(b"new"))
    partial.path.write_bytes(b"old")
    partial.move_into_place()
    write_atomically(tmp_path / "file", lambda file: file.write(b"new"))
    assert (tmp_path / "file").read_bytes() == b"new"


# --- killed processes --------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from utils.files import PartialFile
partial = PartialFile(Path(sys.argv[1]))
partial.path.write_text("started")
print(flush=True)
sys.stdin.read()
"""


def start_writing(path: Path) -> subprocess.Popen:
    """A process that has begun to write `path`."""
    command = [sys.executable, "-c", WRITER, path]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


@pytest.mark.parametrize("name", ["out.mp4", "x" * 251 + ".mp4"])
def test_leftover_of_a_killed_process_is_removed_by_the_next_run(tmp_path, name):
    path, other = tmp_path / name, tmp_path / ".other.123.partial.mp4"
    other.touch()
    with start_writing(path) as killed:
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    (leftover,) = set(tmp_path.iterdir()) - {other}
    assert f".{killed.pid}.partial" in leftover.name
    write_atomically(path, lambda file: file.write(b"new"))
    assert set(tmp_path.iterdir()) == {path, other}


def test_temporary_file_of_a_running_process_is_kept(tmp_path):
    path = tmp_path / "out.mp4"
    with start_writing(path) as running:
        write_atomically(path, lambda file: file.write(b"new"))
        remove_leftovers(tmp_path)
        assert f".out.{running.pid}.partial.mp4" in {path.name for path in tmp_path.iterdir()}
        running.kill()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_only_temporary_names_are_leftovers(tmp_path):
    others = {".a.partial.mp4", "a.1.partial.mp4", ".a.1.partial.x.y", ".a.one.partial.mp4", ".a.1.mp4"}
    for name in others | {".a.1.partial.mp4", ".b.c.22.partial"}:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == others
    remove_leftovers(tmp_path / "missing")


# --- symbolic links ----------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("target", ["store/video", "store/video.mp4"])
def test_symbolic_link_is_followed(tmp_path, exists, target):
    (tmp_path / "store").mkdir()
    (tmp_path / "second.mp4").symlink_to(target)  # relative
    link = tmp_path / "out.mp4"
    link.symlink_to(tmp_path / "second.mp4")
    if exists:
        (tmp_path / target).write_bytes(b"old")
    with atomic_path(link) as partial:
        assert partial.parent == tmp_path / "store" and partial.suffix == ".mp4"
        partial.write_bytes(b"new")
    assert (tmp_path / target).read_bytes() == b"new" and not (tmp_path / target).is_symlink()
    assert link.is_symlink() and (tmp_path / "second.mp4").is_symlink()
    assert [path.name for path in (tmp_path / "store").iterdir()] == [Path(target).name]


def test_symbolic_links_that_lead_nowhere(tmp_path):
    first, second, lost = (tmp_path / name for name in ("first", "second", "lost"))
    first.symlink_to(second)
    second.symlink_to(first)
    lost.symlink_to(tmp_path / "missing" / "file")
    for path, reason in [(first, "the symbolic link points to itself"), (lost, "No such file or directory")]:
        with pytest.raises(OutputError, match=f"{path}: cannot be written: {reason}"):
            write_atomically(path, lambda file: file.write(b"content"))


def test_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_path(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt(), UserError("reason")])
def test_exception_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(file):
        file.write(b"new")
        raise error

    with pytest.raises(type(error)) as raised:
        write_atomically(path, write)
    assert raised.value is error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk(tmp_path):
    def write(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError) as raised:
        write_atomically(tmp_path / "file.txt", write)
    assert str(raised.value) == f"{tmp_path / 'file.txt'}: cannot be written: the disk is full"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.parametrize(
    "write",
    [
        lambda file: np.save(file, np.zeros(100_000)),
        lambda file: np.savez(file, a=np.zeros(100_000), b=np.zeros(10)),
        lambda file: torch.save({"weights": torch.zeros(100_000)}, file),
    ],
    ids=["numpy.save", "numpy.savez", "torch.save"],
)
def test_full_disk_behind_a_library(tmp_path, monkeypatch, write):
    """Libraries raise other exceptions, some without a reason."""
    path = tmp_path / "file"
    full = Path("/dev/full").open("wb")  # noqa: SIM115 (closed by write_atomically)
    monkeypatch.setattr(Path, "open", lambda *args, opened=Path.open: full if "wb" in args else opened(*args))
    with pytest.raises(OutputError) as raised:
        write_atomically(path, write)
    assert str(raised.value) == f"{path}: cannot be written: the disk is full"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("folder", "reason"), [("missing", "No such file"), ("file", "Not a directory")])
def test_folder_that_cannot_be_used(tmp_path, folder, reason):
    (tmp_path / "file").touch()
    path = tmp_path / folder / "file.txt"
    with pytest.raises(OutputError, match=f"{path}: cannot be written: {reason}") as raised:
        write_atomically(path, lambda file: file.write(b"content"))
    assert raised.value.path == path


def test_read_jsonl(tmp_path, caplog):
    path = tmp_path / "log.jsonl"
    assert read_jsonl(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    assert not caplog.records
    path.write_text('{"step": 1}\n{"st')
    assert read_jsonl(path) == [{"step": 1}]
    (record,) = caplog.records
    assert record.path == path and "incomplete line" in record.getMessage()
