"""Export to ONNX: same images under onnxruntime for any batch size, errors, files on disk."""

import json
from pathlib import Path

import onnxruntime
import pytest
import torch

from models.checkpoint import LoadedModel, save_model
from models.dinet import DINet, DINetConfig
from scripts import export_onnx
from tests.support.commands import run_command_line
from tests.support.media import text_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MOUTH = 32


def untrained(**options: object) -> LoadedModel:
    """A generator with kernels large enough that source, references and audio all change its output."""
    torch.manual_seed(0)
    model = DINet(DINetConfig(29, num_references=2, **options)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, parameter[0].numel() ** -0.5)
    return LoadedModel(model, "phoneme", MOUTH, {})


def save(path: Path, loaded: LoadedModel) -> Path:
    save_model(path, loaded.model, audio_features=loaded.audio_features, mouth_size=MOUTH, info={}, bits=32)
    return path


def run(checkpoint: Path, output: Path) -> None:
    """`export_onnx.py`, in this process."""
    run_command_line(export_onnx.main, "--checkpoint", checkpoint, "--output", output)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("checkpoint") / "generator.safetensors", untrained())


@pytest.fixture(scope="module")
def files(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """What the command writes for the checkpoint: references, generator."""
    folder = tmp_path_factory.mktemp("onnx")
    run(checkpoint, folder / "small.onnx")
    paths = (folder / "small.references.onnx", folder / "small.onnx")
    assert {*folder.iterdir()} == {*paths}
    return tuple(path.read_bytes() for path in paths)


@pytest.mark.parametrize("batch", [1, 3])
def test_same_images_as_pytorch(files, batch):
    assert export_onnx.largest_difference(untrained(), files, batch) < 1e-4


def test_whitened_audio_encoder_is_exported():
    loaded = untrained(audio_encoder="whitened")
    loaded.model.audio_encoder[0].fit(torch.randn(200, 29) * 5 + 20)
    assert export_onnx.largest_difference(loaded, export_onnx.export(loaded), 3) < 1e-4


def test_comparison_detects_other_weights(files):
    other = untrained()
    with torch.no_grad():
        other.model.reference_encoder[0].conv.weight.mul_(1.1)
    assert export_onnx.largest_difference(other, files, 1) > export_onnx.TOLERANCE


def test_metadata(files):
    for content in files:
        meta = onnxruntime.InferenceSession(content).get_modelmeta().custom_metadata_map
        metadata = {name: json.loads(text) for name, text in meta.items()}
        assert metadata["audio_features"] == "phoneme" and metadata["mouth_size"] == MOUTH
        assert DINetConfig(**metadata["config"]) == untrained().model.config
        assert str(ROOT).encode() not in content  # the exporter records paths of source files


@pytest.mark.parametrize("difference", [2e-3, float("nan")])
def test_nothing_is_written_if_the_images_differ(checkpoint, files, tmp_path, monkeypatch, difference):
    monkeypatch.setattr(export_onnx, "export", lambda loaded: files)
    monkeypatch.setattr(export_onnx, "largest_difference", lambda *args: difference)
    with pytest.raises(SystemExit) as end:
        run(checkpoint, tmp_path / "small.onnx")
    assert str(end.value).startswith("error: ")  # printed by Python, exit code 1
    assert not [*tmp_path.iterdir()]


def test_errors_are_one_line(checkpoint, tmp_path, capsys):
    attention = save(tmp_path / "attention.safetensors", untrained(deformation="attention"))
    refused = {
        attention: ("small.onnx", "expected a generator with AdaAT, found attention"),
        text_file(tmp_path / "text.safetensors"): ("small.onnx", "not a valid checkpoint"),
        tmp_path / "missing.safetensors": ("small.onnx", "no such file"),
        checkpoint: ("small.safetensors", "expected a name ending in .onnx"),
    }
    for given, (name, message) in refused.items():
        with pytest.raises(SystemExit) as end:
            run(given, tmp_path / name)
        stderr = capsys.readouterr().err
        assert end.value.code == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1
        assert message in stderr
        assert not (tmp_path / name).exists()
