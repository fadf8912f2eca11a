"""Memory that this process has used, and that it and those it starts can use."""

import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

# of the group of processes (cgroup) that a container or a cluster's scheduler limits: version 2, then version 1
LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be allocated without swapping: of the machine, or of the limit of this process's cgroup.

    The caches of files count as available, since the operating system gives them up first.

    Raises:
        ModuleNotFoundError: psutil is not installed, which systems other than Linux need.
    """
    available = _available_of_machine(proc)
    for folder in _own_cgroups(proc, cgroups):
        for limit_name, usage_name in LIMITS:
            try:
                limit, usage = ((folder / name).read_text().strip() for name in (limit_name, usage_name))
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            if limit != "max":  # version 1 states a huge number instead
                caches = int(statistics.get("inactive_file", 0)) + int(statistics.get("active_file", 0))
                available = min(available, max(0, int(limit) - int(usage) + caches))
    return available


def _available_of_machine(proc: Path) -> int:
    try:
        values = dict(line.split(":") for line in (proc / "meminfo").read_text().splitlines())
        return int(values["MemAvailable"].split()[0]) * 1024
    except OSError:  # not Linux
        import psutil

        return psutil.virtual_memory().available


def peak_bytes() -> int:
    """The most physical memory in bytes that this process has had at once."""
    if resource is None:
        import psutil

        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _own_cgroups(proc: Path, cgroups: Path) -> list[Path]:
    """Folders of the cgroup of this process and of those it is part of, each with a limit of its own."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    folders = []
    for line in lines:  # NUMBER:CONTROLLERS:PATH, without a controller in version 2
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = cgroups / controllers
            own = root / path.strip("/")
            folders += [folder for folder in (own, *own.parents) if folder == root or root in folder.parents]
    return folders
