"""cores: the limits of a cluster's scheduler and of a container."""

import os

import pytest

from utils.cores import num_cores


@pytest.mark.parametrize(
    ("quota", "num"),
    [(None, 6), ("max 100000", 6), ("250000 100000", 3), ("10000 100000", 1), ("900000 100000", 6)],
)
def test_affinity_and_quota(tmp_path, monkeypatch, quota, num):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(10, 16)), raising=False)
    if quota:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert num_cores(tmp_path) == num


@pytest.mark.parametrize(("cpu_count", "num"), [(8, 8), (None, 1)])
def test_systems_that_state_no_affinity(tmp_path, monkeypatch, cpu_count, num):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cpu_count)
    assert num_cores(tmp_path) == num
