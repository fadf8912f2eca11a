"""The layer contract: imports between rooms point down only (docs/architecture.md draws them)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [  # a file may import from its own room and from rooms below it
    ("app", "inference", "evaluate", "train_dinet", "train_syncnet"),
    ("scripts", "examples"),
    ("dubbing",),
    ("training",),
    ("evaluation",),
    ("configs",),
    ("losses",),
    ("data_processing",),
    ("models",),
    ("utils",),
]
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}
# what stands at the root beside the rooms
COMMANDS = {"app.py", "inference.py", "evaluate.py", "train_dinet.py", "train_syncnet.py"}


def imported_modules(source: str) -> list[str]:
    """Modules that Python code imports, at any depth of nesting."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            found.append(node.module)
    return found


def breaches(path: str, source: str) -> list[str]:
    """Imports of a file, by its path from the root, that point up or to another command."""
    room = path.split("/")[0].removesuffix(".py")
    return [
        f"{path} imports {module}"
        for module in imported_modules(source)
        if (other := module.split(".")[0]) in RANK and other != room and RANK[other] <= RANK[room]
    ]


def sources() -> list[Path]:
    rooms = [ROOT / room for room in RANK]
    return sorted([*ROOT.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py"))])


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    assert breaches(path.relative_to(ROOT).as_posix(), path.read_text()) == []


def test_upward_imports_are_found():
    nested = "def f():\n    from dubbing.pipeline import DubbingPipeline\n"
    assert breaches("models/dinet.py", nested) == ["models/dinet.py imports dubbing.pipeline"]
    assert breaches("evaluate.py", "import inference\n") == ["evaluate.py imports inference"]
    assert breaches("dubbing/pipeline.py", "import models.dinet\nfrom dubbing import engine\nimport numpy\n") == []


def test_root_holds_only_the_commands():
    assert {path.name for path in ROOT.glob("*.py")} == COMMANDS


def test_models_are_networks_only():
    """Networks read no media and no files other than checkpoints: no OpenCV, PyAV, librosa or dlib."""
    for path in (ROOT / "models").glob("*.py"):
        tops = {module.split(".")[0] for module in imported_modules(path.read_text())}
        assert not tops & {"cv2", "av", "librosa", "dlib", "scipy"}, path
