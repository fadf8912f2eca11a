"""The device and the precision in which networks compute."""

import ctypes
from contextlib import suppress

import torch

from utils.errors import ParameterError

M_ARENA_MAX = -8  # from malloc.h


def limit_malloc_arenas() -> None:
    """Make all threads allocate from one heap (glibc only). Call it before any thread starts.

    With one heap per thread, memory that one thread frees cannot be reused by another: a dub takes 10 % more.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def choose_device(name: str) -> torch.device:
    """The torch device `name`; "auto" is the GPU if there is one, else the CPU.

    Raises:
        ParameterError: the device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device without data, such as meta, fails here
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ParameterError("device", f"{name} is not available ({str(error).splitlines()[0]})") from None
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """The precision `name`; "auto" is fp16 on a GPU, bf16 on CPUs with AVX-512 BF16 instructions, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
