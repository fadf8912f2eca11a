"""AdaAT against the golden file and closed forms."""

import math

import numpy as np
import torch
from scipy.ndimage import map_coordinates

from models.adaat import AdaAT, warp_channels
from tests.support.golden import assert_close, golden_arrays, golden_state


@torch.no_grad()
def test_adaat_matches_the_original() -> None:
    golden = golden_arrays("adaat")
    adaat = AdaAT(256, 256, official_grid=True)
    names = {"commn_linear": "common"}
    adaat.load_state_dict(
        {
            f"{names.get(module, module)}.{kind}": tensor
            for name, tensor in golden_state("adaat").items()
            for module, _, kind in [name.split(".")]
        }
    )
    assert_close(adaat(golden["feature"], golden["code"]), golden["output"])


def warp_all(features: torch.Tensor, scale: float, rotation: float, x: float, y: float) -> torch.Tensor:
    """Warp all channels by the same transform."""
    shape = features.shape[:2]
    translation = torch.tensor([x, y]).expand(*shape, 2)
    return warp_channels(features, torch.full(shape, scale), torch.full(shape, rotation), translation)


def test_warp_closed_forms() -> None:
    square = torch.randn(2, 4, 9, 9)
    assert_close(warp_all(square, 1.0, 0.0, 0.0, 0.0), square, 1e-5)
    assert_close(warp_all(square, 1.0, math.pi / 2, 0.0, 0.0), square.rot90(1, dims=(2, 3)), 1e-5)

    wide = torch.randn(2, 4, 6, 8)
    assert_close(warp_all(wide, 1.0, 0.0, 0.0, 0.0), wide, 1e-5)
    one_left = torch.cat(
        [wide[..., 1:], torch.zeros(2, 4, 6, 1)], dim=3
    )  # the distance of two samples, 2/8 of [-1, 1]
    assert_close(warp_all(wide, 1.0, 0.0, 2 / 8, 0.0), one_left, 1e-5)
    one_up = torch.cat([wide[:, :, 1:], torch.zeros(2, 4, 1, 8)], dim=2)
    assert_close(warp_all(wide, 1.0, 0.0, 0.0, 2 / 6), one_up, 1e-5)


def test_every_channel_has_its_own_transform() -> None:
    """Against scipy's interpolation, with positions computed here in samples."""
    rng = np.random.default_rng(0)
    batch, channels, height, width = 2, 3, 7, 5
    features = rng.normal(size=(batch, channels, height, width))
    scale = rng.uniform(0.5, 1.5, (batch, channels))
    rotation = rng.uniform(-math.pi, math.pi, (batch, channels))
    translation = rng.uniform(-0.5, 0.5, (batch, channels, 2))
    rows, columns = np.mgrid[:height, :width]
    x, y = (2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1

    expected = np.empty_like(features)
    for index in np.ndindex(batch, channels):
        cos, sin = np.cos(rotation[index]), np.sin(rotation[index])
        read_x = scale[index] * (cos * x - sin * y) + translation[index][0]
        read_y = scale[index] * (sin * x + cos * y) + translation[index][1]
        at = [((read_y + 1) * height - 1) / 2, ((read_x + 1) * width - 1) / 2]
        expected[index] = map_coordinates(features[index], at, order=1, mode="grid-constant", cval=0.0)

    tensors = (torch.from_numpy(a) for a in (features, scale, rotation, translation))
    assert_close(warp_channels(*tensors), torch.from_numpy(expected), 1e-9)


def test_transforms_of_a_code() -> None:
    adaat = AdaAT(8, 3)
    for head in (adaat.scale, adaat.rotation, adaat.translation):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    features, code = torch.randn(2, 3, 6, 8), torch.randn(2, 8)
    assert_close(adaat(features, code), features, 1e-5)

    with torch.no_grad():
        adaat.scale.bias.copy_(torch.tensor([0.0, 100.0, -100.0]))
        adaat.rotation.bias.fill_(math.atanh(0.5))
        adaat.translation.bias.copy_(torch.atanh(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])))
    scale, rotation, translation = adaat.transforms(code)
    assert_close(scale, torch.tensor([[1.0, 2.0, 0.0]] * 2))
    assert_close(rotation, torch.full((2, 3), math.pi / 2))
    assert_close(translation, torch.tensor([[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]] * 2))


def test_adaat_under_autocast() -> None:
    """Positions are exact with 16-bit features; dtype and memory format are kept."""
    torch.manual_seed(0)
    adaat = AdaAT(8, 4)
    code = torch.randn(2, 8)
    features = torch.randn(2, 4, 26, 20).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        warped = adaat(features, code)
    assert warped.dtype == torch.bfloat16
    assert warped.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(warped, adaat(features.float(), code).bfloat16())
