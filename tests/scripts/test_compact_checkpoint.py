"""scripts.compact_checkpoint."""

from pathlib import Path

import pytest
import torch

from models.checkpoint import load_model, save_model
from models.dinet import DINet, DINetConfig
from scripts import compact_checkpoint
from tests.support.commands import run_command_line


@pytest.mark.slow
def test_a_compact_checkpoint_has_half_the_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DINet(DINetConfig(audio_dim=8, num_references=1))
    save_model(tmp_path / "in", model, audio_features="phoneme", mouth_size=64, info={"steps": 3})
    run_command_line(compact_checkpoint.main, tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out").stat().st_size < 0.52 * (tmp_path / "in").stat().st_size
    small = load_model(tmp_path / "out")
    assert small.info == {"steps": 3}
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1:  # rounded to 127 steps per channel
            step = tensor.abs().amax(dim=tuple(range(1, tensor.ndim)), keepdim=True) / 127
            assert ((small.model.state_dict()[name] - tensor).abs() <= 0.51 * step + 1e-3 * tensor.abs()).all(), (
                name
            )
