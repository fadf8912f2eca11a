"""The table of batches: what it runs, and its figures, with stand-ins for the dubs and the cluster."""

import csv
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_processing.media.audio_io import load_audio
from tests.support.commands import run_command_line
from tests.tools import batch_table


def test_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    flags, clusters, clock = [], [], iter([0, 20, 0, 10, 0, 24, 0, 12])

    def dub(command: list[str], **_: object) -> None:
        assert Path(command[1]).name == "inference.py"
        with Path(command[3]).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len({row["output"] for row in rows}) == 3
        assert {len(load_audio(Path(row["audio"]))) for row in rows} == {8000}
        flags.append(command[4:])

    def cluster(**options: object) -> nullcontext:
        clusters.append((options["n_workers"], options["threads_per_worker"]))
        return nullcontext(SimpleNamespace(scheduler_address="tcp://address"))

    monkeypatch.setattr(batch_table.subprocess, "run", dub)
    monkeypatch.setattr(batch_table, "LocalCluster", cluster)
    monkeypatch.setattr(batch_table, "time", SimpleNamespace(monotonic=clock.__next__))
    run_command_line(batch_table.main, "--dubs", 3, "--seconds", 0.5)
    assert flags == [["--jobs", "1"], ["--jobs", "2"], *[["--scheduler", "tcp://address"]] * 2]
    assert clusters == [(1, 1), (2, 1)]
    assert capsys.readouterr().out.splitlines()[4:] == [
        "| `--jobs 1` | 20.0 | 9.0 | × 1.00 |",
        "| `--jobs 2` | 10.0 | 18.0 | × 2.00 |",
        "| 1 worker | 24.0 | 7.5 | × 0.83 |",
        "| 2 workers | 12.0 | 15.0 | × 1.67 |",
    ]
