"""DINet against the golden file; masking, shapes and gradients."""

import numpy as np
import pytest
import torch

from models.checkpoint import load_model
from models.dinet import DINet, DINetConfig, Whitening
from tests.support.golden import assert_close, golden_arrays, golden_state


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
def test_references_are_encoded_once_for_several_frames() -> None:
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
    # A batch norm subtracts the bias before it, so the gradient of such a bias is (about) zero.
    assert not [name for name in without if not name.endswith("bias")]


def test_whitening_gives_uncorrelated_components_of_variance_one() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 6)) * [9, 7, 5, 3, 0.01, 0.01] @ np.linalg.qr(rng.normal(size=(6, 6)))[0] + 50
    whitening = Whitening(6, 4)
    whitening.fit(torch.from_numpy(rows).float())
    components = whitening(torch.from_numpy(rows.T[None]).float())[0].numpy()
    assert components.shape == (4, 4000)
    np.testing.assert_allclose(components.mean(axis=1), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(components), np.eye(4), atol=1e-3)
    # the four components of the largest variance: together they give the rows back, but for the noise of 0.01
    centred = rows - rows.mean(axis=0)
    rebuilt = components.T @ np.linalg.lstsq(components.T, centred, rcond=None)[0]
    assert np.abs(rebuilt - centred).max() < 0.1


def test_whitened_audio_encoder_drops_out_while_training_only() -> None:
    torch.manual_seed(0)
    model = DINet(DINetConfig(audio_dim=384, audio_encoder="whitened"))
    audio = torch.randn(3, 384, 5)
    with torch.no_grad():
        assert not torch.equal(model.audio_encoder(audio), model.audio_encoder(audio))
        model.eval()
        codes = model.audio_encoder(audio)
        assert torch.equal(codes, model.audio_encoder(audio))
    assert codes.shape == (3, 128)
    fitted = [name for name, _ in model.named_parameters() if name.startswith("audio_encoder.0.")]
    assert not fitted  # no gradient changes the whitening


SOURCE, REFERENCES, AUDIO = (2, 3, 52, 40), (2, 15, 52, 40), (2, 29, 5)


@pytest.mark.parametrize(
    ("source", "references", "audio", "argument"),
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
def test_invalid_shapes_are_reported(
    official_model: DINet, source: tuple, references: tuple, audio: tuple, argument: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}: expected .* got [^\n]*$"):
        official_model(torch.zeros(source), torch.zeros(references), torch.zeros(audio))


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
