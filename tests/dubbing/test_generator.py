"""GeneratorSession against the plain networks."""

import numpy as np
import pytest
import torch

from dubbing.generator import GeneratorSession
from models.checkpoint import LoadedModel, load_model
from models.crop_layout import crop_size, mouth_box, mouth_margin_top
from models.dinet import DINet
from models.wav2lip import Wav2Lip, Wav2LipConfig
from tests.conftest import MOUTH
from utils.errors import ParameterError


def random_crops(count: int, seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, *crop_size(MOUTH), 3), np.uint8))


def test_wav2lip_equals_the_plain_network() -> None:
    torch.manual_seed(0)
    model = Wav2Lip(Wav2LipConfig()).eval()
    session = GeneratorSession(LoadedModel(model, "mel", MOUTH, {}), torch.device("cpu"), "fp32")
    crops, reference = random_crops(2, 0), random_crops(1, 1)
    windows = np.random.default_rng(2).random((2, 1280, 5), np.float32)
    found = session.generate(crops, session.encode_references(reference), windows)
    images = [torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2) / 255 for x in (crops, reference)]
    with torch.no_grad():
        output = model(model.mask(images[0]), images[1], torch.from_numpy(windows))
    expected = (output.permute(0, 2, 3, 1) * 255).round().numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1


def plain_generate(
    model: DINet, crops: list[np.ndarray], references: list[np.ndarray], audio: np.ndarray
) -> np.ndarray:
    """The expected crops, one frame at a time with the plain network."""
    rows, columns = mouth_box(MOUTH)
    outputs = []
    for crop, window in zip(crops, audio, strict=True):
        masked = crop.astype(np.float32) / 255
        masked[rows, columns] = 0
        stacked = np.concatenate(references, axis=2).astype(np.float32) / 255  # channels RGBRGB…
        with torch.no_grad():
            images = (torch.from_numpy(image.transpose(2, 0, 1))[None].contiguous() for image in (masked, stacked))
            output = model(*images, torch.from_numpy(window)[None])
        outputs.append(output[0].permute(1, 2, 0).numpy() * 255)
    first = mouth_margin_top(MOUTH)  # rows above it are not generated
    return np.concatenate([np.stack(crops)[:, :first], np.stack(outputs)[:, first:]], axis=1)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.51), ("bf16", 2), ("fp16", 1)])
@pytest.mark.slow
def test_dinet_equals_the_plain_network(checkpoint, precision, tolerance):
    loaded = load_model(checkpoint)
    crops, references = random_crops(3, 0), random_crops(5, 1)
    audio = np.random.default_rng(2).normal(size=(3, 384, 5)).astype(np.float32)
    expected = plain_generate(loaded.model, crops, references, audio)
    session = GeneratorSession(loaded, torch.device("cpu"), precision)
    generated = session.generate(crops, session.encode_references(references), audio)
    assert generated.dtype == np.uint8
    assert np.abs(generated - expected).max() < tolerance
    # each input changes the output by more than the tolerance
    other_crops, other_references, other_audio = random_crops(3, 3), random_crops(5, 4), audio[::-1].copy()
    for other in (
        (other_crops, references, audio),
        (crops, other_references, audio),
        (crops, references[::-1], audio),
        (crops, references, other_audio),
    ):
        assert np.abs(plain_generate(loaded.model, *other) - expected).max() > 2 * tolerance


def test_mouth_box_of_the_source_is_not_used(checkpoint):
    session = GeneratorSession(load_model(checkpoint), torch.device("cpu"), "fp32")
    references = session.encode_references(random_crops(5, 1))
    audio = np.zeros((1, 384, 5), np.float32)
    (crop,) = random_crops(1, 0)
    other_mouth, other_cheek = crop.copy(), crop.copy()
    other_mouth[mouth_box(MOUTH)] = 255 - crop[mouth_box(MOUTH)]
    other_cheek[:4] = 255 - crop[:4]
    generated, mouth, cheek = (
        session.generate([image], references, audio) for image in (crop, other_mouth, other_cheek)
    )
    assert np.array_equal(generated, mouth)
    assert not np.array_equal(generated, cheek)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_overflow_before_the_sigmoid_is_an_error(checkpoint, precision):
    loaded = load_model(checkpoint)
    torch.nn.init.constant_(loaded.model.decoder[-1].bias, 1e5)  # beyond fp16; white
    session = GeneratorSession(loaded, torch.device("cpu"), precision)
    crops, audio = random_crops(1, 0), np.zeros((1, 384, 5), np.float32)
    references = session.encode_references(random_crops(5, 1))
    if precision == "fp16":
        with pytest.raises(ParameterError, match="NaN or Inf; try precision fp32"):
            session.generate(crops, references, audio)
    else:
        assert (session.generate(crops, references, audio)[:, mouth_margin_top(MOUTH) :] == 255).all()
