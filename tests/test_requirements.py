"""requirements.txt lists the dependencies and all extras of pyproject.toml but LEFT_OUT, no more and no less."""

import tomllib
from pathlib import Path

LEFT_OUT = "wandb"  # an account is needed to use it
ROOT = Path(__file__).resolve().parents[1]


def test_requirements_equal_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[name] for name in extras if name != LEFT_OUT)]
    declared = [requirement for group in groups for requirement in group]
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert sorted(line for line in lines if line) == sorted(set(declared))
