"""Metrics against closed forms, scikit-image, LPIPS in NumPy and golden values of the official SyncNet."""

import os
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from skimage.metrics import structural_similarity

from data_processing.face.identity import IdentityEncoder
from data_processing.face.tracking import find_landmarks
from data_processing.media.video_reader import read_frames
from evaluation import metrics
from evaluation.metrics import FID, LPIPS, frechet_distance, lip_sync_error, mean_interval, psnr, read_arrays, ssim
from models.syncnet_v2 import SyncNetV2, load_syncnet_v2
from tests.support.clips import noise
from tests.support.golden import golden_arrays, golden_state, random_inception
from tests.tools.interval_coverage import experiments
from utils.errors import UserError
from utils.weights import weight_path


@pytest.fixture(scope="module")
def lpips_model() -> LPIPS:
    return LPIPS()


def test_psnr_of_a_constant_difference() -> None:
    target = torch.full((2, 3, 16, 16), 100 / 255)
    output = target + torch.tensor([10 / 255, 51 / 255]).view(2, 1, 1, 1)
    np.testing.assert_allclose(psnr(output, target), [20 * np.log10(25.5), 20 * np.log10(5)], rtol=1e-6)
    assert np.isinf(psnr(target, target)).all()


def test_metrics_round_images_to_8_bits() -> None:
    target = torch.full((1, 3, 16, 16), 100 / 255)
    assert np.isinf(psnr(target + 0.4 / 255, target))  # rounded off
    np.testing.assert_allclose(psnr(target + 0.6 / 255, target), 20 * np.log10(255), rtol=1e-6)
    assert np.isinf(psnr(torch.full_like(target, 1.3), torch.ones_like(target)))  # clipped


def test_ssim_matches_scikit_image() -> None:
    target, output = noise(2, 3, 24, 20), noise(2, 3, 24, 20, seed=1)
    output[1] = 0.7 * target[1] + 0.3 * output[1]
    levels = [np.rint(x.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8) for x in (output, target)]
    expected = [
        structural_similarity(
            a,
            b,
            channel_axis=2,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(*levels, strict=True)
    ]
    values = ssim(output, target)
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    assert values[1] > values[0] + 0.3
    np.testing.assert_allclose(ssim(target, target), 1, rtol=1e-12)


# Stride, padding and preceding pooling size (0: none) of each convolution; the layers whose output LPIPS compares.
ALEXNET = ([(4, 2, 0), (1, 2, 3), (1, 1, 3), (1, 1, 0), (1, 1, 0)], [0, 1, 2, 3, 4])
VGG16 = ([(1, 1, 2 if layer in (2, 4, 7, 10) else 0) for layer in range(13)], [1, 3, 6, 9, 12])


def numpy_lpips(layers: dict[str, Any], network: tuple, first: np.ndarray, second: np.ndarray) -> float:
    """LPIPS by the formula of the paper, with the linear layers of the weight file: images (H, W, 3) in [0, 1]."""
    convolutions = next(layer for name, layer in layers.items() if not name.startswith("NetLin"))

    def convolve(image: np.ndarray, layer: dict[str, np.ndarray], stride: int, padding: int) -> np.ndarray:
        kernel = layer["kernel"].astype(np.float64)  # (rows, columns, in, out)
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        patches = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(0, 1))
        return np.einsum("yxcij,ijco->yxo", patches[::stride, ::stride], kernel, optimize=True) + layer["bias"]

    def pool(image: np.ndarray, size: int) -> np.ndarray:
        patches = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))
        return patches[::2, ::2].max(axis=(3, 4))

    def features(image: np.ndarray) -> list[np.ndarray]:
        x = ((2 * image - 1) - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        outputs = []
        for number, (stride, padding, pooling) in enumerate(network[0]):
            x = pool(x, pooling) if pooling else x
            x = np.maximum(convolve(x, convolutions[f"Conv_{number}"], stride, padding), 0)
            if number in network[1]:
                outputs.append(x / (np.linalg.norm(x, axis=2, keepdims=True) + 1e-10))
        return outputs

    total = 0.0
    for number, (a, b) in enumerate(zip(features(first), features(second), strict=True)):
        linear = layers[f"NetLinLayer_{number}"]
        while isinstance(linear, dict):
            (linear,) = linear.values()
        total += ((a - b) ** 2 @ linear.reshape(-1)).mean()
    return total


@pytest.mark.parametrize(("name", "network"), [("alex", ALEXNET), ("vgg", VGG16)])
@pytest.mark.parametrize("size", [32, 64])
def test_lpips_matches_numpy(name: str, network: tuple, size: int) -> None:
    first, second = noise(2, 3, size, size), noise(2, 3, size, size, seed=1)
    second[1] = 0.8 * first[1] + 0.2 * second[1]
    with weight_path(f"lpips_{name}").open("rb") as file:
        layers = read_arrays(file)
    pairs = [[x.permute(1, 2, 0).double().numpy() for x in pair] for pair in zip(first, second, strict=True)]
    expected = [numpy_lpips(layers, network, *pair) for pair in pairs]
    np.testing.assert_allclose(LPIPS(name)(first, second), expected, rtol=1e-4)


@pytest.mark.slow
def test_fid_is_the_frechet_distance_of_two_gaussians(tmp_path: Path) -> None:
    fid = FID(random_inception(tmp_path / "inception.pth"), torch.device("cpu"))
    generated, real = noise(6, 3, 40, 30), 0.5 * noise(6, 3, 40, 30, seed=1)
    features = [fid.network((x * 255).round().byte())[0].double().numpy() for x in (generated, real)]
    found = [fid.features(x) for x in (generated, real)]
    assert all(np.array_equal(*pair) and pair[0].shape == (6, 2048) for pair in zip(found, features, strict=True))
    # of some of them: the square root of a matrix of 2048 rows takes ten seconds
    features, found = [x[:, :128] for x in features], [x[:, :128] for x in found]
    means = [x.mean(axis=0) for x in features]
    # The trace of the square root of the product of the covariances, from the 6 × 6 products of the samples.
    centred = [(x - mean) / np.sqrt(5) for x, mean in zip(features, means, strict=True)]
    root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    expected = ((means[0] - means[1]) ** 2).sum() + (centred[0] ** 2).sum() + (centred[1] ** 2).sum() - 2 * root
    assert expected > 0
    assert frechet_distance(*found) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(found[0][:1], found[1]) is None


def test_fid_runs_no_code_of_the_weight_file(tmp_path: Path) -> None:
    path, marker = tmp_path / "inception.pth", tmp_path / "marker"
    path.write_bytes(pickle.dumps({"weight": Exploit(os.system, f"touch {marker}")}))
    with pytest.raises(UserError, match=r"inception\.pth: not the Inception weights"):
        FID(path, torch.device("cpu"))
    assert not marker.exists()


def test_lpips_grows_with_the_noise(lpips_model: LPIPS) -> None:
    target = torch.linspace(0.2, 0.8, 64).expand(3, 3, 64, 64)
    strength = torch.tensor([0.0, 0.05, 0.2]).view(3, 1, 1, 1)
    distances = lpips_model(target + strength * (noise(1, 3, 64, 64) - 0.5), target)
    assert distances.shape == (3,)
    assert distances[0] == 0
    assert 0 < distances[1] < distances[2]


def test_lpips_prints_nothing_and_does_not_warn(
    capfd: pytest.CaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    LPIPS()
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)


class Exploit:
    def __init__(self, function: Any, argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, np.load])
def test_unpickler_refuses_calls(function: Any, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    argument = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w')"
    content = pickle.dumps({"kernel": Exploit(function, argument)})
    with pytest.raises(pickle.UnpicklingError, match="expected NumPy arrays only"):
        read_arrays(BytesIO(content))
    assert not marker.exists()


def test_unpickler_reads_arrays() -> None:
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = read_arrays(BytesIO(pickle.dumps({"Conv_0": {"kernel": kernel}})))
    np.testing.assert_array_equal(arrays["Conv_0"]["kernel"], kernel)


@pytest.mark.parametrize(
    "content",
    [b"", b"no pickle", pickle.dumps({}), pickle.dumps({"AlexNet_0": {"Conv_0": {"kernel": np.ones(3)}}})],
)
def test_lpips_names_a_damaged_file(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(content)
    monkeypatch.setattr(metrics, "weight_path", lambda name: path)
    with pytest.raises(UserError, match=r"alexnet\.ckpt: not the AlexNet weights"):
        LPIPS()


@pytest.fixture(scope="module")
def syncnet_v2(tmp_path_factory: pytest.TempPathFactory) -> SyncNetV2:
    path = tmp_path_factory.mktemp("lse") / "syncnet_v2.model"
    torch.save(golden_state(None, "lse_state_dict.json"), path)
    return load_syncnet_v2(path, torch.device("cpu"))


@pytest.fixture(scope="module")
def golden_track() -> tuple[np.ndarray, np.ndarray, dict[str, torch.Tensor]]:
    """Faces (60, 224, 224, 3) RGB, waveform in [-1, 1], golden values."""
    golden = golden_arrays("lse")
    faces = golden["frames_bgr_7x7"].numpy().repeat(32, axis=1).repeat(32, axis=2)[..., ::-1]
    return faces, golden["waveform"].numpy() / 32768, golden


def test_lse_matches_golden(syncnet_v2: SyncNetV2, golden_track: tuple) -> None:
    faces, waveform, golden = golden_track
    lse = lip_sync_error(syncnet_v2, faces, waveform)
    np.testing.assert_allclose(lse.distance, golden["lse_d"], rtol=1e-5)
    np.testing.assert_allclose(lse.confidence, golden["lse_c"], rtol=1e-3)
    assert lse.offset == golden["offset_frames"]
    first = torch.from_numpy(faces[:7, ..., ::-1].copy()).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        embedded = syncnet_v2.embed_faces(first)[:, :64]
    np.testing.assert_allclose(embedded, golden["video_embedding"][:3], rtol=1e-3, atol=1e-3)


def test_lse_of_shifted_embeddings() -> None:
    """Each audio embedding equals the video embedding of three frames before: distance 0 at offset 3."""

    class Clock:
        def parameters(self):
            yield torch.zeros(1)

        def embed_faces(self, frames: torch.Tensor) -> torch.Tensor:
            return self.sign(frames[:-4, 0, 0, 0].round())

        def embed_audio(self, windows: torch.Tensor) -> torch.Tensor:
            self.count = len(windows)
            return self.sign(torch.arange(len(windows)) - 3)

        def sign(self, time: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(time.long() + 5, 64).float()

    faces = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    waveform = np.random.default_rng(0).normal(0, 0.1, 50 * 640)
    network = Clock()
    lse = lip_sync_error(network, faces, waveform)
    assert network.count == 35  # five fewer than the frames, of which there are fewer than of audio
    # 32 of 35 windows match their audio; the last three meet the zero padding, at distance 1 from one-hot.
    np.testing.assert_allclose(lse.distance, 3 / 35, atol=1e-4)
    assert lse.offset == -3
    assert lse.confidence > 1


def test_lse_needs_six_frames(syncnet_v2: SyncNetV2) -> None:
    with pytest.raises(ValueError, match="at least six frames"):
        lip_sync_error(syncnet_v2, np.zeros((5, 224, 224, 3), np.uint8), np.zeros(16000))


def test_another_file_is_not_syncnet_v2(tmp_path: Path) -> None:
    path = tmp_path / "other.model"
    torch.save({"netcnnaud.0.weight": torch.zeros(64, 1, 3, 3)}, path)
    with pytest.raises(
        UserError, match=r"other\.model: not a valid checkpoint: tensors of the official SyncNet .*missing"
    ):
        load_syncnet_v2(path, torch.device("cpu"))


def test_interval_is_over_groups() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(10, 2, 20)
    names = [f"speaker {number}" for number in range(20)]
    interval = mean_interval(values, names)
    expected = scipy.stats.t(19, values.mean(), values.std(ddof=1) / np.sqrt(20)).interval(0.95)
    assert interval == pytest.approx(expected)
    # eight equal frames of each speaker carry no more information than one
    assert mean_interval(values.repeat(8), list(np.repeat(names, 8))) == pytest.approx(interval)
    assert mean_interval(values, ["one"] * 20) is None


def test_intervals_over_speakers_contain_the_true_mean_as_often_as_they_say() -> None:
    """20 speakers of 3 clips; intervals over clips miss it in more than one case of five."""
    hits = np.array(
        [
            [low <= 0 <= high for low, high in (mean_interval(values, groups) for groups in (speakers, range(60)))]
            for values, speakers in experiments([3] * 20, skewed=False, count=2000, seed=1)
        ]
    )
    over_speakers, over_clips = hits.mean(axis=0)
    assert 0.935 < over_speakers < 0.965
    assert over_clips < 0.8


def test_identity_encoder_accepts_views(portrait_clip: Path) -> None:
    """The decoder returns frames of some widths as views of wider arrays."""
    frame, points = next(read_frames(portrait_clip)), find_landmarks(portrait_clip).points[0]
    wide = np.zeros((len(frame), frame.shape[1] + 8, 3), np.uint8)
    wide[:, : frame.shape[1]] = frame
    identity = IdentityEncoder()
    embedding, view = identity(frame, points), identity(wide[:, : frame.shape[1]], points)
    np.testing.assert_array_equal(embedding, view)
    assert np.linalg.norm(embedding) == pytest.approx(1)
