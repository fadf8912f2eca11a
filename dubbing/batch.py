"""Many dubs, one for each row of a CSV file: `inference.py --batch jobs.csv`.

Each row is dubbed by a process of its own, so that one that fails takes no other with it and its memory is free
afterwards. The report beside the jobs file is written anew after every row; the next run skips what it calls done.
"""

import argparse
import csv
import io
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from tqdm import tqdm

from dubbing.segments import file_fingerprint
from utils.bundled import ROOT
from utils.cores import num_cores
from utils.errors import FileError, ParameterError, error_reason
from utils.files import write_atomically
from utils.memory import available_bytes

NEEDED = ("video", "audio", "output")
NOT_IN_ROWS = ("help", "batch", "jobs", "scheduler")
WRITTEN = ("--output", "--adapted")  # flags that name files which a dub writes
YES, NO = ("yes", "true"), ("no", "false")
REPORT = ("line", "status", "seconds", "message", "output", "command", "inputs")  # columns
DUB_GB = 1.5  # memory of a dub of a 1080p video, a little more than in docs/performance.md
POLL_S = 0.5  # between two looks whether a dub has been cancelled
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One dub.

    line: of the jobs file, from 1.
    output: as the file names it.
    flags: of inference.py.
    inputs: fingerprints of the files that the flags name, separated by "; ".
    """

    line: int
    output: str
    flags: tuple[str, ...]
    inputs: str

    @property
    def command(self) -> str:
        return shlex.join(["inference.py", *self.flags])

    @property
    def key(self) -> tuple[str, str]:
        """What identifies a row in the report."""
        return self.command, self.inputs


@dataclass(frozen=True)
class Outcome:
    """How the dub of a row ended: `status` is "done" or "failed", `message` its error or its warnings."""

    status: str
    seconds: float
    message: str


def dub_all(
    jobs: Path, parser: argparse.ArgumentParser, common: Sequence[str], num_processes: int, scheduler: str | None
) -> tuple[str, int]:
    """Dub the rows of a jobs file that are not done yet, and write the report.

    Args:
        jobs: CSV file with the columns video, audio and output, and others named as flags of `parser`.
        parser: of inference.py.
        common: flags for all rows; those of a row take precedence.
        num_processes: dubs at the same time.
        scheduler: address of a Dask scheduler, whose workers dub instead. They must see the same files.

    Returns:
        One line about the batch, and the number of rows that failed.

    Raises:
        FileError: the jobs file cannot be read or is not as described.
        ParameterError: `num_processes` is not positive, or there is no scheduler at this address.
        OutputError: the report cannot be written.
    """
    if num_processes < 1:
        raise ParameterError("jobs", f"expected at least 1, found {num_processes}")
    rows = read_rows(jobs, parser, common)
    report_path = jobs.with_name(f"{jobs.stem}.report.csv")
    before = _read_report(report_path)
    report = {row: before[row.key] for row in rows if row.key in before and _is_file(row.output)}
    todo = [row for row in rows if row not in report]
    num_skipped = len(report)
    if scheduler:
        # imports joblib, which a dub does not need
        from data_processing.workers import cancelled, in_workers

        work = partial(_dub, Path.cwd(), 1, cancelled)
        results = in_workers(work, todo, 1, scheduler, unit="video", description="dubbing")
    else:
        _check_memory(min(num_processes, len(todo)))
        results = _in_processes(todo, num_processes)
    with closing(results):
        for row, outcome in results:
            report[row] = outcome
            if outcome.status == "failed":
                logger.warning("line %d of %s: %s", row.line, jobs, outcome.message)
            _write_report(report_path, report)
    _write_report(report_path, report)
    num_failed = sum(outcome.status == "failed" for outcome in report.values())
    num_done = len(rows) - num_skipped - num_failed
    line = f"{report_path}: {num_done} dubbed, {num_skipped} done before, {num_failed} failed"
    return line, num_failed


def read_rows(jobs: Path, parser: argparse.ArgumentParser, common: Sequence[str] = ()) -> list[Row]:
    """The rows of a jobs file, as `dub_all` describes it.

    Raises:
        FileError: the file cannot be read or is not as described.
    """
    actions = {
        name.removeprefix("--"): action
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--") and action.dest not in NOT_IN_ROWS
    }
    try:
        text = jobs.read_text("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = reader.fieldnames or []
        lines = [(reader.line_num, cells) for cells in reader]
    except OSError as error:
        raise FileError(jobs, f"cannot be read: {error_reason(error)}") from None
    except UnicodeDecodeError:
        raise FileError(jobs, "is not text in UTF-8") from None
    except csv.Error as error:
        raise FileError(jobs, f"is not a CSV file: {error}") from None
    if "\0" in text:
        raise FileError(jobs, "is not text in UTF-8")
    if missing := [name for name in NEEDED if name not in columns]:
        reason = f"expected the columns {', '.join(NEEDED)} in its first line; {', '.join(missing)} not found"
        raise FileError(jobs, reason)
    if unknown := [name for name in columns if name not in actions]:
        raise FileError(jobs, f"unknown column {unknown[0]!r}; columns are named as flags: {', '.join(actions)}")
    if not lines:
        raise FileError(jobs, "has no row below its first line")
    rows: dict[Path, Row] = {}
    for number, cells in lines:
        if None in cells or None in cells.values():
            raise FileError(jobs, f"line {number}: expected {len(columns)} cells, as in the first line")
        if empty := [name for name in NEEDED if not cells[name].strip()]:
            raise FileError(jobs, f"line {number}: {empty[0]} is empty")
        flags = list(common)
        for name, cell in cells.items():
            if _is_switch(actions[name]) and cell.strip().lower() in NO:
                flags = _without(flags, name, actions[name])
            else:
                flags += _flags(jobs, number, actions[name], name, cell.strip())
        output = Path(cells["output"].strip()).resolve()
        if output in rows:
            raise FileError(jobs, f"line {number}: line {rows[output].line} has the same output")
        rows[output] = Row(number, cells["output"].strip(), tuple(flags), _inputs(flags))
    return list(rows.values())


def _is_switch(action: argparse.Action) -> bool:
    """Whether a flag may be given without a value."""
    return action.nargs in (0, "?")


def _without(flags: list[str], name: str, action: argparse.Action) -> list[str]:
    """The flags without those, and their values, that turn a switch on."""
    switch = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    switch.add_argument(f"--{name}", **({"nargs": "?"} if action.nargs else {"action": "store_true"}))
    return switch.parse_known_args(flags)[1]


def _flags(jobs: Path, line: int, action: argparse.Action, name: str, cell: str) -> list[str]:
    """The flag of a cell: yes if it needs no value, values separated by ";" if it takes several."""
    if not cell:
        return []
    if _is_switch(action) and cell.lower() in YES:
        return [f"--{name}"]
    if action.nargs == 0:
        raise FileError(jobs, f"line {line}: {name}: expected yes or no, found {cell!r}")
    if action.nargs in (None, "?"):
        return [f"--{name}={cell}"]
    return [f"--{name}", *(part.strip() for part in cell.split(";"))]


def _inputs(flags: Sequence[str]) -> str:
    """Fingerprints of the files that flags name, but for those that the dub writes."""
    found, name = [], ""
    for flag in flags:
        value = flag
        if flag.startswith("--"):
            name, _, value = flag.partition("=")
        if name not in WRITTEN and _is_file(value):
            found.append(file_fingerprint(Path(value)))
    return "; ".join(found)


def _is_file(name: str) -> bool:
    return os.path.isfile(name)  # noqa: PTH113 (Path raises OSError if the name is too long)


def _check_memory(num_processes: int) -> None:
    """Log a warning if so many dubs at the same time may not fit the memory."""
    try:
        available_gb = available_bytes() / 1e9
    except ModuleNotFoundError:  # psutil, which other systems than Linux need to state it
        return
    if num_processes > 1 and num_processes * DUB_GB > available_gb:
        message = "%d dubs of 1080p videos at the same time need about %.1f GB of memory; %.1f GB are available"
        logger.warning(message, num_processes, num_processes * DUB_GB, available_gb, extra={"parameter": "jobs"})


def _in_processes(rows: Sequence[Row], num_processes: int) -> Iterator[tuple[Row, Outcome]]:
    """Outcomes as they come. Closing ends the processes that run."""
    stopped = Event()
    with ThreadPoolExecutor(num_processes) as pool:
        try:
            futures = [pool.submit(_dub, Path.cwd(), num_processes, stopped.is_set, row) for row in rows]
            for future in tqdm(as_completed(futures), total=len(futures), unit="video", desc="dubbing"):
                yield future.result()
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _dub(folder: Path, num_processes: int, is_cancelled: Callable[[], bool], row: Row) -> tuple[Row, Outcome]:
    """The row and its outcome, from a process of inference.py in `folder`, which is ended when it is cancelled."""
    begin = time.monotonic()
    num_threads = max(1, num_cores() // num_processes)
    environment = {"OMP_NUM_THREADS": str(num_threads), **os.environ, "TQDM_DISABLE": "1"}
    try:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "inference.py"), *row.flags],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches the batch only, which ends its processes
        )
    except OSError as error:
        reason = f"cannot be started: {error.filename or sys.executable}: {error_reason(error)}"
        return row, Outcome("failed", 0.0, reason)
    lines = _wait(process, is_cancelled).splitlines()
    if process.returncode == 0:
        status, message = "done", "; ".join(lines)
    elif process.returncode < 0:
        status, message = "failed", f"ended by signal {-process.returncode}; is there enough memory?"
    else:
        status, message = "failed", lines[-1] if lines else f"exit code {process.returncode}"
    return row, Outcome(status, round(time.monotonic() - begin, 1), message.removeprefix("error: "))


def _wait(process: subprocess.Popen, is_cancelled: Callable[[], bool]) -> str:
    """What a process writes to stderr until it ends."""
    while True:
        try:
            return process.communicate(timeout=POLL_S)[1]
        except subprocess.TimeoutExpired:
            if is_cancelled():
                process.terminate()  # it removes its partial output
                return process.communicate()[1]


def _read_report(path: Path) -> dict[tuple[str, str], Outcome]:
    """Outcomes of the rows that an earlier run has done, by `Row.key`."""
    if not path.exists():
        return {}
    try:
        lines = list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline="")))
        return {
            (line["command"], line["inputs"]): Outcome(line["status"], float(line["seconds"]), line["message"])
            for line in lines
            if line["status"] == "done"
        }
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise FileError(path, "is not the report of a batch; move it away to dub all rows again") from None


def _write_report(path: Path, report: dict[Row, Outcome]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(REPORT)
    for row in sorted(report, key=lambda row: row.line):
        outcome = report[row]
        writer.writerow([row.line, outcome.status, outcome.seconds, outcome.message, row.output, *row.key])
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
