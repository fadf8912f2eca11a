"""Where and how exactly the networks compute, as the command lines name it."""

import ctypes
from contextlib import suppress

import torch

from utils.errors import UserError

M_ARENA_MAX = -8  # as malloc.h has it


def limit_malloc_arenas() -> None:
    """Have threads take memory from one heap, before any is started. (glibc; elsewhere nothing happens.)

    With a heap for each, what one thread gives back another cannot take: a dub takes a tenth more.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def choose_device(name: str) -> torch.device:
    """`--device`: a torch device that is there; auto prefers a GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device without data, such as meta, fails here
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(f"--device {name}: not available here ({str(error).splitlines()[0]})") from None
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """`--precision`: auto is fp16 on a GPU, bf16 on processors with instructions for it, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
