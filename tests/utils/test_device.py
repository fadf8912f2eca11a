"""Choice of device and precision."""

import pytest
import torch

from utils.device import choose_device, choose_precision, limit_malloc_arenas
from utils.errors import ParameterError


@pytest.mark.parametrize(("has_gpu", "kind"), [(True, "cuda"), (False, "cpu")])
def test_auto_prefers_a_gpu(monkeypatch, has_gpu, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert choose_device("auto") == torch.device(kind)


def test_named_device():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "meta", "nonsense"])
def test_device_that_is_not_available(name):
    with pytest.raises(ParameterError, match=f"^{name} is not available \\(.+\\)$") as raised:
        choose_device(name)
    assert raised.value.parameter == "device"
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "device", "has_bf16", "precision"),
    [
        ("auto", "cuda", True, "fp16"),
        ("auto", "cpu", True, "bf16"),
        ("auto", "cpu", False, "fp32"),
        ("fp32", "cuda", True, "fp32"),
    ],
)
def test_precision(monkeypatch, name, device, has_bf16, precision):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    assert choose_precision(name, torch.device(device)) == precision


def test_limit_malloc_arenas_can_be_called_repeatedly():
    limit_malloc_arenas()
    limit_malloc_arenas()
