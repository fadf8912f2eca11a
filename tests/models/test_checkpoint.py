"""Saving and loading: round trips, the authors' checkpoint, and files that are none."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from models.checkpoint import SYNCNET, load_model, load_training_state, save_model, save_training_state
from models.dinet import DINet, DINetConfig
from models.syncnet import SyncNet
from models.wav2lip import Wav2LipConfig
from tests.support.golden import golden_state
from utils.errors import UserError

ABOUT = {"audio_features": "phoneme", "mouth_size": 64, "info": {"steps": 100, "loss": 0.5, "data": ["a", "b"]}}


@pytest.fixture(scope="module")
def model() -> DINet:
    torch.manual_seed(0)
    model = DINet(DINetConfig(audio_dim=44, num_references=3))
    model.decoder[0].norm.running_var.fill_(1e6)  # beyond float16
    return model


@pytest.fixture(scope="module")
def official_state() -> dict[str, torch.Tensor]:
    return {f"module.{name}": tensor for name, tensor in golden_state("dinet").items()}


def save_official(path: Path, state: dict) -> Path:
    torch.save({"epoch": 3, "state_dict": {"net_g": state}}, path)
    return path


def assert_user_error(action: Callable[[], object], *expected: str) -> None:
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message


def test_model_round_trip_is_exact(tmp_path: Path, model: DINet) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model.to(memory_format=torch.channels_last), **ABOUT, bits=32)
    loaded = load_model(path, "cpu")
    assert loaded.model.config == model.config
    assert not loaded.model.training
    assert {"audio_features": loaded.audio_features, "mouth_size": loaded.mouth_size, "info": loaded.info} == ABOUT
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert list(tmp_path.iterdir()) == [path]


def test_half_model_is_half_the_size_and_close(tmp_path: Path, model: DINet) -> None:
    save_model(tmp_path / "half", model, **ABOUT)
    save_model(tmp_path / "full", model, **ABOUT, bits=32)
    assert (tmp_path / "half").stat().st_size < 0.51 * (tmp_path / "full").stat().st_size
    loaded = load_model(tmp_path / "half").model.state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-3, atol=1e-7, msg=name)


def test_eight_bits_are_half_as_large_again(tmp_path: Path, model: DINet) -> None:
    save_model(tmp_path / "half", model, **ABOUT)
    save_model(tmp_path / "eighth", model, **ABOUT, bits=8)
    assert (tmp_path / "eighth").stat().st_size < 0.53 * (tmp_path / "half").stat().st_size
    loaded = load_model(tmp_path / "eighth").model.state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.ndim < 2:
            assert torch.equal(loaded[name], tensor), name
        else:  # off by half a step at most, of 127 to the largest of each output channel
            step = tensor.abs().amax(dim=tuple(range(1, tensor.ndim)), keepdim=True) / 127
            assert ((loaded[name] - tensor).abs() <= 0.51 * step).all(), name


def test_official_checkpoint_describes_itself(tmp_path: Path, official_state: dict) -> None:
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
    assert_user_error(
        lambda: load_model(save_official(path, missing)), str(path), "1 missing (audio_encoder.0.conv.weight)"
    )
    own_name = official_state | {"module.decoder.4.weight": torch.zeros(3, 128, 7, 7)}
    assert_user_error(lambda: load_model(save_official(path, own_name)), "1 unknown (decoder.4.weight)")
    wide = official_state | {removed: torch.zeros(128, 26, 5)}
    assert_user_error(lambda: load_model(save_official(path, wide)), "(128, 26, 5) instead of (128, 29, 5)")
    no_tensor = official_state | {removed: "text"}
    assert_user_error(lambda: load_model(save_official(path, no_tensor)), "audio_encoder.0.conv.weight")
    assert_user_error(lambda: load_model(save_official(path, {})), "332 missing (source_in_conv.0.conv.weight")


def test_own_import_is_strict(tmp_path: Path, model: DINet) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model, **ABOUT)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    del tensors["decoder.4.bias"]
    safetensors.torch.save_file(tensors | {"extra": torch.zeros(1)}, path, metadata)
    assert_user_error(lambda: load_model(path), str(path), "1 missing (decoder.4.bias)", "1 unknown (extra)")

    for wrong in ("not JSON", "{}", "[]", '{"config": {"colour": 1}}', metadata["dinet"].replace("44", '"44"')):
        safetensors.torch.save_file(tensors, path, {"dinet": wrong})
        assert_user_error(lambda: load_model(path), str(path), "expected the description of a DINet generator")


def test_syncnet_round_trip_and_kinds(tmp_path: Path, model: DINet) -> None:
    torch.manual_seed(0)
    syncnet = SyncNet(44)
    save_model(tmp_path / "judge", syncnet, **ABOUT, bits=32)
    save_model(tmp_path / "generator", model, **ABOUT)
    loaded = load_model(tmp_path / "judge", kinds=SYNCNET)
    assert (loaded.audio_features, loaded.mouth_size) == (ABOUT["audio_features"], ABOUT["mouth_size"])
    assert not loaded.model.training
    for name, tensor in syncnet.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert_user_error(lambda: load_model(tmp_path / "judge"), "expected a DINet generator, found a SyncNet")
    assert_user_error(
        lambda: load_model(tmp_path / "generator", kinds=SYNCNET), "expected a SyncNet, found a DINet generator"
    )
    (tmp_path / "text").write_text("just some text\n" * 100)
    assert_user_error(lambda: load_model(tmp_path / "text", kinds=SYNCNET), "expected a SyncNet (.safetensors)")


def test_wav2lip_round_trip_and_its_authors_checkpoint(tmp_path: Path) -> None:
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
    assert_user_error(lambda: load_model(tmp_path / "wav2lip.pth"), "tensors of Wav2Lip's checkpoint", "1 missing")


class RunsCode:
    """A pickle of it calls `os.mkdir` when it is read carelessly."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_other_files_are_refused(tmp_path: Path, model: DINet) -> None:
    path = tmp_path / "file"
    load: tuple[Callable, ...] = (load_model, load_training_state)
    for loader in load:
        assert_user_error(lambda: loader(path), str(path), "No such file")  # noqa: B023 (called at once)
        assert_user_error(lambda: loader(tmp_path), str(tmp_path), "Is a directory")  # noqa: B023
    for content in (b"", b"x", b"just some text\n" * 100, b"PK\x03\x04" + bytes(100), b"\x80\x02}" + bytes(50)):
        path.write_bytes(content)
        for loader in load:
            assert_user_error(lambda: loader(path), str(path), "expected")  # noqa: B023

    torch.save({"state_dict": RunsCode(tmp_path / "made")}, path)
    for loader in load:
        assert_user_error(lambda: loader(path), str(path), "expected")  # noqa: B023
    assert not (tmp_path / "made").exists()

    torch.save([1, 2], path)
    for loader in load:
        assert_user_error(lambda: loader(path), "found a list")  # noqa: B023

    save_training_state(path, {"step": 1, "generator": {}})
    assert_user_error(lambda: load_model(path), str(path), "found no 'net_g'", "step, generator")

    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    assert_user_error(lambda: load_model(path), "safetensors file of something else")
    save_model(path, model, **ABOUT)
    path.write_bytes(path.read_bytes()[:-1000])
    assert_user_error(lambda: load_model(path), "damaged safetensors file")


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


def test_a_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_training_state(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_training_state(path, {"step": 2, "tensor": torch.zeros(1000), "bad": lambda: 0})
    assert load_training_state(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_path_is_named(tmp_path: Path, model: DINet) -> None:
    path = tmp_path / "no such folder" / "file"
    assert_user_error(lambda: save_training_state(path, {}), str(path), "No such file")
    assert_user_error(lambda: save_model(path, model, **ABOUT), str(path), "No such file")


@pytest.mark.parametrize("mouth_size", [40, 0, -32])
def test_a_size_the_generator_cannot_draw_is_refused(mouth_size, tmp_path):
    path = tmp_path / "odd.safetensors"
    save_model(path, DINet(DINetConfig()), audio_features="phoneme", mouth_size=mouth_size, info={})
    with pytest.raises(UserError, match=f"mouth size that is a multiple of 32, found {mouth_size}"):
        load_model(path)
