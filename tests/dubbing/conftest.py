"""Fixtures of the dubbing tests."""

from pathlib import Path

import pytest

from dubbing.pipeline import DubbingPipeline


@pytest.fixture(autouse=True)
def use_remembered_networks(remembered_networks) -> None:
    pass


@pytest.fixture(scope="session")
def pipeline(checkpoint: Path) -> DubbingPipeline:
    """A pipeline with the untrained generator, in float32 on the CPU."""
    return DubbingPipeline(checkpoint, device="cpu", precision="fp32")
