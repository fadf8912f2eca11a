"""Networks against the golden files and closed forms."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from models.ablations import AdaIN, Attention, DenseFlow
from models.adaat import AdaAT, warp_channels
from models.checkpoint import load_model
from models.dinet import DINet, DINetConfig
from models.discriminator import Discriminator
from models.syncnet import SyncNet
from models.wav2lip import Wav2Lip, Wav2LipConfig
from tests.support.golden import golden_arrays, golden_state


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def official_model(tmp_path_factory: pytest.TempPathFactory) -> DINet:
    path = tmp_path_factory.mktemp("official") / "dinet.pth"
    state = {f"module.{name}": tensor for name, tensor in golden_state("dinet").items()}
    torch.save({"state_dict": {"net_g": state}}, path)
    return load_model(path, "cpu").model


@torch.no_grad()
def test_generator_matches_the_original(official_model: DINet) -> None:
    golden = golden_arrays("dinet_104x80")
    references = official_model.encode_references(golden["reference"])
    source = official_model.source_encoder(golden["source"])
    alignment_code, audio_code = official_model.codes(source, references, golden["audio"])
    assert_close(alignment_code, golden["alignment_code"])
    assert_close(audio_code, golden["audio_code"])

    deformed = official_model.deform(source, references, torch.cat([alignment_code, audio_code], dim=1))
    assert_close(deformed.mean(dim=(2, 3)), golden["deformed_mean"])
    assert_close(deformed.std(dim=(2, 3)), golden["deformed_std"])

    output = official_model(golden["source"], golden["reference"], golden["audio"])
    assert_close(output, golden["output"])


@pytest.mark.parametrize(("mouth_size", "shape"), [(16, (26, 20)), (64, (104, 80)), (256, (416, 320))])
def test_mask_is_the_mouth_box(mouth_size: int, shape: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *shape) + 0.1
    before = images.clone()
    masked = DINet.mask(images)
    inside = torch.zeros(shape, dtype=torch.bool)
    inside[mouth_size // 2 : mouth_size * 3 // 2, mouth_size // 8 : mouth_size * 9 // 8] = True
    assert inside.sum() == mouth_size**2
    assert (masked[..., inside] == 0).all()
    assert torch.equal(masked[..., ~inside], before[..., ~inside])
    assert torch.equal(images, before)


@torch.no_grad()
def test_own_grid_differs_from_the_official_one(official_model: DINet) -> None:
    own = DINet(DINetConfig()).eval()
    own.load_state_dict(official_model.state_dict())
    golden = golden_arrays("dinet_104x80")
    output = own(golden["source"], golden["reference"], golden["audio"])
    assert (output - golden["output"]).abs().max() > 1e-3


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


@pytest.mark.parametrize("channels", [3, 15])
@torch.no_grad()
def test_discriminator_matches_the_original(channels: int) -> None:
    golden = golden_arrays(f"discriminator_{channels}ch")
    state = {}
    for name, tensor in golden_state(f"discriminator_{channels}ch").items():
        if name.startswith("down_blocks."):
            name = name.replace("down_blocks.", "convs.").replace(".conv.", ".")
        else:
            name = name.replace("conv.", "score.")
        state[name] = tensor
    discriminator = Discriminator(channels)
    discriminator.load_state_dict(state)
    assert_close(discriminator(golden["image"]), golden["score"])


@torch.no_grad()
def test_syncnet_matches_the_original() -> None:
    golden = golden_arrays("syncnet_64")
    syncnet = SyncNet()
    state = golden_state("syncnet")
    syncnet.load_state_dict({re.sub("(face|audio)_conv[.]", "", name): tensor for name, tensor in state.items()})
    assert_close(syncnet(golden["mouth"], golden["audio"]), golden["score"])


@torch.no_grad()
def test_calibrated_syncnet_is_undecided_but_awake() -> None:
    torch.manual_seed(0)
    syncnet = SyncNet()
    mouths, audio = torch.rand(8, 15, 64, 64), torch.randn(8, 29, 9)
    assert syncnet.face_encoder(mouths).std(dim=0).mean() < 0.01  # as it is, all samples look alike to it
    syncnet.calibrate(mouths, audio)
    assert torch.equal(syncnet(mouths, audio), torch.full((8, 1, 2, 2), 0.5))
    for encoder, samples in ((syncnet.face_encoder, mouths), (syncnet.audio_encoder, audio)):
        before_relu = []
        hook = encoder[0].conv.register_forward_hook(lambda *args: before_relu.append(args[2]))  # noqa: B023
        code = encoder(samples)
        hook.remove()
        (first,) = before_relu
        dims = [0, *range(2, first.ndim)]
        torch.testing.assert_close(first.mean(dims), torch.zeros(first.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(first.std(dims), torch.ones(first.shape[1]), atol=1e-3, rtol=0)
        assert code.std(dim=0).mean() > 0.2
    with pytest.raises(ValueError, match="mouths: expected"):
        syncnet(mouths[..., :48], audio)
    with pytest.raises(ValueError, match="audio: expected"):
        syncnet(mouths, audio[..., :5])


def warp_all(features: torch.Tensor, scale: float, rotation: float, x: float, y: float) -> torch.Tensor:
    """Warp every channel alike."""
    shape = features.shape[:2]
    translation = torch.tensor([x, y]).expand(*shape, 2)
    return warp_channels(features, torch.full(shape, scale), torch.full(shape, rotation), translation)


def test_warp_closed_forms() -> None:
    square = torch.randn(2, 4, 9, 9)
    assert_close(warp_all(square, 1.0, 0.0, 0.0, 0.0), square, 1e-5)
    assert_close(warp_all(square, 1.0, math.pi / 2, 0.0, 0.0), square.rot90(1, dims=(2, 3)), 1e-5)

    wide = torch.randn(2, 4, 6, 8)
    assert_close(warp_all(wide, 1.0, 0.0, 0.0, 0.0), wide, 1e-5)
    one_left = torch.cat([wide[..., 1:], torch.zeros(2, 4, 6, 1)], dim=3)  # a sample is 2/8 of the width
    assert_close(warp_all(wide, 1.0, 0.0, 2 / 8, 0.0), one_left, 1e-5)
    one_up = torch.cat([wide[:, :, 1:], torch.zeros(2, 4, 1, 8)], dim=2)
    assert_close(warp_all(wide, 1.0, 0.0, 0.0, 2 / 6), one_up, 1e-5)


def test_every_channel_has_its_own_transform() -> None:
    """Against scipy's interpolation, with positions worked out here in samples."""
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
    """Positions stay exact in 16 bits, and type and memory layout of the features are kept."""
    torch.manual_seed(0)
    adaat = AdaAT(8, 4)
    code = torch.randn(2, 8)
    features = torch.randn(2, 4, 26, 20).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        warped = adaat(features, code)
    assert warped.dtype == torch.bfloat16
    assert warped.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(warped, adaat(features.float(), code).bfloat16())


@torch.no_grad()
def test_references_are_encoded_once_for_many_frames() -> None:
    torch.manual_seed(0)
    model = DINet(DINetConfig(audio_dim=7, num_references=2)).eval()
    source, references, audio = torch.rand(3, 3, 52, 40), torch.rand(1, 6, 52, 40), torch.randn(3, 7, 5)
    output = model.generate(source, model.encode_references(references), audio)
    assert_close(output, model(source, references.expand(3, -1, -1, -1), audio), 1e-6)


def test_output_and_gradients() -> None:
    torch.manual_seed(0)
    model = DINet(DINetConfig())
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.rand(2, 3, 52, 40), torch.rand(2, 15, 52, 40), torch.randn(2, 29, 5))
    assert output.shape == (2, 3, 52, 40)
    assert output.dtype == torch.float32
    assert 0 <= output.min() < output.max() <= 1
    (output * torch.rand_like(output)).mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias in front of a batch norm is taken off again with the mean: a gradient of (about) zero there is right.
    assert not [name for name in without if not name.endswith("bias")]


SOURCE, REFERENCES, AUDIO = (2, 3, 52, 40), (2, 15, 52, 40), (2, 29, 5)


@pytest.mark.parametrize(
    ("source", "references", "audio", "named"),
    [
        ((2, 4, 52, 40), REFERENCES, AUDIO, "masked_source"),
        ((2, 3, 50, 40), (2, 15, 50, 40), AUDIO, "references"),
        ((2, 3, 50, 40), REFERENCES, AUDIO, "masked_source"),
        ((3, 52, 40), REFERENCES, AUDIO, "masked_source"),
        (SOURCE, (2, 12, 52, 40), AUDIO, "references"),
        (SOURCE, (2, 15, 52, 44), AUDIO, "references"),
        (SOURCE, (3, 15, 52, 40), AUDIO, "references"),
        (SOURCE, REFERENCES, (2, 5, 29), "audio_window"),
        (SOURCE, REFERENCES, (2, 29, 9), "audio_window"),
        (SOURCE, REFERENCES, (1, 29, 5), "audio_window"),
    ],
)
@torch.no_grad()
def test_wrong_shapes_are_named(
    official_model: DINet, source: tuple, references: tuple, audio: tuple, named: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{named}: expected .* got [^\n]*$"):
        official_model(torch.zeros(source), torch.zeros(references), torch.zeros(audio))


# --- ablations ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_adain_gives_the_source_the_moments_the_code_asks_for() -> None:
    torch.manual_seed(0)
    adain, code = AdaIN(6, 4), torch.randn(2, 6)
    source, features = torch.randn(2, 4, 9, 7), torch.randn(2, 4, 9, 7)
    found = adain(features, code, source)
    assert_close(found, adain(2 * features, code, 3 * source + 1))  # whatever moments it had
    deviation, mean = adain.moments(adain.common(code).relu()).chunk(2, dim=1)
    assert_close(found.mean(dim=(2, 3)), mean)
    assert_close(found.std(dim=(2, 3), correction=0), (1 + deviation).abs())


@torch.no_grad()
def test_attention_gathers_values_by_likeness() -> None:
    torch.manual_seed(0)
    attention, code = Attention(6, 8), torch.randn(2, 6)
    source, features = torch.randn(2, 8, 5, 4), torch.randn(2, 8, 5, 4)
    hidden = attention.common(code).relu()[..., None, None].expand(-1, -1, 5, 4)
    query = attention.query(torch.cat([source, hidden], dim=1)).flatten(2)
    likeness = torch.einsum("bcq,bck->bqk", query, attention.key(features).flatten(2)) / 2**0.5  # two channels
    expected = torch.einsum("bqk,bck->bcq", likeness.softmax(dim=2), attention.value(features).flatten(2))
    assert_close(attention(features, code, source).flatten(2), expected)


@torch.no_grad()
def test_dense_flow_moves_all_channels_alike() -> None:
    torch.manual_seed(0)
    flow, code = DenseFlow(6, 4).eval(), torch.randn(2, 6)
    source, features = torch.randn(2, 4, 10, 8), torch.randn(2, 4, 10, 8)
    assert_close(flow(features, code, source), features)  # begins as identity
    flow.flow[-2].bias.copy_(torch.tensor([2 / 8, 0]).atanh())  # one place to the right, of eight that span [-1, 1]
    moved = flow(features, code, source)
    assert_close(moved[..., :-1], features[..., 1:])
    assert not moved[..., -1].any()


@pytest.mark.parametrize(
    ("deformation", "inpainting"), [("adain", True), ("attention", True), ("flow", True), ("adaat", False)]
)
def test_ablations_of_the_generator(deformation: str, inpainting: bool) -> None:
    torch.manual_seed(0)
    model = DINet(DINetConfig(audio_dim=7, num_references=2, deformation=deformation, inpainting=inpainting))
    references = torch.rand(2, 6, 52, 40)
    output = model(torch.rand(2, 3, 52, 40), references, torch.rand(2, 7, 5))
    assert output.shape == (2, 3, 52, 40)
    output.mean().backward()
    assert all(weight.grad is not None for weight in model.parameters())


# --- Wav2Lip ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_wav2lip_matches_the_original() -> None:
    model = Wav2Lip(Wav2LipConfig()).eval()
    model.load_state_dict(golden_state(None, "wav2lip_state_dict.json"))
    golden = golden_arrays("wav2lip_96")
    assert_close(model.draw(golden["face"], golden["mel"]), golden["output"])


@torch.no_grad()
@pytest.mark.parametrize("size", [192, 384])
def test_larger_wav2lip(size: int) -> None:
    model = Wav2Lip(Wav2LipConfig(size)).eval()
    assert model.draw(torch.rand(1, 6, size, size), torch.rand(1, 1, 80, 16)).shape == (1, 3, size, size)
    with pytest.raises(ValueError, match=f"6, {size}, {size}"):
        model.draw(torch.rand(1, 6, 96, 96), torch.rand(1, 1, 80, 16))


@torch.no_grad()
@pytest.mark.parametrize("bgr", [False, True])
def test_wav2lip_draws_face_crops(bgr: bool) -> None:
    torch.manual_seed(0)
    model = Wav2Lip(Wav2LipConfig(bgr=bgr)).eval()
    crops, references, window = torch.rand(4, 3, 96, 96), torch.rand(2, 3, 96, 96), torch.rand(4, 1280, 5)
    masked = model.mask(crops)
    assert torch.equal(masked[:, :, :48], crops[:, :, :48])
    assert not masked[:, :, 48:].any()
    faces = torch.cat([masked, references[[0, 0, 1, 1]]], dim=1)
    faces = faces[:, [2, 1, 0, 5, 4, 3]] if bgr else faces
    expected = model.draw(faces, window[:, :, 2].reshape(4, 1, 80, 16))
    assert_close(model(masked, references, window), expected.flip(1) if bgr else expected)
    assert model(torch.rand(2, 3, 104, 80), torch.rand(1, 3, 104, 80), window[:2]).shape == (2, 3, 104, 80)
