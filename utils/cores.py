"""CPU cores that this process can use."""

import math
import os
from contextlib import suppress
from pathlib import Path


def num_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """How many cores this process may use at once: all of the machine, or those that it was given.

    A cluster's scheduler limits them by the CPU affinity, a container by a quota of its cgroup (version 2).
    """
    # only some systems have it
    num = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # there is no such file, or its quota is "max"
        quota_us, period_us = map(int, (cgroups / "cpu.max").read_text().split())
        num = min(num, math.ceil(quota_us / period_us))
    return num
