"""Atomic writes and JSON lines."""

import errno
import os
from pathlib import Path

import pytest

from utils.errors import OutputError, UserError
from utils.files import atomic_path, move_into_place, partial_path, read_jsonl, write_atomically


def test_partial_path():
    partial = partial_path(Path("folder/clip.mp4"))
    assert partial.parent == Path("folder") and partial.suffix == ".mp4" and partial.name.startswith(".clip.")
    assert str(os.getpid()) in partial.name


def test_move_into_place(tmp_path):
    partial, path = tmp_path / "partial", tmp_path / "file"
    partial.write_text("new")
    path.write_text("old")
    move_into_place(partial, path)
    assert path.read_text() == "new" and not partial.exists()


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
