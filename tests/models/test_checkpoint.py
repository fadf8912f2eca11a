"""Saving and loading: round trips, the authors' checkpoints, invalid files."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from models.checkpoint import (
    SYNCNET,
    load_model,
    load_third_party,
    load_training_state,
    save_model,
    save_training_state,
)
from models.dinet import DINet, DINetConfig
from models.syncnet import SyncNet
from models.wav2lip import Wav2LipConfig
from tests.support.golden import golden_state
from utils.errors import CheckpointError, OutputError, UserError, WeightsError

DESCRIPTION = {
    "audio_features": "phoneme",
    "mouth_size": 64,
    "info": {"steps": 100, "loss": 0.5, "data": ["a", "b"]},
}


@pytest.fixture(scope="module")
def model() -> DINet:
    torch.manual_seed(0)
    model = DINet(DINetConfig(audio_dim=44, num_references=3))
    model.decoder[0].norm.running_var.fill_(1e6)  # outside the range of float16
    return model


@pytest.fixture(scope="module")
def official_state() -> dict[str, torch.Tensor]:
    return {f"module.{name}": tensor for name, tensor in golden_state("dinet").items()}


def save_official(path: Path, state: dict) -> Path:
    torch.save({"epoch": 3, "state_dict": {"net_g": state}}, path)
    return path


def assert_error(action: Callable[[], object], *expected: str, kind: type[UserError] = CheckpointError) -> None:
    """The action raises an error of one line that contains the expected parts."""
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message


def test_model_round_trip_is_exact(tmp_path: Path, model: DINet) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model.to(memory_format=torch.channels_last), **DESCRIPTION, bits=32)
    loaded = load_model(path, "cpu")
    assert loaded.model.config == model.config
    assert not loaded.model.training
    assert {
        "audio_features": loaded.audio_features,
        "mouth_size": loaded.mouth_size,
        "info": loaded.info,
    } == DESCRIPTION
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert list(tmp_path.iterdir()) == [path]


def test_16_bits_have_half_the_size_and_are_close(tmp_path: Path, model: DINet) -> None:
    save_model(tmp_path / "bits16", model, **DESCRIPTION)
    save_model(tmp_path / "bits32", model, **DESCRIPTION, bits=32)
    assert (tmp_path / "bits16").stat().st_size < 0.51 * (tmp_path / "bits32").stat().st_size
    loaded = load_model(tmp_path / "bits16").model.state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-3, atol=1e-7, msg=name)


def test_8_bits_have_a_quarter_of_the_size_and_are_close(tmp_path: Path, model: DINet) -> None:
    save_model(tmp_path / "bits16", model, **DESCRIPTION)
    save_model(tmp_path / "bits8", model, **DESCRIPTION, bits=8)
    assert (tmp_path / "bits8").stat().st_size < 0.53 * (tmp_path / "bits16").stat().st_size
    loaded = load_model(tmp_path / "bits8").model.state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.ndim < 2:
            assert torch.equal(loaded[name], tensor), name
        else:  # half a step of 1/127 of the maximum of each output channel
            step = tensor.abs().amax(dim=tuple(range(1, tensor.ndim)), keepdim=True) / 127
            assert ((loaded[name] - tensor).abs() <= 0.51 * step).all(), name


@pytest.mark.parametrize("bits", [8, 16])
def test_whitening_is_stored_exactly(tmp_path: Path, bits: int) -> None:
    torch.manual_seed(0)
    model = DINet(DINetConfig(audio_dim=20, num_references=1, audio_encoder="whitened"))
    model.audio_encoder[0].fit(torch.randn(100, 20) @ torch.randn(20, 20))
    save_model(tmp_path / "model", model, **DESCRIPTION, bits=bits)
    loaded = load_model(tmp_path / "model").model
    assert loaded.config == model.config
    for name in ("mean", "matrix"):
        expected = model.audio_encoder[0].get_buffer(name)
        assert torch.equal(loaded.audio_encoder[0].get_buffer(name), expected) and expected.any()


def test_checkpoint_from_before_whitening_has_the_audio_encoder_of_the_paper(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    old = DINet(DINetConfig(audio_dim=20, num_references=1))
    config = {"audio_dim": 20, "num_references": 1, "official_grid": False, "deformation": "adaat"}
    metadata = {"dinet": json.dumps({"config": config, **DESCRIPTION})}
    safetensors.torch.save_file(old.state_dict(), path, metadata)
    loaded = load_model(path).model
    assert loaded.config.audio_encoder == "paper"
    assert torch.equal(loaded.audio_encoder[0].conv.weight, old.audio_encoder[0].conv.weight)


def test_official_checkpoint_needs_no_configuration(tmp_path: Path, official_state: dict) -> None:
    loaded = load_model(save_official(tmp_path / "official.pth", official_state), "cpu")
    assert loaded.model.config == DINetConfig(audio_dim=29, num_references=5, official_grid=True)
    assert (loaded.audio_features, loaded.mouth_size) == ("deepspeech", 256)
    assert not loaded.model.training
    assert torch.equal(loaded.model.decoder[4].weight, official_state["module.out_conv.4.weight"])

    save_model(tmp_path / "again", loaded.model, audio_features="deepspeech", mouth_size=256, info={}, bits=32)
    again = load_model(tmp_path / "again").model
    assert again.config.official_grid
    assert torch.equal(again.deformation.channel_mix, loaded.model.deformation.channel_mix)


def test_official_import_is_strict(tmp_path: Path, official_state: dict) -> None:
    path = tmp_path / "official.pth"
    removed = "module.audio_encoder.0.conv.weight"

    missing = {name: tensor for name, tensor in official_state.items() if name != removed}
    assert_error(
        lambda: load_model(save_official(path, missing)), str(path), "1 missing (audio_encoder.0.conv.weight)"
    )
    own_name = official_state | {"module.decoder.4.weight": torch.zeros(3, 128, 7, 7)}
    assert_error(lambda: load_model(save_official(path, own_name)), "1 unknown (decoder.4.weight)")
    wide = official_state | {removed: torch.zeros(128, 26, 5)}
    assert_error(lambda: load_model(save_official(path, wide)), "expected shape (128, 29, 5), found (128, 26, 5)")
    no_tensor = official_state | {removed: "text"}
    assert_error(lambda: load_model(save_official(path, no_tensor)), "audio_encoder.0.conv.weight")
    assert_error(lambda: load_model(save_official(path, {})), "332 missing (source_in_conv.0.conv.weight")


def test_own_import_is_strict(tmp_path: Path, model: DINet) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model, **DESCRIPTION)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    del tensors["decoder.4.bias"]
    safetensors.torch.save_file(tensors | {"extra": torch.zeros(1)}, path, metadata)
    assert_error(lambda: load_model(path), str(path), "1 missing (decoder.4.bias)", "1 unknown (extra)")

    for description in (
        "not JSON",
        "{}",
        "[]",
        '{"config": {"colour": 1}}',
        metadata["dinet"].replace("44", '"44"'),
    ):
        safetensors.torch.save_file(tensors, path, {"dinet": description})
        assert_error(
            lambda: load_model(path), str(path), "not a valid checkpoint: damaged description of a DINet generator"
        )


def test_syncnet_round_trip_and_kinds(tmp_path: Path, model: DINet) -> None:
    torch.manual_seed(0)
    syncnet = SyncNet(44)
    save_model(tmp_path / "syncnet", syncnet, **DESCRIPTION, bits=32)
    save_model(tmp_path / "generator", model, **DESCRIPTION)
    loaded = load_model(tmp_path / "syncnet", kinds=SYNCNET)
    assert (loaded.audio_features, loaded.mouth_size) == (DESCRIPTION["audio_features"], DESCRIPTION["mouth_size"])
    assert not loaded.model.training
    for name, tensor in syncnet.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert_error(
        lambda: load_model(tmp_path / "syncnet"), "not a valid checkpoint: a SyncNet, not a DINet generator"
    )
    assert_error(
        lambda: load_model(tmp_path / "generator", kinds=SYNCNET),
        "not a valid checkpoint: a DINet generator, not a SyncNet",
    )
    (tmp_path / "text").write_text("just some text\n" * 100)
    assert_error(
        lambda: load_model(tmp_path / "text", kinds=SYNCNET),
        "not a valid checkpoint: not a safetensors file, as for a SyncNet",
    )


@pytest.mark.slow
def test_wav2lip_round_trip_and_the_authors_checkpoint(tmp_path: Path) -> None:
    state = golden_state(None, "wav2lip_state_dict.json")
    content = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "global_epoch": 3}
    torch.save(content, tmp_path / "wav2lip.pth")
    official = load_model(tmp_path / "wav2lip.pth")
    assert official.model.config == Wav2LipConfig(96, bgr=True)
    assert (official.audio_features, official.mouth_size) == ("mel", 64)
    save_model(tmp_path / "own", official.model, audio_features="mel", mouth_size=64, info={}, bits=32)
    again = load_model(tmp_path / "own")
    assert again.model.config == official.model.config
    for name, tensor in state.items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    content["state_dict"].popitem()
    torch.save(content, tmp_path / "wav2lip.pth")
    assert_error(lambda: load_model(tmp_path / "wav2lip.pth"), "tensors of the authors' Wav2Lip", "1 missing")


class RunsCode:
    """Its pickle calls `os.mkdir` when it is loaded without restrictions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_other_files_are_rejected(tmp_path: Path, model: DINet) -> None:
    path = tmp_path / "file"
    load: tuple[Callable, ...] = (load_model, load_training_state)
    for loader in load:
        assert_error(lambda: loader(path), f"{path}: no such file")  # noqa: B023 (called at once)
        assert_error(lambda: loader(tmp_path), str(tmp_path), "Is a directory")  # noqa: B023
    for content in (b"", b"x", b"just some text\n" * 100, b"PK\x03\x04" + bytes(100), b"\x80\x02}" + bytes(50)):
        path.write_bytes(content)
        for loader in load:
            assert_error(lambda: loader(path), f"{path}: not a valid checkpoint: ")  # noqa: B023

    torch.save({"state_dict": RunsCode(tmp_path / "made")}, path)
    for loader in load:
        assert_error(lambda: loader(path), f"{path}: not a valid checkpoint: ")  # noqa: B023
    assert not (tmp_path / "made").exists()

    torch.save([1, 2], path)
    for loader in load:
        assert_error(lambda: loader(path), "not a valid checkpoint: a list, not ")  # noqa: B023

    save_training_state(path, {"step": 1, "generator": {}})
    assert_error(lambda: load_model(path), str(path), "no 'net_g' in 'state_dict'", "step, generator")

    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    assert_error(lambda: load_model(path), "not a valid checkpoint: a safetensors file of another program")
    save_model(path, model, **DESCRIPTION)
    path.write_bytes(path.read_bytes()[:-1000])
    assert_error(lambda: load_model(path), "not a valid checkpoint: damaged safetensors file")


def test_training_state_round_trip(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {
        "step": 7,
        "stage": "frame",
        "losses": [0.5, 0.25],
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    path = tmp_path / "state.pt"
    save_training_state(path, state)
    loaded = load_training_state(path)
    assert loaded.keys() == state.keys()
    assert (loaded["step"], loaded["stage"], loaded["losses"]) == (7, "frame", [0.5, 0.25])
    assert torch.equal(loaded["network"]["weight"], network.weight)
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], optimizer.state[network.weight]["exp_avg"])
    torch.set_rng_state(loaded["random"])


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_training_state(path, {"step": 1})
    with pytest.raises(Exception, match=r"pickle|local object"):
        save_training_state(path, {"step": 2, "tensor": torch.zeros(1000), "bad": lambda: 0})
    assert load_training_state(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_path(tmp_path: Path, model: DINet) -> None:
    path = tmp_path / "no such folder" / "file"
    assert_error(lambda: save_training_state(path, {}), str(path), "No such file", kind=OutputError)
    assert_error(lambda: save_model(path, model, **DESCRIPTION), str(path), "No such file", kind=OutputError)


def test_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert_error(lambda: load_model(tmp_path / "pipe.safetensors"), "is a pipe or a device, not a file")


@pytest.mark.parametrize("mouth_size", [40, 0, -32])
def test_invalid_mouth_size_is_rejected(mouth_size, tmp_path):
    path = tmp_path / "odd.safetensors"
    save_model(path, DINet(DINetConfig()), audio_features="phoneme", mouth_size=mouth_size, info={})
    with pytest.raises(CheckpointError, match=f"mouth size: expected a multiple of 32, found {mouth_size}"):
        load_model(path)


def test_third_party_weights(tmp_path: Path) -> None:
    path, network = tmp_path / "weights", torch.nn.Linear(3, 2)
    torch.save({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, path)
    load_third_party(path, network, "the linear layer")
    assert torch.equal(network.weight, torch.ones(2, 3))
    torch.save({"weight": torch.ones(2, 4)}, path)
    reason = "1 missing (bias); weight: expected shape (2, 3), found (2, 4)"
    expected = f"{path}: not a valid checkpoint: tensors of the linear layer: {reason}"
    assert_error(lambda: load_third_party(path, network, "the linear layer"), expected, kind=WeightsError)
    missing = tmp_path / "missing"
    assert_error(lambda: load_third_party(missing, network, "x"), f"{missing}: no such file", kind=WeightsError)
