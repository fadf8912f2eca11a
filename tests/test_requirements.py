"""requirements.txt lists the dependencies and all extras of pyproject.toml but LEFT_OUT, no more and no less; the
dependencies are what dubbing imports."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = ("wandb", "live")  # an account or devices are needed to use them
ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "dlib": "dlib-bin"}  # of modules with other names
# own modules that a dub imports when it needs them
IMPORTED_LATER = ["dubbing.generator", "utils.device", "data_processing.audio.whisper"]
# what takes long to load, and what only other commands need
HEAVY = ("torch", "scipy.signal", "scipy.stats", "librosa", "numba", "onnxruntime", "torchvision", "matplotlib")


def test_requirements_equal_pyproject():
    extras = PROJECT["optional-dependencies"]
    groups = [PROJECT["dependencies"], *(extras[name] for name in extras if name not in LEFT_OUT)]
    declared = {requirement for group in groups for requirement in group}
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert sorted(line for line in lines if line) == sorted(declared)


def imported_at_once(statements: list[ast.stmt]) -> Iterator[str]:
    """Modules that are imported when a module is."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Try):
            yield from imported_at_once(node.body)


def test_dependencies_are_what_dubbing_imports():
    waiting, seen, found = ["inference", *IMPORTED_LATER], set(), {"dlib"}  # dlib: imported by functions
    while waiting:
        module = waiting.pop()
        path = ROOT / module.replace(".", "/")
        file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        if file.exists() and module not in seen:
            seen.add(module)
            waiting += imported_at_once(ast.parse(file.read_text()).body)
        elif not file.exists():
            found.add(module.split(".")[0])
    imported = {DISTRIBUTIONS.get(name, name) for name in found - set(sys.stdlib_module_names)}
    assert imported == {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["dependencies"]}


def test_inference_starts_without_heavy_libraries():
    """PyTorch loads while the first frames are tracked."""
    code = f"import sys, inference; print(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
