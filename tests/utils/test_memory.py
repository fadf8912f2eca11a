"""memory: what is available under the limits of containers and schedulers."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from utils import memory
from utils.memory import available_bytes, peak_bytes

MACHINE = 8_000


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=MACHINE))


def cgroup(tmp_path: Path, line: str, folder: str, files: dict[str, str]) -> int:
    """What is available to a process of a cgroup with these files."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"9:name=systemd:/\n{line}\n")
    (tmp_path / "cgroup" / folder).mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "cgroup" / folder / name).write_text(f"{text}\n")
    return available_bytes(tmp_path / "proc", tmp_path / "cgroup")


V2 = {"memory.current": "2500", "memory.stat": "anon 2000\nfile 500\ninactive_file 300\nactive_file 200"}
V1 = {"memory.usage_in_bytes": "2500", "memory.stat": "cache 500\ninactive_file 300\nactive_file 200"}


@pytest.mark.parametrize(
    ("line", "folder", "files", "expected"),
    [
        ("0::/job", "job", V2 | {"memory.max": "5000"}, 3000),  # 5000 - 2500, and 500 of caches
        ("0::/job/step", "job", V2 | {"memory.max": "5000"}, 3000),  # the limit of a group around it
        ("0::/", "", V2 | {"memory.max": "5000"}, 3000),  # in a container
        ("0::/job", "job", V2 | {"memory.max": "max"}, MACHINE),
        ("0::/job", "job", V2 | {"memory.max": "90000"}, MACHINE),
        ("0::/job", "job", V2 | {"memory.max": "1000"}, 0),
        ("0::/job", "other", V2 | {"memory.max": "5000"}, MACHINE),
        ("4:memory:/job", "memory/job", V1 | {"memory.limit_in_bytes": "5000"}, 3000),
        ("4:memory:/docker/a1", "memory", V1 | {"memory.limit_in_bytes": "5000"}, 3000),  # mounted as the root
        ("4:memory:/job", "memory/job", V1 | {"memory.limit_in_bytes": "9223372036854771712"}, MACHINE),
        ("4:memory:/job", "memory/job", {"memory.limit_in_bytes": "unreadable"}, MACHINE),
    ],
)
def test_the_smallest_limit_counts(tmp_path, line, folder, files, expected):
    assert cgroup(tmp_path, line, folder, files) == expected


def test_linux_states_what_is_available_without_psutil(tmp_path, monkeypatch):
    monkeypatch.delattr(psutil, "virtual_memory")
    (tmp_path / "meminfo").write_text(
        "MemTotal:  9 kB\nMemFree:  2 kB\nMemAvailable:       5 kB\nHugePages_Free: 0\n"
    )
    assert available_bytes(tmp_path, tmp_path) == 5 * 1024


def test_without_cgroups(tmp_path):
    assert available_bytes(tmp_path / "proc", tmp_path / "cgroup") == MACHINE


@pytest.mark.parametrize("system", ["linux", "win32"])
def test_peak(monkeypatch, system):
    resident = psutil.Process().memory_info().rss
    if system == "win32":
        monkeypatch.setattr(memory, "resource", None)
        found = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=resident))
        monkeypatch.setattr(psutil, "Process", lambda: found)
    assert resident / 2 < peak_bytes() < 100 * resident
