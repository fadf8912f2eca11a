"""Wav2Lip against the golden file; larger sizes; face crops."""

import pytest
import torch

from models.wav2lip import Wav2Lip, Wav2LipConfig
from tests.support.golden import assert_close, golden_arrays, golden_state


@torch.no_grad()
def test_wav2lip_matches_the_original() -> None:
    model = Wav2Lip(Wav2LipConfig()).eval()
    model.load_state_dict(golden_state(None, "wav2lip_state_dict.json"))
    golden = golden_arrays("wav2lip_96")
    assert_close(model.generate_faces(golden["face"], golden["mel"]), golden["output"])


@torch.no_grad()
@pytest.mark.parametrize("size", [192, 384])
def test_larger_wav2lip(size: int) -> None:
    model = Wav2Lip(Wav2LipConfig(size)).eval()
    assert model.generate_faces(torch.rand(1, 6, size, size), torch.rand(1, 1, 80, 16)).shape == (1, 3, size, size)
    with pytest.raises(ValueError, match=f"6, {size}, {size}"):
        model.generate_faces(torch.rand(1, 6, 96, 96), torch.rand(1, 1, 80, 16))


@torch.no_grad()
@pytest.mark.parametrize("bgr", [False, True])
def test_wav2lip_generates_face_crops(bgr: bool) -> None:
    torch.manual_seed(0)
    model = Wav2Lip(Wav2LipConfig(bgr=bgr)).eval()
    crops, references, window = torch.rand(4, 3, 96, 96), torch.rand(2, 3, 96, 96), torch.rand(4, 1280, 5)
    masked = model.mask(crops)
    assert torch.equal(masked[:, :, :48], crops[:, :, :48])
    assert not masked[:, :, 48:].any()
    faces = torch.cat([masked, references[[0, 0, 1, 1]]], dim=1)
    faces = faces[:, [2, 1, 0, 5, 4, 3]] if bgr else faces
    expected = model.generate_faces(faces, window[:, :, 2].reshape(4, 1, 80, 16))
    assert_close(model(masked, references, window), expected.flip(1) if bgr else expected)
    assert model(torch.rand(2, 3, 104, 80), torch.rand(1, 3, 104, 80), window[:2]).shape == (2, 3, 104, 80)
