"""The device and the precision in which networks compute."""

import logging

import torch
import torch.nn.functional as F

from utils.errors import ParameterError

logger = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """The torch device `name`; "auto" is the GPU if there is one, else the CPU.

    An Apple GPU is taken by "auto" if it computes correctly.

    Raises:
        ParameterError: the device is not available.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() and computes_like_cpu("mps") else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device without data, such as meta, fails here
    except (RuntimeError, AssertionError, ImportError) as error:
        gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        gpus += ["mps"] if torch.backends.mps.is_available() else []
        if name in gpus or (name == "cuda" and gpus):
            raise ParameterError("device", f"{name} cannot be used ({str(error).splitlines()[0]})") from None
        raise ParameterError("device", f"expected {', '.join(['auto', 'cpu', *gpus])}; found {name!r}") from None
    return device


def computes_like_cpu(device: str) -> bool:
    """Whether a device warps and convolves, which is what generators do, and with the same result as the CPU."""
    features = torch.linspace(0, 50, 1024).sin().view(1, 4, 16, 16)
    grid = torch.linspace(0, 50, 512).sin().view(1, 16, 16, 2)
    kernel = torch.linspace(-1, 1, 144).view(4, 4, 3, 3)

    def compute(device: str) -> torch.Tensor:
        warped = F.grid_sample(features.to(device), grid.to(device), align_corners=False)
        return F.conv2d(warped, kernel.to(device), padding=1).cpu()

    try:
        return torch.allclose(compute(device), compute("cpu"), atol=1e-3)
    except (RuntimeError, AssertionError):  # without drivers, or without one of the operations
        return False


def choose_precision(name: str, device: torch.device) -> str:
    """The precision `name`; "auto" is fp16 on a GPU, bf16 on CPUs with AVX-512 BF16 instructions, else fp32.

    A warning is logged for fp16 on a CPU, which computes it slowly.
    """
    if name != "auto":
        if name == "fp16" and device.type == "cpu":
            message = "fp16 is slow on a CPU; auto is the fastest precision, here %s"
            logger.warning(message, choose_precision("auto", device), extra={"parameter": "precision"})
        return name
    if device.type == "cuda":
        return "fp16"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"
