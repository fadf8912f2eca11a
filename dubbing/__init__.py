"""Dubbing of videos: DubbingPipeline and its parts."""

from importlib.util import find_spec
from pathlib import Path


def _check_names() -> None:
    """Raise ImportError if somebody else's package or module has the name of one that dubbing imports."""
    root = Path(__file__).resolve().parents[1]
    for name in ("data_processing", "models", "utils"):
        spec = find_spec(name)
        found = spec and spec.origin
        if found is None or Path(found).resolve().parents[1] != root:
            needed = f"dubbing needs the package {name} in {root}"
            raise ImportError(f"{needed}, but Python finds {found}; rename that, or dub in a process of its own")


_check_names()
