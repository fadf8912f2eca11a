"""Batches: rows of a jobs file, failures, skipping what is done, several processes, a cluster, interruption."""

import csv
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

import inference
from data_processing.media.video_reader import read_frames
from dubbing import batch
from dubbing.batch import read_rows
from tests.support.commands import run_command_line
from tests.support.media import speech_like_wav, text_file
from utils.errors import FileError


def write_jobs(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def report_of(jobs: Path) -> list[dict[str, str]]:
    with jobs.with_name(f"{jobs.stem}.report.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def flags_of(jobs: Path, *common: str) -> list[tuple[str, ...]]:
    return [row.flags for row in read_rows(jobs, inference.build_parser(), common)]


def test_cells_become_flags(tmp_path):
    jobs = write_jobs(
        tmp_path / "jobs.csv",
        "video,audio,output,face,no-texture,adapt,crf",
        '"a, b.mp4",x.wav; y.wav,one.mp4,left;right,yes,,',
        "c.mp4,z.wav,two.mp4,,no,yes,20",
        "c.mp4,z.wav,three.mp4,,,1,",
        "c.mp4,z.wav,-four.mp4,,NO,no,",
    )
    parser = inference.build_parser()
    common = ("--crf", "30", "--codec=hevc")
    first, second, third, fourth = (parser.parse_args(flags) for flags in flags_of(jobs, *common))
    assert (first.video, first.audio) == (Path("a, b.mp4"), [Path("x.wav"), Path("y.wav")])
    assert (first.face, first.texture, first.adapt, first.crf) == (["left", "right"], False, None, 30)
    assert (second.face, second.texture, second.adapt, second.crf) == (["largest"], True, True, 20)
    assert (third.adapt, third.texture) == (1.0, True)
    assert (fourth.output, fourth.adapt, fourth.codec) == (Path("-four.mp4"), None, "hevc")


def test_a_row_says_no_to_what_the_command_line_turns_on(tmp_path):
    jobs = write_jobs(
        tmp_path / "jobs.csv",
        "video,audio,output,no-texture,adapt,face",
        "a.mp4,x.wav,one.mp4,no,no,left",
        "a.mp4,x.wav,two.mp4,,,",
        "a.mp4,x.wav,three.mp4,false,2,right",
    )
    parser = inference.build_parser()
    for common in (("--no-texture", "--adapt", "3", "--crf", "30"), ("--crf=30", "--adapt=3", "--no-texture")):
        one, two, three = (parser.parse_args(flags) for flags in flags_of(jobs, *common))
        assert (one.texture, one.adapt, one.face, one.crf) == (True, None, ["left"], 30)
        assert (two.texture, two.adapt, two.face, two.crf) == (False, 3.0, ["largest"], 30)
        assert (three.texture, three.adapt, three.face, three.crf) == (True, 2.0, ["right"], 30)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([""], "expected the columns video, audio, output in its first line; video, audio, output not found"),
        (["video;audio;output", "a;b;c"], "expected the columns video, audio, output in its first line"),
        (["video,audio,output"], "has no row below its first line"),
        (["video,audio,output,colour", "a,b,c,d"], "unknown column 'colour'; columns are named as flags: video,"),
        (["video,audio,output,jobs", "a,b,c,2"], "unknown column 'jobs'"),
        (["video,audio,output", "a,b"], "line 2: expected 3 cells, as in the first line"),
        (["video,audio,output", "a,b,c.mp4", "", "a,b,d.mp4,e"], "line 4: expected 3 cells, as in the first line"),
        (["video,audio,output", "a, ,c"], "line 2: audio is empty"),
        (["video,audio,output,resume", "a,b,c,on"], "line 2: resume: expected yes or no, found 'on'"),
        (["video,audio,output", "a,b,c.mp4", "d,e,./c.mp4"], "line 3: line 2 has the same output"),
        (["video,audio,output", 'a,b,"c.mp4'], "is not a CSV file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_jobs_files_are_one_line(lines, reason, tmp_path, capsys):
    jobs = write_jobs(tmp_path / "jobs.csv", *lines)
    with pytest.raises(SystemExit) as caught:
        run_command_line(inference.main, "--batch", jobs)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --batch: {jobs}: {reason}")
    assert list(tmp_path.iterdir()) == [jobs]


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "jobs.csv").write_bytes(b"video,audio,output\n\xff,b,c\n")
    with pytest.raises(FileError, match="is not text in UTF-8"):
        flags_of(tmp_path / "jobs.csv")
    (tmp_path / "jobs.csv").write_bytes("video,audio,output\na,b,c\n".encode("utf-16-le"))
    with pytest.raises(FileError, match="is not text in UTF-8"):
        flags_of(tmp_path / "jobs.csv")
    with pytest.raises(FileError, match="No such file"):
        flags_of(tmp_path / "none.csv")


def test_unusable_reports_and_numbers_of_jobs(tmp_path, capsys):
    jobs = write_jobs(tmp_path / "jobs.csv", "video,audio,output", "a,b,c.mp4")
    for flags, reason in (
        (["--jobs", 0], "error: --jobs: expected at least 1, found 0"),
        ([], f"error: {text_file(tmp_path / 'jobs.report.csv')}: is not the report of a batch; move it away"),
    ):
        with pytest.raises(SystemExit) as caught:
            run_command_line(inference.main, "--batch", jobs, *flags)
        assert caught.value.code == 2
        assert reason in capsys.readouterr().err


# in place of inference.py
STAND_IN = """
import signal, sys, time
from pathlib import Path

output = Path(next(flag.partition("=")[2] for flag in sys.argv if flag.startswith("--output=")))
if "text.wav" in sys.argv:
    print("warning: --video: a warning\\nerror: --audio: text.wav: not a media file", file=sys.stderr)
    sys.exit(2)
if "long.wav" in sys.argv:
    partial = output.with_name(".partial")

    def end(*_):
        time.sleep(0.2)
        partial.unlink()
        sys.exit(143)

    signal.signal(signal.SIGTERM, end)
    partial.touch()
    time.sleep(60)
output.write_text("dubbed")
"""


@pytest.fixture
def stand_in(tmp_path_factory, monkeypatch) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "inference.py").write_text(STAND_IN)
    monkeypatch.setattr(batch, "ROOT", root)


@pytest.fixture
def jobs(tmp_path, monkeypatch) -> Path:
    """Three rows in the current folder, the second of which fails."""
    monkeypatch.chdir(tmp_path)
    for name in ("short.wav", "text.wav", "long.wav"):
        text_file(tmp_path / name)
    return write_jobs(
        tmp_path / "jobs.csv",
        "video,audio,output,side-by-side",
        "clip.mp4,short.wav,one.mp4,",
        "clip.mp4,text.wav,two.mp4,",
        "clip.mp4,short.wav,three.mp4,yes",
    )


def dub_batch(jobs: Path, *flags: object) -> int:
    """Exit code of a batch."""
    try:
        run_command_line(inference.main, "--batch", jobs, "--device", "cpu", *flags)
    except SystemExit as error:
        return error.code
    return 0


def dub_where(where: str, jobs: Path) -> int:
    """Exit code of a batch in processes, or on a cluster in this process."""
    if where == "processes":
        return dub_batch(jobs)
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        return dub_batch(jobs, "--scheduler", cluster.scheduler_address)


@pytest.mark.slow
def test_dubs_of_a_batch(jobs, portrait_clip, checkpoint):
    speech_like_wav(jobs.parent / "short.wav", 0.4, seed=3)
    write_jobs(jobs, "video,audio,output,side-by-side", f"{portrait_clip},short.wav,one.mp4,yes")
    assert dub_batch(jobs, "--checkpoint", checkpoint) == 0
    (line,) = report_of(jobs)
    assert (line["line"], line["status"], line["message"]) == ("2", "done", "")
    assert [frame.shape for frame in read_frames(Path("one.mp4"))] == [(256, 512, 3)] * 10


@pytest.mark.parametrize("where", ["processes", "cluster"])
def test_a_bad_row_does_not_stop_the_others(where, jobs, stand_in, capsys):
    assert dub_where(where, jobs) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{jobs.parent / 'jobs.report.csv'}: 2 dubbed, 0 done before, 1 failed\n"
    assert f"line 3 of {jobs}: --audio: text.wav: not a media file" in printed.err
    assert [(line["line"], line["status"], line["output"]) for line in report_of(jobs)] == [
        ("2", "done", "one.mp4"),
        ("3", "failed", "two.mp4"),
        ("4", "done", "three.mp4"),
    ]
    assert [path.read_text() for path in (Path("one.mp4"), Path("three.mp4"))] == ["dubbed"] * 2
    assert not Path("two.mp4").exists()


def test_the_next_run_does_what_is_not_done(jobs, capsys, monkeypatch):
    """Rows that failed, whose output is gone, which have changed, or one of whose inputs has."""
    calls = []

    def dub(folder: Path, num_processes: int, _: object, row: batch.Row) -> tuple[batch.Row, batch.Outcome]:
        calls.append(row.output)
        status = "failed" if row.output in failing else "done"
        if status == "done":
            Path(row.output).write_text("dubbed")
        return row, batch.Outcome(status, 0.1, "")

    jobs.write_text(jobs.read_text() + "long name,short.wav,four.mp4,\n".replace("long name", 300 * "n"))
    monkeypatch.setattr(batch, "_dub", dub)
    failing = {"two.mp4"}
    assert dub_batch(jobs, "--jobs", 2) == 1
    assert sorted(calls) == ["four.mp4", "one.mp4", "three.mp4", "two.mp4"]
    failing.clear()
    for change, expected in (
        (lambda: None, ["two.mp4"]),
        (lambda: None, []),
        (Path("one.mp4").unlink, ["one.mp4"]),
        (lambda: jobs.write_text(jobs.read_text().replace("three.mp4,yes", "three.mp4,no")), ["three.mp4"]),
        (lambda: Path("text.wav").write_text("another file"), ["two.mp4"]),
        (lambda: os.utime("short.wav", (0, 0)), ["one.mp4", "three.mp4", "four.mp4"]),
        (lambda: os.utime("one.mp4", (0, 0)), []),  # an output is not an input
    ):
        change()
        calls.clear()
        assert dub_batch(jobs) == 0
        assert calls == expected
        assert [line["status"] for line in report_of(jobs)] == ["done"] * 4
    assert capsys.readouterr().out.splitlines()[2].endswith("0 dubbed, 4 done before, 0 failed")


def test_a_process_that_cannot_be_started_is_the_failure_of_its_row(jobs, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(subprocess, "Popen", refused)
    assert dub_batch(jobs) == 1
    message = f"cannot be started: {sys.executable}: Cannot allocate memory"
    assert [(line["status"], line["message"]) for line in report_of(jobs)] == [("failed", message)] * 3


def test_memory_that_may_not_suffice_is_a_warning(jobs, monkeypatch, capsys):
    monkeypatch.setattr(batch, "_dub", lambda *job: (job[-1], batch.Outcome("done", 0.1, "")))
    monkeypatch.setattr(batch, "available_bytes", lambda: 4e9)
    text = "3 dubs of 1080p videos at the same time need about 4.5 GB of memory; 4.0 GB are available"
    for num_processes, expected in ((1, False), (2, False), (3, True), (50, True)):
        assert dub_batch(jobs, "--jobs", num_processes) == 0
        assert (f"warning: --jobs: {text}" in capsys.readouterr().err) == expected


@pytest.fixture
def signals() -> Iterator[None]:
    """Afterwards they are as before: a command that was ended by one ignores further ones."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("where", ["processes", "cluster"])
def test_interruption_ends_the_dubs(where, jobs, stand_in, capsys, signals):
    """SIGTERM to the batch: its processes end and remove their partial output, before it ends itself."""
    write_jobs(jobs, "video,audio,output", "clip.mp4,long.wav,one.mp4", "clip.mp4,long.wav,two.mp4")
    before = sorted(Path.cwd().iterdir())

    def interrupt() -> None:
        while not Path(".partial").exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert dub_where(where, jobs) == 143
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; no partial output is left"
    assert sorted(Path.cwd().iterdir()) == before
