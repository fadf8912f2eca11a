"""train_syncnet.py: an interrupted and an uninterrupted run are bit-identical."""

from pathlib import Path

import pytest
import torch

import train_syncnet
from models.checkpoint import SYNCNET, load_model, load_training_state
from tests.support.commands import run_command_line
from tests.support.training import TINY_SYNCNET, write_recipe
from training.syncnet_trainer import train_step
from utils.files import read_jsonl

pytestmark = pytest.mark.slow


def train(*flags: object) -> None:
    """Run `train_syncnet.py` on the CPU."""
    run_command_line(train_syncnet.main, "--device", "cpu", *flags)


@pytest.fixture
def recipe(tmp_path) -> Path:
    return write_recipe(tmp_path, TINY_SYNCNET)


def test_resumed_run_equals_uninterrupted_run(recipe, prepared_dataset, tmp_path, monkeypatch):
    flags, resumed = ("--config", recipe, "--data", prepared_dataset, "--run-dir"), tmp_path / "resumed"
    train(*flags, tmp_path / "uninterrupted")

    def step(trainer, batch):
        if trainer.step == 3:
            raise KeyboardInterrupt
        return train_step(trainer, batch)

    monkeypatch.setattr(train_syncnet, "train_step", step)
    with pytest.raises(SystemExit):
        train(*flags, resumed)
    monkeypatch.undo()
    train(*flags, resumed, "--resume")

    one, two = (load_training_state(run / "state.pt") for run in (tmp_path / "uninterrupted", resumed))
    assert one["step"] == two["step"] == 4
    for name, tensor in one["syncnet"].items():
        assert torch.equal(tensor, two["syncnet"][name]), name
    log = [line for line in read_jsonl(resumed / "log.jsonl") if "loss" in line]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    loaded = load_model(resumed / "syncnet.safetensors", kinds=SYNCNET)
    assert loaded.mouth_size == 32 and loaded.info["held_out"]["accuracy"] == two["best"]
    assert "val_ranking_accuracy" in read_jsonl(resumed / "log.jsonl")[-1]
