"""Importing dubbing from another folder, and beside other packages of the same names."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def imported(folder: Path, statements: str = "import dubbing") -> subprocess.CompletedProcess:
    """Run Python in `folder`, where the repository comes after the folder, as after `pip install -e .`."""
    code = f"import sys; sys.path[:0] = [{str(folder)!r}]; sys.path.append({str(ROOT)!r}); {statements}"
    return subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True)


def test_import_from_another_folder(tmp_path):
    (tmp_path / "models").mkdir()  # without Python files it is no package
    assert imported(tmp_path).returncode == 0


@pytest.mark.parametrize("clash", ["models/__init__.py", "utils/__init__.py", "utils.py", "data_processing.py"])
def test_clash_is_said_in_one_line(clash, tmp_path):
    path = tmp_path / clash
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    name = clash.split("/")[0].removesuffix(".py")
    found = path.parent if path.name == "__init__.py" else path
    for statements in ("import dubbing", f"import {name}; import dubbing"):
        result = imported(tmp_path, statements)
        assert result.returncode == 1
        expected = f"ImportError: dubbing needs the package {name} in {ROOT}, but Python finds {found}; rename that"
        assert result.stderr.splitlines()[-1].startswith(expected)


def test_every_imported_package_is_installed():
    """`pip install -e .` lists the packages; none may be missing."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = {pattern.removesuffix("*") for pattern in listed["packages"]["find"]["include"]}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "examples"}
    assert packages == patterns
    commands = {path.stem for path in ROOT.glob("*.py")}
    assert commands == set(listed["py-modules"])
