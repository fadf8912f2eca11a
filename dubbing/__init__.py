"""Dubbing of videos: DubbingPipeline and its parts."""

from importlib.util import find_spec
from pathlib import Path


def _check_names() -> None:
    """Raise ImportError if somebody else's package, module or folder has the name of one that dubbing imports."""
    root = Path(__file__).resolve().parents[1]
    for name in ("data_processing", "models", "utils"):
        spec = find_spec(name)
        locations = spec.submodule_search_locations or [spec.origin] if spec else []
        if root / name not in [Path(path).resolve() for path in locations]:
            needed = f"dubbing needs the package {name} in {root}"
            found = ", ".join(locations) or "none"
            raise ImportError(f"{needed}, but Python finds {found}; rename that, or dub in a process of its own")


_check_names()
