"""Choice of device and precision."""

import pytest
import torch

from utils import device
from utils.device import choose_device, choose_precision, computes_like_cpu
from utils.errors import ParameterError


@pytest.mark.parametrize(("has_gpu", "kind"), [(True, "cuda"), (False, "cpu")])
def test_auto_prefers_a_gpu(monkeypatch, has_gpu, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert choose_device("auto") == torch.device(kind)


@pytest.mark.parametrize(("is_right", "kind"), [(True, "mps"), (False, "cpu")])
def test_auto_takes_an_apple_gpu_that_computes_correctly(monkeypatch, is_right, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(device, "computes_like_cpu", lambda name: is_right)
    assert choose_device("auto") == torch.device(kind)


def test_devices_are_compared_with_the_cpu(monkeypatch):
    assert computes_like_cpu("cpu")
    assert not computes_like_cpu("meta")  # which fails
    convolve, results = device.F.conv2d, iter([1.0, 0.9])  # the second differs
    monkeypatch.setattr(device.F, "conv2d", lambda *args, **kwargs: next(results) * convolve(*args, **kwargs))
    assert not computes_like_cpu("cpu")


def test_named_device():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    "name",
    ["cuda:99", "meta", "gpu", "CUDA", "", "0", "cuda:x", "xpu", "xla", "hpu", f"cuda:{10**30}", "a, b"],
)
@pytest.mark.parametrize("count", [0, 2])
def test_unknown_device_lists_those_there_are(monkeypatch, name, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ParameterError) as raised:
        choose_device(name)
    gpus = ", cuda:0, cuda:1" if count else ""
    assert str(raised.value) == f"expected auto, cpu{gpus}; found {name!r}"
    assert raised.value.parameter == "device"


def test_device_that_fails(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("CUDA error: out of memory\nmore lines")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "zeros", fail)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ParameterError, match=rf"^{name} cannot be used \(CUDA error: out of memory\)$"):
            choose_device(name)


@pytest.mark.parametrize(
    ("name", "device", "has_bf16", "precision"),
    [
        ("auto", "cuda", True, "fp16"),
        ("auto", "cpu", True, "bf16"),
        ("auto", "cpu", False, "fp32"),
        ("auto", "mps", True, "fp32"),
        ("fp32", "cuda", True, "fp32"),
    ],
)
def test_precision(monkeypatch, name, device, has_bf16, precision):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    assert choose_precision(name, torch.device(device)) == precision


def test_fp16_on_a_cpu_is_slow(monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_precision("fp16", torch.device("cpu")) == "fp16"
    (record,) = caplog.records
    assert record.getMessage() == "fp16 is slow on a CPU; auto is the fastest precision, here fp32"
    assert (record.levelname, record.parameter) == ("WARNING", "precision")
    choose_precision("fp16", torch.device("cuda"))
    choose_precision("bf16", torch.device("cpu"))
    choose_precision("auto", torch.device("cpu"))
    assert len(caplog.records) == 1
