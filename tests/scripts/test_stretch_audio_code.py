"""scripts.stretch_audio_code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoint import LoadedModel
from models.dinet import DINet, DINetConfig
from scripts import stretch_audio_code
from tests.support.commands import run_command_line


def test_codes_keep_their_mean_and_move_further() -> None:
    torch.manual_seed(0)
    model = DINet(DINetConfig(audio_dim=8, num_references=1)).eval()
    features = [np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32) for _ in range(30)]
    # the frames that count: the first of each clip, with the row before it repeated
    windows = torch.from_numpy(np.stack([rows[[0, 0, 0, 1, 2]].T for rows in features]))

    def inputs_of_adaat() -> torch.Tensor:
        with torch.no_grad():
            codes = torch.cat([torch.ones(30, 128), model.audio_encoder(windows)], dim=1)
            return model.deformation.common(codes)

    before = inputs_of_adaat()
    stretch_audio_code.stretch(LoadedModel(model, "phoneme", 64, {}), features, 1.5)
    after = inputs_of_adaat()
    torch.testing.assert_close(after.mean(dim=0), before.mean(dim=0), rtol=0, atol=1e-4)
    torch.testing.assert_close(after - after.mean(dim=0), 1.5 * (before - before.mean(dim=0)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("factor", ["0", "4", "nan"])
def test_other_factors_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture, factor: str) -> None:
    with pytest.raises(SystemExit) as end:
        run_command_line(
            stretch_audio_code.main, tmp_path / "in", tmp_path / "out", "--data", tmp_path, "--factor", factor
        )
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: --factor: expected a number above 0, at most 3, found")
    assert not (tmp_path / "out").exists()
